"""Building engines: on the simulated TensorRT of every version, and with the real TensorRT-RTX, which needs no GPU for it."""

import dataclasses
import importlib.util
import json
import threading
from pathlib import Path

import bundles
import numpy as np
import pytest
from onnx import helper
from simulated_tensorrt import PRESETS

from edgegen.backends.trt.build import build_engine
from edgegen.backends.trt.flavours import FLAVOURS
from edgegen.backends.trt.profiles import BuildOptions
from edgegen.bundle import Bundle, GraphFiles
from edgegen.errors import BackendError, InputError, UnknownNameError
from edgegen.tensors import TensorSpec

from .conftest import decoder_files, graph_files, image_files

RTX = FLAVOURS["tensorrt-rtx"]
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed; it has no wheels for this machine"
)
QUERY = (1, 2, 8, 16)


def attention(dtype: str = "float16", **attributes: float) -> GraphFiles:
    specs = [TensorSpec(name, dtype, QUERY) for name in "qkv"]
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], name="att", **attributes)
    return graph_files([node], specs, [TensorSpec("y", dtype, QUERY)])


def ragged_attention() -> GraphFiles:
    """Attention that is told how many keys are valid: TensorRT-RTX builds it, and does not look at that input."""
    specs = [*(TensorSpec(name, "float16", QUERY) for name in "qkv"), TensorSpec("valid", "int64", (1,))]
    node = helper.make_node("Attention", ["q", "k", "v", "", "", "", "valid"], ["y"], name="att")
    return graph_files([node], specs, [TensorSpec("y", "float16", QUERY)])


def about(engine: bytes) -> dict:
    """What a simulated engine was built with."""
    length = int.from_bytes(engine[64:72], "little")
    return json.loads(engine[72 : 72 + length])


@pytest.fixture
def tiny(tmp_path) -> GraphFiles:
    with Bundle.open(bundles.make_bundle(tmp_path / "tiny.bundle")) as bundle:
        return bundle.graph("decoder", "canonical")


# --- the real TensorRT-RTX


@needs_rtx
def test_rtx_builds_a_bundles_decoder_from_memory(tiny):
    phases = []
    engine = build_engine(RTX, tiny, BuildOptions((89,), prefill=16), progress=lambda *step: phases.append(step) or True)
    assert engine[:4] == b"vtrt"
    assert ("Building engine", 6, 6) in phases


@needs_rtx
def test_rtx_builds_float32_attention(tiny):
    assert build_engine(RTX, attention("float32"), BuildOptions((89,)))  # only where it is made decomposable


@needs_rtx
@pytest.mark.parametrize("name", ["add", "scatter", "scatter_legacy"])
def test_rtx_builds_the_graphs_of_the_contract(name):
    """Or on a GPU every test of the contract would fail, whatever the session does."""
    from backends import test_session as contract

    variant = contract.ADD if name == "add" else contract.SCATTER
    model = getattr(contract, f"onnx_{name}")()
    files = GraphFiles(model, {}, variant, contract.AXES, (), None)
    assert build_engine(RTX, files, BuildOptions((89,))).startswith(b"vtrt")


@needs_rtx
def test_an_input_that_rtx_would_drop_fails_the_build():
    with pytest.raises(BackendError, match=r"would drop 'valid', which Attention \(output 'y'\) takes, and compute"):
        build_engine(RTX, ragged_attention(), BuildOptions((89,)))


@needs_rtx
def test_what_rtx_does_not_parse_is_named_with_its_node():
    with pytest.raises(BackendError, match=r"graphs/g.onnx: node 'att' \(Attention\): .*softcap.*onnxruntime") as caught:
        build_engine(RTX, attention(softcap=3.0), BuildOptions((89,)))
    assert "\n" not in str(caught.value)


@needs_rtx
def test_a_capability_that_rtx_does_not_support_is_refused_before_the_build():
    with pytest.raises(BackendError, match=r"for SM 87, 90; it supports SM 75, 80, 86, 89, 120, 121: use the tensorrt backend"):
        build_engine(RTX, image_files(), BuildOptions((87, 89, 90)))


@needs_rtx
def test_two_builds_at_once_hear_their_own_errors():
    found: dict[str, str] = {}

    def work(name: str, files: GraphFiles) -> None:
        try:
            build_engine(RTX, files, BuildOptions((89,)))
            found[name] = "built"
        except BackendError as error:
            found[name] = str(error)

    jobs = {"good": attention(), "dropped": ragged_attention(), "softcap": attention(softcap=3.0)}
    threads = [threading.Thread(target=work, args=job) for job in jobs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["good"] == "built"
    assert "would drop" in found["dropped"]
    assert "softcap" in found["softcap"]


# --- the simulated library


@pytest.mark.parametrize("preset", PRESETS)
def test_every_version_is_asked_for_a_strongly_typed_network(machine, preset):
    simulation = machine(preset)
    assert about(build_engine(FLAVOURS[simulation.backend], image_files(), BuildOptions()))["strongly_typed"]


@pytest.mark.parametrize("preset", PRESETS)
def test_float32_means_float32_in_every_version(machine, preset):
    """TF32 is on by default: products with 10 bits, of which every GPU since Ampere is capable."""
    simulation = machine(preset)
    assert about(build_engine(FLAVOURS[simulation.backend], image_files(), BuildOptions()))["flags"] == []


def test_a_decoder_has_a_profile_for_one_token_and_one_for_a_prompt(machine):
    machine()
    built = about(build_engine(FLAVOURS["tensorrt"], decoder_files(), BuildOptions(prefill=8)))
    assert built["hosts"] == ["logits_to_keep"]
    assert built["profiles"] == [
        {"shapes": {"x": [[1, 1, 1, 4]] * 3}, "values": {"logits_to_keep": [[1], [1], [1]]}},
        {"shapes": {"x": [[1, 1, 1, 4], [1, 1, 4, 4], [1, 1, 8, 4]]}, "values": {"logits_to_keep": [[1], [1], [8]]}},
    ]


@pytest.mark.parametrize("preset", PRESETS)
def test_weights_are_taken_from_memory_by_every_version(machine, tiny, preset, tmp_path):
    simulation = machine(preset)
    files = tiny
    if preset in ("10.3", "10.13"):
        with pytest.raises(BackendError, match=r"TensorScatter: .*older than the operator: export the variant tensorrt-legacy"):
            build_engine(FLAVOURS["tensorrt"], files, BuildOptions())
        return
    moved = dataclasses.replace(files, folder=tmp_path / "nowhere")
    assert build_engine(FLAVOURS[simulation.backend], moved, BuildOptions())


def test_a_parser_without_initializers_gets_the_weights_within_the_graph(machine, tmp_path, monkeypatch, tiny):
    simulation = machine("11.4")
    engine = build_engine(FLAVOURS["tensorrt"], tiny, BuildOptions())
    for name in ("load_model_proto", "load_initializer", "parse_model_proto"):
        monkeypatch.delattr(simulation.trt.OnnxParser, name)
    again = build_engine(FLAVOURS["tensorrt"], tiny, BuildOptions())
    import onnx

    models = [onnx.load_model_from_string(found[72 + int.from_bytes(found[64:72], "little") :]) for found in (engine, again)]
    first, second = (
        {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer} for model in models
    )
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value)


def test_the_workspace_limit_is_passed_on(machine):
    machine()
    assert about(build_engine(FLAVOURS["tensorrt"], image_files(), BuildOptions(workspace_bytes=123)))["limits"] == {
        "WORKSPACE": 123
    }


def test_running_out_of_memory_says_so(machine):
    machine().faults.build = "OutOfMemory (Requested size was 4294967296 bytes.)"
    with pytest.raises(BackendError, match=r"graphs/g.onnx \(out of memory\): .*4294967296.*free memory, or ask for less"):
        build_engine(FLAVOURS["tensorrt"], image_files(), BuildOptions())


def test_a_build_that_fails_says_what_the_log_said(machine):
    machine().faults.build = "no implementation for node"
    with pytest.raises(BackendError, match=r"^tensorrt 11.4.0.106 cannot build graphs/g.onnx: .*no implementation for node$"):
        build_engine(FLAVOURS["tensorrt"], image_files(), BuildOptions())


@pytest.mark.parametrize("progress", [lambda *_: False, lambda *_: 1 / 0], ids=["it says no", "it fails"])
def test_progress_stops_a_build(machine, progress):
    machine()
    with pytest.raises(BackendError, match="it was stopped"):
        build_engine(FLAVOURS["tensorrt"], image_files(), BuildOptions(), progress=progress)


def test_tensorrt_builds_for_the_gpu_that_is_there_only(machine):
    machine()
    with pytest.raises(BackendError, match="for SM 87: it builds for the GPU that is present only; build on the device"):
        build_engine(FLAVOURS["tensorrt"], image_files(), BuildOptions((87,)))
    machine(devices=0)
    with pytest.raises(BackendError, match="none can be used here; tensorrt-rtx builds without one"):
        build_engine(FLAVOURS["tensorrt"], image_files(), BuildOptions())


def test_an_input_that_no_node_takes_is_refused(machine):
    simulation = machine()
    files = image_files()
    load = simulation.trt.OnnxParser.load_model

    def warned(parser, model: bytes) -> bool:
        parser.world.log("WARNING", "Unused Input: spare")
        return load(parser, model)

    simulation.trt.OnnxParser.load_model = warned
    with pytest.raises(BackendError, match="no node takes the input 'spare'"):
        build_engine(FLAVOURS["tensorrt"], files, BuildOptions())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (BuildOptions(cache_length=17), "a cache of 17 entries was asked for; axis 'cache' was exported for 1 to 16"),
        (BuildOptions(prefill=0), "prefill is 0; it must be at least 1"),
    ],
)
def test_options_out_of_what_was_exported_are_refused(machine, options, said):
    machine()
    with pytest.raises(InputError, match=said):
        build_engine(FLAVOURS["tensorrt"], decoder_files(), options)


def test_options_are_plain_values_for_a_key():
    assert json.loads(json.dumps(BuildOptions((86, 89), 8).as_dict())) == {
        "compute_capabilities": [86, 89],
        "cache_length": 8,
        "prefill": 512,
        "workspace_bytes": None,
    }


def test_a_library_that_is_missing_or_broken_names_the_cure(monkeypatch, tmp_path):
    from edgegen.backends.trt.flavours import Flavour, flavour_of

    missing = Flavour("tensorrt-rtx", "no_such_library", "tensorrt-rtx", RTX.cure)
    with pytest.raises(BackendError, match=r'needs no_such_library, which is not installed; .*"edgegen\[tensorrt-rtx\]"'):
        missing.load()
    Path(tmp_path / "broken_library.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    broken = Flavour("tensorrt", "broken_library", "tensorrt", "")
    with pytest.raises(BackendError, match=r"broken_library is installed but cannot be imported \(.*no_such_dependency"):
        broken.load()
    with pytest.raises(UnknownNameError, match="did you mean 'tensorrt-rtx'"):
        flavour_of("tensorrt-rtz")
