"""What a service manager does to a command: SIGTERM."""

import signal
import subprocess
import sys

CODE = """
import os, signal, sys
from pathlib import Path
from click.testing import CliRunner
from edgegen.bundle import BundleWriter
from edgegen.cli.main import main

CliRunner().invoke(main, ["inspect", "nowhere"])
with BundleWriter(Path(sys.argv[1]) / "x.bundle") as writer:
    (writer.directory / "half").write_text("made")
    os.kill(os.getpid(), signal.SIGTERM)
"""


def test_sigterm_ends_a_command_with_nothing_left_behind(tmp_path):
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], check=False, capture_output=True, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
