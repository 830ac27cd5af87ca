"""Single networks of the diffusers library: an autoencoder, or the U-Net of an unconditional model with its scheduler."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgegen.errors import SourceError
from edgegen.export.parts import Modules, parse_spec
from edgegen.export.sources.base import read_json, reading, weights_sha256
from edgegen.export.sources.diffusers_files import check_weights, licence, load_module, quiet_diffusers
from edgegen.tensors import Axis

UNCONDITIONAL = ("DDPMPipeline", "DDIMPipeline")
FAMILIES: Mapping[str, str] = {  # class: the family that reads it
    "AutoencoderKL": "vae",
    "AutoencoderTiny": "vae",
    "VQModel": "vae",
    "UNet2DModel": "diffusion",
}
_SIDES = ("height", "width")


@dataclass(frozen=True)
class UnetModules(Modules):
    """A denoiser with the scheduler of the library that lies beside it; None where there is none."""

    scheduler: Any = None
    pipeline: str | None = None


def open_checkpoint(path: Path, weights: Path | None) -> Modules:
    """Open a directory as `save_pretrained` of one module writes it. SourceError where it is damaged, or of another kind."""
    if weights is not None:
        raise SourceError(f"{path} is a diffusers directory with weights of its own; --checkpoint does not go with it")
    kind = read_json(path / "config.json").get("_class_name")
    if kind == "UNet2DModel":
        beside = path if (path / "scheduler_config.json").is_file() else path.resolve().parent / "scheduler"
        return _unet(path, path, beside if (beside / "scheduler_config.json").is_file() else None, None)
    if kind not in FAMILIES:
        whole = "; of a pipeline, give the whole directory" if (path / ".." / "model_index.json").is_file() else ""
        raise SourceError(f"{path} holds a {kind}; edgegen exports {', '.join(FAMILIES)}{whole}")
    vae: Any = load_module(path, "diffusers", str(kind))
    config = vae.config
    if config.get("latents_mean") is not None:
        raise SourceError(f"{path} has a mean for each latent channel (latents_mean), which edgegen does not support")
    widths = config.get("block_out_channels") or config["encoder_block_out_channels"]
    return Modules(
        **_said(path, path),
        modules={"": vae},
        inputs={"encoder": (parse_spec(f"image float32[batch, {config['in_channels']}, height, width]"),)},
        axes=_sides(config.get("sample_size")),
        steps=dict.fromkeys(_SIDES, 2 ** (len(widths) - 1)),
    )


def open_unconditional(path: Path, pipeline: str) -> Modules:
    """Open a pipeline of U-Net and scheduler: in folders of their own, or both beside `model_index.json`."""
    folders = [path / name if (path / name).is_dir() else path for name in ("unet", "scheduler")]
    for folder, file in zip(folders, ("config.json", "scheduler_config.json"), strict=True):
        if not (folder / file).is_file():
            raise SourceError(f"{path} holds a {pipeline}, and lacks {'unet' if file == 'config.json' else 'scheduler'}/{file}")
    return _unet(path, folders[0], folders[1], pipeline)


def _unet(path: Path, folder: Path, scheduler: Path | None, pipeline: str | None) -> UnetModules:
    from edgegen.export.families.diffusers_graphs import UnconditionalUnet

    config = read_json(folder / "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise SourceError(f"{folder} holds a {config.get('_class_name')}; an unconditional model has a UNet2DModel")
    if config.get("class_embed_type") is not None:
        raise SourceError(f"{folder} has class_embed_type {config['class_embed_type']!r}, which edgegen does not support")
    unet: Any = load_module(folder, "diffusers", "UNet2DModel")
    settings: dict[str, Any] = {}
    inputs = [f"sample float32[batch, {unet.config['in_channels']}, height, width]", "timestep float32[batch]"]
    if unet.config["num_class_embeds"] is not None:
        settings["classes"] = unet.config["num_class_embeds"]
        inputs.append("class_ids int64[batch]")
    gives = f"prediction float32[batch, {unet.config['out_channels']}, height, width]"
    return UnetModules(
        **_said(path, folder),
        modules={"denoiser": UnconditionalUnet(unet)},
        inputs={"denoiser": tuple(map(parse_spec, inputs))},
        outputs={"denoiser": (parse_spec(gives),)},
        axes=_sides(unet.config["sample_size"]),
        settings=settings,
        steps=dict.fromkeys(_SIDES, 2 ** (len(unet.config["block_out_channels"]) - 1)),
        scheduler=None if scheduler is None else _scheduler(scheduler, pipeline),
        pipeline=pipeline,
    )


def _scheduler(folder: Path, pipeline: str | None) -> Any:
    import diffusers

    # DDIMPipeline makes a DDIM scheduler of whatever lies there.
    name = "DDIMScheduler" if pipeline == "DDIMPipeline" else read_json(folder / "scheduler_config.json").get("_class_name")
    found: Any = getattr(diffusers, str(name), None)
    if not hasattr(found, "from_pretrained") or not str(name).endswith("Scheduler"):
        raise SourceError(f"{folder / 'scheduler_config.json'} is of a {name}, which the installed diffusers does not know")
    with reading(folder), quiet_diffusers():
        return found.from_pretrained(folder, local_files_only=True)


def _said(path: Path, folder: Path) -> dict[str, Any]:
    files = check_weights(folder)
    return {"kind": "diffusers", "name": path.resolve().name, "sha256": weights_sha256(files), "licence": licence(path)}


def _sides(size: Any) -> dict[str, Axis]:
    """Of the images that the network was made for, as far as its config says so."""
    if not size:
        return {}
    both = (size, size) if isinstance(size, int) else tuple(size)
    return {name: Axis(int(side), int(side), int(side)) for name, side in zip(_SIDES, both, strict=True)}
