"""Real images to compare with: of folders, archives and recipes."""

from pathlib import Path

import numpy as np
import pytest

from edgegen.bench.reference import read_real
from edgegen.errors import InputError
from edgegen.media import drawn, write_folder

RECIPE = """
import numpy as np
from edgegen.export.recipe import Recipe
from edgegen.train.data import Data
from edgegen.train.recipe import Training


def data(first):
    return Data(np.arange(first, first + 40, dtype=np.uint8).repeat(16).reshape(40, 4, 4, 1), np.arange(40) % 3)


RECIPE = Recipe(name="mine", family="gan", modules=lambda: None)
TRAINING = Training(data=lambda: data(0), objective=None, steps=1, held_out=lambda: data(100))
"""


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 12, 12, 1), dtype=np.uint8)


def test_an_archive_gives_images_with_their_own_labels_from_all_over(tmp_path: Path) -> None:
    np.savez(tmp_path / "sorted.npz", images=images(100)[..., 0], labels=np.repeat(np.arange(10), 10))
    real = read_real(tmp_path / "sorted.npz", 40)
    chosen = drawn(100, 40)
    np.testing.assert_array_equal(real.images, images(100)[chosen])
    assert real.labels is not None
    assert real.labels.tolist() == [place // 10 for place in chosen]
    assert set(real.labels.tolist()) == set(range(10))  # the first 40 would have been of four kinds
    assert len(read_real(tmp_path / "sorted.npz", 1000).images) == 100


def test_a_folder_gives_images_without_labels(tmp_path: Path) -> None:
    write_folder(tmp_path / "some", images(5), list("abcde"))
    real = read_real(tmp_path / "some", 3)
    np.testing.assert_array_equal(real.images, images(5)[drawn(5, 3)])
    assert (real.labels, real.said) == (None, str(tmp_path / "some"))


def test_a_recipe_gives_what_it_holds_out_or_what_it_learns_from(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(RECIPE)
    held_out, learned = read_real(path, 10), read_real(path, 10, learned_from=True)
    assert held_out.images[:, 0, 0, 0].tolist() == [100 + place for place in drawn(40, 10)]
    assert learned.images[:, 0, 0, 0].tolist() == drawn(40, 10)
    assert held_out.labels is not None
    assert held_out.labels.tolist() == [place % 3 for place in drawn(40, 10)]
    assert (held_out.said, learned.said) == ("held-out images of mine.py", "training images of mine.py")
    path.write_text(RECIPE.replace(", held_out=lambda: data(100)", ""))
    with pytest.raises(InputError, match="holds no images out"):
        read_real(path, 10)


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    def refused(name: str, said: str, **arrays: np.ndarray) -> None:
        if arrays:
            np.savez(tmp_path / name, **arrays)
        with pytest.raises(InputError, match=said) as caught:
            read_real(tmp_path / name, 10)
        assert "\n" not in str(caught.value)

    refused("none.npz", "no real images at")
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    refused("bad.npz", "cannot read")
    refused("a.npz", 'no array "images"', pictures=np.zeros(3))
    refused("b.npz", "images are float64", images=np.zeros((2, 4, 4, 3)))
    refused("c.npz", "labels are", images=images(3), labels=np.zeros(2, int))
    refused("d.npz", "cannot read", images=np.array([None]))
