"""Conversations: the template, the cache that is kept, and what a turn that fails leaves behind."""

import pytest
from text_models import endless, fed_lengths, model

from edgegen.errors import BackendError, BundleError, ContextFullError, InputError, UnknownNameError

LOUD = "{% if messages|length > 2 %}{{ raise_exception('that is enough') }}{% endif %}{{ messages[-1].content }}"
RAMBLING = {"temperature": 1.0, "seed": 5, "max_new_tokens": 30}


def as_prompt(messages):
    turns = "".join(f"<|{message['role']}|>{message['content']}<|end|>" for message in messages)
    return turns + "<|assistant|>"


def test_an_answer_is_the_continuation_of_the_rendered_messages():
    pipeline = endless()
    chat = pipeline.chat(system="the dog")
    answer = chat.send("the cat", **RAMBLING)
    asked = [{"role": "system", "content": "the dog"}, {"role": "user", "content": "the cat"}]
    raw = pipeline.generate(as_prompt(asked), **RAMBLING)
    assert answer == raw
    assert chat.messages == [*asked, {"role": "assistant", "content": raw.text}]


@pytest.mark.parametrize("canonical", [False, True])
def test_later_turns_say_what_a_fresh_model_would(canonical):
    pipeline = model(canonical=canonical)
    chat = pipeline.chat()
    for message in ("the cat", "a dog", "sat on"):
        answer = chat.send(message, **RAMBLING)
        assert answer == model().generate(as_prompt(chat.messages[:-1]), **RAMBLING)


def test_only_what_the_cache_does_not_hold_is_run():
    pipeline = endless()
    lengths = fed_lengths(pipeline)
    chat = pipeline.chat(system="the cat sat on the mat")
    first = chat.send("the", max_new_tokens=6)
    assert lengths == [first.prompt_tokens] + [1] * 5
    lengths.clear()
    prompt = pipeline.tokenizer.encode(as_prompt([*chat.messages, {"role": "user", "content": "a"}]))
    held = pipeline.tokenizer.encode(as_prompt(chat.messages[:2])) + list(first.token_ids[:-1])
    common = next(i for i, (old, new) in enumerate(zip([*held, -1], prompt, strict=False)) if old != new)
    assert common >= first.prompt_tokens
    assert chat.send("a", max_new_tokens=3).prompt_tokens == len(prompt)
    assert lengths == [len(prompt) - common, 1, 1]


def test_changed_messages_are_run_again_from_where_they_differ():
    pipeline = endless()
    chat = pipeline.chat(system="the cat")
    chat.send("a b c", max_new_tokens=4)
    del chat.messages[1:]
    chat.messages[0]["content"] = "the dog"
    assert chat.send("a b c", max_new_tokens=4, seed=0) == endless().chat("the dog").send("a b c", max_new_tokens=4, seed=0)


def test_asking_the_same_again_still_runs_the_last_token():
    pipeline = endless()
    chat = pipeline.chat()
    first = chat.send("the", max_new_tokens=1, seed=0)
    chat.messages.clear()
    lengths = fed_lengths(pipeline)
    assert chat.send("the", max_new_tokens=1, seed=0) == first
    assert lengths == [1]


def test_a_stream_that_is_closed_keeps_what_was_said():
    pipeline = endless()
    chat = pipeline.chat()
    stream = chat.stream("the", max_new_tokens=50)
    said = "".join(next(stream).text for _ in range(8))
    with pytest.raises(InputError, match="still streaming"):
        chat.send("a")
    stream.close()
    assert chat.messages == [{"role": "user", "content": "the"}, {"role": "assistant", "content": said}]
    fresh = model(eos_token_ids=()).generate(as_prompt([*chat.messages, {"role": "user", "content": "a"}]), **RAMBLING)
    assert chat.send("a", **RAMBLING) == fresh


def test_a_deadline_keeps_what_was_said():
    chat = endless().chat()
    answer = chat.send("the", deadline_s=0)
    assert (answer.finish_reason, answer.text) == ("deadline", "")
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]
    assert chat.send("a", max_new_tokens=2).finish_reason == "length"


def test_a_full_context_leaves_the_messages_as_they_were():
    chat = endless(context_length=64).chat()
    chat.send("the cat", max_new_tokens=20)
    before = list(chat.messages)
    with pytest.raises(ContextFullError, match="the context of 64 leaves room for 63"):
        chat.send("☃" * 30)
    assert chat.messages == before
    assert (
        chat.send("a", max_new_tokens=2).text
        == endless(context_length=64).generate(as_prompt([*before, {"role": "user", "content": "a"}]), max_new_tokens=2).text
    )


def test_a_turn_that_fails_leaves_the_messages_as_they_were(monkeypatch):
    pipeline = endless()
    chat = pipeline.chat()
    chat.send("the", max_new_tokens=5)
    before = list(chat.messages)
    run, calls = pipeline.session.run, []

    def failing(inputs, **options):
        calls.append(1)
        if len(calls) == 3:
            raise BackendError("out of memory")
        return run(inputs, **options)

    monkeypatch.setattr(pipeline.session, "run", failing)
    with pytest.raises(BackendError, match="out of memory"):
        chat.send("the cat")
    assert chat.messages == before
    assert chat.send("the cat", **RAMBLING) == endless().generate(
        as_prompt([*before, {"role": "user", "content": "the cat"}]), **RAMBLING
    )


def test_a_template_that_refuses_leaves_the_messages_as_they_were():
    chat = endless(template=LOUD).chat()
    chat.send("the", max_new_tokens=2)
    with pytest.raises(InputError, match="that is enough"):
        chat.send("the")
    assert len(chat.messages) == 2


def test_a_template_that_writes_nothing_is_told():
    with pytest.raises(InputError, match="empty prompt"):
        endless(template="{# nothing #}").chat().send("the")


def test_special_tokens_are_not_added_a_second_time():
    pipeline = endless(template="{{ messages[0].content }}")
    encode, seen = pipeline.tokenizer.encode, []
    pipeline.tokenizer.encode = lambda text, *, add_special_tokens=True: (seen.append(add_special_tokens), encode(text))[1]
    pipeline.chat().send("the", max_new_tokens=1)
    assert seen == [False]


def test_two_streams_made_at_once_do_not_mix():
    chat = endless().chat()
    first, second = chat.stream("the", max_new_tokens=2), chat.stream("a", max_new_tokens=2)
    list(first)
    with pytest.raises(InputError, match="made before another turn"):
        next(second)
    assert len(chat.messages) == 2


def test_a_bundle_without_a_template_says_what_to_do():
    with pytest.raises(InputError, match="no chat template; use generate"):
        model(template=None).chat()


def test_wrong_options_and_messages_are_told_at_the_call():
    chat = model().chat()
    with pytest.raises(UnknownNameError, match="no text option named 'topk'; did you mean 'top_k'"):
        chat.stream("the", topk=1)
    with pytest.raises(InputError, match="a message is a string"):
        chat.send(["the"])
    assert chat.messages == []


def test_a_closed_chat_frees_its_cache_and_says_so():
    with endless().chat() as chat:
        chat.send("the", max_new_tokens=2)
        cache = chat._cache
    with pytest.raises(BackendError, match="closed"):
        cache.append([1])
    with pytest.raises(InputError, match="this chat is closed"):
        chat.send("the")


def test_a_damaged_template_is_told_when_the_chat_begins():
    with pytest.raises(BundleError, match=r"^chat template: "):
        model(template="{% for %}")
