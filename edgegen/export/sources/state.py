"""The weights of a user's own modules: safetensors, or what torch.save made of a state_dict. A pickle with code is refused."""

import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from edgegen.errors import SourceError
from edgegen.export.sources.base import PICKLES

State = dict[str, torch.Tensor]
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel and torch.compile put them in front of every name
# Where training scripts put a generator's weights; the moving average before what was last trained.
_NESTED = (
    *("params_ema", "g_ema", "ema", "generator_ema", "G_ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict"),
    *("model", "generator", "generator_state_dict", "netG", "G", "g", "params", "net", "module", "weights"),
)
_log = logging.getLogger("edgegen")


def load_weights(modules: Mapping[str, torch.nn.Module], path: Path) -> None:
    """Load a checkpoint into `modules`: all of it, or nothing.

    With several modules names begin with the graph's (`mapping.layer.weight`), or each graph has its own
    state_dict in the file.

    Raises:
        SourceError: the file cannot be read, holds code, or a tensor is missing, unexpected, or of another shape.
    """
    whole = next(iter(modules.values())) if len(modules) == 1 else torch.nn.ModuleDict(dict(modules))
    wanted = whole.state_dict()
    found = list(_states(read(path), "", modules))
    if not found:
        raise SourceError(f"{path} holds no state_dict (names and tensors); save it with torch.save(model.state_dict(), ...)")
    place, state = min(found, key=lambda item: len(item[1].keys() ^ wanted.keys()))  # the first of those that fit best
    if place:
        _log.info("%s: the weights are those under %s", path, place)
    where = f"{path}{f' ({place})' if place else ''}"
    wrong = [f"{name} is {list(state[name].shape)}, not {list(tensor.shape)}" for name, tensor in wanted.items()
             if name in state and state[name].shape != tensor.shape]  # fmt: skip
    wrong += [f"{name} is {tensor.dtype}, not {wanted[name].dtype}" for name, tensor in state.items()
              if name in wanted and tensor.is_complex() > wanted[name].is_complex()]  # fmt: skip
    if wrong:
        raise SourceError(f"{where} does not fit: {_listed(wrong)}")
    # A counter that evaluation never reads, and that older checkpoints lack.
    counters = {name: tensor for name, tensor in wanted.items() if name.endswith("num_batches_tracked") and name not in state}
    result = whole.load_state_dict({**state, **counters}, strict=False)  # so that norms may take their older names
    differing = {"missing": result.missing_keys, "unexpected": result.unexpected_keys}
    # A name may be there twice: the hooks of spectral norm add their own.
    said = [f"{kind} {_listed(list(dict.fromkeys(keys)))}" for kind, keys in differing.items() if keys]
    if said:
        cure = "give the weights of this very module, or load them in the function that returns it"
        raise SourceError(f"{where} does not fit the module: {'; '.join(said)}; {cure}")


def read(path: Path) -> Mapping[Any, Any]:
    """Everything in a checkpoint, tensors on the CPU. Raises SourceError where it cannot be read without running code."""
    if not path.is_file():
        raise SourceError(f"no checkpoint at {path}; give a .safetensors file, or a state_dict saved by torch.save")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _read_safetensors(path)
    if suffix not in PICKLES:
        raise SourceError(f"{path} is a {suffix or 'nameless'} file; a checkpoint is .safetensors, .pt, .pth, .bin or .ckpt")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats; what cannot be read raises
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SourceError(
            f"{path} holds code or objects beside tensors ({_reason(error)}), and is not run; where you trust it, load it in a "
            "script of your own and save its state_dict alone: torch.save(model.state_dict(), ...) or safetensors"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise SourceError(f"cannot read {path}: {(str(error).splitlines() or ['damaged'])[0][:200]}") from error
    if not isinstance(content, Mapping):
        raise SourceError(f"{path} holds a {type(content).__name__}, not a state_dict; save it with model.state_dict()")
    return content


def _read_safetensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: State = load_file(path)
    except (OSError, SafetensorError) as error:
        raise SourceError(f"cannot read {path}: {str(error).splitlines()[0][:200]}") from error
    return state


def _states(content: Mapping[Any, Any], place: str, modules: Mapping[str, Any]) -> Iterator[tuple[str, State]]:
    """Every state_dict in a checkpoint, with where it lies, the likeliest first."""
    if content and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()):
        yield place, {_plain(key): value for key, value in content.items()}
        return
    if len(modules) > 1 and all(isinstance(content.get(graph), Mapping) for graph in modules):
        parts = [(graph, next(_states(content[graph], "", {}), ("", {}))[1]) for graph in modules]
        yield place, {f"{graph}.{key}": value for graph, state in parts for key, value in state.items()}
    names = [name for name in _NESTED if name in content] + [name for name in content if name not in _NESTED]
    for name in names if place.count(".") < 2 else ():
        if isinstance(content[name], Mapping):
            yield from _states(content[name], f"{place}.{name}".lstrip("."), modules)


def _plain(name: str) -> str:
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


def _listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f", and {len(names) - 6} more" if len(names) > 6 else "")


def _reason(error: Exception) -> str:
    """What was in the way, of PyTorch's long advice: the name of the class."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    return named[1] if named else "not readable with weights_only=True"
