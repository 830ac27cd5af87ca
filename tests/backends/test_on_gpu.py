"""What only a GPU can show; each skips with what is missing. `make test-gpu` runs these and the contract tests on GPUs."""

import numpy as np
import pytest
from backends.test_session import skip_unless_usable

from edgegen.backends import BACKENDS, open_session, too_old
from edgegen.backends.trt.engine import RunOptions
from edgegen.bundle import Bundle
from edgegen.kv_cache import KVCache

pytestmark = pytest.mark.gpu
ON_GPU = [name for name, backend in BACKENDS.items() if name.startswith("onnxruntime-")]
ON_ENGINES = [name for name, backend in BACKENDS.items() if backend.engines]
PROMPT, STEPS = [1, 3, 5], (4, 6, 8, 2, 9)
# float32 without TF32; sums of 4 to 64 numbers in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def logits_on(backend: str, bundle: Bundle, **options) -> np.ndarray:
    with open_session(backend, bundle, "decoder", variant="canonical", threads=1, **options) as session:
        with KVCache(session, 64, 8) as cache:
            first = [cache.append(PROMPT).copy(), *(cache.append([token]).copy() for token in STEPS)]
        with KVCache(session, 64, 8) as cache:  # a second conversation: other addresses
            second = [cache.append(PROMPT).copy(), *(cache.append([token]).copy() for token in STEPS)]
    np.testing.assert_allclose(first, second, **CLOSE)  # not equal: TensorRT-RTX changes its kernels while it runs
    return np.stack(first)


@pytest.mark.parametrize("backend", ON_GPU)
def test_a_decoder_says_on_the_gpu_what_it_says_on_the_cpu(backend, tiny_bundle):
    skip_unless_usable(backend)
    with Bundle.open(tiny_bundle) as bundle:
        np.testing.assert_allclose(logits_on(backend, bundle), logits_on("onnxruntime", bundle), **CLOSE)


@pytest.mark.parametrize("backend", ON_ENGINES)
def test_steps_that_are_recorded_are_those_that_are_not_and_those_of_the_cpu(backend, tiny_bundle):
    skip_unless_usable(backend)
    with Bundle.open(tiny_bundle) as bundle:
        if why := too_old(backend, bundle, "decoder"):
            pytest.skip(why)
        plain = logits_on(backend, bundle, run=RunOptions(cuda_graphs=False, specialization="eager"))
        recorded = logits_on(backend, bundle, run=RunOptions(specialization="eager"))
        np.testing.assert_array_equal(recorded, plain)  # the same kernels, in the same order
        np.testing.assert_allclose(plain, logits_on("onnxruntime", bundle), **CLOSE)


def test_cuda_graphs_change_no_number(tiny_bundle):
    skip_unless_usable("onnxruntime-cuda")
    with Bundle.open(tiny_bundle) as bundle:
        captured = logits_on("onnxruntime-cuda", bundle, cuda_graphs=True)
        np.testing.assert_array_equal(captured, logits_on("onnxruntime-cuda", bundle, cuda_graphs=False))


def test_state_that_grows_on_the_gpu_keeps_what_it_held(tiny_bundle):
    skip_unless_usable("onnxruntime-cuda")
    found = []
    with Bundle.open(tiny_bundle) as bundle:
        for backend in ("onnxruntime-cuda", "onnxruntime"):
            with open_session(backend, bundle, "decoder", variant="canonical", threads=1) as session:
                state = session.new_state(8)
                ids, where = np.array([PROMPT], np.int64), np.array([0], np.int64)
                session.run({"input_ids": ids, "write_indices": where}, state=state)
                state.reserve(32, keep=3)
                found.append(state.read("past_key_values.0.key"))
    assert found[0].shape[2] == 32
    np.testing.assert_allclose(found[0][:, :, :3], found[1][:, :, :3], **CLOSE)
