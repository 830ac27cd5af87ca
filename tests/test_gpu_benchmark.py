"""benchmarks/gpu.py on a machine without a GPU: what it walks, what it writes down, and that nothing stops it."""

import ctypes
import importlib.util
import json
import shutil
import sys
import types
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    """The benchmark's module, and its parts; forgotten again."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("gpu_benchmark", BENCHMARKS / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in [name for name in sys.modules if name.partition(".")[0] in ("images", "on_gpu", "peers")]:
        del sys.modules[name]


@pytest.fixture
def prepared(tmp_path, tiny_bundle):
    """A folder as --prepare makes it, with a decoder of one layer, and without the checkpoint that PyTorch needs."""
    folder = tmp_path / "prepared"
    folder.mkdir()
    shutil.move(tiny_bundle, folder / "text-fp32.bundle")
    item = {"kind": "text", "name": "text", "precision": "fp32", "bundle": "text-fp32.bundle", "graph": "decoder", "steps": 0}
    facts = {
        "text": {"path": "text-source"},
        "items": [{**item, "batches": [1]}],
        "failed": {"image:x:fp16": "ExportError: no"},
    }
    (folder / "prepared.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


def plan_of(folder, **changes):
    plan = {"bundles": str(folder), "rehearse": True, "backends": [], "ways": ["eager"], "threads": 1, "rounds": 1}
    return {**plan, "limit_s": 120.0, "device": "h200-sxm", **changes}


def test_a_rehearsal_walks_every_piece_and_writes_down_what_failed_and_why(gpu, prepared, tmp_path):
    pytest.importorskip("onnxruntime")
    output = tmp_path / "results" / "here.json"
    wanted = ("machine", "proof", "text", "cold")  # not the tests within the tests
    gpu.run(plan_of(prepared), wanted, output)
    found = json.loads(output.read_text())
    assert found["rehearsal"] is True
    assert found["not_prepared"] == {"image:x:fp16": "ExportError: no"}
    assert str(tmp_path) not in output.read_text()
    pieces = found["pieces"]
    assert {name: piece["status"] for name, piece in pieces.items()} == {
        "machine": "ok",
        "proof:text-fp32.bundle:onnxruntime": "failed",  # this bundle has none
        "text:text:fp32": "ok",
        "cold:text-fp32.bundle:onnxruntime": "ok",
    }
    assert "proof" in pieces["proof:text-fp32.bundle:onnxruntime"]["why"]
    assert pieces["machine"]["result"]["backends"]["onnxruntime"] == "works"
    race = pieces["text:text:fp32"]["result"]
    assert list(race["rows"][0]["median_s"]) == ["edgegen onnxruntime"]
    assert list(race["failed"]) == ["torch eager"]  # it has no checkpoint, and the others raced on
    assert race["roofline"]["share"]["edgegen onnxruntime"] > 0
    cold = pieces["cold:text-fp32.bundle:onnxruntime"]["result"]
    assert set(cold) == {"cache_cold", "cache_hot"}
    assert gpu.failures(found) == ["proof:text-fp32.bundle:onnxruntime"]


def test_a_piece_that_takes_too_long_is_ended_and_named(gpu, prepared):
    piece = gpu.one(plan_of(prepared, limit_s=0.05), "machine")
    assert (piece["status"], piece["result"]) == ("timeout", None)
    assert "--limit" in piece["why"]


def test_without_a_gpu_nothing_is_measured_and_the_exit_code_says_so(gpu, prepared, monkeypatch):
    monkeypatch.setattr(gpu, "gpus", lambda: ([], "no NVIDIA driver"))
    done = CliRunner().invoke(gpu.main, ["--bundles", str(prepared)])
    assert done.exit_code == gpu.NO_GPU
    assert "no GPU here (no NVIDIA driver)" in done.output


def test_failed_proofs_and_tests_are_failures_though_their_pieces_ran(gpu):
    pieces = {
        "machine": {"status": "ok", "result": {}},
        "proof:a:b": {"status": "ok", "result": {"passed": False}},
        "contract": {"status": "ok", "result": {"passed": 3, "failed": {"test_x": ["boom"]}}},
        "cold:a:b": {"status": "timeout", "result": None},
    }
    assert gpu.failures({"pieces": pieces}) == ["cold:a:b", "proof:a:b", "contract"]


def test_every_gpu_backend_has_its_pieces_and_cuda_races_with_and_without_graphs(gpu, prepared, monkeypatch):
    from on_gpu.pieces import engines, pieces

    facts = json.loads((prepared / "prepared.json").read_text())
    plan = plan_of(prepared, rehearse=False, backends=["onnxruntime-cuda"], ways=["eager", "compile"])
    assert pieces(plan, facts)[:4] == ["machine", "contract", "proof:text-fp32.bundle:onnxruntime-cuda", "text:text:fp32"]
    monkeypatch.setattr("edgegen.backends.present_backends", lambda: ["tensorrt-rtx", "onnxruntime"])
    proofs = [name for name in pieces({**plan, "backends": []}, facts) if name.startswith("proof")]
    assert proofs == ["proof:text-fp32.bundle:tensorrt-rtx"]  # what is installed, and not the CPU's
    named = {name: settings for name, _, settings in engines(plan, facts, facts["items"][0])}
    assert list(named) == ["edgegen onnxruntime-cuda", "edgegen onnxruntime-cuda, CUDA graphs", "torch eager", "torch compile"]
    assert named["edgegen onnxruntime-cuda, CUDA graphs"]["options"] == {"cuda_graphs": True}
    assert named["torch compile"]["device"] == "cuda"


def test_ratios_are_of_pytorchs_best_way_within_the_rounds(gpu):
    from on_gpu.pieces import ratios

    medians = {"edgegen a": [1.0, 2.0, 1.0], "torch eager": [4.0, 4.0, 4.0], "torch compile": [2.0, 2.0, 3.0]}
    assert ratios(medians) == {"edgegen a": {"median": 2.0, "spread": [1.0, 3.0]}}
    assert ratios({"edgegen a": [1.0]}) == {}


def test_what_cannot_be_prepared_is_named_and_the_rest_is_made(gpu, monkeypatch, tmp_path):
    from on_gpu import prepare

    def image(folder, name, precision):
        if precision == "fp16":
            raise RuntimeError("no such kernel\nand more")
        return {"kind": "image", "name": name, "precision": precision}

    monkeypatch.setattr(prepare, "_image", image)
    made = prepare.prepare(tmp_path, subjects=("dcgan",), texts=(), say=lambda line: None)
    assert made == json.loads((tmp_path / "prepared.json").read_text())
    assert made["failed"] == {"image:dcgan:fp16": "RuntimeError: no such kernel"}
    assert [item["precision"] for item in made["items"]] == ["fp32"]


JUNIT = """<testsuites><testsuite>
<testcase classname="tests.a" name="test_one"/>
<testcase classname="tests.a" name="test_two"><skipped message="Skipped: cuda: libcudnn.so.9 cannot be found"/></testcase>
<testcase classname="tests.a" name="test_three"><skipped message="cuda: libcudnn.so.9 cannot be found"/></testcase>
<testcase classname="tests.a" name="test_four"><failure message="assert 1 == 2&#10;more">text</failure></testcase>
</testsuite></testsuites>"""


def test_the_outcome_of_the_tests_names_each_missing_piece_once(gpu):
    from on_gpu.contract import summarize

    assert summarize(ElementTree.fromstring(JUNIT)) == {
        "passed": 1,
        "failed": {"tests.a::test_four": ["assert 1 == 2"]},
        "missing": {"cuda: libcudnn.so.9 cannot be found": 2},
    }


def test_a_library_that_is_missing_stops_only_the_tests_that_need_it(gpu, tmp_path, monkeypatch):
    from on_gpu import contract

    marked = "import pytest\n\n@pytest.mark.gpu\ndef test_it():\n    pass\n"
    files = {"test_a.py": "import no_such_library\n" + marked, "test_b.py": marked, "test_c.py": "import no_other_either\n"}
    (tmp_path / "tests").mkdir()
    for name, content in files.items():
        (tmp_path / "tests" / name).write_text(content)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a GPU\n")
    monkeypatch.setattr(contract, "ROOT", tmp_path)
    outcome = contract.run_tests()
    assert (outcome["passed"], outcome["failed"]) == (1, {})
    assert outcome["missing"] == {"tests.test_a: No module named 'no_such_library'": 1}


def test_the_files_that_are_named_are_there(gpu):
    from on_gpu import contract, pieces

    assert (contract.ROOT / pieces.REHEARSED).exists()
    assert "tests/backends/test_on_gpu.py" in contract.gpu_tests()


def test_a_result_is_found_among_what_native_libraries_print(gpu):
    said = 'a library says this\n\nresult: {"passed": true}\n{"and": "that, when it ends"}\n'
    assert gpu.answer_in(said) == {"passed": True}
    assert gpu.answer_in("nothing but words\n") is None


class DyingWorker:
    def __init__(self, runs):
        self.runs = runs

    @property
    def is_alive(self):
        return self.runs > 0

    def request(self, *, batch, runs):
        from peers.workers import WorkerError

        self.runs -= runs
        if not self.is_alive:
            raise WorkerError("torch ended with status 1: out of memory")
        return {"times_s": {"edgegen a": [1.0] * runs}}


def test_an_engine_that_dies_in_a_race_is_named_and_the_others_race_on(gpu, prepared, monkeypatch):
    from images import rounds
    from on_gpu import pieces

    monkeypatch.setattr(rounds, "PAUSE_S", 0)
    workers, failed = {"edgegen a": DyingWorker(1000), "torch eager": DyingWorker(4)}, {}
    row = pieces._row(plan_of(prepared, rounds=2), {"kind": "image"}, 1, workers, failed)
    assert row["median_s"] == {"edgegen a": 1.0}
    assert failed == {"torch eager, batch 1": "torch ended with status 1: out of memory"}
    assert list(workers) == ["edgegen a"]


@pytest.mark.parametrize(
    ("precision", "more"), [("fp32", ()), ("fp16", ("onnxruntime-cuda",)), ("int4", ("onnxruntime-cuda",))]
)
def test_a_language_model_gets_the_variants_for_older_tensorrt_and_for_cuda(gpu, monkeypatch, tmp_path, precision, more):
    pytest.importorskip("torch")
    from on_gpu import prepare

    asked = {}
    monkeypatch.setattr("edgegen.export.export", lambda source, bundle, **options: asked.update(options))
    prepare._text(tmp_path, {"path": "text-source", "limit": None}, precision)
    assert asked == {"precision": precision, "variants": ("tensorrt-legacy", *more)}


def test_every_engine_that_has_to_know_the_length_of_the_cache_is_told_pytorchs(gpu, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.syspath_prepend(str(BENCHMARKS / "peers"))
    from on_gpu.edgegen_engine import asked

    bundle = types.SimpleNamespace(manifest=types.SimpleNamespace(settings={"context_length": 8192}))

    def of(backend, kind="text"):
        return asked({"backend": backend, "context": 512, "kind": kind}, bundle)

    for name in ("tensorrt", "tensorrt-rtx"):
        assert of(name)["build"].cache_length == 512
        assert of(name)["run"].specialization == of(name, "image")["run"].specialization == "eager"
    assert of("onnxruntime-tensorrt") == {"cache_length": 512}
    assert of("onnxruntime-cuda") == of("onnxruntime-tensorrt", "image") == {}  # CUDA's state grows with what is in it


@pytest.mark.parametrize(
    ("found", "outcome", "code"),
    [
        ([], None, 0),
        ([{"name": "G", "compute_capability": "9.0"}], {"passed": 2, "failed": {}, "missing": {"no TensorRT": 3}}, 0),
        ([{"name": "G", "compute_capability": "9.0"}], {"passed": 2, "failed": {"t": ["boom"]}, "missing": {}}, 1),
        ([{"name": "G", "compute_capability": "9.0"}], {"passed": 0, "failed": {}, "missing": {"nothing": 9}}, 1),
    ],
    ids=["no GPU", "some libraries", "a failure", "a GPU that nothing could use"],
)
def test_make_test_gpu_fails_only_where_there_is_a_gpu(gpu, monkeypatch, capsys, found, outcome, code):
    from on_gpu import contract

    monkeypatch.setattr(contract, "gpus", lambda: (found, None if found else "no NVIDIA driver"))
    monkeypatch.setattr(contract, "run_tests", lambda: outcome)
    assert contract.main() == code
    said = capsys.readouterr().out
    assert ("no GPU here (no NVIDIA driver)" in said) == (not found)
    assert all(
        f"missing for {count} tests: {reason}" in said for reason, count in (outcome or {"missing": {}})["missing"].items()
    )


class Driver:
    """The CUDA driver, as far as it is asked: writes what it tells where it is told to."""

    def __init__(self, count):
        self.count = count

    def __getattr__(self, name):
        def call(*arguments):
            told = {
                "cuDeviceGetCount": self.count,
                "cuDeviceGet": 0,
                "cuDeviceTotalMem_v2": 8 << 30,
                "cuDriverGetVersion": 13020,
            }
            if name == "cuDeviceGetName":
                arguments[0].value = b"A GPU"
            elif name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 8, 76: 7, 16: 8}[arguments[1]]
            elif name in told:
                arguments[0]._obj.value = told[name]
            return 0

        return call


def test_the_driver_alone_tells_what_the_gpus_are(gpu, monkeypatch):
    from on_gpu import hardware

    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda name: Driver(1))
    assert hardware.gpus() == (
        [
            {
                "name": "A GPU",
                "compute_capability": "8.7",
                "multiprocessors": 8,
                "memory_bytes": 8 << 30,
                "driver_cuda_version": "13.2",
            }
        ],
        None,
    )
    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda name: Driver(0))
    assert hardware.gpus()[0] == []
    assert "CUDA_VISIBLE_DEVICES" in hardware.gpus()[1]
    monkeypatch.setattr(hardware, "_COPY_BYTES", ctypes.sizeof(ctypes.c_int))
    assert hardware.copy_bandwidth() > 0


def test_clocks_that_the_gpu_does_not_tell_are_named_and_the_others_kept(gpu):
    from on_gpu import hardware

    nvml = types.SimpleNamespace(
        NVMLError=RuntimeError,
        NVML_CLOCK_SM=1,
        nvmlSystemGetDriverVersion=lambda: b"580.1",
        nvmlDeviceGetClockInfo=lambda handle, kind: 900,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0x44,
    )
    found = hardware._clocks(nvml, None)
    assert (found["driver"], found["sm_mhz"], found["power_w"]) == ("580.1", 900, None)
    assert found["held_by"] == ["power cap", "hardware thermal"]
    assert "power_w" in found["untold"]
    assert hardware.throttled(found, {"missing": "later"}) is True
    assert hardware.throttled({"held_by": ["idle"]}) is False
    assert hardware.throttled({"missing": "NVML"}) is None
