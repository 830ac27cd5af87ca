"""Generative adversarial networks: latents in, images out; plain, class-conditional, or in two graphs as StyleGAN has them."""

import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgegen.backends.base import Session
from edgegen.errors import BundleError, InputError
from edgegen.pipelines.base import OpenSession, Owner, opened, settings_of
from edgegen.pipelines.batches import BatchedGraph
from edgegen.pipelines.gan_options import Anatomy, Batch, GanSettings, Mix, Noise
from edgegen.pipelines.image_to_image import Translator
from edgegen.pipelines.images import Images, check_numbers, check_room, class_ids_for, normal, seeds_for
from edgegen.pipelines.latents import Floats, layered, linear, mixed, spherical, truncated
from edgegen.pipelines.tiling import Ramp
from edgegen.ranges import is_whole
from edgegen.tensors import Axis, Tensor, Tensors

if TYPE_CHECKING:
    from edgegen.bundle import Bundle

OnProgress = Callable[[int, int], None]  # (images that are done, all)
NOISE_FILE = "noise.bin"


class Gan(Owner):
    """A generator: the graph `generator`, or `mapping` and `synthesis`; or a network that changes images: `translator`.

    Lifetime: owns its sessions and its bundle. Threads: several may use one pipeline; runs of the graphs take turns.

    Args:
        sessions: by graph name.
        settings: of the bundle.
        axes: bounds of the named axes, by graph; a batch of any size is run where they are not given.
        noise: the fixed noise of each layer, float32 [1, height, width], where it is stored.
    """

    def __init__(
        self,
        sessions: Mapping[str, Session],
        settings: GanSettings,
        axes: Mapping[str, Mapping[str, Axis]] | None = None,
        noise: Sequence[Floats] = (),
    ) -> None:
        known = axes or {}
        self.graphs = {name: BatchedGraph(session, known.get(name, {})) for name, session in sessions.items()}
        self.settings = settings
        self._stored = list(noise)
        is_translator = "translator" in sessions
        self.has = Anatomy(()) if is_translator else _anatomy(sessions, settings, bool(self._stored))
        self.translator = Translator(sessions["translator"], settings, known.get("translator")) if is_translator else None
        self._mean = np.asarray(settings.mean_w, np.float32)

    @classmethod
    def from_bundle(cls, bundle: "Bundle", open_session: OpenSession) -> "Gan":
        """Read the settings and open the graphs. BundleError where they do not fit."""
        settings = settings_of(bundle, GanSettings, "a GAN")
        graphs = bundle.manifest.graphs
        if set(graphs) not in ({"generator"}, {"mapping", "synthesis"}, {"translator"}):
            raise BundleError(f"a GAN has generator, or mapping and synthesis, or translator; here are {sorted(graphs)}")
        with opened(graphs, open_session) as sessions:
            noise = _read_noise(bundle, _noise_shapes(sessions[_painter(sessions)])) if settings.stored_noise else []
            pipeline = cls(sessions, settings, {name: graph.axes for name, graph in graphs.items()}, noise)
        return pipeline.adopt(bundle)

    def generate(
        self,
        *,
        count: int | None = None,
        seed: int | Sequence[int] | None = None,
        class_ids: int | Sequence[int] | None = None,
        latents: Any = None,
        w: Any = None,
        psi: float | None = None,
        cutoff: int | None = None,
        mix: Mix | None = None,
        noise: Noise | None = None,
        batch_size: int | None = None,
        progress: OnProgress | None = None,
        deadline_s: float | None = None,
    ) -> Images:
        """Make images.

        Args:
            count: how many; if None, as many as there are latents, seeds or class ids, or one.
            seed: see `Images`.
            class_ids: of all images, or of each; a conditional model needs it.
            latents: z, float32 [image, ...], instead of drawing it from the seeds.
            w: instead of z and the mapping: float32 [W], [image, W] or [image, layer, W].
            psi: truncation: 1 leaves w as it is, 0 makes every image the mean one, less than 1 trades variety for quality.
            cutoff: how many layers, from the first, are truncated; all if None.
            mix: (seed or z, layer): the styles from that layer on come from there.
            noise: of each layer: "fixed" as stored, "seeded" from each image's seed, or "zero". If None, fixed if it is stored,
                else seeded.
            batch_size: at most so many images run at once; as many as were exported for, if None. Images do not depend on it,
                but for the last bits of float32 sums, which may move a pixel by one grey level.
            progress: called with (images done, all) after each batch.
            deadline_s: no batch begins later; the images that are finished are returned, at least one batch.

        Raises:
            InputError: an option that does not fit, or that this model has no graph for.
            BackendError: the model gives what is not finite.
        """
        self._require_latents()
        check_numbers(count=count, psi=psi, cutoff=cutoff, batch_size=batch_size, deadline_s=deadline_s)
        started = time.perf_counter()
        batch = self.has.batch(count, seed, class_ids, latents, w, self.has.style(psi, cutoff, mix, noise))
        _, channels, height, width = self.graphs[_painter(self.graphs)].session.outputs["image"].axes
        if isinstance(channels, int) and isinstance(height, int) and isinstance(width, int):
            check_room(len(batch.seeds), height, width, channels)
        total, size = len(batch.seeds), min(graph.size(batch_size) for graph in self.graphs.values())
        made: list[NDArray[np.uint8]] = []
        for start in range(0, total, size):
            if made and deadline_s is not None and time.perf_counter() - started > deadline_s:
                break
            made.append(self.settings.pixels.to_uint8(self._make(batch.part(start, start + size))))
            if progress is not None:
                progress(min(start + size, total), total)
        pixels = np.concatenate(made)
        seeds = batch.seeds[: len(pixels)]
        ids = None if class_ids is None else np.asarray(class_ids).tolist()
        given = {"class_ids": ids, "psi": psi, "cutoff": cutoff, "noise": noise, "mix": _told(mix)}
        said = {name: value for name, value in given.items() if value is not None}
        if len(pixels) < total:
            said["stopped"] = "deadline"
        if latents is None and w is None:
            return Images(pixels, seeds, said)
        drawn = self.has.noise and batch.style.noise == "seeded"
        return Images(pixels, (), said | ({"noise_seeds": list(seeds)} if drawn else {}))

    def interpolate(
        self,
        seed_a: int,
        seed_b: int,
        steps: int,
        *,
        class_ids: int | None = None,
        psi: float | None = None,
        cutoff: int | None = None,
        mix: Mix | None = None,
        noise: Noise | None = None,
        batch_size: int | None = None,
        progress: OnProgress | None = None,
        deadline_s: float | None = None,
    ) -> Images:
        """`steps` images on the way from one seed's to the other's: in w, or along the sphere in z where there is no mapping.

        Seeded noise is that of `seed_a` in all of them, and the class is one. All else, and what is raised: see `generate`.
        """
        self._require_latents()
        check_numbers(steps=steps)
        if not (is_whole(seed_a) and is_whole(seed_b)):
            raise InputError("a GAN goes from one seed to another, which are whole numbers: it has no encoder for images")
        if steps < 2:
            raise InputError(f"steps is {steps}; from one image to another there are at least 2")
        z = normal(seeds_for(2, [seed_a, seed_b]), self.has.latent_shape)
        options: dict[str, Any] = {"psi": psi, "cutoff": cutoff, "mix": mix, "noise": noise, "batch_size": batch_size}
        options |= {"seed": [seed_a] * steps, "progress": progress, "deadline_s": deadline_s}
        if not self.has.layers:
            return self.generate(latents=spherical(z[0], z[1], steps), class_ids=class_ids, **options)
        ids = class_ids_for(class_ids, 1, self.has.classes)
        a, b = (self._map(end[None], ids)[0] for end in z)
        return self.generate(w=linear(a, b, steps), **options)

    def translate(
        self,
        pixels: Any,
        *,
        tile: int | None = None,
        overlap: int | None = None,
        blend: int | None = None,
        ramp: Ramp = "cosine",
        progress: OnProgress | None = None,
        deadline_s: float | None = None,
    ) -> Images:
        """Change images: see `Translator.translate`. InputError where the bundle has no translator."""
        if self.translator is None:
            raise InputError("this bundle makes images from latents, with generate; changing images takes the graph translator")
        return self.translator.translate(
            pixels, tile=tile, overlap=overlap, blend=blend, ramp=ramp, progress=progress, deadline_s=deadline_s
        )

    def _require_latents(self) -> None:
        if self.translator is not None:
            raise InputError("this bundle changes images: give one, with --input or to translate(); it makes none from latents")

    def replay(self, inputs: Tensors) -> Iterator[tuple[str, Tensor]]:
        """The proof's tensors, in order.

        Args:
            inputs: `z`, and `class_ids` if conditional; with styles also `other` (z to mix with), `psi`, `cutoff` and `layer`
                (one number each), and every `noise.N`.
        """
        if self.translator is not None:
            yield from self.translator.replay(inputs)
            return
        z, ids = inputs["z"], inputs.get("class_ids")
        noise = [inputs[f"noise.{layer}"] for layer in range(len(self.has.noise))]
        if not self.has.layers:
            fed = _fed(z, ids)
            yield "image", self._paint(fed, noise)
            yield from self._with_constant_noise(fed)
            return
        w, other = self._map(z, ids), self._map(inputs["other"], ids)
        yield "w", w
        yield "w.other", other
        styles, others = layered(w, self.has.layers), layered(other, self.has.layers)
        yield "image", self._paint({"w": styles}, noise)
        pulled = truncated(styles, self._mean, inputs["psi"].item(), inputs["cutoff"].item())
        yield "image.truncated", self._paint({"w": pulled}, noise)
        yield "image.mixed", self._paint({"w": mixed(styles, others, inputs["layer"].item())}, noise)
        yield from self._with_constant_noise({"w": styles})

    def _make(self, batch: Batch) -> Tensor:
        """Float images of a batch that fits."""
        z = normal(batch.seeds, self.has.latent_shape) if batch.z is None else batch.z
        noise = self._noise(batch.style.noise, batch.seeds)
        if not self.has.layers:
            return self._paint(_fed(z, batch.class_ids), noise)
        style, layers = batch.style, self.has.layers
        w = layered(self._map(z, batch.class_ids) if batch.w is None else batch.w, layers)
        if style.other is not None:
            other = np.broadcast_to(style.other, z.shape)
            w = mixed(w, layered(self._map(other, batch.class_ids), layers), style.layer)
        if style.psi != 1.0:
            w = truncated(w, self._mean, style.psi, style.cutoff)
        return self._paint({"w": w}, noise)

    def _map(self, z: Floats, class_ids: NDArray[np.int64] | None) -> Floats:
        return self.graphs["mapping"].run(_fed(z, class_ids))["w"]

    def _noise(self, mode: Noise, seeds: Sequence[int]) -> list[Tensor]:
        """Noise of each layer: [image, 1, height, width]."""
        if mode == "fixed":
            return [np.repeat(noise[None], len(seeds), axis=0) for noise in self._stored]
        if mode == "zero":
            return [np.zeros((len(seeds), *shape), np.float32) for shape in self.has.noise]
        # Stream 0 is z's.
        return [normal(seeds, shape, stream=layer + 1) for layer, shape in enumerate(self.has.noise)]

    def _paint(self, fed: Mapping[str, Tensor], noise: Sequence[Tensor]) -> Tensor:
        """The graph that gives the image."""
        feed = {**fed, **{f"noise.{layer}": array for layer, array in enumerate(noise)}}
        return self.graphs[_painter(self.graphs)].run(feed)["image"]

    def _with_constant_noise(self, fed: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        count = len(next(iter(fed.values())))
        for mode in self.has.constant_noise:
            yield f"image.{mode}_noise", self._paint(fed, self._noise(mode, [0] * count))


def _read_noise(bundle: "Bundle", shapes: Sequence[Sequence[int]]) -> list[Floats]:
    """The fixed noise of each layer, [1, height, width], from the bundle's file."""
    data = bundle.read(NOISE_FILE)
    ends = [int(end) for end in np.cumsum([int(np.prod(shape)) for shape in shapes])]
    if not ends or len(data) != 4 * ends[-1]:
        raise BundleError(f"{NOISE_FILE} has {len(data)} bytes; they do not fill the layers' noise {[list(s) for s in shapes]}")
    parts = np.split(np.frombuffer(data, "<f4"), ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _painter(graphs: Container[str]) -> str:
    """The graph that gives the image, and takes noise."""
    return "synthesis" if "synthesis" in graphs else "generator"


def _noise_shapes(session: Session) -> tuple[tuple[int, ...], ...]:
    """Of each layer's noise, [1, height, width]: the inputs noise.0, noise.1, ..."""
    names = [name for name in session.inputs if name.startswith("noise.")]
    if {f"noise.{layer}" for layer in range(len(names))} != set(names):
        raise BundleError(f"the noise inputs are {sorted(names)}; they must be noise.0, noise.1, ...")
    return tuple(_fixed(session, f"noise.{layer}") for layer in range(len(names)))


def _fixed(session: Session, name: str) -> tuple[int, ...]:
    """The sizes of an input without its batch."""
    spec = session.inputs.get(name)
    sizes = tuple(axis for axis in spec.axes[1:] if isinstance(axis, int)) if spec is not None else ()
    if spec is None or len(sizes) != len(spec.axes) - 1:
        raise BundleError(f"a GAN's graph takes {name}, of one size but for the batch; here is {spec}")
    return sizes


def _anatomy(sessions: Mapping[str, Session], settings: GanSettings, has_noise: bool) -> Anatomy:
    """What this generator has. BundleError where graphs and settings do not go together."""
    for graph, output, ranks in (("mapping", "w", (2, 3)), ("synthesis", "image", (4,)), ("generator", "image", (4,))):
        spec = sessions[graph].outputs.get(output) if graph in sessions else None
        if graph in sessions and (spec is None or len(spec.axes) not in ranks):
            raise BundleError(f"the graph {graph} must give {output}, of {ranks[0]} axes; here is {spec}")
    entry = sessions.get("mapping") or sessions["generator"]
    latent, is_conditional = _fixed(entry, "z"), "class_ids" in entry.inputs
    if is_conditional != (settings.classes > 0):
        raise BundleError(f"the settings say {settings.classes} classes; the graph takes {sorted(entry.inputs)}")
    noise = _noise_shapes(sessions[_painter(sessions)])
    if "synthesis" not in sessions:
        return Anatomy(latent, settings.classes, noise=noise, has_stored_noise=has_noise)
    w = _fixed(sessions["synthesis"], "w")
    if len(w) != 2 or len(settings.mean_w) not in (0, w[1]):
        raise BundleError(f"the mean latent has {len(settings.mean_w)} numbers; w is [layer, W]: {list(w)}")
    return Anatomy(latent, settings.classes, *w, noise, bool(settings.mean_w), has_noise)


def _fed(z: Floats, class_ids: NDArray[np.int64] | None) -> dict[str, Tensor]:
    return {"z": z} if class_ids is None else {"z": z, "class_ids": class_ids}


def _told(mix: Mix | None) -> Any:
    """For the parameters: a seed is told, latents are too many numbers."""
    if mix is None:
        return None
    return [int(mix[0]) if is_whole(mix[0]) else "latents", int(mix[1])]
