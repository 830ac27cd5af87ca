"""Generative adversarial networks: latents in, images out."""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edgegen.backends.base import Session
from edgegen.errors import BundleError
from edgegen.pipelines.base import OpenSession
from edgegen.pipelines.images import Images, PixelRange, normal, seeds_for
from edgegen.tensors import Tensor, Tensors

if TYPE_CHECKING:
    from edgegen.bundle import Bundle


class GanSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the manifest's `settings` hold for a GAN."""

    pixels: PixelRange = PixelRange()


class Gan:
    """A generator: `z` float32 [batch, ..] -> `image` float32 [batch, channel, height, width]."""

    bundle: "Bundle | None" = None

    def __init__(self, generator: Session, settings: GanSettings) -> None:
        self.generator, self.settings = generator, settings

    @classmethod
    def from_bundle(cls, bundle: "Bundle", open_session: OpenSession) -> "Gan":
        """Read the settings and open the graph "generator". BundleError where they do not fit."""
        try:
            settings = msgspec.convert(bundle.manifest.settings, GanSettings)
        except msgspec.ValidationError as error:
            raise BundleError(f"the settings are not those of a GAN: {error}") from None
        pipeline = cls(open_session("generator"), settings)
        pipeline.bundle = bundle
        return pipeline

    def generate(self, *, count: int = 1, seed: int | Sequence[int] | None = None) -> Images:
        """Make `count` images: see `Images` for what seeds mean."""
        seeds = seeds_for(count, seed)
        shape = [axis for axis in self.generator.inputs["z"].axes[1:] if isinstance(axis, int)]
        made = [self.generator.run({"z": normal([one], shape)})["image"].copy() for one in seeds]
        return Images(self.settings.pixels.to_uint8(np.concatenate(made)), seeds)

    def replay(self, inputs: Tensors) -> Iterator[tuple[str, Tensor]]:
        """The proof's tensors: `image` of the recorded `z`."""
        yield "image", self.generator.run({"z": inputs["z"]})["image"]

    def close(self) -> None:
        """Free everything. Closing twice is allowed."""
        self.generator.close()
        if self.bundle is not None:
            self.bundle.close()

    def __enter__(self) -> "Gan":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
