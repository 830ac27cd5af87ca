import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_trainings import RECIPES, write_recipe

from edgegen.errors import InputError, SourceError, TrainingError
from edgegen.export.sources.module import load_weights
from edgegen.pipelines.images import PixelRange
from edgegen.train import loop
from edgegen.train.data import shapes
from edgegen.train.loop import Options, TrainReport
from edgegen.train.order import Batches, indices

ROOT = Path(__file__).resolve().parents[2]


def train(recipe: Path, output: Path, **options: object) -> TrainReport:
    return loop.train(recipe, output, Options(device="cpu", **options))  # type: ignore[arg-type]


def assert_same(a: Path, b: Path) -> None:
    left, right = load_file(a), load_file(b)
    assert left.keys() == right.keys()
    assert left
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert different == []


@pytest.mark.parametrize("kind", RECIPES)
def test_a_training_that_goes_on_is_bit_for_bit_the_one_that_never_stopped(kind: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, kind)
    straight, parted = tmp_path / "straight.safetensors", tmp_path / "parted.safetensors"
    whole = train(recipe, straight)
    assert train(recipe, parted, steps=3).steps == 3
    # Sheets draw random numbers; that must change nothing.
    rest = train(recipe, parted, resume=True, samples=tmp_path / "sheets")
    assert (rest.taken, rest.steps) == (3, 6)
    assert dict(rest.losses) == dict(whole.losses)
    assert_same(straight, parted)
    assert_same(tmp_path / "straight.state.safetensors", tmp_path / "parted.state.safetensors")
    assert [path.name for path in rest.sheets] == ["step-000006.png"]


@pytest.mark.parametrize("kind", ["gan-r1", "elbo-bernoulli", "noise", "stylegan2", "classification"])
def test_every_weight_learns_and_the_checkpoint_fits_the_recipes_modules(kind: str, tmp_path: Path) -> None:
    from edgegen.export.recipe import load_recipe

    recipe, output = write_recipe(tmp_path, kind), tmp_path / "model.safetensors"
    train(recipe, output, steps=2)
    state = load_file(tmp_path / "model.state.safetensors")
    train(recipe, output, resume=True)
    later = load_file(tmp_path / "model.state.safetensors")
    still = [name for name, tensor in state.items() if "trained" in name and torch.equal(tensor, later[name])]
    assert still == []
    modules = load_recipe(recipe).modules
    assert modules is not None
    load_weights(modules(), output)  # names and shapes are those of edgegen export --checkpoint


def test_another_seed_is_another_training_and_the_same_is_the_same(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "elbo-bernoulli")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(recipe, tmp_path / f"{name}.safetensors", seed=seed, steps=1)
    assert_same(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    a, c = (load_file(tmp_path / f"{name}.safetensors") for name in "ac")
    assert not torch.equal(a["decoder.first.0.weight"], c["decoder.first.0.weight"])


def test_training_leaves_torchs_generator_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    train(write_recipe(tmp_path, "elbo-bernoulli"), tmp_path / "a.safetensors", steps=1)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("kind", ["gan-r1", "elbo-gaussian", "noise", "stylegan2", "classification"])
def test_bfloat16_trains_too(kind: str, tmp_path: Path) -> None:
    report = train(write_recipe(tmp_path, kind), tmp_path / "a.safetensors", steps=2, precision="bf16")
    assert all(np.isfinite(value) for value in report.losses.values())
    assert {tensor.dtype for tensor in load_file(report.path).values() if tensor.is_floating_point()} == {torch.float32}


def test_a_loss_that_is_not_finite_is_named_and_the_last_good_checkpoint_stays(tmp_path: Path) -> None:
    recipe, output = write_recipe(tmp_path, "elbo-gaussian"), tmp_path / "a.safetensors"
    train(recipe, output, steps=3)
    before = output.read_bytes()
    # Squares over a deviation of 1e-30 are beyond float32.
    write_recipe(tmp_path, "elbo-gaussian", ("rate=3e-3)", "rate=3e-3, sigma=1e-30)"))
    said = r"the loss reconstruction became inf in step 4; the last good checkpoint, of step 3, is"
    with pytest.raises(TrainingError, match=said):
        train(recipe, output, resume=True)
    assert output.read_bytes() == before
    write_recipe(tmp_path, "elbo-gaussian")
    assert train(recipe, output, resume=True).steps == 6


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    recipe, output = write_recipe(tmp_path, "elbo-gaussian", ("rate=3e-3)", "rate=float('inf'))")), tmp_path / "a.safetensors"
    with pytest.raises(TrainingError, match=r"after step 1 .* is not finite; no checkpoint was written yet"):
        train(recipe, output, steps=1)
    assert list(tmp_path.glob("*.safetensors*")) == []


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    recipe, output = write_recipe(tmp_path, "elbo-gaussian"), tmp_path / "a.safetensors"
    train(recipe, output, steps=3)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(TrainingError, match=r"cannot write .*; the last good checkpoint, of step 3, is"):
            train(recipe, output, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")} == before
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "is there; go on from it with --resume, or replace it with --force"),
        ({"resume": True, "seed": 5}, "was begun with --seed 0"),
        ({"resume": True, "batch_size": 5}, "was begun with --batch-size 8"),
        ({"resume": True, "steps": 1}, "has 2 steps already"),
    ],
)
def test_options_that_contradict_a_checkpoint_are_refused(options: dict[str, object], said: str, tmp_path: Path) -> None:
    recipe, output = write_recipe(tmp_path, "elbo-gaussian"), tmp_path / "a.safetensors"
    train(recipe, output, steps=2)
    with pytest.raises(InputError, match=said):
        train(recipe, output, **options)
    assert train(recipe, output, force=True, steps=1, seed=3).steps == 1


@pytest.mark.parametrize(
    ("output", "options", "said"),
    [
        ("a.pt", {}, "ends in .safetensors"),
        ("a.state.safetensors", {}, "not in .state.safetensors"),
        ("nowhere/a.safetensors", {}, "does not exist"),
        ("a.safetensors", {"resume": True}, "train without --resume"),
        ("a.safetensors", {"samples": Path("tiny.py")}, "cannot write sample sheets"),
    ],
)
def test_a_bad_place_is_refused_before_anything_is_done(
    output: str, options: dict[str, object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        train(write_recipe(tmp_path, "elbo-gaussian"), Path(output), **options)


def test_a_state_of_another_recipe_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    recipe, output = write_recipe(tmp_path, "elbo-gaussian"), tmp_path / "a.safetensors"
    train(recipe, output, steps=2)
    write_recipe(tmp_path, "elbo-gaussian", ('name="tiny"', 'name="other"'))
    with pytest.raises(InputError, match=r"trained by the recipe tiny .* this is other"):
        train(recipe, output, resume=True)
    write_recipe(tmp_path, "elbo-gaussian", ('"width": 4', '"width": 8'))
    with pytest.raises(TrainingError, match="does not fit the recipe"):
        train(recipe, output, resume=True)
    state = tmp_path / "a.state.safetensors"
    for content, said in ((state.read_bytes()[:500], "cannot read"), (output.read_bytes(), "is not the state of a training")):
        state.write_bytes(content)
        with pytest.raises(TrainingError, match=said):
            train(recipe, output, resume=True)


def test_cuda_where_there_is_none_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="finds no CUDA device"):
        loop.train(write_recipe(tmp_path, "elbo-gaussian"), tmp_path / "a.safetensors", Options(device="cuda"))


def test_a_recipe_without_training_says_so(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "elbo-gaussian", ("TRAINING = ", "OTHER = "))
    with pytest.raises(SourceError, match="has no TRAINING"):
        train(recipe, tmp_path / "a.safetensors")


def test_a_signal_ends_after_the_step_that_runs_and_saves_it(tmp_path: Path) -> None:
    recipe, output = write_recipe(tmp_path, "elbo-gaussian"), tmp_path / "a.safetensors"

    def interrupt(done: int, *_: object) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    report = loop.train(recipe, output, Options(device="cpu"), interrupt)
    assert (report.stopped, report.steps) == (signal.SIGINT, 3)
    assert signal.getsignal(signal.SIGINT) is before
    straight = tmp_path / "straight.safetensors"
    train(recipe, output, resume=True)
    train(recipe, straight)
    assert_same(output, straight)


def test_two_processes_share_a_batch_and_keep_the_same_weights(tmp_path: Path) -> None:
    recipe, output = write_recipe(tmp_path, "gan-r1"), tmp_path / "a.safetensors"
    tell = """
def told(trained):
    made = objective(trained)
    weights = made.optimizers["generator"].param_groups[0]["params"]

    def tell(*_):
        import os
        total = sum(float(p.double().sum()) for p in weights)
        os.write(1, f"weights {total} {float(weights[0].grad.sum())}\\n".encode())  # whole, among another process's

    made.optimizers["generator"].register_step_post_hook(tell)
    return made
"""
    text = recipe.read_text().replace("objective=objective", "objective=told")
    recipe.write_text(text.replace("RECIPE = ", f"{tell}\n\nRECIPE = "))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "edgegen"]
    command += ["train", str(recipe), "-o", str(output), "--steps", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # so that auto is the CPU
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    told = sorted(line for line in done.stdout.splitlines() if line.startswith("weights"))
    assert len(told) == 4  # two steps of two processes
    assert (told[0], told[2]) == (told[1], told[3])
    assert told[0] != told[2]
    assert done.stdout.count("step 2, ") == 1  # one of them reports
    assert load_file(output)


OWN = """
import torch
from torch import nn
from edgegen.export.recipe import Recipe
from edgegen.train.data import shapes
from edgegen.train.recipe import Training

class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.grow = nn.ConvTranspose2d(8, 1, 16)

    def forward(self, z):
        return self.grow(z).tanh()

def modules():
    return {"generator": Generator()}

def objective(trained):
    from edgegen.train.adversarial import Adversarial
    return Adversarial(trained, nn.Sequential(nn.Flatten(), nn.Linear(16 * 16, 1)))

RECIPE = Recipe(name="own", family="gan", modules=modules, inputs={"generator": ("z float32[batch, 8, 1, 1]",)})
TRAINING = Training(data=lambda: shapes(20, 16, 1), objective=objective, steps=1, batch_size=4)
"""


def test_a_generator_of_ones_own_is_trained_with_the_latents_that_the_recipe_says(tmp_path: Path) -> None:
    recipe = tmp_path / "own.py"
    recipe.write_text(OWN)
    assert train(recipe, tmp_path / "own.safetensors", samples=tmp_path / "sheets").sheets
    recipe.write_text(OWN.replace(', inputs={"generator": ("z float32[batch, 8, 1, 1]",)}', ""))
    with pytest.raises(TrainingError, match="nothing says how many latents Generator takes; give the recipe its inputs"):
        train(recipe, tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("shapes(20, 16, 1)", "1 / 0", r"the data of own failed \(own\.py, line 24\): ZeroDivisionError"),
        ("shapes(20, 16, 1)", "shapes(20, 8, 3)", r"step 1 of the training failed: RuntimeError: mat1 and mat2"),
        ("return self.grow(z).tanh()", "return self.shrink(z)", r"step 1 .* failed \(own\.py, line 14\): AttributeError"),
        ('return {"generator": Generator()}', "return Generator(3)", r"the modules of own failed \(own.py, line 17\): Type"),
    ],
)
def test_what_fails_in_the_users_code_is_one_line_with_its_place(before: str, after: str, said: str, tmp_path: Path) -> None:
    recipe = tmp_path / "own.py"
    assert before in OWN
    recipe.write_text(OWN.replace(before, after))
    with pytest.raises(SourceError, match=said):
        train(recipe, tmp_path / "own.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["own.py"]


@pytest.mark.parametrize("count", [10, 64])
def test_an_epoch_takes_every_image_once_across_batches(count: int) -> None:
    taken = np.concatenate([indices(3, step, 8, count) for step in range(count)])  # count * 8 images: 8 epochs
    for epoch in range(8):
        assert sorted(taken[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert list(taken[:count]) != list(taken[count : 2 * count])


def test_processes_take_disjoint_parts_of_a_batch_mirrored_or_not() -> None:
    data = shapes(20)
    options = {"seed": 1, "batch_size": 6, "flip": True}
    whole = Batches(data, PixelRange(), **options)(2, torch.device("cpu"))
    parts = [Batches(data, PixelRange(), **options, process=i, processes=3)(2, torch.device("cpu")) for i in range(3)]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.class_ids for part in parts]), whole.class_ids)
    straight = torch.from_numpy(PixelRange().from_uint8(data.images[indices(1, 2, 6, 20)]))
    as_is = [torch.equal(a, b) for a, b in zip(whole.images, straight, strict=True)]
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(whole.images, straight, strict=True)]
    assert all(a or b for a, b in zip(as_is, mirrored, strict=True))
    assert any(as_is)
    assert any(mirrored)
