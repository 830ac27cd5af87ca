import dataclasses
import errno
import json
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from command_line import run

import edgegen.runtime
from edgegen.cli.export import STAGES, place
from edgegen.cli.main import COMMANDS, main
from edgegen.errors import BundleError, InputError


@dataclasses.dataclass
class FakeReport:
    passed: bool = True

    def lines(self) -> list[str]:
        return ["first", "second"]

    def as_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, "kl": np.float32(0.5)}


@dataclasses.dataclass
class Piece:
    text: str


@dataclasses.dataclass
class Text:
    text: str
    token_ids: list[int]
    finish_reason: str


class FakeModel:
    """Both a pipeline and a chat: it answers with what it was asked, and remembers how."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, dict[str, Any]]] = []
        self.chatting: str | None = None
        self.cancelled = 0

    def __enter__(self) -> "FakeModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append(("close", "", {}))

    def stream(self, prompt: str, **options: Any) -> Iterator[Piece]:
        self.calls.append(("stream", prompt, options))
        try:
            yield Piece("Hello, ")
            if prompt == "fail":
                raise BundleError("it broke\nin two lines")
            if prompt == "interrupt":
                raise KeyboardInterrupt
            yield Piece(f"{prompt}.")
        finally:
            self.cancelled += 1

    def generate(self, prompt: str, **options: Any) -> Text:
        self.calls.append(("generate", prompt, options))
        return Text(f"whole {prompt} é", [1, 2], "stop")

    def chat(self, system: str | None = None) -> "FakeChat":
        return FakeChat(self, system)


class FakeChat:
    def __init__(self, model: FakeModel, system: str | None) -> None:
        self.model, self.system = model, system

    def stream(self, message: str, **options: Any) -> Iterator[Piece]:
        return self.model.stream(f"{self.system}/{message}", **options)

    def send(self, message: str, **options: Any) -> Text:
        return self.model.generate(f"{self.system}/{message}", **options)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()

    def load(path: Path, backend: str, *, threads: int | None, advise: object = None) -> FakeModel:
        fake.calls.append(("load", str(path), {"backend": backend, "threads": threads}))
        return fake

    monkeypatch.setattr(edgegen.runtime, "load", load)
    return fake


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: main {command}")


def test_the_command_line_is_light() -> None:
    code = (
        "import sys\nfrom edgegen.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(*{m.split('.')[0] for m in sys.modules} & {'torch', 'onnx', 'transformers', 'onnxruntime', 'numpy', 'rich'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


def test_wrong_usage_exits_with_2() -> None:
    for arguments in (["verify"], ["nonsense"], ["generate", "b", "--prompt", "x", "--top-k", "many"], ["bench"]):
        assert run(*arguments).exit_code == 2


def test_python_runs_the_package_as_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "edgegen", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: edgegen ")


def test_an_answer_is_streamed(model: FakeModel) -> None:
    result = run("generate", "b.bundle", "--prompt", "you")
    assert (result.exit_code, result.stdout) == (0, "Hello, you.\n")
    assert model.calls == [
        ("load", "b.bundle", {"backend": "auto", "threads": None}),
        ("stream", "you", {}),  # nothing but what was given: the library's defaults hold
        ("close", "", {}),
    ]


def test_every_sampling_option_reaches_the_library(model: FakeModel) -> None:
    given = {
        "max_new_tokens": 5,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "seed": 0,
    }
    flags = [text for name, value in given.items() for text in ("--" + name.replace("_", "-"), str(value))]
    more = [
        "--deadline",
        "1.5",
        "--stop",
        "a",
        "--stop",
        "b",
        "--logit-bias",
        "4=-1.5",
        "--logit-bias",
        "7=2",
        "--threads",
        "3",
    ]
    assert run("generate", "b", "--prompt", "x", "--backend", "onnxruntime", *flags, *more).exit_code == 0
    assert model.calls[0][2] == {"backend": "onnxruntime", "threads": 3}
    expected = given | {"deadline_s": 1.5, "stop": ["a", "b"], "logit_bias": {4: -1.5, 7: 2.0}}
    assert model.calls[1] == ("stream", "x", expected)


def test_every_text_option_of_the_library_has_a_flag() -> None:
    from edgegen.cli.generate import generate
    from edgegen.sampling import SamplingOptions

    assert {field.name for field in dataclasses.fields(SamplingOptions)} <= {param.name for param in generate.params}


def test_a_prompt_of_a_dash_is_stdin(model: FakeModel) -> None:
    assert run("generate", "b", "--prompt", "-", stdin="two\nlines").stdout == "Hello, two\nlines.\n"


def test_json_prints_one_object_and_streams_nothing(model: FakeModel) -> None:
    result = run("generate", "b", "--prompt", "x", "--json", "--logprobs", "2")
    assert json.loads(result.stdout) == {"text": "whole x é", "token_ids": [1, 2], "finish_reason": "stop"}
    assert result.stdout.count("\n") == 1
    assert model.calls[1] == ("generate", "x", {"logprobs": 2})


def test_text_goes_to_a_file_whole(model: FakeModel, tmp_path: Path) -> None:
    file = tmp_path / "out.txt"
    result = run("generate", "b", "--prompt", "x", "-o", str(file))
    assert (result.exit_code, result.stdout, file.read_text(encoding="utf-8")) == (0, "", "whole x é")
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]
    calls = len(model.calls)
    assert run("generate", "b", "--prompt", "x", "-o", str(tmp_path / "no" / "out.txt")).exit_code == 1
    assert len(model.calls) == calls  # found before the model is loaded


def test_chat_with_a_prompt_is_one_turn(model: FakeModel) -> None:
    assert run("generate", "b", "--chat", "--system", "terse", "--prompt", "hi").stdout == "Hello, terse/hi.\n"
    assert json.loads(run("generate", "b", "--chat", "--prompt", "hi", "--json").stdout)["text"] == "whole None/hi é"


def test_chat_without_a_prompt_is_a_conversation(model: FakeModel) -> None:
    result = run("generate", "b", "--chat", "--seed", "3", stdin="one\n\ntwo\n")
    assert result.stdout == "Hello, None/one.\nHello, None/two.\n"
    assert [call for call in model.calls if call[0] == "stream"] == [
        ("stream", "None/one", {"seed": 3}),
        ("stream", "None/two", {"seed": 3}),
    ]


@pytest.mark.parametrize(
    "arguments",
    [[], ["--chat", "--json"], ["--chat", "-o", "f"], ["--prompt", "x", "--system", "s"], ["--prompt", "x", "--logprobs", "2"]],
)
def test_options_that_do_not_go_together_are_wrong_usage(model: FakeModel, tiny_bundle: Path, arguments: list[str]) -> None:
    assert run("generate", str(tiny_bundle), *arguments).exit_code == 2
    assert model.calls == []


@pytest.mark.parametrize("bias", ["4", "a=1", "4=b"])
def test_a_malformed_logit_bias_is_wrong_usage(model: FakeModel, bias: str) -> None:
    assert run("generate", "b", "--prompt", "x", "--logit-bias", bias).exit_code == 2


def test_an_error_of_ours_is_one_line_and_1(model: FakeModel) -> None:
    result = run("generate", "b", "--prompt", "fail")
    assert (result.exit_code, result.stderr) == (1, "edgegen: it broke in two lines\n")
    assert model.cancelled == 1


def test_output_that_cannot_be_written_is_one_line(model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, prompt: str, **_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FakeModel, "stream", full)
    result = run("generate", "b", "--prompt", "x")
    assert (result.exit_code, result.stderr) == (1, "edgegen: cannot write the output: No space left on device\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/closed/b"), "cannot use /closed/b: Permission denied"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "aaa"), "cannot use aaa: File name too long"),
        (MemoryError("Unable to allocate 60 GiB"), "not enough memory (Unable to allocate 60 GiB); ask for less at once"),
        (MemoryError(), "not enough memory; ask for less at once"),
    ],
)
def test_what_the_system_denies_is_one_line(
    model: FakeModel, error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: object, prompt: str, **_: object) -> None:
        raise error

    monkeypatch.setattr(FakeModel, "stream", denied)
    result = run("generate", "b", "--prompt", "x")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"edgegen: {said}")
    assert result.stderr.count("\n") == 1


def test_a_missing_file_that_no_user_named_keeps_its_traceback(model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: object, prompt: str, **_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "ours")

    monkeypatch.setattr(FakeModel, "stream", missing)
    assert isinstance(run("generate", "b", "--prompt", "x").exception, FileNotFoundError)


@pytest.mark.parametrize("arguments", [["--prompt", "-"], ["--chat"]])
def test_a_closed_stdin_and_one_that_is_no_text_are_one_line(
    model: FakeModel, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    not_text = CliRunner().invoke(main, ["generate", "b", *arguments], input=b"ab\xff\xfe\n")
    assert (not_text.exit_code, not_text.stderr) == (1, "edgegen: stdin is not text in utf-8: invalid start byte at byte 2\n")
    monkeypatch.setattr("edgegen.cli.text.sys", types.SimpleNamespace(stdin=None))
    closed = run("generate", "b", *arguments)
    assert (closed.exit_code, closed.stderr) == (1, "edgegen: stdin is closed; give the text with --prompt\n")


def test_any_other_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edgegen.runtime, "load", lambda *_, **__: 1 / 0)
    result = run("generate", "b", "--prompt", "x")
    assert isinstance(result.exception, ZeroDivisionError)


def test_ctrl_c_ends_with_130_and_stops_the_graph(model: FakeModel) -> None:
    result = run("generate", "b", "--prompt", "interrupt")
    assert result.exit_code == 130
    assert "stopped" in result.stderr
    assert model.cancelled == 1


@pytest.fixture
def proof(monkeypatch: pytest.MonkeyPatch) -> FakeReport:
    report = FakeReport()
    fake = types.ModuleType("edgegen.proof")
    fake.verify_bundle = lambda path, backend="auto": report  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "edgegen.proof", fake)
    return report


def test_verify_prints_lines_or_json_and_exits_by_the_verdict(proof: FakeReport) -> None:
    assert (run("verify", "b").exit_code, run("verify", "b").stdout) == (0, "first\nsecond\n")
    proof.passed = False
    result = run("verify", "b", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (1, {"passed": False, "kl": 0.5})


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []

    def export(source: str, output: Path, **options: Any) -> FakeReport:
        calls.append((source, output, options))
        return FakeReport()

    fake = types.ModuleType("edgegen.export")
    fake.export = export  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "edgegen.export", fake)
    return calls


def test_export_hands_everything_over(exported: list[Any]) -> None:
    flags = ["--family", "decoder_lm", "--checkpoint", "w.safetensors", "--precision", "int4", "--context-length", "64"]
    flags += ["--input", "z float32[batch, 8]", "--axis", "batch=1..1..4", "--axis", "side=8..8..8", "--target", "thor@7.2"]
    flags += ["--variant", "tensorrt-legacy"]
    result = run("export", "src", "-o", "out", *flags, "--limit", "0.2", "--name", "n", "--force", "--json")
    assert (result.exit_code, json.loads(result.stdout)["passed"]) == (0, True)
    assert exported == [
        (
            "src",
            Path("out"),
            {
                "family": "decoder_lm",
                "checkpoint": Path("w.safetensors"),
                "precision": "int4",
                "context_length": 64,
                "limit": 0.2,
                "name": "n",
                "force": True,
                "inputs": ("z float32[batch, 8]",),
                "outputs": (),
                "axes": ("batch=1..1..4", "side=8..8..8"),
                "settings": (),
                "target": "thor@7.2",
                "variants": ("tensorrt-legacy",),
                "progress": None,  # stderr is no terminal here
            },
        )
    ]


def test_the_stages_of_an_export_are_words_and_only_go_forward() -> None:
    assert place("load", 0.0) == ("1/9 reading the checkpoint", 0.0)
    assert place("prove", 1.0) == ("9/9 proving what was written", 1.0)
    shares = [place(stage, fraction)[1] for stage in STAGES for fraction in (0.0, 0.5)]
    assert shares == sorted(shares)
    assert place("a family's own", 0.5) == ("a family's own", 0.5)


def test_export_without_its_libraries_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.import_module", _without_torch(__import__("importlib").import_module))
    result = run("export", "src", "-o", "out")
    assert (result.exit_code, result.stderr) == (
        1,
        'edgegen: export needs torch, which is not installed: pip install "edgegen[export]"\n',
    )


def _without_torch(original: Any) -> Any:
    def import_module(name: str) -> Any:
        if name == "edgegen.export":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return original(name)

    return import_module


@pytest.mark.parametrize("command", ["inspect", "verify", "plan", "build"])
def test_a_bundle_without_a_name_is_not_the_folder_where_one_is(command: str) -> None:
    done = run(command, "")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "is empty; give a path" in done.stderr


def test_a_bundle_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for command in (["inspect"], ["pack", "-o", str(tmp_path / "x.tar")], ["generate", "--prompt", "x"], ["generate"]):
        result = run(command[0], str(tmp_path / "none"), *command[1:])
        assert result.exit_code == 1, result.output
        assert result.stderr.startswith("edgegen: ")
        assert result.stderr.count("\n") == 1


def test_doctor_says_what_is_here() -> None:
    result = run("doctor", "--json")
    health = json.loads(result.stdout)
    assert health["base"]["numpy"] == np.__version__
    assert result.exit_code == (0 if health["passed"] else 1)
    assert "telemetry: off" in run("doctor").stdout


def test_doctor_offline_reports_and_exits_by_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    import edgegen.offline

    for passed in (True, False):
        monkeypatch.setattr(edgegen.offline, "check_offline", lambda path, backend, passed=passed: FakeReport(passed))
        result = run("doctor", "--offline", "b", "--json")
        assert (result.exit_code, json.loads(result.stdout)["passed"]) == (0 if passed else 1, passed)


def test_an_input_error_of_the_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise InputError("temperature is -1; give 0 or more")

    monkeypatch.setattr(edgegen.runtime, "load", load)
    assert run("generate", "b", "--prompt", "x").stderr == "edgegen: temperature is -1; give 0 or more\n"
