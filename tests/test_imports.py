"""The wall between the device and the workstation, walked through in clean processes."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WORKSTATION_FOLDERS = {"export", "train", "models"}
WORKSTATION_LIBRARIES = {"torch", "onnx", "onnx_ir", "onnxscript", "transformers"}
HEAVY = WORKSTATION_LIBRARIES | {"onnxruntime", "tokenizers", "jinja2", "click", "rich", "msgspec", "numpy", "pynvml"}


def modules() -> list[str]:
    found = []
    for path in sorted((ROOT / "edgegen").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if len(parts) < 2 or parts[1] not in WORKSTATION_FOLDERS:
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def loaded_after(code: str, *, warnings: str = "error") -> set[str]:
    """Run `code` in a fresh interpreter; the top-level modules that it loaded."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    command = [sys.executable, "-W", warnings, "-c", code]
    # onnxruntime without that variable writes below the home directory as soon as it is imported.
    with tempfile.TemporaryDirectory() as home:
        environment |= {"HOME": home, "XDG_CACHE_HOME": home}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_the_device_side_never_loads_a_workstation_library():
    assert "edgegen.backends.base" in modules()
    assert "edgegen.export" not in modules()
    assert loaded_after("\n".join(f"import {module}" for module in modules())) & WORKSTATION_LIBRARIES == set()


def test_importing_edgegen_loads_no_library_at_all():
    assert loaded_after("import edgegen") & HEAVY == set()


def test_devices_are_known_with_msgspec_alone():
    assert loaded_after("import edgegen.devices.detect, edgegen.devices.report") & HEAVY == {"msgspec"}


def test_only_the_backend_loads_its_inference_library():
    importers = ("session", "binding", "create", "device", "failures", "providers", "state")
    rest = [module for module in modules() if module.removeprefix("edgegen.backends.ort.") not in importers]
    assert "onnxruntime" not in loaded_after("\n".join(f"import {module}" for module in rest))


def test_no_module_loads_tensorrt_or_cuda_by_being_imported():
    assert loaded_after("\n".join(f"import {module}" for module in modules())) & {"tensorrt", "tensorrt_rtx", "cuda"} == set()


def test_the_command_line_is_light_until_a_command_runs():
    if not (ROOT / "edgegen" / "cli" / "main.py").exists():
        pytest.skip("there is no command line yet")
    assert loaded_after("import edgegen.cli.main") & (WORKSTATION_LIBRARIES | {"onnxruntime", "tokenizers", "numpy"}) == set()


def test_edgegen_switches_telemetry_off_before_onnxruntime_is_imported():
    loaded_after("import edgegen, os; assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'")


def test_edgegen_warns_when_onnxruntime_came_first():
    pytest.importorskip("onnxruntime")
    code = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import onnxruntime
    import edgegen
assert [str(w.message) for w in caught if "telemetry" in str(w.message) and w.category is RuntimeWarning], caught
"""
    loaded_after(code, warnings="default")


def test_edgegen_does_not_warn_when_the_variable_was_set_before():
    pytest.importorskip("onnxruntime")
    loaded_after(
        "import os; os.environ['ORT_DISABLE_TELEMETRY'] = '1'\nimport onnxruntime, edgegen", warnings="error::RuntimeWarning"
    )
