"""Diffusion models: noise in, images out, step by step; in pixels or in the latent space of a VAE, by class or by text."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgegen.backends.base import Session
from edgegen.errors import BundleError, InputError
from edgegen.pipelines.autoencoder import WHOLE, Cut, Decoder, Encoder
from edgegen.pipelines.base import OpenSession, Owner, opened, settings_of
from edgegen.pipelines.batches import BatchedGraph
from edgegen.pipelines.conditions import Conditions
from edgegen.pipelines.denoising import Denoising, DenoisingStep, Job, latent_mask
from edgegen.pipelines.diffusion_settings import DiffusionSettings
from edgegen.pipelines.guidance import Floats, Guided
from edgegen.pipelines.images import Images, check_numbers, check_room, normal, pixel_batch, seeds_for
from edgegen.pipelines.text_conditioning import TextConditioner
from edgegen.schedules import trajectory
from edgegen.tensors import Axis, Tensor, Tensors
from edgegen.tokenizers import Tokenizer

if TYPE_CHECKING:
    from edgegen.bundle import Bundle

OnProgress = Callable[[int, int], None]  # (steps that are done, all)
_PIXELS_OF_A_TOKEN = 2  # the side of a transformer's patch, where its schedule does not say


class Diffusion(Owner):
    """A denoiser: sample float32 [batch, channel, height, width], timestep float32 [batch], conditions -> prediction.

    Further graphs: `vae_decoder` and `vae_encoder` of a latent model, and the text encoders that the settings name.
    Lifetime: owns its sessions and its bundle. Threads: several may use one pipeline; runs of a graph take turns.

    Args:
        sessions: by graph name.
        settings: of the bundle.
        axes: bounds of the named axes, by graph; any size is run where they are not given.
        tokenizers: by the graph name of their text encoder.
    """

    def __init__(
        self,
        sessions: Mapping[str, Session],
        settings: DiffusionSettings,
        axes: Mapping[str, Mapping[str, Axis]] | None = None,
        tokenizers: Mapping[str, Tokenizer] | None = None,
    ) -> None:
        self.settings = settings
        self.graphs = {name: BatchedGraph(session, (axes or {}).get(name)) for name, session in sessions.items()}
        self._check_graphs()
        self._inputs = sessions["denoiser"].inputs
        self._decoder = self._vae_decoder()
        text = None if settings.text is None else TextConditioner(settings.text, self.graphs, tokenizers or {})
        self._conditions = Conditions(self._inputs, settings, text)

    def _check_graphs(self) -> None:
        text = () if self.settings.text is None else self.settings.text.encoders
        needed = {"denoiser", *(encoder.graph for encoder in text)} | ({"vae_decoder"} if self.settings.latent else set())
        missing = needed - self.graphs.keys()
        if missing:
            raise BundleError(f"a diffusion model with these settings needs the graphs {sorted(missing)}; export it again")
        inputs = self.graphs["denoiser"].session.inputs
        known = {"sample", "timestep", "class_ids", "encoder_hidden_states", "pooled", "time_ids", "guidance"}
        unknown = inputs.keys() - known
        if unknown or not {"sample", "timestep"} <= inputs.keys():
            raise BundleError(f"the denoiser takes {sorted(inputs)}; known are {sorted(known)}")
        if ("encoder_hidden_states" in inputs) != bool(text) or ("class_ids" in inputs) != bool(self.settings.classes):
            raise BundleError("the denoiser's conditions are not those of the settings (classes, text); export it again")

    def _vae_decoder(self) -> Decoder | None:
        if self.settings.latent is None:
            return None
        return Decoder(self.graphs["vae_decoder"], self.settings.latent.factor, self.settings.pixels)

    @classmethod
    def from_bundle(cls, bundle: "Bundle", open_session: OpenSession) -> "Diffusion":
        """Read the settings and open every graph. BundleError where they do not fit."""
        settings = settings_of(bundle, DiffusionSettings, "a diffusion model")
        graphs = bundle.manifest.graphs
        encoders = settings.text.encoders if settings.text else ()
        tokenizers = {encoder.graph: Tokenizer.from_bytes(bundle.read(encoder.tokenizer)) for encoder in encoders}
        with opened(graphs, open_session) as sessions:
            pipeline = cls(sessions, settings, {name: graph.axes for name, graph in graphs.items()}, tokenizers)
        return pipeline.adopt(bundle)

    def generate(
        self,
        *,
        count: int | None = None,
        seed: int | Sequence[int] | None = None,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        class_ids: int | Sequence[int] | None = None,
        steps: int | None = None,
        stepper: str | None = None,
        guidance: float | None = None,
        guidance_rescale: float = 0.0,
        eta: float = 0.0,
        height: int | None = None,
        width: int | None = None,
        init_image: Any = None,
        strength: float | None = None,
        mask: Any = None,
        latents: Any = None,
        tile: int | None = None,
        overlap: int | None = None,
        batch_size: int | None = None,
        deadline_s: float | None = None,
        progress: OnProgress | None = None,
    ) -> Images:
        """Make images.

        Args:
            count: how many; if None, as many as there are latents, prompts, seeds or class ids, or one.
            seed: see `Images`. An image is the same alone or beside others, but for the last bits of float32 sums.
            prompt: one for all images, or one for each; a model with text needs it.
            negative_prompt: what to go away from, with guidance.
            class_ids: likewise, for a model with classes; without them a model that knows "no class" takes that.
            steps: denoising steps; the model's own if None.
            stepper: a name of `edgegen.schedules.STEPPERS`; the model's own if None.
            guidance: how closely to keep to prompt or class: 1 is no guidance (Ho & Salimans 2022); the model's own if None.
            guidance_rescale: 0 to 1; against too strong contrast (Lin et al. 2024, section 3.4).
            eta: the noise that DDIM adds at each step, as a share of DDPM's.
            height: in pixels; that of `init_image`, or the model's own, if None.
            width: likewise.
            init_image: uint8 [height, width, channel] to begin from.
            strength: how much of it to make anew, above 0 to 1; 0.8 if None, 1 with a mask.
            mask: uint8 [height, width], of `init_image`: white where it is to be made anew. The other pixels stay as they are.
            latents: standard normal noise float32 [image, channel, height, width] of the denoiser, instead of the seeds'.
            tile: the largest side of a tile, in pixels, that the VAE of a latent model runs: less needs less memory. Images
                larger than it was exported for always go in tiles.
            overlap: how many pixels neighbouring tiles share; a quarter of a tile if None.
            batch_size: at most so many images run at once, each twice with guidance; as many as were exported for, if None.
            deadline_s: looked at after each run of the denoiser. The images are then what the model takes for the finished
                ones, and `parameters["steps_done"]` says after how many of the steps.
            progress: called with (steps done, all) after each step.

        Raises:
            InputError: an option that does not fit, or that this model has no graph for.
            BackendError: the model gives what is not finite.
        """
        options = {name: value for name, value in locals().items() if name not in ("self", "progress")}
        images: Images | None = None
        for done in self.stream(**options):
            if progress is not None:
                progress(done.step, done.steps)
            images = done.images
        assert images is not None  # noqa: S101  # the last step has them
        return images

    def stream(self, **options: Any) -> Iterator[DenoisingStep]:
        """As `generate`, step by step; the last step has the images. Closing the iterator ends the work after a step.

        Raises InputError before the first step.
        """
        unknown = options.keys() - _OPTIONS
        if unknown:
            raise InputError(f"no option named {sorted(unknown)[0]!r}; there are {sorted(_OPTIONS)}")
        job = self._plan(**options)
        return Denoising(job, self._guided(job), functools.partial(self._decode, cut=job.cut)).run()

    def _plan(
        self,
        *,
        count: int | None = None,
        seed: int | Sequence[int] | None = None,
        latents: Any = None,
        init_image: Any = None,
        mask: Any = None,
        height: int | None = None,
        width: int | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        batch_size: int | None = None,
        deadline_s: float | None = None,
        stepper: str | None = None,
        steps: int | None = None,
        strength: float | None = None,
        eta: float = 0.0,
        **told: Any,
    ) -> Job:
        check_numbers(count=count, steps=steps, strength=strength, eta=eta, height=height, width=width, deadline_s=deadline_s)
        check_numbers(guidance=told.get("guidance"), guidance_rescale=told.get("guidance_rescale"))
        total = count if count is not None else _how_many(latents, seed, told.get("prompt"), told.get("class_ids"))
        seeds = seeds_for(total, seed)
        given = self._given_image(init_image)
        shape = (total, *self._shape(height, width, given))
        factor = 1 if self.settings.latent is None else self.settings.latent.factor
        check_room(total, shape[2] * factor, shape[3] * factor, self._image_channels())
        noise = normal(seeds, shape[1:]) if latents is None else _latents(latents, shape)
        cut = self._cut(tile, overlap, batch_size)
        if init_image is None and (mask is not None or strength is not None):
            raise InputError("mask and strength go with init_image, which is not given")
        share = 1.0 if given is None else strength if strength is not None else 0.8 if mask is None else 1.0
        stepper, steps = stepper or self.settings.stepper, self.settings.steps if steps is None else steps
        way = trajectory(self.settings.schedule, stepper, steps, strength=share, eta=eta, tokens=self._tokens(shape))
        conditions, without, scale, rescale = self._conditions.of(total, shape, **told)
        said = {"steps": steps, "stepper": stepper, "guidance": scale}
        known = None if given is None else self._encode(given, shape, cut)
        told_seeds = seeds if latents is None else ()
        job = Job(way, noise, told_seeds, seeds, said, conditions, without, scale, rescale, deadline_s, cut=cut, known=known)
        return job if mask is None or given is None else self._masked(job, given, mask)

    def _cut(self, tile: int | None, overlap: int | None, batch_size: int | None) -> Cut:
        """How large a run may be; InputError before the first one where it cannot be so."""
        cut = Cut(tile, overlap, batch_size)
        self.graphs["denoiser"].size(batch_size)
        if self._decoder is not None:
            self._decoder.tiling(cut)
        elif tile is not None or overlap is not None:
            raise InputError("tile and overlap are for the VAE of a latent model; this one works on pixels, in one piece")
        return cut

    def _given_image(self, image: Any) -> NDArray[np.uint8] | None:
        if image is None:
            return None
        if self.settings.latent is not None and "vae_encoder" not in self.graphs:
            raise InputError("init_image needs the graph vae_encoder, which this bundle does not have")
        return pixel_batch(image, self._image_channels())

    def _image_channels(self) -> int:
        session = self.graphs["denoiser" if self.settings.latent is None else "vae_decoder"].session
        image = session.inputs if self.settings.latent is None else session.outputs  # an encoder is not always there
        channels = next(iter(image.values())).axes[1]
        return int(channels) if isinstance(channels, int) else 3

    def _shape(self, height: int | None, width: int | None, given: NDArray[np.uint8] | None) -> tuple[int, int, int]:
        """[channel, height, width] of the sample."""
        latent = self.settings.latent
        factor = 1 if latent is None else latent.factor
        asked = {"height": height, "width": width}
        usual = {"height": self.settings.height, "width": self.settings.width}
        sides = []
        for place, name in enumerate(("height", "width")):
            wanted = asked[name]
            if wanted is not None and (wanted < 1 or wanted % factor):
                least = "1 or more" if factor == 1 else f"a multiple of {factor}"
                raise InputError(f"{name} is {wanted}; it must be {least}")
            pixels = wanted or (0 if given is None else given.shape[1 + place]) or usual[name]
            if pixels % factor:
                raise InputError(f"init_image has a {name} of {pixels}; it must be a multiple of {factor}: scale or cut it")
            if given is not None and given.shape[1 + place] != pixels:
                raise InputError(
                    f"init_image has a {name} of {given.shape[1 + place]} where {pixels} is asked for; scale it first"
                )
            whose = name if wanted is not None or given is None else f"init_image's {name}"
            sides.append(self._side(2 + place, pixels, factor, whose))
        channels = self._inputs["sample"].axes[1] if latent is None else latent.channels
        if not isinstance(channels, int):
            raise BundleError("the denoiser's sample has no fixed number of channels; export it again")
        return channels, sides[0], sides[1]

    def _side(self, place: int, pixels: int, factor: int, side: str) -> int:
        """The size of an axis of the sample for so many pixels, or the graph's own where they are 0.

        Raises InputError where `side` cannot be that long.
        """
        bounds, wanted = self.graphs["denoiser"].bounds("sample", place), pixels // factor
        if bounds is None:
            if not wanted:
                raise BundleError("the graph does not say how large sample is; export the model again")
            return wanted
        size = wanted or bounds.opt
        if not bounds.holds(size):
            raise InputError(f"{side} is {size * factor} pixels; this model was exported for {bounds.times(factor)}")
        return size

    def _tokens(self, shape: tuple[int, ...]) -> int:
        shift = self.settings.schedule.dynamic_shift
        patch = _PIXELS_OF_A_TOKEN if shift is None else shift.patch
        return (shape[2] // patch) * (shape[3] // patch)

    def _encode(self, pixels: NDArray[np.uint8], shape: tuple[int, ...], cut: Cut) -> Floats:
        """Images as clean samples of the denoiser: the mean of what the VAE's encoder gives."""
        clean = self.settings.pixels.from_uint8(pixels)
        latent = self.settings.latent
        if latent is not None:
            mean, _ = Encoder(self.graphs["vae_encoder"], latent.factor).moments(clean, cut=cut)
            clean = (mean - latent.shift) * latent.scale
        if len(clean) not in (1, shape[0]):
            raise InputError(f"init_image holds {len(clean)} images for {shape[0]}; give one, or one for each")
        return np.ascontiguousarray(np.broadcast_to(clean, shape), np.float32)

    def _masked(self, job: Job, pixels: NDArray[np.uint8], mask: Any) -> Job:
        factor = 1 if self.settings.latent is None else self.settings.latent.factor
        anew, small = latent_mask(mask, pixels.shape[1:3], factor)
        whole = np.broadcast_to(pixels, (len(job.noise), *pixels.shape[1:]))
        beside = None
        if self._inputs["sample"].axes[1] == 2 * job.noise.shape[1] + 1:  # a model made for inpainting sees mask and image
            hidden = np.where(anew[None, :, :, None], np.uint8(128), whole)
            known = self._encode(hidden, job.noise.shape, job.cut)
            beside = np.concatenate([np.broadcast_to(small, (len(known), 1, *small.shape[2:])), known], axis=1).astype(
                np.float32
            )
        return replace(job, mask=small, anew=anew, pixels=whole, beside=beside)

    def _guided(self, job: Job) -> Guided:
        graph, shape = self.graphs["denoiser"], job.noise.shape
        channels = self._inputs["sample"].axes[1]
        if isinstance(channels, int) and channels != shape[1] and job.beside is None:
            raise InputError("this model is made for inpainting: give init_image and mask")
        strengths = {"scale": job.guidance, "rescale": job.rescale}
        return Guided(graph, shape, job.conditions, job.without, beside=job.beside, batch_size=job.cut.batch_size, **strengths)

    def _for_vae(self, sample: Floats) -> Floats:
        """Samples of the denoiser as its VAE knows them; of a model that works on pixels, as they are."""
        latent = self.settings.latent
        return sample if latent is None else sample * np.float32(1 / latent.scale) + np.float32(latent.shift)

    def _decode(self, sample: Floats, cut: Cut = WHOLE) -> NDArray[np.uint8]:
        if self._decoder is None:
            return self.settings.pixels.to_uint8(sample)
        return self._decoder.decode(self._for_vae(sample), cut=cut)

    def replay(self, inputs: Tensors) -> Iterator[tuple[str, Tensor]]:
        """The proof's tensors: what the encoders give, the sample after each step (`step.0`, ...), and the `image`.

        Args:
            inputs: `latents` (unit noise), `noise.N` of each step that takes some, `steps` and `guidance` (0-d), `class_ids`,
                `token_ids.GRAPH` and `negative_token_ids.GRAPH`, and `pixels` for the VAE's encoder.
        """
        latents = np.asarray(inputs["latents"], np.float32)
        way = trajectory(
            self.settings.schedule, self.settings.stepper, inputs["steps"].item(), tokens=self._tokens(latents.shape)
        )
        if "pixels" in inputs:
            encoded = self.graphs["vae_encoder"].run({"image": inputs["pixels"]})
            yield from ((name, encoded[name]) for name in ("mean", "log_variance"))
        told, without = self._conditions.recorded(inputs, latents.shape)
        yield from ((name, told[name]) for name in ("encoder_hidden_states", "pooled") if name in told)
        scale = inputs["guidance"].item()
        job = Job(way, latents, (), (), {}, told, without, scale)
        recorded = {index: inputs[f"noise.{index}"] for index, step in enumerate(way.steps) if step.needs_noise}
        denoising = Denoising(job, self._guided(job), self._decode, recorded)
        for index in range(len(way)):
            yield f"step.{index}", denoising.step(index).copy()
        latents = self._for_vae(denoising.sample)
        yield "image", latents if self._decoder is None else self._decoder.floats(latents)


_OPTIONS = inspect.signature(Diffusion.generate).parameters.keys() - {"self", "progress"}


def _how_many(*lists: Any) -> int:
    return max([1, *(len(given) for given in lists if isinstance(given, Sequence | np.ndarray) and not isinstance(given, str))])


def _latents(given: Any, shape: tuple[int, ...]) -> Floats:
    latents = np.asarray(given)
    if latents.dtype != np.float32 or latents.shape != shape or not np.isfinite(latents).all():
        raise InputError(f"latents are finite float32{list(shape)} here, not {latents.dtype}{list(latents.shape)}")
    return latents
