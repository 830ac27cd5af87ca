"""From a checked graph to a session: the engine is built, then opened, on the GPU of this machine."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from edgegen.backends.trt.build import build_engine
from edgegen.backends.trt.cuda import Cuda, Gpu, load_runtime
from edgegen.backends.trt.engine import RunOptions
from edgegen.backends.trt.flavours import FLAVOURS, Flavour
from edgegen.backends.trt.profiles import BuildOptions
from edgegen.backends.trt.session import TrtSession
from edgegen.bundle import GraphFiles
from edgegen.errors import BackendError
from edgegen.graphs.walk import Content, ExternalTensor
from edgegen.manifest import Variant
from edgegen.tensors import Axis

_log = logging.getLogger("edgegen")


class Start(Protocol):
    """Makes a session of an engine; `kernels` is a file for what TensorRT-RTX compiles while it runs."""

    def __call__(self, engine: bytes, options: BuildOptions, kernels: Path | None = None) -> TrtSession:
        """`options`: what the engine was built for."""


Engines = Callable[[Flavour, BuildOptions | None, Gpu, Start], TrtSession]


def open_tensorrt(
    model: bytes, weights: Mapping[str, Content], variant: Variant, axes: Mapping[str, Axis], **options: Any
) -> TrtSession:
    """A session on TensorRT: see `open_on`."""
    return open_on(FLAVOURS["tensorrt"], model, weights, variant, axes, **options)


def open_tensorrt_rtx(
    model: bytes, weights: Mapping[str, Content], variant: Variant, axes: Mapping[str, Axis], **options: Any
) -> TrtSession:
    """A session on TensorRT-RTX: see `open_on`."""
    return open_on(FLAVOURS["tensorrt-rtx"], model, weights, variant, axes, **options)


def open_on(
    flavour: Flavour,
    model: bytes,
    weights: Mapping[str, Content],
    variant: Variant,
    axes: Mapping[str, Axis],
    *,
    external: Sequence[ExternalTensor] = (),
    folder: Path | None = None,
    threads: int | None = None,  # noqa: ARG001  # every backend is opened alike; the CPU only hands out work here
    device: int = 0,
    build: BuildOptions | None = None,
    run: RunOptions | None = None,
    engines: Engines | None = None,
) -> TrtSession:
    """Build a graph's engine, or take it from the cache, and open it.

    Args:
        flavour: the library.
        model: the serialized ONNX graph.
        weights: the content of each external-data file, by the name the graph refers to.
        variant: what the manifest says of the graph.
        axes: the ranges of the named axes.
        external: where the tensors lie in `weights`.
        folder: where the same weights lie as files; never read.
        threads: not used.
        device: the GPU's number.
        build: what the engine is for; where nobody says, that is for `engines` to choose.
        run: how it is run.
        engines: where engines are kept, and built; where nobody says, this process builds one and keeps it to itself.

    Raises:
        BackendError: no library, no GPU, or it refuses the graph.
        InputError: an option that cannot be.
    """
    flavour.load()  # a missing library is said before a missing GPU
    views = {name: memoryview(content) for name, content in weights.items()}
    files = GraphFiles(model, views, variant, axes, tuple(external), folder)
    gpu = gpu_of(flavour, device)

    def start(engine: bytes, options: BuildOptions, kernels: Path | None = None) -> TrtSession:
        told = RunOptions(runtime_cache=kernels) if run is None else run
        return TrtSession(engine, flavour, files, options, device=device, run=told)

    if engines is not None:
        return engines(flavour, build, gpu, start)
    options = for_gpu(flavour, build or BuildOptions(), gpu)
    _log.info("%s: the engine of %s is being built", flavour.name, variant.path)
    Cuda(load_runtime(), device).use()  # TensorRT builds on, and for, the device of this thread
    return start(build_engine(flavour, files, options), options)


def gpu_of(flavour: Flavour, device: int) -> Gpu:
    """The GPU that is to run an engine. BackendError, which says what works without one, where there is none."""
    try:
        return Cuda(load_runtime(), device).gpu()
    except BackendError as error:
        ahead = "; engines can be built here all the same: edgegen build" if flavour.name == "tensorrt-rtx" else ""
        raise BackendError(
            f"backend {flavour.name!r} runs on an NVIDIA GPU, and none can be used here ({error}){ahead}; "
            "run the bundle on onnxruntime"
        ) from error


def for_gpu(flavour: Flavour, options: BuildOptions, gpu: Gpu) -> BuildOptions:
    """The options with this GPU's compute capability, where the library wants to be told and the options leave it open."""
    if options.compute_capabilities or flavour.capabilities() is None:
        return options
    return dataclasses.replace(options, compute_capabilities=(gpu.sm,))
