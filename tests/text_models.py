"""Language models without files: the numpy one on a tiny tokenizer, and one that recites a given text."""

import numpy as np
from text_tokenizers import tokenizer_json

from edgegen.backends.fake import FakeSession, fake_lm
from edgegen.chat_template import ChatTemplate
from edgegen.manifest import StatePair
from edgegen.pipelines.decoder_lm import DecoderLM, DecoderLMSettings
from edgegen.tensors import TensorSpec
from edgegen.tokenizers import Tokenizer

TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def tokenizer():
    return Tokenizer.from_bytes(tokenizer_json())


def settings(**changes):
    values = {"vocab_size": tokenizer().vocab_size, "context_length": 512, "eos_token_ids": (0,), "bos_token_id": None}
    return DecoderLMSettings(**{**values, **changes})


def model(*, canonical=False, seed=0, template=TEMPLATE, **changes):
    """A DecoderLM on `fake_lm`; its end-of-sequence token (0) comes up now and then."""
    chosen = settings(**changes)
    session = fake_lm(chosen.vocab_size, context_length=chosen.context_length, canonical=canonical, seed=seed)
    return DecoderLM(session, tokenizer(), chosen, chat_template=None if template is None else ChatTemplate(template))


def endless(**changes):
    """As `model`, without an end-of-sequence token."""
    return model(eos_token_ids=(), **changes)


def reciting(text, *, prompt="the", **changes):
    """A DecoderLM that continues `prompt` with `text`, whatever it is fed, and then ends."""
    library, chosen = tokenizer(), settings(**changes)
    start = len(library.encode(prompt))
    script = [*library.encode(text), 0]

    def function(feed, state):
        at = int(feed["attention_mask"].sum()) - start
        logits = np.zeros((1, 1, chosen.vocab_size), np.float32)
        logits[0, 0, script[min(max(at, 0), len(script) - 1)]] = 9.0
        return {"logits": logits}

    past = TensorSpec("past", "float32", ("batch", "cache"))
    inputs = [
        TensorSpec("input_ids", "int64", ("batch", "sequence")),
        TensorSpec("attention_mask", "int64", ("batch", "total")),
        past,
    ]
    outputs = [
        TensorSpec("logits", "float32", ("batch", 1, chosen.vocab_size)),
        TensorSpec("present", "float32", ("batch", "cache")),
    ]
    session = FakeSession(function, inputs, outputs, [StatePair("past", "present", 1)])
    return DecoderLM(session, library, chosen)


def fed_lengths(pipeline):
    """A list to which the length of every input_ids that the graph is given is added from now on."""
    lengths, run = [], pipeline.session.run

    def recording(inputs, **options):
        lengths.append(inputs["input_ids"].shape[1])
        return run(inputs, **options)

    pipeline.session.run = recording
    return lengths
