"""What ONNX Runtime says when something is missing, and what to do about it: the library, what brings it, the cure."""

import re

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as native

from edgegen.errors import BackendError

ERRORS: tuple[type[BaseException], ...] = (
    RuntimeError,
    *(kind for kind in vars(native).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)
_MISSING = re.compile(r"(lib[\w+-]+\.so[.\d]*): cannot open shared object file")
_WHEELS = {  # the stem of a library: the wheel that brings it
    "libcublas": "nvidia-cublas",
    "libcublasLt": "nvidia-cublas",
    "libcudart": "nvidia-cuda-runtime",
    "libcufft": "nvidia-cufft",
    "libcurand": "nvidia-curand",
    "libnvrtc": "nvidia-cuda-nvrtc",
    "libcudnn": "nvidia-cudnn",
    "libnvinfer": "tensorrt",
    "libnvonnxparser": "tensorrt",
}
_SUFFIXED = ("nvidia-cudnn", "tensorrt")  # with the CUDA version in its name always; the others had it up to CUDA 12
_JETSON = "on a Jetson: sudo apt install nvidia-jetpack"
_DRIVER = "libcuda.so.1"
_NO_DRIVER = (
    f"{_DRIVER} is missing: no NVIDIA driver is installed, or this container does not see it; install the driver, "
    "or start the container with --gpus all"
)
_CURES = (  # what the text has: what it means, and what to do
    (
        r"CUDA failure 100|no CUDA-capable device",
        "no NVIDIA GPU is visible here; look at nvidia-smi and CUDA_VISIBLE_DEVICES, and start a container with --gpus all",
    ),
    (
        r"CUDA failure 35\b|driver version is insufficient",
        "the NVIDIA driver is too old for the CUDA that this onnxruntime was built with; update the driver (CUDA 13 needs "
        "580 or newer), or install an onnxruntime-gpu that was built for its CUDA",
    ),
    (
        r"no kernel image|NoKernelImage",
        "this onnxruntime has no code for this GPU; on a Jetson install the wheel that NVIDIA builds for its JetPack, "
        "not the one of PyPI",
    ),
    (
        r"CUDA failure 2\b|out of memory|Failed to allocate memory",
        "the GPU's memory is full; close what else uses it, or take a smaller context, batch or precision",
    ),
    (
        r"graph capture|CUDA Graph",
        "this graph cannot be captured; leave CUDA graphs off",
    ),
)


def backend_error(what: str, error: BaseException) -> BackendError:
    """What ONNX Runtime said, in one line, and the cure where it is known."""
    text = str(error)
    line = next(iter(text.splitlines()), type(error).__name__)
    cure = known_cure(text)
    return BackendError(f"{what}: {cure} ({_short(line)})" if cure else f"{what}: {line}")


def explain(text: str) -> str:
    """Why a provider cannot be used, from all that was said: what is missing and the cure, else the first line as it is."""
    return known_cure(text) or _short(next(iter(text.splitlines()), "onnxruntime does not say why"))


def known_cure(text: str) -> str | None:
    """What a message means and what to do, where it is one that is known."""
    missing = list(dict.fromkeys(_MISSING.findall(text)))
    if missing:
        return _missing(missing)
    return next((cure for pattern, cure in _CURES if re.search(pattern, text)), None)


def _missing(libraries: list[str]) -> str:
    others = [library for library in libraries if library != _DRIVER]
    if not others:
        return _NO_DRIVER
    wheels = dict.fromkeys(filter(None, map(_wheel, others)))
    said = f"{', '.join(libraries)} cannot be found"
    cures = [f"pip install {' '.join(wheels)}"] if wheels else []
    also = f"; {_NO_DRIVER}" if _DRIVER in libraries else ""
    return f"{said}: {'; '.join([*cures, _JETSON])}{also}"


def _wheel(library: str) -> str:
    """The wheel that brings a library, for the CUDA version that this onnxruntime was built with."""
    stem, _, version = library.partition(".so")
    name = _WHEELS.get(stem, "")
    cuda = str(getattr(ort, "cuda_version", "") or "13").partition(".")[0]
    if not name or (cuda != "12" and name not in _SUFFIXED):
        return name
    pinned = f'"{name}-cu{cuda}=={version.lstrip(".")}.*"' if name == "tensorrt" and version else ""
    return pinned or f"{name}-cu{cuda}"


def _short(line: str) -> str:
    """Without the signatures and places in the source that ONNX Runtime begins with."""
    found = re.search(r"(CUDA failure|CUDNN failure|Failed to load library|Please install).*", line)
    text = found.group() if found else line
    return text.partition(" ; GPU=")[0].strip()
