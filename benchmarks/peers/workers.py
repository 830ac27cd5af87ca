"""The benchmark's side of its workers: start one, ask it, end it. Only one of them works at any time."""

import contextlib
import json
import os
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
_ENVIRONMENT = {"ORT_DISABLE_TELEMETRY": "1", "GGML_NO_BACKTRACE": "1", "PYTHONPATH": str(HERE)}


class WorkerError(RuntimeError):
    """A worker ended; the last line that it wrote says why."""


class Worker:
    """One engine in a process of its own, which keeps its model between requests.

    Args:
        name: of the engine, in every table.
        python: the interpreter that has the engine's library.
        script: a file of this folder, or its path; it finds `protocol` either way.
        settings: for its `Engine`.
        environment: variables that it gets beside ours.
    """

    def __init__(self, name, python, script, settings, environment=None):
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 -- open as long as the worker; an unread pipe would fill up
        self._process = subprocess.Popen(
            [str(python), str(HERE / script), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            env=os.environ | _ENVIRONMENT | (environment or {}),
        )
        try:
            self.facts = self._answer()
        except BaseException:
            self.close()
            raise

    def request(self, **request):
        """Send one request and wait for its answer."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    @property
    def is_alive(self):
        """Whether its process is still there."""
        return self._process.poll() is None

    def close(self):
        """End the process: by the end of its stdin, and where that does not help, by force."""
        with contextlib.suppress(BrokenPipeError):  # it has died, and what was asked last is still in the pipe
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _answer(self):
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines() or ["no message"]
        why = next((line for line in said if "GGML_ASSERT" in line), said[-1])
        raise WorkerError(f"{self.name} ended with status {self._process.returncode}: {why}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
