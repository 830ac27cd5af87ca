"""`python -m edgegen`: the same as the command `edgegen`, where scripts are not on the path."""

from edgegen.cli.main import main

if __name__ == "__main__":
    main(prog_name="edgegen")
