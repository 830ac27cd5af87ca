"""The kernels that TensorRT-RTX compiles while it runs, kept in a file for the next process."""

import contextlib
import os
import secrets
from pathlib import Path
from typing import Any

_MAX_BYTES = 1 << 30


class RuntimeCache:
    """A runtime cache that is read from a file, and written back when the session closes.

    The library itself refuses content of another version, GPU or driver: the cache is cold then. `state` is "hot" or "cold",
    as it was found.
    """

    def __init__(self, config: Any, path: Path) -> None:
        self._path = path
        self._native = config.create_runtime_cache()
        content = _read(path)
        self.state = "hot" if content and self._native.deserialize(content) else "cold"
        config.set_runtime_cache(self._native)

    def save(self) -> None:
        """Write the file, whole or not at all. A folder that takes none is no error: the next process compiles again."""
        content = self._native.serialize()
        if content is None:
            return
        partial = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}.partial")
        with contextlib.suppress(OSError):
            try:
                descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(bytes(content))
                partial.replace(self._path)
            finally:
                partial.unlink(missing_ok=True)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes() if path.stat().st_size <= _MAX_BYTES else None
    except OSError:
        return None
