"""The manifest's half of a decoder language model: settings, tokenizer and template come from a bundle."""

import types

import msgspec
import pytest
from text_models import TEMPLATE, settings
from text_tokenizers import tokenizer_json

from edgegen.backends.fake import fake_lm
from edgegen.errors import BundleError
from edgegen.pipelines import FAMILIES
from edgegen.pipelines.decoder_lm import DecoderLM


class FakeBundle:
    def __init__(self, **changes):
        chosen = settings(chat_template="tokenizer/chat_template.jinja", eos_token_ids=(), **changes)
        self.files = {"tokenizer/tokenizer.json": tokenizer_json(), "tokenizer/chat_template.jinja": TEMPLATE.encode()}
        self.manifest = types.SimpleNamespace(settings=msgspec.to_builtins(chosen))
        self.is_closed = False

    def read(self, path):
        if path not in self.files:
            raise BundleError(f"no file {path}")
        return memoryview(self.files[path])

    def close(self):
        self.is_closed = True


def opened(bundle):
    return DecoderLM.from_bundle(bundle, lambda graph: {"decoder": fake_lm(313)}[graph])


def test_a_pipeline_is_made_from_a_bundle_and_closes_it():
    bundle = FakeBundle()
    with opened(bundle) as pipeline:
        assert pipeline.bundle is bundle
        assert len(pipeline.generate("the", max_new_tokens=3).token_ids) == 3
        assert len(pipeline.chat().send("the", max_new_tokens=3).token_ids) == 3
    assert bundle.is_closed


def test_variables_of_the_template_come_from_the_settings():
    bundle = FakeBundle(special_tokens={"bos_token": "naïve"})
    bundle.files["tokenizer/chat_template.jinja"] = b"{{ bos_token }} {{ messages[0].content }}"
    with opened(bundle) as pipeline:
        assert pipeline.chat().send("the", max_new_tokens=1, seed=0).prompt_tokens == len(
            pipeline.tokenizer.encode("naïve the")
        )


def test_a_missing_tokenizer_is_a_bundle_error():
    bundle = FakeBundle()
    del bundle.files["tokenizer/tokenizer.json"]
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        opened(bundle)


def test_the_table_of_families_names_the_class():
    assert FAMILIES["decoder_lm"] == f"{DecoderLM.__module__}:{DecoderLM.__qualname__}"
