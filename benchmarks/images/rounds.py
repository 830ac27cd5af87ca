"""Engines measured in turns: who works when, for how long, and which way of PyTorch is too slow to be asked again."""

import statistics
import time

TURN_S = 0.35  # what a turn takes, about, for each thing that it times
MOST_RUNS = 100
SLOW_S = 1.0  # a run that takes longer is timed once a turn; below it, a run to get warm does not count
LONG_ROUND_S, LONG_ROUNDS = 10.0, 5  # where one round of all engines takes longer, there are fewer
PAUSE_S = 0.2  # the threads of the engine before go to sleep
HOPELESS, SEEN = 1.3, 2  # times as slow as the best of its kind, after so many rounds


def get_ready(workers, batch):
    """Let every engine run: compiles what is not compiled yet. Returns the seconds of a run, by worker."""
    took_s = {}
    for name, worker in workers.items():
        worker.request(batch=batch, runs=2)
        found = worker.request(batch=batch, runs=1)["times_s"]
        took_s[name] = max(times_s[0] for times_s in found.values())
    return took_s


def measure(workers, batch, took_s, rounds, rivals):
    """Medians of each round in seconds, by what was timed; the order of the workers rotates from round to round.

    Of `rivals`, the workers of whom only the fastest matters, those that are hopeless are left out of later rounds.
    """
    medians, order = {}, list(workers)
    for place in range(rounds):
        turn = place % len(order)
        for name in order[turn:] + order[:turn]:
            time.sleep(PAUSE_S)
            for key, times_s in _turn(workers[name], batch, took_s[name]).items():
                medians.setdefault(key, []).append(statistics.median(times_s))
        if place + 1 >= SEEN:
            order = [name for name in order if name not in hopeless(medians, rivals)]
    return medians


def hopeless(medians, rivals):
    """Those of `rivals` that are much slower than the best of them."""
    found = {name: statistics.median(medians[name]) for name in rivals}
    return {name for name, median_s in found.items() if median_s > HOPELESS * min(found.values())}


def rounds_for(rounds, took_s):
    """As many as were asked for, unless they take very long."""
    round_s = sum(max(TURN_S, one_s) for one_s in took_s.values())
    return min(rounds, LONG_ROUNDS) if round_s > LONG_ROUND_S else rounds


def _turn(worker, batch, took_s):
    if took_s > SLOW_S:
        return worker.request(batch=batch, runs=1)["times_s"]
    runs = max(2, min(MOST_RUNS, int(TURN_S / took_s)))
    return {key: times_s[1:] for key, times_s in worker.request(batch=batch, runs=runs + 1)["times_s"].items()}
