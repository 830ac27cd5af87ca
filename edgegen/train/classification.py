"""Classification: a network of features learns to tell classes apart; exported are the features, not the answer."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgegen.errors import TrainingError
from edgegen.train.objective import Batch, Objective, adam


class Classification(Objective):
    """The cross-entropy of a linear layer's classes on top of the features; accuracy is measured on held-out images.

    Modules: `features`, with an attribute `features`, their number: image -> features. The layer on top stays here, as a
    discriminator does.

    Args:
        modules: the network of features.
        classes: number of classes.
        rate: learning rate of AdamW.
    """

    wants_held_out = True

    def __init__(self, modules: Mapping[str, nn.Module], *, classes: int, rate: float = 2e-3, decay: float = 0.99) -> None:
        if classes < 2:
            raise TrainingError(f"there are {classes} classes; to tell them apart takes 2 at least")
        top = nn.Linear(int(modules["features"].features), classes)  # type: ignore[arg-type]  # a number
        super().__init__({**modules, "top": top}, decay=decay, classes=classes)  # averaged with what it stands on
        self.optimizers = {"adam": adam(self.trained.values(), rate, (0.9, 0.999), weight_decay=1e-4)}

    def exported(self) -> Mapping[str, nn.Module]:
        """The network of features alone."""
        return {name: module for name, module in super().exported().items() if name != "top"}

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:  # noqa: ARG002  # the same in each step
        """Loss: cross-entropy, in nats for each image."""
        self.train()
        labels = self._known(batch)
        with self.autocast():
            logits = self.trained["top"](self.trained["features"](batch.images)).float()
        loss = F.cross_entropy(logits, labels)
        self.update("adam", loss)
        return {"cross_entropy": loss.detach()}

    def measure(self) -> dict[str, float]:
        """The share of held-out images whose class is found."""
        right, total = 0, 0
        for batch, found in self._found():
            right += int(torch.eq(found, self._known(batch)).sum())
            total += len(found)
        return {"held_out_accuracy": right / total}

    def sample(self, count: int) -> Tensor:
        """Held-out images, those taken for class i in column i: what does not belong there is a mistake. Blank: no more."""
        columns: list[list[Tensor]] = [[] for _ in range(self.classes)]
        rows = -(-count // self.classes)
        for batch, found in self._found():
            for image, label in zip(batch.images, found.tolist(), strict=True):
                columns[label].append(image)
            if min(map(len, columns)) >= rows:
                break
        blank = torch.full_like(batch.images[0], float(batch.images.min()))
        return torch.stack([(columns[i % self.classes] + [blank] * rows)[i // self.classes] for i in range(count)])

    def _known(self, batch: Batch) -> Tensor:
        labels = self.labels(batch)
        assert labels is not None  # noqa: S101  # there are classes, and else `labels` has raised
        return labels

    @torch.no_grad()
    def _found(self) -> Iterator[tuple[Batch, Tensor]]:
        """Held-out batches, and the classes that the averaged weights find, int64 [batch]."""
        modules = super().exported()
        features, top = modules["features"].eval(), modules["top"].eval()
        for batch in self.held_out():
            yield batch, top(features(batch.images)).argmax(1)
