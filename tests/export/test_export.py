"""What export refuses, notices, and leaves behind."""

import errno

import pytest

torch = pytest.importorskip("torch")

import numpy as np
import transformers
from tiny_models import make_tiny, make_tiny_gguf

from edgegen.bundle import Bundle, BundleWriter
from edgegen.cli.export import STAGES
from edgegen.errors import CaptureError, EdgegenError, ExportError, InputError, ProofError, UnknownNameError
from edgegen.export import export
from edgegen.export.families import decoder_lm
from edgegen.export.sources.base import quiet
from edgegen.proof import verify_bundle

ANY_QUALITY = 50.0


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llama") / "checkpoint"
    make_tiny("llama", directory)
    return str(directory)


def assert_nothing_left(folder):
    assert list(folder.iterdir()) == []


def test_the_same_checkpoint_gives_the_same_bytes(exported, tmp_path):
    checkpoint, first = exported("llama_untied", "int4")
    second = tmp_path / first.name
    export(str(checkpoint), second, precision="int4", limit=ANY_QUALITY)
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_an_export_tells_its_stages_and_nothing_else(tmp_path, capfd):
    stages = []
    source = make_tiny_gguf(tmp_path / "tiny.gguf")
    output = tmp_path / "x.bundle"
    capfd.readouterr()
    export(str(source), output, precision="int4", limit=ANY_QUALITY, progress=lambda stage, _: stages.append(stage))
    assert list(dict.fromkeys(stages)) == list(STAGES)  # each has its words on the command line
    assert capfd.readouterr() == ("", "")  # no bar or hint of any library


def test_transformers_is_silent_while_it_is_used_and_loud_again_after(capfd):
    log = transformers.utils.logging
    before = log.get_verbosity(), log.is_progress_bar_enabled()
    with quiet():
        log.get_logger("transformers.modeling_utils").warning("We strongly recommend something.")
    assert capfd.readouterr().err == ""
    assert (log.get_verbosity(), log.is_progress_bar_enabled()) == before


def test_a_place_that_is_taken_is_refused_before_the_source_is_opened(tmp_path):
    with pytest.raises(InputError, match="already exists; use --force"):
        export(str(tmp_path / "no source"), tmp_path)
    with pytest.raises(InputError, match=r"the folder .* does not exist"):
        export(str(tmp_path / "no source"), tmp_path / "none" / "x.bundle")


def test_weights_that_lost_too_much_are_not_published(llama, tmp_path):
    with pytest.raises(ProofError, match=r"mean KL of .* nats, more than 1e-06 .*--limit"):
        export(llama, tmp_path / "x.bundle", precision="int4", limit=1e-6)
    assert_nothing_left(tmp_path)


def test_a_wrong_graph_is_not_published_and_the_first_wrong_tensor_is_named(llama, tmp_path, monkeypatch):
    right = decoder_lm.lower_ort.to_onnxruntime

    def wrong(model, table, windows):
        right(model, table, windows)
        second = [node for node in model.graph if node.op_type == "GroupQueryAttention"][1]
        import onnx_ir as ir

        second.attributes["scale"] = ir.AttrFloat32("scale", 0.5)

    monkeypatch.setattr(decoder_lm.lower_ort, "to_onnxruntime", wrong)
    with pytest.raises(ProofError, match=r"logits, (prefill|decode)"):  # both layers' caches are still right
        export(llama, tmp_path / "x.bundle", precision="fp32")
    assert_nothing_left(tmp_path)


def test_ctrl_c_leaves_nothing(llama, tmp_path):
    def interrupt(stage, _share):
        if stage == "write":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(llama, tmp_path / "x.bundle", progress=interrupt)
    assert_nothing_left(tmp_path)


def test_a_full_disk_leaves_nothing_and_says_so(llama, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(decoder_lm, "write_variants", full)
    with pytest.raises(ExportError, match=r"(space|full)"):
        export(llama, tmp_path / "x.bundle")
    assert_nothing_left(tmp_path)


def test_an_existing_place_is_not_overwritten_without_force(llama, tmp_path):
    place = tmp_path / "x.bundle"
    place.mkdir()
    with pytest.raises(InputError, match="--force"):
        export(llama, place)


def test_a_matrix_that_was_not_quantized_is_noticed(llama, tmp_path, monkeypatch):
    right = decoder_lm.lower.lower_weights
    import edgegen.export.lower_ort as lower_ort

    def forgetful(graph, table, linear, gather):
        right(graph, table, linear, gather)
        table.matrices["one.that.never.was"] = next(iter(table.matrices.values()))

    monkeypatch.setattr(lower_ort, "lower_weights", forgetful)
    with pytest.raises(
        ExportError, match=r"matrices are quantized in the graph, .* were to be; missing: \['one.that.never.was'\]"
    ):
        export(llama, tmp_path / "x.bundle", precision="int4", limit=ANY_QUALITY)
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"precision": "int5"}, UnknownNameError),
        ({"limit": -1.0}, InputError),
        ({"context_length": 100_000}, EdgegenError),
        ({"family": "decoder"}, UnknownNameError),
    ],
)
def test_a_wrong_option_is_one_line(llama, tmp_path, options, error):
    with pytest.raises(error) as raised:
        export(llama, tmp_path / "x.bundle", **options)
    assert "\n" not in str(raised.value)
    assert_nothing_left(tmp_path)


def test_a_model_without_attention_is_refused_by_module_and_reason(tmp_path):
    from tiny_models import tokenizer_files
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=4)
    directory = tmp_path / "mamba"
    MambaForCausalLM(config).save_pretrained(directory)
    for name, content in tokenizer_files().items():
        (directory / name).write_text(content, encoding="utf-8")
    with pytest.raises(EdgegenError) as raised:
        export(str(directory), tmp_path / "x.bundle")
    assert "\n" not in str(raised.value)
    assert "Mamba" in str(raised.value)


def test_an_operator_without_onnx_form_is_named_with_its_module(llama):
    from transformers import AutoModelForCausalLM

    from edgegen.export.capture import capture

    model = AutoModelForCausalLM.from_pretrained(llama).eval()
    block = model.model.layers[1].mlp
    before = block.forward
    block.forward = lambda hidden: before(hidden) + torch.linalg.eigvals(torch.eye(3)).real.sum()
    with pytest.raises(CaptureError) as raised:
        capture(model, 64)
    assert "linalg_eig" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_data_dependent_branch_is_named_with_its_module_and_cure(llama):
    from transformers import AutoModelForCausalLM

    from edgegen.export.capture import capture

    model = AutoModelForCausalLM.from_pretrained(llama).eval()
    block = model.model.layers[1].mlp
    before = block.forward
    block.forward = lambda hidden: before(hidden) if hidden.sum() > 0 else hidden
    with pytest.raises(CaptureError, match=r"model\.layers\.1.*torch\.where"):
        capture(model, 64)


def test_verify_finds_altered_weights_and_names_the_first_tensor(exported, tmp_path):
    import shutil

    import msgspec

    _, bundle = exported("llama", "fp32")
    with Bundle.open(bundle) as opened:
        manifest = opened.manifest
    place = tmp_path / "altered.bundle"
    with BundleWriter(place) as writer:
        shutil.copytree(bundle, writer.directory, dirs_exist_ok=True)
        weights = writer.directory / "graphs" / "decoder.weights"
        values = np.fromfile(weights, np.float32)
        values[np.abs(values) < 10] *= 1.01
        values.tofile(weights)
        writer.publish(msgspec.structs.replace(manifest, files={}))
    report = verify_bundle(str(place))
    assert not report.passed
    assert "present.0.key" in str(report.fidelity.failure)


def test_a_learned_position_beyond_the_table_is_refused_before_anything_runs(exported):
    import edgegen
    from edgegen.errors import ContextFullError

    with edgegen.load(exported("gpt2", "fp32")[1]) as model, pytest.raises(ContextFullError, match="256"):
        model.generate("a " * 600)


def test_a_rope_that_changes_with_the_length_is_exported_up_to_where_it_changes(tmp_path):
    from tiny_models import tiny_config, tokenizer_files
    from transformers import AutoModelForCausalLM

    import edgegen

    config = tiny_config("phi3")
    half = config.hidden_size // config.num_attention_heads // 2
    config.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 1.0,
        "short_factor": [1.0 + 0.1 * i for i in range(half)],
        "long_factor": [4.0 + 0.2 * i for i in range(half)],
        "original_max_position_embeddings": 200,
    }
    config.original_max_position_embeddings = 200
    torch.manual_seed(0)
    directory = tmp_path / "longrope"
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    for name, content in tokenizer_files().items():
        (directory / name).write_text(content, encoding="utf-8")
    with pytest.raises(ExportError, match="16 to 200"):
        export(str(directory), tmp_path / "x.bundle", context_length=256)
    export(str(directory), tmp_path / "x.bundle")
    with edgegen.load(tmp_path / "x.bundle") as model:
        assert model.settings.context_length == 200
