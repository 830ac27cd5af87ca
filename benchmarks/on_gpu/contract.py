"""Run every test that needs a GPU, on whatever GPU libraries are here; say what is missing. This is `make test-gpu`.

Exits 0 where there is no GPU, and says so; 1 where there is one and a test failed or none could run.
"""

import collections
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).parents[1]))
from on_gpu.hardware import gpus

ROOT = Path(__file__).parents[2]
WITHOUT_TF32 = {"NVIDIA_TF32_OVERRIDE": "0"}  # float32 is to mean float32: TensorRT within onnxruntime has no option for it
_NOT_THERE = re.compile(r"ModuleNotFoundError: (.*)")


def gpu_tests():
    """The files with tests that need a GPU: the others, and what they import, are none of its business."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if "pytest.mark.gpu" in file.read_text(encoding="utf-8")]


def run_tests(*, marker="gpu", tests=None, limit_s=None):
    """The outcome of the marked tests: how many passed, which failed, and why the others were skipped, by reason."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [
            *(sys.executable, "-m", "pytest", "-q", "-m", marker, "-p", "no:cacheprovider", "--continue-on-collection-errors"),
            *(f"--junit-xml={report}", *(tests or gpu_tests())),
        ]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=ROOT,
            env=os.environ | WITHOUT_TF32,
            check=False,
            timeout=limit_s,
        )
        if not report.exists():
            raise RuntimeError(f"pytest did not run: {(done.stdout + done.stderr).strip().splitlines()[-1:]}")
        return summarize(ElementTree.parse(report).getroot()) | {"status": done.returncode}


def summarize(root):
    """From JUnit's XML to counts, failures and missing pieces."""
    passed, failed, skipped = 0, {}, collections.Counter()
    for case in root.iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        bad = next((found for found in (case.find("failure"), case.find("error")) if found is not None), None)
        gone = case.find("skipped")
        missing = _NOT_THERE.search(bad.text or "") if bad is not None and bad.get("message") == "collection failure" else None
        if missing is not None:  # none of its tests can be read
            skipped[f"{name.strip(':')}: {missing[1]}"] += 1
        elif bad is not None:
            failed[name] = (bad.get("message") or "").splitlines()[:1]
        elif gone is not None:
            skipped[re.sub(r"^Skipped: ", "", gone.get("message") or "")] += 1
        else:
            passed += 1
    return {"passed": passed, "failed": failed, "missing": dict(skipped)}


def main():
    found, reason = gpus()
    if not found:
        sys.stdout.write(f"no GPU here ({reason}): nothing was tested\n")
        return 0
    sys.stdout.write("".join(f"GPU: {gpu['name']}, compute capability {gpu['compute_capability']}\n" for gpu in found))
    outcome = run_tests()
    for reason, count in outcome["missing"].items():
        sys.stdout.write(f"missing for {count} tests: {reason}\n")
    for name, why in outcome["failed"].items():
        sys.stdout.write(f"FAILED {name}: {' '.join(why)}\n")
    sys.stdout.write(
        f"{outcome['passed']} passed, {len(outcome['failed'])} failed, {sum(outcome['missing'].values())} skipped\n"
    )
    return int(bool(outcome["failed"]) or not outcome["passed"])


if __name__ == "__main__":
    sys.exit(main())
