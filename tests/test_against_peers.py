"""The arithmetic and the worker protocol of benchmarks/against_peers.py; the engines themselves are not needed."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
WORKER = """
from protocol import serve, tokens_answer

class Engine:
    facts = {{"threads": 3}}

    def __init__(self, settings):
        print("libraries print what they like")
        self.first = settings["first"]

    def generate(self, request):
        if request["new_tokens"] == 0:
            raise ValueError("no tokens")
        count = request["new_tokens"]
        return tokens_answer(10.0, [self.first] * count, [10.5 + i for i in range(count)])

serve(Engine)
"""


@pytest.fixture
def peers(monkeypatch):
    """The package, imported as the benchmark does it and forgotten again."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import peers.figures
    import peers.workers

    yield peers
    for name in [name for name in sys.modules if name.partition(".")[0] == "peers"]:
        del sys.modules[name]


def sample(peers, engine, place, step_s, mode="greedy", first_s=1.0):
    times_s = tuple(first_s + step_s * i for i in range(5))
    return peers.figures.Sample(engine, 18, mode, place, times_s)


@pytest.fixture
def worker(peers, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(), encoding="utf-8")
    with peers.workers.Worker("stub", sys.executable, script, {"first": 7}) as started:
        yield started


def test_decode_speed_leaves_the_first_token_out(peers):
    assert sample(peers, "edgegen", 0, 0.01).value("decode_tokens_per_s") == pytest.approx(100)
    assert sample(peers, "edgegen", 0, 0.01).value("first_token_s") == 1.0


def test_the_ratio_is_to_the_peer_with_the_best_median(peers):
    steps_s = {"edgegen": (1, 2, 4), "fast once": (0.5, 8, 8), "fast": (2, 2, 4)}
    samples = [sample(peers, name, place, step) for name, found in steps_s.items() for place, step in enumerate(found)]
    found = peers.figures.compare(samples, 18, "decode_tokens_per_s")
    assert found["best_peer"] == "fast"
    assert found["ratio_of_medians"] == pytest.approx(1)
    assert found["ratio_of_rounds"]["rounds"] == pytest.approx([2, 1, 1])


def test_the_best_peer_in_time_is_the_one_with_the_least(peers):
    firsts_s = {"edgegen": 2.0, "slow": 8.0, "fast": 4.0}
    samples = [sample(peers, name, 0, 1, first_s=first) for name, first in firsts_s.items()]
    found = peers.figures.compare(samples, 18, "first_token_s")
    assert (found["best_peer"], found["ratio_of_medians"]) == ("fast", 0.5)


def test_the_cost_of_sampling_is_a_share_of_greedy_speed(peers):
    samples = [sample(peers, "edgegen", 0, 1.0), sample(peers, "edgegen", 0, 1.25, mode="sampled")]
    assert peers.figures.sampling_cost(samples, 18)["cost"]["median"] == pytest.approx(0.2)


def test_a_target_needs_both_ratios(peers):
    one = {"prompt_tokens": 18, "figure": "decode_tokens_per_s", "best_peer": "other", "ratio_of_medians": 1.09}
    sampling = {"cost": {"median": 0.0}}
    for rounds, met in ((1.09, True), (1.07, False)):
        rows = peers.figures.targets([one | {"ratio_of_rounds": {"median": rounds}}], sampling, None, 1)
        assert [row["met"] for row in rows] == [met, True]


def test_a_worker_answers_line_by_line_whatever_its_libraries_print(worker):
    assert worker.facts["threads"] == 3
    answer = worker.request(new_tokens=2)
    assert answer["token_ids"] == [7, 7]
    assert answer["token_s"] == [0.5, 1.5]  # from the request


def test_a_worker_that_ends_says_why(peers, worker):
    with pytest.raises(peers.workers.WorkerError, match="stub ended with status 1: ValueError: no tokens"):
        worker.request(new_tokens=0)
