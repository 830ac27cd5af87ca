"""The weights of one's own modules: where they lie in a file, what does not fit, and what is not run."""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from own_modules import package_in
from torch import nn

from edgegen.errors import SourceError
from edgegen.export.sources import open_source
from edgegen.export.sources.state import load_weights


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with package_in(tmp_path, monkeypatch) as folder:
        yield folder


def linear() -> dict[str, nn.Module]:
    return {"": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))}


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {f"module.{key}": value for key, value in s.items()}},
        lambda s: {f"_orig_mod.module.{key}": value for key, value in s.items()},
        lambda s: {"args": {"lr": 0.1}, "g": {key: value + 9 for key, value in s.items()}, "g_ema": s},
        lambda s: {"generator": s, "discriminator": {"conv.weight": torch.zeros(3)}},
        lambda s: {key: value for key, value in s.items() if not key.endswith("num_batches_tracked")},
    ],
    ids=["plain", "state_dict", "data parallel", "compiled", "moving average first", "the one that fits", "no counters"],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
def test_a_state_dict_is_found_wherever_it_lies(tmp_path: Path, wrap, suffix: str):
    torch.save(wrap(state()), tmp_path / f"g{suffix}")
    modules = linear()
    load_weights(modules, tmp_path / f"g{suffix}")
    assert torch.equal(modules[""][0].weight, state()["0.weight"])


def test_safetensors_are_read_too_and_halves_are_widened(tmp_path: Path):
    from safetensors.torch import save_file

    save_file({f"module.{key}": value for key, value in state().items()}, tmp_path / "g.safetensors")
    modules = linear()
    load_weights(modules, tmp_path / "g.safetensors")
    assert torch.equal(modules[""][0].bias, state()["0.bias"])
    torch.save({key: value.half() if value.is_floating_point() else value for key, value in state().items()}, tmp_path / "h.pt")
    load_weights(modules, tmp_path / "h.pt")
    assert modules[""][0].weight.dtype == torch.float32


def test_several_graphs_share_a_file(tmp_path: Path):
    modules = {"mapping": nn.Linear(2, 2), "synthesis": nn.Linear(2, 3)}
    wanted = {name: nn.Linear(2, size).state_dict() for name, size in (("mapping", 2), ("synthesis", 3))}
    torch.save(wanted, tmp_path / "nested.pt")
    load_weights(modules, tmp_path / "nested.pt")
    assert torch.equal(modules["synthesis"].weight, wanted["synthesis"]["weight"])
    torch.save({f"{graph}.{key}": t for graph, states in wanted.items() for key, t in states.items()}, tmp_path / "flat.pt")
    load_weights(modules, tmp_path / "flat.pt")
    assert torch.equal(modules["mapping"].weight, wanted["mapping"]["weight"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "0.bias"}, "does not fit the module: missing 0.bias; give the weights"),
        (lambda s: s | {"2.weight": torch.zeros(1)}, "unexpected 2.weight; give the weights of this very module"),
        (lambda s: s | {"0.weight": torch.zeros(5, 3)}, r"0\.weight is \[5, 3\], not \[4, 3\]"),
        (lambda s: {"state_dict": {k: v for k, v in s.items() if k != "0.bias"}}, r"\(state_dict\) does not fit.*0\.bias"),
        (lambda s: s | {"0.bias": s["0.bias"].to(torch.complex64)}, "0.bias is torch.complex64, not torch.float32"),
        (lambda s: {"epoch": 3}, "holds no state_dict"),
        (lambda s: [1, 2], "holds a list, not a state_dict"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change, said: str):
    torch.save(change(dict(state())), tmp_path / "g.pt")
    with pytest.raises(SourceError, match=said):
        load_weights(linear(), tmp_path / "g.pt")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("owned"),))


def test_a_pickle_with_code_is_refused_in_one_line_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    torch.save({"g": state(), "config": Evil()}, tmp_path / "evil.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    for name in ("evil.pkl", "evil.pt", "module.pt"):
        with pytest.raises(SourceError, match=r"code or objects beside tensors .* save its state_dict alone") as caught:
            load_weights(linear(), tmp_path / name)
        assert "\n" not in str(caught.value)
    assert "torch.nn.modules.linear.Linear" in str(caught.value)  # what was in the way
    assert not (tmp_path / "owned").exists()


def test_a_damaged_checkpoint_is_one_line(tmp_path: Path):
    torch.save(state(), tmp_path / "g.pt")
    raw = (tmp_path / "g.pt").read_bytes()
    for size in (0, 1, 50, len(raw) // 2, len(raw) - 9):
        (tmp_path / "g.pt").write_bytes(raw[:size])
        with pytest.raises(SourceError) as caught:
            load_weights(linear(), tmp_path / "g.pt")
        assert "\n" not in str(caught.value)
    for name, said in (("none.pt", "no checkpoint at"), (Path(__file__).name, "is a .py file")):
        with pytest.raises(SourceError, match=said):
            load_weights(linear(), Path(__file__).with_name(name) if said.startswith("is") else tmp_path / name)


def test_a_recipe_and_a_function_take_a_state_dict_and_a_language_model_does_not(package: Path):
    from tiny_models import make_tiny

    sys.path.insert(0, str(package))
    from my_package.my_module import make_generator

    wanted = make_generator()
    with torch.no_grad():
        wanted.net[0].weight += 1
    torch.save({"state_dict": wanted.state_dict()}, package / "G.ckpt")
    (package / "recipe.py").write_text(
        "from my_package.my_module import make_generator\nfrom edgegen.export.recipe import Recipe\n"
        "RECIPE = Recipe('r', 'gan', modules=make_generator)\n"
    )
    for source in ("my_package.my_module:make_generator", "recipe.py"):
        opened = open_source(source, package / "G.ckpt")
        assert torch.equal(opened.modules[""].net[0].weight, wanted.net[0].weight)
    with pytest.raises(SourceError, match="is a pickle"):
        open_source(str(make_tiny("llama", package / "llama")), package / "G.ckpt")
