import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_trainings import write_recipe

from edgegen.cli.main import main
from edgegen.cli.train import _lines

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: object):
    return CliRunner().invoke(main, ["train", *map(str, arguments)])


def test_a_training_ends_with_one_line_and_a_sheet(tmp_path: Path) -> None:
    recipe, output = write_recipe(tmp_path, "elbo-bernoulli"), tmp_path / "a.safetensors"
    done = run(recipe, "-o", output, "--device", "cpu", "--samples", tmp_path / "sheets")
    assert done.exit_code == 0, done.output
    assert re.search(r"a\.safetensors: step 6, 6 steps in \d+ s, reconstruction [\d.]+, divergence", done.stdout)
    assert re.fullmatch(r"step 6 of 6: reconstruction [\d.]+, divergence [\d.e-]+\n", done.stderr)
    assert (tmp_path / "sheets" / "step-000006.png").is_file()
    assert '"steps": 6' in run(recipe, "-o", output, "--device", "cpu", "--resume", "--json").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "a.pt"], "ends in .safetensors"),
        (["-o", "a.safetensors", "--resume"], "train without --resume"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(write_recipe(tmp_path, "elbo-bernoulli"), *arguments)
    assert done.exit_code == 1
    assert re.fullmatch(f"edgegen: .*{re.escape(said)}.*\n", done.stderr)


def test_where_there_is_no_terminal_a_line_comes_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 3.0, 11.0, 11.0, 12.0, 22.0])
    show = _lines(lambda: next(times))
    for step in (1, 2, 3):
        show(step, 9, {"generator": 0.81234})
    assert capsys.readouterr().err == "step 2 of 9: generator 0.812\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_training_is_saved_and_says_how_to_go_on(number: int, code: int, tmp_path: Path) -> None:
    recipe, output = write_recipe(tmp_path, "elbo-bernoulli"), tmp_path / "a.safetensors"
    recipe.write_text(recipe.read_text().replace("steps=6", "steps=1_000_000").replace("save_every=100", "save_every=1"))
    command = [sys.executable, "-m", "edgegen", "train", str(recipe), "-o", str(output), "--device", "cpu"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as process:
        while not output.exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert f"edgegen: stopped; go on with: edgegen train {recipe} -o {output} --resume" in said
    assert run(recipe, "-o", output, "--device", "cpu", "--resume", "--steps", 1).exit_code == 1  # more than one was taken
