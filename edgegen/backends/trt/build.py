"""From a graph to a serialized engine: parsed from memory, strongly typed, for the shapes of `profiles.plan`.

What is parsed are the very bytes whose digests were checked, never a path: TensorRT's parser follows links out of a folder.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgegen.backends.trt.flavours import Flavour
from edgegen.backends.trt.log import Log, parser_errors, shortened
from edgegen.backends.trt.profiles import BuildOptions, Plan, Profile, plan
from edgegen.backends.trt.progress import Progress, Watch, monitor
from edgegen.devices.precisions import NEW_OPERATORS
from edgegen.errors import BackendError
from edgegen.graphs.edit import check_named, content_of, with_sizes, with_weights, without_defaults
from edgegen.graphs.nodes import read

if TYPE_CHECKING:
    from edgegen.bundle import GraphFiles

__all__ = ["BuildOptions", "Progress", "build_engine"]

_ALIGNMENT = 16  # bytes: the widest value that a parser may read at once


def build_engine(flavour: Flavour, files: "GraphFiles", options: BuildOptions, *, progress: Progress | None = None) -> bytes:
    """Build the engine of a graph variant. TensorRT needs the GPU that it is for; TensorRT-RTX needs none.

    Args:
        flavour: the library.
        files: the graph, checked (`Bundle.graph`).
        options: what it is built for.
        progress: called while the library works, from its threads; a build ends early where it returns False.

    Raises:
        BackendError: the library is missing, refuses the graph or the compute capabilities, or fails; one line that says why.
        InputError: an option is out of the range that was exported.
    """
    trt = flavour.load()
    what = f"{flavour.name} {flavour.version()} cannot build {files.variant.path}"
    todo = plan(files.variant, files.axes, options)
    with Log(trt) as log:
        return _build(flavour, log, files, options, todo, what, progress)


def _build(
    flavour: Flavour, log: Log, files: "GraphFiles", options: BuildOptions, todo: Plan, what: str, progress: Progress | None
) -> bytes:
    trt: Any = flavour.load()
    builder = _builder(trt, log, what)
    config = _config(flavour, builder, options, what)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)  # its number differs between versions
    network = builder.create_network(typed)
    alive = _parse(trt, network, log, files, todo, what)
    _check_inputs(network, files, what)
    _make_decomposable(trt, network)
    for profile in todo.profiles:
        if config.add_optimization_profile(_native_profile(builder, network, files, todo, profile)) < 0:
            raise log.failure(f"{what}: profile {profile} is refused")
    watch = None if progress is None else Watch(progress)
    watching = None if watch is None or not hasattr(config, "progress_monitor") else monitor(trt, watch)
    if watching is not None:
        config.progress_monitor = watching
    engine = builder.build_serialized_network(network, config)
    alive.clear()
    if engine is None:
        if watch is not None and watch.stopped:
            raise BackendError(f"{what}: it was stopped")
        raise log.failure(what)
    _refuse_dropped_inputs(log, files, what)
    return bytes(engine)


def _builder(trt: Any, log: Log, what: str) -> Any:
    try:
        return trt.Builder(log.logger)
    except TypeError as error:  # pybind11's word for a constructor that returned null
        cure = "TensorRT builds on the GPU that the engine is for, and none can be used here; tensorrt-rtx builds without one"
        raise log.failure(what, cure) from error


def _config(flavour: Flavour, builder: Any, options: BuildOptions, what: str) -> Any:
    trt: Any = flavour.load()
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: products of float32 with 10 bits, which no proof's tolerance takes
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    wanted, known = options.compute_capabilities, flavour.capabilities()
    if wanted and known is None:
        raise BackendError(f"{what} for SM {_listed(wanted)}: it builds for the GPU that is present only; build on the device")
    if refused := [number for number in wanted if number not in (known or ())]:
        raise BackendError(
            f"{what} for SM {_listed(refused)}; it supports SM {_listed(known or ())}: "
            "use the tensorrt backend on the device itself"
        )
    if wanted:
        config.num_compute_capabilities = len(wanted)
    for place, number in enumerate(wanted):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{number}"), place):
            raise BackendError(f"{what}: it does not take SM {number}, though it knows it; leave it out")
    return config


def _parse(trt: Any, network: Any, log: Log, files: "GraphFiles", todo: Plan, what: str) -> dict[str, Any]:
    """Parse the graph into `network`. Returns what the library points into, which must live until the build is over."""
    model, _ = without_defaults(with_sizes(files.model, todo.sizes))
    parser = trt.OnnxParser(network, log.logger)
    alive: dict[str, Any] = {"parser": parser, "model": model}
    if not files.external:
        done = parser.parse(model)
    elif hasattr(parser, "load_initializer"):
        done = _parse_in_place(parser, model, files, alive)
    else:
        done = parser.parse(with_weights(model, files.external, files.weights))
    if found := parser_errors(parser):  # clearer than what the parser logs: it says the same in four lines
        raise BackendError(f"{what}: {shortened('; '.join(found))}; {_parser_cure(parser, network)}")
    if not done:
        raise log.failure(what)
    _refuse_dropped_inputs(log, files, what)
    return alive


def _parse_in_place(parser: Any, model: bytes, files: "GraphFiles", alive: dict[str, Any]) -> bool:
    """Parse a graph whose weights stay where they are."""
    check_named(files.external)
    if not parser.load_model_proto(model):
        return False
    for tensor in files.external:
        content = np.frombuffer(content_of(tensor, files.weights), np.uint8)
        if content.ctypes.data % _ALIGNMENT:
            content = content.copy()
        alive[f"weights of {tensor.name}"] = content
        if not parser.load_initializer(tensor.name, content.ctypes.data, content.nbytes):
            return False
    return bool(parser.parse_model_proto())


def _parser_cure(parser: Any, network: Any) -> str:
    errors = map(parser.get_error, range(parser.num_errors))
    operators = {error.node_operator() for error in errors if hasattr(error, "node_operator")}
    if operators.intersection(NEW_OPERATORS) and not hasattr(network, "add_kv_cache_update"):
        return "this TensorRT is older than the operator: export the variant tensorrt-legacy, or update to 10.15 or newer"
    return "run this bundle on onnxruntime, or export it without the operator"


def _refuse_dropped_inputs(log: Log, files: "GraphFiles", what: str) -> None:
    """Raise BackendError where the library said that it leaves an input out: the engine would compute something else."""
    dropped = log.unused_inputs()
    if not dropped:
        return
    name = dropped[0].encode()
    users = [node for node in read(files.model).nodes if name in node.inputs]
    if not users:
        raise BackendError(f"{what}: no node takes the input {dropped[0]!r}; export the graph without it")
    where = ", ".join(f"{node.operator.decode()} (output {node.outputs[0].decode()!r})" for node in users)
    raise BackendError(
        f"{what}: it would drop {dropped[0]!r}, which {where} takes, and compute something else; "
        "export the graph without that input, or run it on onnxruntime"
    )


def _check_inputs(network: Any, files: "GraphFiles", what: str) -> None:
    names = {network.get_input(place).name for place in range(network.num_inputs)}
    if missing := [spec.name for spec in files.variant.inputs if spec.name not in names]:
        raise BackendError(f"{what}: the parser made no input of {missing}; export the bundle again")


def _make_decomposable(trt: Any, network: Any) -> None:
    """Let every attention be built of several kernels where no single one fits it: float32, and unusual head sizes."""
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    for place in range(network.num_layers if kind is not None else 0):
        layer = network.get_layer(place)
        if layer.type == kind:
            layer.__class__ = trt.IAttentionInputLayer  # the bindings' own way to a layer's members
            layer.attention.decomposable = True


def _native_profile(builder: Any, network: Any, files: "GraphFiles", todo: Plan, profile: Profile) -> Any:
    native = builder.create_optimization_profile()
    specs = {spec.name: spec for spec in files.variant.inputs}
    for place in range(network.num_inputs):
        tensor = network.get_input(place)
        if tensor.is_shape_tensor:
            native.set_shape_input(tensor.name, *map(list, todo.values(profile, specs[tensor.name])))
        elif -1 in tuple(tensor.shape):
            native.set_shape(tensor.name, *profile.shapes(specs[tensor.name]))
    return native


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
