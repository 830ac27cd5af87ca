"""Makers of engines for the builder's process: what they do, the graph's options say."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def make(flavour, files, options, progress):
    """An engine of a few bytes that says what it was made of; every call leaves a mark in the folder `options["marks"]`."""
    if "marks" in options:
        Path(options["marks"], str(os.getpid())).touch()
    assert progress("parse", 1, 2)
    sys.stdout.write("a library that prints where it should not\n")
    sys.stdout.flush()
    how = options.get("how", "well")
    behave(how)
    return b"vtrt" + f" {flavour} {files.variant.path} {len(files.model)}".encode() + bytes((how == "large") << 20)


def behave(how):
    if how == "slowly":
        time.sleep(0.5)
    elif how == "for ever":
        sys.stderr.write("building")
        time.sleep(600)
    elif how == "with a child":
        subprocess.run(["sleep", "600"], check=False)
    elif how == "out of memory":
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does
    elif how == "crash":
        os.write(2, b"terminate called after throwing an instance of 'std::bad_cast'\n")
        os.abort()
    elif how == "refuse":
        from edgegen.errors import BackendError

        raise BackendError("node 'x' (Foo): no such operator")
    elif how == "bug":
        raise ZeroDivisionError("division by zero")
    elif how == "interrupted":
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(600)
