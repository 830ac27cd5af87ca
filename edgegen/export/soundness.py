"""What a model must be before a proof of it means anything: its numbers finite, each image its own, the same each time."""

from collections.abc import Iterator, Mapping

import torch

from edgegen.errors import CaptureError, ExportError
from edgegen.export.noise import running
from edgegen.export.parts import Part, example, usual_sizes
from edgegen.proof.tensors import TOLERANCES
from edgegen.tensors import Axis, Tensors

_LARGEST = TOLERANCES["float32"].largest  # what another order of float32 sums may come to, as in the proof


def check_weights(parts: Mapping[str, Part], cure: str = "give a checkpoint from before the training went wrong") -> None:
    """Raise ExportError where a weight is NaN or infinite: outputs that saturate would hide it from the proof."""
    for graph, part in parts.items():
        for name, parameter in part.module.named_parameters():
            wrong = int((~torch.isfinite(parameter)).sum())
            if wrong:
                raise ExportError(f"{graph}: the weights {name} hold {wrong} numbers that are not finite; {cure}")


def check_answers(answers: Tensors, whose: str) -> None:
    """Raise ExportError where the original itself gives what is not finite: there is nothing to hold a graph to."""
    for name, array in answers.items():
        wrong = int((~torch.isfinite(torch.from_numpy(array))).sum())
        if wrong:
            raise ExportError(
                f"{whose} itself gives {name} with {wrong} numbers of {array.size} that are not finite, so nothing can be "
                "proven; check the checkpoint, and its forward for what overflows"
            )


def check_rows(graph: str, part: Part, axes: Mapping[str, Axis]) -> None:
    """Raise CaptureError where an image depends on the others of its batch, or on chance.

    Without a batch of several images there is nothing to check.
    """
    batch = axes.get("batch")
    if batch is None or batch.min > 1 or usual_sizes(axes)["batch"] < 2:
        return
    together = [example(spec, axes, seed) for seed, spec in enumerate(part.inputs)]
    in_batch = [bool(spec.axes) and spec.axes[0] == "batch" for spec in part.inputs]
    if not any(in_batch):
        return
    alone = [tensor[1:2] if own else tensor for tensor, own in zip(together, in_batch, strict=True)]
    answers = _answers(graph, part, together)
    for name, difference in _differences(part, answers, _answers(graph, part, alone), slice(1, 2)):
        again = dict(_differences(part, answers, _answers(graph, part, together), slice(None)))
        if again[name] > _LARGEST:
            raise CaptureError(
                f"{graph}: {name} is another each time, on the same inputs (by {again[name]:.1g} of its largest number): its "
                "forward draws numbers, such as dropout's; leave that out, or take the numbers as an input"
            )
        if difference > _LARGEST:
            raise CaptureError(
                f"{graph}: {name} of one image depends on the others of its batch (by {difference:.1g} of its largest number), "
                "as statistics of a batch do (batch_norm with training=True, a mean over axis 0); compute with running "
                "statistics, or export for one image at a time: --axis batch=1"
            )


def _answers(graph: str, part: Part, arguments: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad(), running(graph, part.module):
        made = part.module(*arguments)
    return list(made) if isinstance(made, tuple | list) else [made]


def _differences(
    part: Part, answers: list[torch.Tensor], others: list[torch.Tensor], rows: slice
) -> Iterator[tuple[str, float]]:
    """By output, how far `others` are from those rows of `answers`, as a share of the largest number; of floats alone."""
    for spec, answer, other in zip(part.outputs, answers, others, strict=True):
        if spec.dtype != "float32" or not spec.axes or spec.axes[0] != "batch" or answer[rows].shape != other.shape:
            continue
        peak = max(float(answer.abs().max()), 1e-6)
        yield spec.name, float((answer[rows] - other).abs().max()) / peak
