"""The command line: one file for each command, light until a command runs."""
