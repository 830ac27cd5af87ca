"""Offline, proven: generation that opens no socket and writes no file, watched from Python and from the kernel.

`check_offline` runs a generation in a fresh process with an empty home directory. There, Python's audit events name each
socket and each file opened for writing; the kernel kills the process if native code does either (see `edgegen.confine`);
and whatever lies in its directories afterwards is listed.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgegen import confine
from edgegen.errors import OfflineError

_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_HOMES = ("HOME", "TMPDIR", "XDG_CACHE_HOME")


class _Watch:
    """What the audit hook does. Python cannot take a hook away again, so there is one, with a switch."""

    def __init__(self) -> None:
        self.denying = 0
        self.recording = False
        self.lock = threading.Lock()
        self.installed = False

    def install(self) -> None:
        with self.lock:
            if not self.installed:
                sys.addaudithook(self.hook)
                self.installed = True

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event.startswith("socket.") and (self.denying or self.recording):
            if self.recording:
                _say("socket", f"{event} {args[1:]}")
            raise OfflineError(f"{event} {args[1:]} was tried while sockets are denied; generation needs none")
        if event == "open" and self.recording and isinstance(args[2], int) and args[2] & _WRITE_FLAGS:
            path = args[0]
            if not isinstance(path, int) and os.fspath(path) != os.devnull:
                _say("file", os.fsdecode(path))


_WATCH = _Watch()


@contextlib.contextmanager
def deny_sockets() -> Iterator[None]:
    """Every Python call of this process that makes or uses a socket raises OfflineError, in every thread.

    Native code is not stopped: `check_offline` covers it, in a process of its own.
    """
    _WATCH.install()
    with _WATCH.lock:
        _WATCH.denying += 1
    try:
        yield
    finally:
        with _WATCH.lock:
            _WATCH.denying -= 1


@dataclasses.dataclass(frozen=True)
class OfflineReport:
    """What was seen. `sockets`, `files` and `failure` are the charges; `evidence` says what was watched, and how."""

    passed: bool
    sockets: tuple[str, ...]
    files: tuple[str, ...]
    failure: str
    evidence: tuple[str, ...]
    output: str

    def lines(self) -> list[str]:
        """For people: the verdict, the charges, then the evidence."""
        charges = [f"socket: {what}" for what in self.sockets] + [f"file written: {what}" for what in self.files]
        charges += [f"failed: {self.failure}"] * bool(self.failure)
        verdict = "offline: nothing opened a socket or wrote a file" if self.passed else "offline: NOT proven"
        return [verdict, *charges, *self.evidence]

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return dataclasses.asdict(self)


def check_offline(
    bundle: str | os.PathLike[str],
    prompt: str = "The capital of France is",
    *,
    max_new_tokens: int = 8,
    backend: str = "auto",
    timeout_s: float = 600.0,
) -> OfflineReport:
    """Load `bundle` and generate in a watched process; ORT_DISABLE_TELEMETRY is not given to it: edgegen must set it itself.

    Raises BundleError where there is no bundle to try.
    """
    from edgegen.bundle import Bundle  # not above: what the watched process imports, it imports under watch

    Bundle.open(bundle).close()
    arguments = [str(Path(bundle).resolve()), prompt, max_new_tokens, backend]
    return watch("edgegen.offline:generate_once", arguments, timeout_s=timeout_s)


def generate_once(bundle: str, prompt: str, max_new_tokens: int, backend: str) -> str:
    """Load, generate, close: what `check_offline` watches. Returns the text."""
    from edgegen.backends import choose
    from edgegen.runtime import load

    # Engines are built by another process, into a cache: that is not what is asked here.
    with load(bundle, choose(backend, engines=False)) as pipeline:
        return str(pipeline.generate(prompt, max_new_tokens=max_new_tokens, temperature=0.0).text)


def watch(
    target: str, arguments: list[Any], *, timeout_s: float = 600.0, environment: Mapping[str, str] | None = None
) -> OfflineReport:
    """Call a function in a fresh, watched process.

    Args:
        target: "module:function"; it is imported under watch.
        arguments: for the function; JSON.
        timeout_s: after this the process is killed, and the report says so.
        environment: variables to add, e.g. PYTHONPATH.

    Returns:
        The report; it has failed, too, if the function raised.
    """
    with tempfile.TemporaryDirectory(prefix="edgegen-offline-") as scratch:
        root = Path(scratch).resolve()
        variables = _environment(root) | dict(environment or {})
        command = [sys.executable, "-B", "-m", "edgegen.offline", target, json.dumps(arguments)]
        try:
            done = subprocess.run(  # noqa: S603 -- our own interpreter and module
                command, capture_output=True, text=True, cwd=root / "cwd", env=variables, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            return OfflineReport(False, (), tuple(_left_in(root)), f"no end within {timeout_s:g} s", (), "")
        return _report(done, _left_in(root))


def _environment(root: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_"))}
    for name in (*_HOMES, "cwd"):
        (root / name).mkdir()
    package = str(Path(__file__).resolve().parent.parent)  # a checkout that is not installed is found from elsewhere, too
    paths = [package, *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {name: str(root / name) for name in _HOMES} | {"PYTHONPATH": os.pathsep.join(paths)}


def _left_in(root: Path) -> list[str]:
    """What lies in the process's directories afterwards, edgegen's own cache aside."""
    cache = root / "XDG_CACHE_HOME" / "edgegen"
    found = (path for path in sorted(root.rglob("*")) if path.parent != root and path != cache and cache not in path.parents)
    return [str(path.relative_to(root)) for path in found if not path.is_dir() or not any(path.iterdir())]


def _report(done: "subprocess.CompletedProcess[str]", left: list[str]) -> OfflineReport:
    said: dict[str, list[str]] = {"socket": [], "file": [], "evidence": [], "output": []}
    for line in done.stdout.splitlines():
        kind, _, text = line.partition(" ")
        if kind in said:
            said[kind].append(json.loads(text))
    failure = ""
    if done.returncode == -signal.SIGSYS:
        said["socket"].append("native code asked for a socket; the kernel stopped it (SIGSYS)")
    elif done.returncode == -signal.SIGXFSZ:
        said["file"].append("a write to a file; the kernel stopped it (SIGXFSZ)")
    elif done.returncode != 0 or not said["output"]:
        last = done.stderr.strip().splitlines()[-1:] or ["without a word"]
        failure = f"the watched process ended with {done.returncode}: {last[0]}"
    files = [*said["file"], *left]
    evidence = (
        *said["evidence"],
        f"left in its home, temporary, cache and working directories: {', '.join(left) or 'nothing'}",
    )
    passed = not (said["socket"] or files or failure)
    return OfflineReport(passed, tuple(said["socket"]), tuple(files), failure, evidence, "".join(said["output"]))


def _say(kind: str, text: str) -> None:
    # Unbuffered and at once: the kernel may end this process with the next instruction.
    os.write(1, f"{kind} {json.dumps(text)}\n".encode())


def _open_descriptors() -> None:
    """Charge what is still open at the end: sockets, and files open for writing."""
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        return
    for entry in list(folder.iterdir()):
        try:
            target = str(entry.readlink())
            flags = int((folder.parent / "fdinfo" / entry.name).read_text(encoding="ascii").split("flags:")[1].split()[0], 8)
        except OSError:  # the descriptor with which the folder itself was read
            continue
        if target.startswith("socket:"):
            _say("socket", f"{target} is open at the end")
        elif target.startswith("/") and not target.startswith("/dev/") and flags & (os.O_WRONLY | os.O_RDWR):
            _say("file", f"{target} is open for writing at the end")
    _say("evidence", "open descriptors at the end: looked through")
    _say("evidence", f"threads at the end: {len(list(Path('/proc/self/task').iterdir()))}")


def _main(target: str, arguments: str) -> None:
    """The watched process: shut the doors, call, look around, tell."""
    module, _, function = target.partition(":")
    _WATCH.install()
    _WATCH.recording = True
    _say("evidence", "Python's audit events for sockets and for files opened to write: watched")
    kernel = "stopped by the kernel" if confine.kill_on_socket() else "not stopped by the kernel on this system"
    _say("evidence", f"sockets from native code: {kernel}")
    kernel = "stopped by the kernel" if confine.kill_on_write() else "not stopped by the kernel on this system"
    _say("evidence", f"writes to files from native code: {kernel}")
    try:
        output = getattr(importlib.import_module(module), function)(*json.loads(arguments))
        _say("output", str(output))
    finally:  # an exception ends the process, and its last line on stderr is the failure
        _open_descriptors()


if __name__ == "__main__":
    _main(*sys.argv[1:])
