import pytest
import torch
from torch import Tensor, nn

from edgegen.train.adversarial import Adversarial
from edgegen.train.augment import augment, cut_out, recolour, translate
from edgegen.train.objective import Batch


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_images_keep_their_shape_and_a_seed_makes_them_again() -> None:
    images = torch.rand(5, 3, 16, 24) * 2 - 1
    torch.manual_seed(7)
    first = augment(images)
    assert first.shape == images.shape
    assert not torch.equal(first, images)
    torch.manual_seed(7)
    assert torch.equal(augment(images), first)


def test_a_moved_image_is_the_same_pixels_elsewhere_and_zeros_come_in() -> None:
    images = torch.rand(64, 2, 16, 24) + 1
    moves = set()
    for before, after in zip(images, translate(images), strict=True):
        rows, columns = (after[0] != 0).any(1), (after[0] != 0).any(0)
        height, width = int(rows.sum()), int(columns.sum())
        assert (16 - height, 24 - width) <= (2, 3)  # an eighth of the sides
        down, right = (16 - height if not rows[0] else height - 16), (24 - width if not columns[0] else width - 24)
        moves.add((down, right))
        source = before[:, max(-down, 0) : 16 - max(down, 0), max(-right, 0) : 24 - max(right, 0)]
        assert torch.equal(after[:, rows][:, :, columns], source)
    assert len(moves) > 10  # each image has its own
    assert {down for down, _ in moves} == {-2, -1, 0, 1, 2}


def test_a_hole_has_half_the_sides_and_may_reach_out() -> None:
    holes = cut_out(torch.ones(64, 1, 16, 24)) == 0
    areas = holes.sum((1, 2, 3))
    assert areas.max() == 8 * 12
    assert 0 < areas.min() < 8 * 12
    for hole in holes[:, 0]:  # a rectangle: its rows times its columns
        assert hole.any(1).sum() * hole.any(0).sum() == hole.sum()


def test_colours_change_within_their_bounds_and_the_image_of_one_grey_keeps_being_one() -> None:
    grey = recolour(torch.full((64, 3, 4, 4), 0.25))
    assert torch.allclose(grey.amax((1, 2, 3)), grey.amin((1, 2, 3)), atol=1e-6)  # float32 rounding
    assert (grey.mean((1, 2, 3)) - 0.25).abs().max() <= 0.5 + 1e-6
    images = torch.rand(64, 3, 8, 8)
    spread = recolour(images).mean(1).flatten(1).std(1) / images.mean(1).flatten(1).std(1)  # saturation leaves the mean channel
    assert 0.5 <= spread.min() < 0.7
    assert 1.3 < spread.max() <= 1.5


def test_the_gradient_goes_through_to_what_was_not_cut_out_or_moved_away() -> None:
    images = torch.rand(8, 3, 16, 16, requires_grad=True)
    cut_out(translate(images)).square().sum().backward()
    assert images.grad is not None
    assert 0.4 < (images.grad != 0).float().mean() < 1
    images.grad = None
    augment(images).square().sum().backward()
    assert (images.grad != 0).all()  # every pixel counts in the mean that contrast is about


class Seen(nn.Module):
    """A judge that keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.images = nn.Parameter(torch.ones(())), list[Tensor]()

    def forward(self, images: Tensor) -> Tensor:
        self.images.append(images.detach())
        return self.weight * images.sum((1, 2, 3))


class Ones(nn.Module):
    """A generator of bright images."""

    latent = 2

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor) -> Tensor:
        return self.value.expand(len(z), 3, 16, 16)


@pytest.mark.parametrize("augmented", [True, False])
def test_the_discriminator_sees_real_and_made_images_changed_alike(augmented: bool) -> None:
    judge = Seen()
    game = Adversarial({"generator": Ones()}, judge, penalty="r1", decay=0.0, augmented=augmented, rates=(0.0, 0.0))
    losses = game.step(Batch(torch.ones(4, 3, 16, 16)), 0)
    assert {"discriminator", "generator", "r1"} == losses.keys()
    changed = [not torch.equal(images, torch.ones_like(images)) for images in judge.images]
    assert changed == [augmented] * 4  # real, made, real for the penalty, made for the generator
