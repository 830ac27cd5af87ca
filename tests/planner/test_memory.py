"""What a bundle takes: the parts by hand, and the whole against a process that runs it."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from bundles import make_bundle, manifest
from bundles_to_plan import CHANNELS, convolutions

from edgegen.backends import variant_for
from edgegen.backends.ort.kernels import kernels
from edgegen.backends.threads import default_threads
from edgegen.bundle import Bundle
from edgegen.devices.table import lookup
from edgegen.errors import InputError
from edgegen.pipelines.decoder_lm import DecoderLM
from edgegen.planner import memory
from edgegen.planner.graphs import CPU, PLANNED, PREFILL, Ask, PlannedBundle, read_bundle
from edgegen.planner.memory import Part, Usage
from edgegen.planner.target import target

ROOT = Path(__file__).resolve().parents[2]
# What the plan promises. The process's own part, 60 to 80 MiB, differs by some MiB between versions of Python and numpy.
MOST_OFF = 0.15
RUN_TWICE = """
import json, sys
import numpy as np
from edgegen.backends import open_session
from edgegen.bench.machine import peak_memory_bytes
from edgegen.bundle import Bundle

with Bundle.open(sys.argv[1]) as bundle, open_session("onnxruntime", bundle, "translator") as session:
    for _ in range(3):
        session.run({"image": np.zeros(json.loads(sys.argv[2]), np.float32)})
    print(peak_memory_bytes())
"""


def part(used: Usage, name: str) -> int:
    return next(one.size_bytes for one in used.parts if one.name == name)


def predicted(bundle: PlannedBundle, ask: Ask) -> int:
    used = memory.usage(bundle, ask, threads=default_threads())
    return memory.runtime(CPU, bundle.manifest.family).size_bytes + used.size_bytes


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convolutions(tmp_path_factory.mktemp("planner") / "images.bundle")


def test_the_parts_of_a_language_model_are_known_by_hand(tmp_path):
    bundle = read_bundle(make_bundle(tmp_path / "tiny.bundle"), "tensorrt")
    used = memory.usage(bundle, Ask(context=32))
    assert part(used, "cache") == 2 * 32 * 4 * 4  # keys and values: entries, head size, bytes
    assert part(memory.usage(bundle, Ask(context=32, batch=3)), "cache") == 3 * part(used, "cache")
    assert used.unknown == 0
    assert used.loading_bytes == part(used, "weights") > 0


def test_an_old_tensorrt_holds_the_cache_twice_where_the_bundle_is_made_for_it(tmp_path):
    whole = manifest()
    (decoder,) = whole.graphs.values()
    variants = {**decoder.variants, "tensorrt-legacy": decoder.variants["canonical"]}
    graphs = {"decoder": msgspec.structs.replace(decoder, variants=variants)}
    path = make_bundle(tmp_path / "tiny.bundle", graphs=graphs)
    new, old = (memory.usage(read_bundle(path, "tensorrt", is_old=is_old), Ask()) for is_old in (False, True))
    assert part(old, "cache") == 2 * part(new, "cache")
    assert [target(lookup(name)).is_old for name in ("orin-nano", "rtx-4090")] == [True, False]
    other = make_bundle(tmp_path / "other.bundle")
    assert not read_bundle(other, "tensorrt", is_old=True).graphs[0].is_legacy
    assert not read_bundle(path, "tensorrt-rtx", is_old=True).graphs[0].is_legacy


@pytest.mark.parametrize("backend", PLANNED)
def test_every_backend_that_is_planned_runs_the_variant_that_it_would_take_and_says_what_is_estimated(tmp_path, backend):
    with Bundle.open(make_bundle(tmp_path / "tiny.bundle")) as bundle:
        expected = bundle.manifest.graphs["decoder"].variants[variant_for(backend, bundle, "decoder")]
    planned = read_bundle(tmp_path / "tiny.bundle", backend)
    assert planned.graphs[0].variant == expected
    parts = (memory.runtime(backend, "decoder_lm"), *memory.usage(planned, Ask()).parts)
    estimated = set() if backend == CPU else {"runtime", "weights", "activations"}
    assert {one.name for one in parts if one.estimated} == estimated


def test_a_context_that_was_not_exported_is_refused(tmp_path):
    bundle = read_bundle(make_bundle(tmp_path / "tiny.bundle"), CPU)
    with pytest.raises(InputError, match="exported for at most 64"):
        memory.usage(bundle, Ask(context=65))


def test_prompts_go_in_as_the_pipeline_puts_them():
    assert DecoderLM.prefill_chunk == PREFILL


def test_activations_grow_with_the_batch_and_the_image(images):
    bundle = read_bundle(images, CPU)
    one, eight, wide = (
        part(memory.usage(bundle, ask), "activations")
        for ask in (Ask(batch=1), Ask(batch=8), Ask(batch=1, height=128, width=256))
    )
    assert 3 * one < eight < 9 * one  # what the kernels keep does not grow
    assert 3 * one < wide < 9 * one  # 128 x 256 is 64 x 64, eight times


def test_what_is_too_large_for_one_piece_is_planned_in_tiles(images):
    bundle = read_bundle(images, CPU)
    whole, tiled = (memory.usage(bundle, Ask(batch=1, height=4096, width=4096, tile=tile)) for tile in (None, 64))
    assert part(whole, "activations") == part(memory.usage(bundle, Ask(batch=1, height=512, width=512)), "activations")
    assert part(tiled, "activations") == part(memory.usage(bundle, Ask(batch=1, height=64, width=64)), "activations")


@pytest.mark.skipif(kernels() is None, reason="edgegen's kernels are not built here")
def test_minimal_filtering_makes_weights_four_times_as_large(images):
    inner = 2 * CHANNELS * CHANNELS * 9 * 4
    ours, plain = (part(memory.usage(read_bundle(images, CPU, has_kernels=has), Ask()), "weights") for has in (True, False))
    assert ours - plain == pytest.approx(3 * inner, rel=0.05)  # the first and the last layer are small, and packed otherwise


@pytest.mark.skipif(sys.platform != "linux", reason="the peak memory of a process is read from /proc")
@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (1, 3, 256, 320), (4, 3, 256, 256)], ids=str)
def test_the_plan_of_an_image_model_is_what_its_process_takes(images, shape):
    command = [sys.executable, "-c", RUN_TWICE, str(images), json.dumps(shape)]
    measured = int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    bundle = read_bundle(images, CPU, has_kernels=kernels() is not None)
    planned = predicted(bundle, Ask(batch=shape[0], height=shape[2], width=shape[3]))
    assert planned == pytest.approx(measured, rel=MOST_OFF)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak memory of a process is read from /proc")
def test_the_plan_of_a_language_model_is_what_its_process_takes(tmp_path):
    place = make_bundle(tmp_path / "tiny.bundle")
    worker, job = ROOT / "benchmarks/plans/worker.py", {"kind": "text", "prompt": 5, "new": 8}
    done = subprocess.run(
        [sys.executable, str(worker), str(place), json.dumps(job)], capture_output=True, text=True, check=True
    )
    measured = json.loads(done.stdout)["peak_bytes"]
    assert predicted(read_bundle(place, CPU), Ask()) == pytest.approx(measured, rel=MOST_OFF)


def usage(stays: int, loading: int = 0) -> Usage:
    return Usage((Part("weights", stays),), loading, 0, 0)


def test_a_load_needs_room_beside_what_is_there():
    small, large = usage(10), usage(40, loading=50)
    assert memory.together([small, large]) == 100  # 10 and, while it is read, 90
    assert memory.together([large, small]) == 90
    assert memory.one_after_the_other([small, large]) == 90


def test_what_needs_most_while_it_is_loaded_comes_first():
    usages = [usage(10), usage(40, loading=50), usage(90, loading=5)]
    order = memory.best_order(usages)
    assert order == [1, 2, 0]
    assert memory.together([usages[place] for place in order]) == 140
