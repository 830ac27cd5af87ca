"""The first minute of an application: import, load, first generation and peak memory, each in a fresh process."""

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from edgegen.errors import BackendError


def measure_cold(bundle: str, backend: str, threads: int | None, prompt: str, new_tokens: int) -> dict[str, Any]:
    """Run one fresh process on a language model's `bundle`; as `measure_cold_call`."""
    options = {"max_new_tokens": new_tokens, "temperature": 0.0}
    return measure_cold_call(bundle, backend, threads, "generate", [prompt], options)


def measure_cold_call(
    bundle: str, backend: str, threads: int | None, method: str, arguments: Sequence[Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Run one fresh process that loads `bundle` and calls one method of its pipeline.

    `arguments` and `options` go through JSON; an argument {"image": [height, width, channel]} is a black uint8 image there.

    Returns:
        runtime_import_s (of `edgegen.runtime`, numpy included), load_s (the inference library's import included),
        first_generation_s, peak_memory_bytes (of the whole process; None where the system does not tell).

    Raises:
        BackendError: the process failed; its last line says why.
    """
    asked = json.dumps([bundle, backend, threads, method, list(arguments), dict(options)])
    command = [sys.executable, "-m", "edgegen.bench.cold", asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 -- our own module
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise BackendError(f"a fresh process could not load and generate: {last[0]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _run(
    bundle: str, backend: str, threads: int | None, method: str, arguments: list[Any], options: dict[str, Any]
) -> dict[str, Any]:
    marks = [time.perf_counter()]
    from edgegen.runtime import load

    marks.append(time.perf_counter())
    with load(bundle, backend, threads=threads) as pipeline:
        marks.append(time.perf_counter())
        getattr(pipeline, method)(*map(_argument, arguments), **options)
        marks.append(time.perf_counter())
        from edgegen.bench.machine import peak_memory_bytes

        peak = peak_memory_bytes()
    library_s, load_s, first_s = (after - before for before, after in itertools.pairwise(marks))
    return {"runtime_import_s": library_s, "load_s": load_s, "first_generation_s": first_s, "peak_memory_bytes": peak}


def _argument(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    import numpy as np

    return np.zeros(value["image"], np.uint8)


def measure_import(module: str) -> float:
    """Seconds that a fresh interpreter takes to import `module`, after numpy."""
    code = f"import numpy, time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    return float(done.stdout)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_run(*json.loads(sys.argv[1]))) + "\n")
