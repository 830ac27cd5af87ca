"""A network that describes images in numbers, to compare sets of them by: a classifier without its last layer."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edgegen.backends.base import Session
from edgegen.errors import BackendError, BundleError
from edgegen.pipelines.base import OpenSession, Owner, settings_of
from edgegen.pipelines.batches import BatchedGraph
from edgegen.pipelines.images import PixelRange, pixel_batch
from edgegen.pipelines.latents import Floats
from edgegen.tensors import Axis, Tensor, Tensors

if TYPE_CHECKING:
    from edgegen.bundle import Bundle


class FeaturesSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the manifest's `settings` hold for a network of features: the numbers for black and white."""

    pixels: PixelRange = PixelRange()


class Features(Owner):
    """The graph `features`: image float32 [batch, channel, height, width] -> features float32 [batch, feature].

    Lifetime: owns its session and its bundle. Threads: several may use one pipeline; runs of the graph take turns.
    """

    def __init__(self, session: Session, settings: FeaturesSettings, axes: Mapping[str, Axis] | None = None) -> None:
        if set(session.inputs) != {"image"} or set(session.outputs) != {"features"}:
            raise BundleError(f"the graph takes {sorted(session.inputs)} and gives {sorted(session.outputs)}, not features")
        self.graph, self.settings = BatchedGraph(session, axes or {}), settings
        self.graphs = {"features": self.graph}

    @classmethod
    def from_bundle(cls, bundle: "Bundle", open_session: OpenSession) -> "Features":
        """Read the settings and open the graph. BundleError where they do not fit."""
        settings = settings_of(bundle, FeaturesSettings, "a network of features")
        if set(bundle.manifest.graphs) != {"features"}:
            raise BundleError(f"a network of features has the graph features; here are {sorted(bundle.manifest.graphs)}")
        return cls(open_session("features"), settings, bundle.manifest.graphs["features"].axes).adopt(bundle)

    def extract(self, pixels: Any) -> Floats:
        """Features float32 [image, feature] of images uint8 [image, height, width, channel], of the size that was exported.

        Raises InputError where the images do not fit, BackendError where the model gives what is not finite.
        """
        batch = pixel_batch(pixels, int(self.graph.session.inputs["image"].axes[1]))
        span = self.settings.pixels
        # Floats are four times as large as the pixels: only a batch of them is held.
        parts = [self.graph.run({"image": span.from_uint8(batch[p])})["features"] for p in self.graph.batches(len(batch))]
        features: Floats = np.concatenate(parts)
        if not np.isfinite(features).all():
            raise BackendError("the network gave features that are not finite; try a higher precision")
        return features

    def replay(self, inputs: Tensors) -> Iterator[tuple[str, Tensor]]:
        """The proof's tensors: `features` of the recorded `image`."""
        yield from self.graph.run({"image": inputs["image"]}).items()
