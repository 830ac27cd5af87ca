"""How an ONNX Runtime session comes to be: its options, whose kernels it runs, where its weights lie, and its signature."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgegen.backends.memory import give_back, pages_let_go
from edgegen.backends.ort.failures import ERRORS, backend_error
from edgegen.backends.ort.kernel_nodes import exchange
from edgegen.backends.ort.kernels import Kernels, kernels
from edgegen.backends.ort.providers import CPU, start
from edgegen.errors import BackendError
from edgegen.graphs.walk import Content, ExternalTensor
from edgegen.manifest import Variant
from edgegen.tensors import Tensor

_log = logging.getLogger("edgegen")

_ONLY_ERRORS = 3  # ONNX Runtime's log severities: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal
_DTYPES = {"float": "float32", "double": "float64"}  # ONNX Runtime's other names are numpy's


def session_options(
    threads: int,
    config: Mapping[str, str],
    *,
    stateful: bool,
    fixed: Mapping[str, int] | None = None,
    kernels: Kernels | None = None,
) -> Any:
    """The options of a session: `fixed` axes have one size from the beginning, `kernels` are edgegen's own."""
    options = ort.SessionOptions()
    if kernels is not None:
        options.register_custom_ops_library(str(kernels.path))
    options.log_severity_level = _ONLY_ERRORS
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A memory pattern is kept for each shape that was ever fed, and a growing attention mask brings a new one at each step.
    options.enable_mem_pattern = not stateful
    for axis, size in (fixed or {}).items():
        options.add_free_dimension_override_by_name(axis, size)
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    return options


def with_kernels(
    create: Callable[[bytes, Callable[[], Any]], tuple[Any, Sequence[Any]]],
    model: bytes,
    options: Callable[..., Any],
    variant: Variant,
    provider: str,
) -> tuple[Any, Sequence[Any], str]:
    """A session with edgegen's kernels where they can take a node of the graph, else as the graph is; and whose they are."""
    own = kernels() if provider == CPU else None
    if own is not None:
        last_axes = {spec.name: spec.axes[-1] for spec in variant.inputs if spec.dtype == "float32" and spec.axes}
        changed, count = exchange(model, {name: size for name, size in last_axes.items() if isinstance(size, int)})
        if count:
            try:
                return *create(changed, functools.partial(options, kernels=own)), own.instructions
            except BackendError as error:
                _log.info("%s runs without edgegen's kernels: %s", variant.path, error)
    return *create(model, options), ""


def create(
    weights: Mapping[str, Content],
    external: Sequence[ExternalTensor],
    folder: Path | None,
    provider: str,
    provider_options: Mapping[str, str],
    device: int,
    path: str,
    model: bytes,
    options: Callable[[], Any],
) -> tuple[Any, Sequence[Any]]:
    """A session, and the values that it reads where they are: they must live as long as it does."""
    try:
        with pages_let_go(weights.values()):
            if provider == CPU and folder and external and all(tensor.name and tensor.dtype for tensor in external):
                try:
                    return _create_in_place(model, weights, external, folder, options())
                except ERRORS as error:
                    _log.info("%s: its weights are copied, for in place onnxruntime says: %s", path, error)
            return _with_copies(weights, options(), model, provider, provider_options, device), ()
    except ERRORS as error:
        raise backend_error(f"onnxruntime {ort.__version__} refuses {path}", error) from error
    finally:
        give_back()


def _create_in_place(
    model: bytes, weights: Mapping[str, Content], external: Sequence[ExternalTensor], folder: Path, options: Any
) -> tuple[Any, Sequence[Any]]:
    """A session on the CPU whose kernels read, and pack, the bytes of `weights` themselves.

    ONNX Runtime has several ways to take weights from memory, and copies in all but this one: initializers shared among
    sessions. It wants to see the files that the graph names all the same, and an optimizer that folds a weight reads them.
    """
    values = {
        str(tensor.name): ort.OrtValue.ortvalue_from_numpy(_array(weights[tensor.location], tensor)) for tensor in external
    }
    for name, value in values.items():
        options.add_initializer(name, value)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return start(model, options, CPU, {}), list(values.values())


def _with_copies(weights: Mapping[str, Content], options: Any, model: bytes, provider: str, *told: Any) -> Any:
    """A session that copies the weights; `told` is what `start` wants beside."""
    if weights and not hasattr(options, "add_external_initializers_from_files_in_memory"):
        raise BackendError(f"onnxruntime {ort.__version__} cannot take these weights from memory; install 1.24 or newer")
    if weights:
        sizes = [memoryview(content).nbytes for content in weights.values()]
        options.add_external_initializers_from_files_in_memory(list(weights), list(weights.values()), sizes)
    return start(model, options, provider, *told)


def _array(content: Content, tensor: ExternalTensor) -> Tensor:
    array: Tensor = np.ndarray(tensor.shape, tensor.dtype, content, tensor.offset)
    return array if array.flags.aligned else array.copy()


def check_signature(session: Any, variant: Variant) -> frozenset[str]:
    """Hold the graph to what the manifest says of it; return the inputs that have a default.

    Raises BackendError where names, dtypes or ranks differ: a feed that fits the manifest would not fit the graph.
    """
    optional = session.get_overridable_initializers()
    for kind, specs, nodes in (
        ("inputs", variant.inputs, [*session.get_inputs(), *optional]),
        ("outputs", variant.outputs, session.get_outputs()),
    ):
        said = {spec.name: (spec.dtype, len(spec.axes)) for spec in specs}
        real = {node.name: (_dtype(node.type), len(node.shape)) for node in nodes}
        if said != real:
            names = sorted(name for name in said.keys() | real.keys() if said.get(name) != real.get(name))
            raise BackendError(f"{variant.path}: {kind} {names} differ from the manifest's; export the bundle again")
    return frozenset(node.name for node in optional)


def _dtype(name: str) -> str:
    inner = name.removeprefix("tensor(").removesuffix(")")
    return _DTYPES.get(inner, inner)
