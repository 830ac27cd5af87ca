"""`edgegen inspect` and `edgegen bench`: what they print, and where."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import make_bundle
from command_line import run


def test_inspect_shows_graphs_sizes_source_and_settings(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "tiny.bundle")
    text = run("inspect", str(bundle)).stdout
    for part in (
        "tiny: decoder_lm, fp32",
        "licence CC0-1.0",
        "graph decoder: ",
        "  onnxruntime: ",
        "in  attention_mask int64[batch, total]",
    ):
        assert part in text
    assert "past_key_values" not in text  # state: counted, not listed
    described = json.loads(run("inspect", str(bundle), "--json").stdout)
    assert described["size_bytes"] == sum(file["size_bytes"] for file in described["files"].values())
    assert described["graphs"]["decoder"]["variants"].keys() == {"canonical", "onnxruntime"}


def test_inspect_reads_a_packed_bundle_too(tmp_path: Path) -> None:
    bundle, tar = make_bundle(tmp_path / "tiny.bundle"), tmp_path / "tiny.bundle.tar"
    assert run("pack", str(bundle), "-o", str(tar)).exit_code == 0
    assert run("inspect", str(tar)).stdout == run("inspect", str(bundle)).stdout


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    import edgegen.bench.report
    import edgegen.bench.text

    calls: list[Any] = []

    def bench_text(bundle: Path, **options: Any) -> dict[str, Any]:
        calls.append((bundle, options))
        return {"tokens_per_s": np.float32(7)}

    monkeypatch.setattr(edgegen.bench.text, "bench_text", bench_text)
    monkeypatch.setattr("edgegen.cli.bench._check", lambda bundles, json_file: None)  # these bundles are names only
    monkeypatch.setattr(edgegen.bench.report, "text_report", lambda result: f"{result['tokens_per_s']} tokens/s")
    return calls


def test_bench_prints_a_table_for_each_bundle(measured: list[Any]) -> None:
    result = run("bench", "a", "b", "--prompt-length", "8", "--prompt-length", "9", "--new-tokens", "4", "--threads", "2")
    assert result.stdout == "7.0 tokens/s\n7.0 tokens/s\n"
    expected = {"prompt_lengths": (8, 9), "new_tokens": 4, "warmup": 1, "repeats": 5, "backend": "auto", "threads": 2}
    assert measured == [(Path("a"), expected), (Path("b"), expected)]


def test_bench_writes_json_to_a_file_or_to_stdout(measured: list[Any], tmp_path: Path) -> None:
    expected = {"results": [{"tokens_per_s": 7.0}]}
    assert json.loads(run("bench", "a", "--json", "-").stdout) == expected
    assert run("bench", "a", "--json", str(tmp_path / "r.json")).stdout == "7.0 tokens/s\n"
    assert json.loads((tmp_path / "r.json").read_text()) == expected


def test_bench_finds_a_wrong_bundle_or_folder_before_it_measures(
    measured: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    bundle = str(make_bundle(tmp_path / "tiny.bundle"))
    for arguments in ([bundle, str(tmp_path / "none")], [bundle, "--json", str(tmp_path / "no" / "r.json")]):
        result = run("bench", *arguments)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert measured == []
