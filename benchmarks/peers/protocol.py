"""What the benchmark and its workers say to each other: one JSON object a line, over the worker's stdin and stdout.

The worker speaks first, when its model is loaded; then it answers every request with one line, until its stdin ends.
Runs in the peers' environment too, so it knows nothing but the standard library.
"""

import json
import os
import sys
import time
from pathlib import Path


def serve(open_engine):
    """Be a worker: open an engine with the settings of argv[1] and let it do what is asked for.

    open_engine(settings) returns an object with `facts` (a dict for the record) and `generate(request) -> dict`, the answer.
    For text that is `tokens_answer`: each token's perf_counter is taken when its id is known to Python, and exactly
    request["new_tokens"] tokens are made, whether or not one of them ends a text.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # some libraries print to stdout, which is the benchmark's line
    start_s = time.perf_counter()
    engine = open_engine(json.loads(sys.argv[1]))
    _say(answers, {"load_s": time.perf_counter() - start_s, "pid": os.getpid(), **engine.facts})
    for line in sys.stdin:
        _say(answers, engine.generate(json.loads(line)) | {"peak_memory_bytes": _peak_memory_bytes()})


def tokens_answer(begin_s, token_ids, moments_s):
    """The answer of a language model: its tokens, and the seconds from the request to each."""
    return {"token_ids": token_ids, "token_s": [moment_s - begin_s for moment_s in moments_s]}


def _say(stream, message):
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def _peak_memory_bytes():
    """VmHWM of this process; None where the system does not tell it."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(found[0]) << 10 if found else None
