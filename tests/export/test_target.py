"""What `--target` chooses, and the reasons that it gives."""

import json

import pytest
from command_line import run
from own_modules import package_in
from tiny_models import make_tiny

from edgegen.devices.table import DEVICES, JETPACKS
from edgegen.errors import InputError, UnknownNameError
from edgegen.export import export
from edgegen.export.assemble import PRECISIONS
from edgegen.export.families import FAMILIES
from edgegen.export.report import TensorExportReport
from edgegen.export.target import LANGUAGE_MODELS, LEGACY, decide, read_target

RUNNABLE = [name for name in DEVICES if "xavier" not in name]


@pytest.mark.parametrize(
    ("target", "family", "precision", "legacy"),
    [
        ("orin-nano", "decoder_lm", "int4", True),  # it may have JetPack 6.2
        ("orin-nano@6.2", "decoder_lm", "int4", True),
        ("orin-nano@6.2.1", "decoder_lm", "int4", True),
        ("orin-nano@7.2", "decoder_lm", "int4", False),
        ("orin-nano@7.2.1", "decoder_lm", "int4", False),
        ("thor", "decoder_lm", "int4", True),  # it may have 7.0 or 7.1
        ("thor@7.0", "decoder_lm", "int4", True),
        ("thor@7.2", "decoder_lm", "int4", False),
        ("agx-orin@7.2.2", "decoder_lm", "int4", False),
        ("rtx-4090", "decoder_lm", "int4", False),
        ("h100", "decoder_lm", "int4", False),
        ("raspberry-pi-5", "decoder_lm", "int4", False),
        ("x86-cpu", "decoder_lm", "int4", False),
        ("orin-nano@6.2", "gan", "fp16", True),
        ("orin-nano@7.2", "diffusion", "fp16", False),
        ("rtx-4090", "vae", "fp16", False),
        ("dgx-spark", "features", "fp16", False),
        ("raspberry-pi-5", "vae", "fp32", False),
        ("x86-cpu", "diffusion", "fp32", False),
    ],
)
def test_a_device_gets_what_it_can_run(target, family, precision, legacy):
    device, jetpack = read_target(target)
    decision = decide(device, family, jetpack=jetpack)
    assert (decision.precision, decision.variants) == (precision, (LEGACY,) if legacy else ())


@pytest.mark.parametrize("device", RUNNABLE)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_device_gets_a_choice_with_reasons(device, family):
    decision = decide(DEVICES[device], family)
    assert decision.precision in {"fp32", "fp16", "int8", "int4"}
    assert decision.reasons[0].startswith(f"{decision.precision}: ")
    assert all(any(variant in reason for reason in decision.reasons) for variant in decision.variants)
    assert decide(DEVICES[device], family, decision.precision).precision == decision.precision


@pytest.mark.parametrize(
    ("target", "family", "reason"),
    [
        ("orin-nano", "decoder_lm", "not fp8: fp8 needs compute capability 8.9 (Ada, Hopper or newer); this is 8.7"),
        ("orin-nano", "decoder_lm", "not fp4: fp4 needs compute capability 10.0 (Blackwell); this is 8.7"),
        ("rtx-4090", "decoder_lm", "not fp8: the GPU has fp8, but edgegen exports none yet"),
        ("rtx-4090", "gan", "not int8 or int4: edgegen quantizes the weights of language models"),
        ("raspberry-pi-5", "gan", "fp32: on a CPU fp16 is computed in fp32"),
        ("orin-nano@6.2", "decoder_lm", "JetPack 6.2 has TensorRT 10.3, which lacks Attention"),
        ("orin-nano", "decoder_lm", "jetson-orin-nano-8gb@7.2 leaves it out"),
        ("thor", "decoder_lm", "JetPack 7.0 or 7.1 has TensorRT 10.13"),
        ("thor@7.2", "decoder_lm", "no tensorrt-legacy: TensorRT 10.16.2 parses the graph as it is"),
        ("orin-nano", "decoder_lm", "(102 GB/s)"),
    ],
)
def test_the_reasons_name_what_decides(target, family, reason):
    device, jetpack = read_target(target)
    assert reason in "\n".join(decide(device, family, jetpack=jetpack).lines())


@pytest.mark.parametrize(
    ("device", "family", "precision", "message"),
    [
        ("jetson-orin-nano-8gb", "decoder_lm", "fp8", r"cannot run fp8: .*this is 8\.7; it runs fp32, fp16, int8, int4"),
        ("rtx-5090", "decoder_lm", "fp4", "the GPU has fp4, but edgegen exports none yet"),
        ("raspberry-pi-5-8gb", "decoder_lm", "fp8", "needs an NVIDIA GPU"),
        ("rtx-4090", "gan", "int4", "no int4 for gan: .*rtx-4090 runs it in fp32, fp16"),
        ("x86-cpu", "diffusion", "int8", "no int8 for diffusion: .*convolutions"),
        ("jetson-xavier-nx-8gb", "decoder_lm", "fp16", r"JetPack 5\.1 has Python 3\.8 and TensorRT 8\.5\.2; edgegen needs"),
    ],
)
def test_a_precision_that_cannot_run_is_refused_with_the_reason(device, family, precision, message):
    with pytest.raises(InputError, match=message):
        decide(DEVICES[device], family, precision)


def test_a_precision_that_was_asked_for_is_kept():
    decision = decide(DEVICES["jetson-orin-nano-8gb"], "decoder_lm", "fp16", JETPACKS["7.2"])
    assert (decision.precision, decision.reasons[0]) == ("fp16", "fp16, as asked: tensor cores; 2 bytes a weight")
    assert "no faster" in decide(DEVICES["x86-cpu"], "gan", "fp16").reasons[0]
    with pytest.raises(UnknownNameError, match="no precision named 'fp6'"):
        decide(DEVICES["x86-cpu"], "gan", "fp6")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("orin-nan", "did you mean 'orin-nano'"),
        ("orin-nano@9.9", "no JetPack named '9.9'"),
        ("orin-nano@", "no JetPack named ''"),
        ("thor@6.2", r"jetson-thor-t5000 does not run JetPack 6\.2; it runs 7\.0, 7\.1, 7\.2, 7\.2\.2"),
        ("rtx-4090@7.2", "rtx-4090 runs no JetPack"),
        ("agx-xavier", r"cannot export for jetson-agx-xavier-32gb: JetPack 5\.1"),
    ],
)
def test_a_target_that_is_none_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        read_target(text)


def test_language_models_alone_are_quantized():
    assert set(LANGUAGE_MODELS) < FAMILIES.keys()
    assert PRECISIONS == ("fp32", "fp16")  # of all other families: what `decide` refuses is what the exporter refuses


def test_the_command_refuses_a_target_before_it_reads_anything(tmp_path):
    result = run("export", str(tmp_path / "none"), "-o", str(tmp_path / "out"), "--target", "thor@6.2")
    assert result.exit_code == 1
    assert result.stderr == "edgegen: jetson-thor-t5000 does not run JetPack 6.2; it runs 7.0, 7.1, 7.2, 7.2.2\n"


@pytest.fixture
def requests(monkeypatch):
    """What the exporter of language models is asked for, in place of its work."""
    asked = []

    def note(request, _progress):
        asked.append(request)
        return TensorExportReport(request.output, request.precision, ("decoder",), 0, (), {})

    monkeypatch.setattr("edgegen.export.families.decoder_lm.export", note)
    return asked


def test_the_exporter_gets_the_precision_and_variants_that_were_chosen(tmp_path, requests):
    source = make_tiny("llama", tmp_path / "llama")
    result = run("export", str(source), "-o", str(tmp_path / "out"), "--target", "orin-nano@6.2", "--json")
    assert result.exit_code == 0, result.stderr
    (request,) = requests
    assert (request.precision, request.variants) == ("int4", (LEGACY,))
    told = json.loads(result.stdout)["target"]
    assert (told["device"], told["jetpack"]) == ("jetson-orin-nano-8gb", "6.2")
    assert (told["precision"], told["variants"]) == ("int4", [LEGACY])
    assert any(reason.startswith("not fp8") for reason in told["reasons"])


def test_a_variant_that_was_asked_for_and_is_needed_comes_once(tmp_path, requests):
    source = make_tiny("llama", tmp_path / "llama")
    for target in ("orin-nano@6.2", "orin-nano@7.2", None):
        export(str(source), tmp_path / "out", target=target, variants=(LEGACY,), precision="fp16")
    assert [(request.precision, request.variants) for request in requests] == 3 * [("fp16", (LEGACY,))]


def test_an_export_without_a_target_says_none(tmp_path, requests):
    source = make_tiny("llama", tmp_path / "llama")
    told = json.loads(run("export", str(source), "-o", str(tmp_path / "out"), "--json").stdout)
    assert (told["precision"], told["target"]) == ("fp32", None)


def test_an_image_model_for_a_target_without_a_gpu_stays_in_fp32(tmp_path, monkeypatch):
    with package_in(tmp_path, monkeypatch):
        arguments = ["export", "my_package.my_module:make_generator", "-o", "g.bundle", "--family", "gan", "--target", "pi5"]
        tensors = ["--input", "z float32[batch, 16]", "--returns", "image float32[batch, 3, 4, 4]", "--axis", "batch=1..2"]
        result = run(*arguments, *tensors, "--setting", 'pixels={"black": 0, "white": 1}')
    assert result.exit_code == 0, result.stderr
    assert "g.bundle: fp32" in result.stdout
    assert "target raspberry-pi-5-8gb: fp32\n  fp32: on a CPU" in result.stdout
