"""What is minimized: the contract of every objective, and what they share: optimizers, averaged weights, several processes."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgegen.errors import TrainingError
from edgegen.export.parts import parse_spec

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Batch:
    """What one step learns from: images float32 [batch, channel, height, width], class_ids int64 [batch] or None."""

    images: Tensor
    class_ids: Tensor | None = None


def latents(module: nn.Module, count: int, device: torch.device) -> Tensor:
    """Standard normal latents: `module.latent` is how many an image has, or their shape; else `tell_latents` has said it.

    Raises TrainingError where neither did.
    """
    shape: Any = getattr(module, "latent", None)
    sizes = (shape,) if isinstance(shape, int) else shape
    if not isinstance(sizes, tuple) or not all(isinstance(size, int) for size in sizes):
        raise TrainingError(
            f"nothing says how many latents {type(module).__name__} takes; give the recipe its inputs, "
            '{"generator": ("z float32[batch, 128]",)}, or the module an attribute: self.latent = 128'
        )
    return torch.randn(count, *sizes, device=device)


def from_latents(module: nn.Module, count: int, labels: Tensor | None, device: torch.device) -> Tensor:
    """What a module makes of `latents`, given the class of each where there are classes."""
    z = latents(module, count, device)
    made: Tensor = module(z) if labels is None else module(z, labels)
    return made


def tell_latents(modules: Mapping[str, nn.Module], inputs: Mapping[str, tuple[str, ...]]) -> None:
    """Give each module without an attribute `latent` the shape of its input z or latent in the recipe's `inputs`."""
    for graph, module in modules.items():
        listed = inputs.get(graph) or inputs.get("", ())
        spec = parse_spec(listed[0]) if listed else None
        if spec is None or spec.name not in ("z", "latent") or hasattr(module, "latent"):
            continue
        if all(isinstance(axis, int) for axis in spec.axes[1:]):
            module.latent = tuple(map(int, spec.axes[1:]))  # type: ignore[assignment]


class Objective(nn.Module):
    """Modules that are trained, their optimizers, and `step`, which takes one optimizer step of each.

    A module, so that `state_dict` holds everything that training changes; the optimizers' state is kept beside it. Randomness
    comes from torch's generator alone, which the loop seeds before each step: nothing else decides what a step does.

    Of several processes each keeps its own batch statistics; those of the first one are saved.

    With `decay`, exported are averages of the weights, exponential with that decay, which grows from 0.1 in the first steps
    (Polyak 1992; Karras 2018, arXiv:1710.10196).

    Args:
        modules: what is trained and exported, by graph name.
        decay: of the averages, for each step; 0 exports the weights themselves.
        classes: number of classes; 0 where there are none.
    """

    wants_held_out = False  # whether `measure` looks at images that no step learns from

    def __init__(self, modules: Mapping[str, nn.Module], *, decay: float = 0.0, classes: int = 0) -> None:
        super().__init__()
        self.trained = nn.ModuleDict(dict(modules))
        self.averaged = copy.deepcopy(self.trained).eval().requires_grad_(False) if decay else None
        self.decay, self.classes = decay, classes
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.accelerator: Accelerator | None = None  # the loop's
        self.held_out: Callable[[], Iterable[Batch]] = list  # the loop's, where they are wanted

    def exported(self) -> Mapping[str, nn.Module]:
        """The modules whose weights are the result."""
        return self.averaged if self.averaged is not None else self.trained  # type: ignore[return-value]  # they are mappings

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Take step number `step`, counted from 0; returns 0-d losses by name, detached."""
        raise NotImplementedError

    def measure(self) -> dict[str, float]:
        """How good the exported modules are on held-out images; nothing where that is not what the objective is about."""
        return {}

    def sample(self, count: int) -> Tensor:
        """Make float32 [count, channel, height, width] with the exported modules; class i % classes where there are classes."""
        raise NotImplementedError

    def sample_classes(self, count: int) -> Tensor | None:
        """The classes of a sheet: each in turn."""
        return torch.arange(count, device=self.device) % self.classes if self.classes else None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def labels(self, batch: Batch) -> Tensor | None:
        """The classes of a batch. TrainingError where the objective has classes and the data none."""
        if self.classes and batch.class_ids is None:
            raise TrainingError(f"the objective has {self.classes} classes, the data has no labels")
        return batch.class_ids if self.classes else None

    def autocast(self, *, enabled: bool = True) -> Any:
        """The context in which modules run, in the precision that was asked for; in float32 where not `enabled`."""
        if self.accelerator is None or self.accelerator.mixed_precision == "no":
            return torch.autocast(self.device.type, enabled=False)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def update(self, name: str, loss: Tensor, *, clip: float | None = None) -> None:
        """Take a step of the optimizer `name` down the gradient of `loss`, averaged over all processes.

        clip: the largest norm that the gradient may have.
        """
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._reduce(parameters)
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()

    def _reduce(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients over processes, by hand: penalties on gradients do not go through DistributedDataParallel."""
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))

    @torch.no_grad()
    def average(self, step: int) -> None:
        """Move the averages towards the weights after step number `step`. Counters are copied."""
        if self.averaged is None:
            return
        decay = min(self.decay, (1 + step) / (10 + step))
        new = self.trained.state_dict()
        for name, old in self.averaged.state_dict().items():
            if old.is_floating_point():
                old.lerp_(new[name], 1 - decay)
            else:
                old.copy_(new[name])


def adam(
    modules: Iterable[nn.Module], rate: float, betas: tuple[float, float], *, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """Adam (Kingma 2015, arXiv:1412.6980), with weight decay apart from the gradient (Loshchilov 2019, arXiv:1711.05101)."""
    parameters = [p for module in modules for p in module.parameters()]
    return torch.optim.AdamW(parameters, lr=rate, betas=betas, weight_decay=weight_decay)
