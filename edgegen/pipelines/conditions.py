"""What a denoiser is told beside sample and time: class or text, size, guidance; and the same without a condition."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgegen.errors import InputError
from edgegen.pipelines.diffusion_settings import DiffusionSettings
from edgegen.pipelines.images import class_ids_for
from edgegen.pipelines.text_conditioning import TextConditioner
from edgegen.tensors import Tensor, Tensors, TensorSpec


class Conditions:
    """Makes the denoiser's inputs but sample and timestep: those that it has."""

    def __init__(self, inputs: Mapping[str, TensorSpec], settings: DiffusionSettings, text: TextConditioner | None) -> None:
        self._inputs, self._settings, self._text = inputs, settings, text

    def of(
        self,
        total: int,
        shape: tuple[int, ...],
        *,
        prompt: Any = None,
        negative_prompt: Any = None,
        class_ids: Any = None,
        guidance: float | None = None,
        guidance_rescale: float = 0.0,
    ) -> tuple[Tensors, Tensors | None, float, float]:
        """What the denoiser is told, what it is told without a condition (None: no guidance), and the guidance."""
        scale = self._settings.guidance if guidance is None else float(guidance)
        if not np.isfinite(scale) or not 0 <= guidance_rescale <= 1:
            raise InputError(f"guidance is {scale} and guidance_rescale {guidance_rescale}; give a finite one, and 0 to 1")
        if self._text is None and (prompt is not None or negative_prompt is not None):
            raise InputError("prompt: this model takes no text")
        embedded = "guidance" in self._inputs
        wants = scale != 1 and not embedded
        told, without = self._by_class(class_ids, total)
        if self._text is not None:
            told, without = self._by_text(self._text, prompt, negative_prompt, total, wants=wants)
        if guidance is not None and wants and without is None:
            raise InputError(f"guidance is {scale}; this model has nothing to be guided by, or was given no class")
        if negative_prompt is not None and not wants:
            raise InputError(
                "negative_prompt needs a guidance other than 1" if not embedded else "this model has no negative prompt"
            )
        told |= self._further(total, shape, scale)
        return told, without if wants else None, scale, guidance_rescale

    def _further(self, total: int, shape: tuple[int, ...], scale: float) -> dict[str, Tensor]:
        """Inputs that follow from the size and the guidance: SDXL's time ids (original size, crop, target size), and Flux's."""
        further: dict[str, Tensor] = {}
        if "time_ids" in self._inputs:
            factor = 1 if self._settings.latent is None else self._settings.latent.factor
            height, width = shape[2] * factor, shape[3] * factor
            further["time_ids"] = np.tile(np.array([height, width, 0, 0, height, width], np.float32), (total, 1))
        if "guidance" in self._inputs:
            further["guidance"] = np.full(total, scale, np.float32)
        return further

    def _by_class(self, class_ids: Any, total: int) -> tuple[dict[str, Tensor], Tensors | None]:
        null = self._settings.null_class
        if not self._settings.classes or (class_ids is None and null is not None):
            class_ids_for(class_ids, total, 0)
            return ({"class_ids": np.full(total, null, np.int64)} if self._settings.classes else {}), None
        ids = class_ids_for(class_ids, total, self._settings.classes)
        assert ids is not None  # noqa: S101  # there are classes
        without = None if null is None else {"class_ids": np.full(total, null, np.int64)}
        return {"class_ids": np.ascontiguousarray(ids)}, without

    def _by_text(
        self, text: TextConditioner, prompt: Any, negative: Any, total: int, *, wants: bool
    ) -> tuple[dict[str, Tensor], Tensors | None]:
        told = {name: array for name, array in text.encode(_prompts("prompt", prompt, total)).items() if name in self._inputs}
        if not wants:
            return told, None
        if negative is None and text.settings.zero_negative:
            return told, {name: np.zeros_like(array) for name, array in told.items()}
        return told, text.encode(_prompts("negative_prompt", "" if negative is None else negative, total))

    def recorded(self, inputs: Tensors, shape: tuple[int, ...]) -> tuple[dict[str, Tensor], Tensors | None]:
        """The same from recorded inputs: token ids instead of texts."""
        scale = inputs["guidance"].item()
        guided = scale != 1 and "guidance" not in self._inputs
        told, without = self._by_class(inputs.get("class_ids"), shape[0])
        if self._text is not None:
            graphs = [encoder.graph for encoder in self._text.settings.encoders]
            told = {
                k: v for k, v in self._text.join({g: inputs[f"token_ids.{g}"] for g in graphs}).items() if k in self._inputs
            }
            if f"negative_token_ids.{graphs[0]}" in inputs:
                without = self._text.join({g: inputs[f"negative_token_ids.{g}"] for g in graphs})
            else:
                without = {name: np.zeros_like(array) for name, array in told.items()}
        told |= self._further(shape[0], shape, scale)
        return told, without if guided else None


def _prompts(name: str, given: Any, total: int) -> list[str]:
    if given is None:
        raise InputError(f"{name} is missing; this model makes images from text")
    if not isinstance(given, str | Sequence):
        raise InputError(f"{name} is text, or a list of texts, not {str(given)[:60]}")
    prompts = [given] * total if isinstance(given, str) else list(given)
    if len(prompts) != total:
        raise InputError(f"{name} holds {len(prompts)} texts for {total} images; give one, or one for each")
    return prompts
