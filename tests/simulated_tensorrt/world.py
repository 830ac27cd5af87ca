"""What the classes of one simulated library share: its version, its machine, its logger, and what is to go wrong."""

import weakref
from dataclasses import dataclass, field
from typing import Any

from simulated_tensorrt.cuda_runtime import Cuda


@dataclass
class Faults:
    """What is to go wrong; each stays until it is taken back.

    Attributes:
        build: the error that a build ends with.
        deserialize: whether no engine can be read.
        context: whether no context can be made.
        execute: whether every execution fails, and `says` what it says then.
        executions_before_failure: how many executions succeed before `execute` counts.
    """

    build: str | None = None
    deserialize: bool = False
    context: bool = False
    execute: bool = False
    says: str = "an injected failure"
    executions_before_failure: int = 0


@dataclass
class World:
    """`trt` is the module itself, whose enumerations the classes use."""

    preset: str
    cuda: Cuda
    faults: Faults
    trt: Any = None
    logger: Any = None
    users: "weakref.WeakSet[Any]" = field(default_factory=weakref.WeakSet)  # builders and runtimes, which hold the logger

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT-RTX."""
        return self.preset == "rtx"

    def register(self, user: Any, logger: Any) -> None:
        """A builder or runtime is made. As in the real library, the first logger stays as long as any of them lives."""
        if len(self.users) and self.logger is not logger:
            self.log("WARNING", "The logger passed in differs from one already registered; the new logger is ignored.")
        else:
            self.logger = logger
        self.users.add(user)

    def log(self, severity: str, message: str) -> None:
        """Tell the registered logger."""
        self.logger.log(getattr(self.trt.ILogger.Severity, severity), message)

    def fail(self, message: str) -> None:
        """Log an error; what is returned is what the library gives then."""
        self.log("ERROR", message)
