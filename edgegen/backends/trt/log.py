"""What TensorRT says while it works: collected, and turned into one error that a user can act on.

TensorRT reports by its logger and returns False or None: whoever does not listen learns nothing.
"""

import logging
import threading
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from edgegen.errors import BackendError

_log = logging.getLogger("edgegen")

_ERRORS = ("INTERNAL_ERROR", "ERROR")
_KEPT = (*_ERRORS, "WARNING")
_MAX_KEPT = 1000  # messages: a session that lives for weeks must not grow
_MAX_CHARACTERS = 600  # of one error
_MEMORY = ("out of memory", "outofmemory", "could not allocate", "memory allocation", "insufficient memory", "mem_alloc")
_UNUSED = "Unused Input"


class Log:
    """The warnings and errors of one build or session, said while it is entered. `logger` is what the library is given.

    The library takes one logger for the whole process, and ignores any other as long as a builder or runtime lives. So there
    is one, and it passes a message on to the log that its thread has entered; one of a thread of the library's own goes to
    every log that is entered somewhere.
    """

    def __init__(self, trt: Any) -> None:
        self._lock = threading.Lock()
        self._entries: list[tuple[str, str]] = []
        self._router = _router_of(trt)
        self.logger: Any = self._router.native

    def __enter__(self) -> "Log":
        self._router.enter(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._router.leave(self)

    def add(self, severity: str, message: str) -> None:
        """Keep a message that matters."""
        if severity not in _KEPT:
            return
        with self._lock:
            if len(self._entries) < _MAX_KEPT:
                self._entries.append((severity, _one_line(message)))

    def clear(self) -> None:
        """Forget what was said before."""
        with self._lock:
            self._entries.clear()

    def errors(self) -> list[str]:
        """The errors, each once."""
        return list(dict.fromkeys(message for severity, message in self._taken() if severity in _ERRORS))

    def unused_inputs(self) -> list[str]:
        """The names of tensors that the parser has dropped: it warns, and goes on with another model than was given."""
        warnings = (message for severity, message in self._taken() if severity == "WARNING" and _UNUSED in message)
        return list(dict.fromkeys(message.partition(_UNUSED)[2].strip(" :'\"") for message in warnings))

    def failure(self, what: str, cure: str = "") -> BackendError:
        """An error of one line: what failed, what the library said of it, and what to do."""
        said = "; ".join(self.errors()) or "it gives no reason"
        if any(word in said.lower() for word in _MEMORY):
            what += " (out of memory)"
            cure = "free memory, or ask for less: a shorter context (cache), a shorter prefill, a smaller workspace or batch"
        return BackendError(f"{what}: {shortened(said)}" + (f"; {cure}" if cure else ""))

    def _taken(self) -> Iterator[tuple[str, str]]:
        with self._lock:
            return iter(list(self._entries))


def parser_errors(parser: Any) -> list[str]:
    """Every error of an ONNX parser, with its node and operator where the library tells them."""
    return [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]


def shortened(text: str) -> str:
    """What a library says, no longer than a user reads."""
    return text if len(text) <= _MAX_CHARACTERS else text[: _MAX_CHARACTERS - 3] + "..."


def _parser_error(error: Any) -> str:
    name, operator = (str(getattr(error, part)()) if hasattr(error, part) else "" for part in ("node_name", "node_operator"))
    where = f"node {name!r} ({operator}): " if name and operator else f"operator {operator}: " if operator else ""
    said = _one_line(str(error.desc()))
    return where + ("it does not support this operator" if said == "false" else said)  # "false": the check that failed


def _one_line(message: str) -> str:
    return " ".join(message.split())


class _Router:
    """The library's one logger: it finds out whose a message is. Called from several threads, and never raises."""

    def __init__(self, trt: Any) -> None:
        self._lock = threading.Lock()
        self._entered: list[Log] = []  # by any thread
        self._here = threading.local()
        self.native = _logger(trt, self)

    def enter(self, log: Log) -> None:
        with self._lock:
            self._entered.append(log)
        self._stack().append(log)

    def leave(self, log: Log) -> None:
        self._stack().pop()
        with self._lock:
            self._entered.remove(log)

    def tell(self, severity: str, message: str) -> None:
        _log.debug("TensorRT %s: %s", severity, message)
        with self._lock:
            stack = self._stack()
            listening = stack[-1:] or list(dict.fromkeys(self._entered))
        for log in listening:
            log.add(severity, message)

    def _stack(self) -> list[Log]:
        stack: list[Log] = self._here.__dict__.setdefault("stack", [])
        return stack


_routers: "weakref.WeakKeyDictionary[Any, _Router]" = weakref.WeakKeyDictionary()  # by module
_routers_lock = threading.Lock()


def _router_of(trt: Any) -> _Router:
    with _routers_lock:
        return _routers.setdefault(trt, _routers.get(trt) or _Router(trt))


def _logger(trt: Any, router: _Router) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # the base comes with the module
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            router.tell(severity.name, msg)

    return Logger()
