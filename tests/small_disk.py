"""A file system that is soon full."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    """Mount one on the folder `place`; skips where that takes rights that this user does not have."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
        pytest.skip("mounting a small file system takes rights that this user does not have")
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)
