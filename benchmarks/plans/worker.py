"""One bundle in a process of its own, as an application runs it: its peak memory, and the best time of each kind of run.

Called with a bundle and a job as JSON; prints one JSON object. A job: {"kind": "text", "prompt": tokens, "new": tokens} or
{"kind": "generate" | "reconstruct" | "translate", "batch": images, ...} with the options of the pipeline's function.
"""

import json
import sys
import time

import edgegen
from edgegen.backends.ort.session import OrtSession
from edgegen.bench.machine import peak_memory_bytes

REPEATS = 3  # the second run of a graph takes memory that the first did not


def main(bundle, job):
    """Do the job, and say what it took."""
    times = _timed()
    run, repeats = JOBS[job.pop("kind")], job.pop("repeats", REPEATS)
    with edgegen.load(bundle, backend="onnxruntime") as model:
        facts = [run(model, **job) for _ in range(repeats)][-1]
        kernels = sorted({session.kernels for session in _sessions(model)})
    print(json.dumps({"peak_bytes": peak_memory_bytes(), "times_s": times, "kernels": kernels, **facts}))


def _text(model, prompt, new):
    """About so many tokens of words that every tokenizer has."""
    made = model.generate(" ".join(["the dog and the cat"] * (prompt // 5)), max_new_tokens=new)
    return {"tokens": made.prompt_tokens + len(made.token_ids)}


def _generate(model, batch, **options):
    model.generate(count=batch, seed=0, **options)
    return {}


def _reconstruct(model, batch, side):
    import numpy as np

    model.reconstruct(np.zeros((batch, side, side, 3), np.uint8))
    return {}


def _translate(model, batch, height, width, tile=None):
    import numpy as np

    model.translate(np.zeros((batch, height, width, 3), np.uint8), tile=tile)
    return {}


def _sessions(model):
    return model.sessions if hasattr(model, "sessions") else [model.session]


def _timed():
    """The least seconds of a run by its graph and the shape of its first input; filled as the sessions run."""
    found, run = {}, OrtSession.run

    def timed(self, inputs, **options):
        start_s = time.perf_counter()
        result = run(self, inputs, **options)
        taken_s = time.perf_counter() - start_s
        first = inputs.get("input_ids", next(iter(inputs.values()))).shape
        name = f"{self._path} {'x'.join(map(str, first))}"
        found[name] = min(taken_s, found.get(name, taken_s))
        return result

    OrtSession.run = timed
    return found


JOBS = {"text": _text, "generate": _generate, "reconstruct": _reconstruct, "translate": _translate}

if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
