"""Where a text ends: stop strings, however the text is cut into pieces."""

from hypothesis import given
from hypothesis import strategies as st

from edgegen.pipelines.text import StopStrings, timed

LETTERS = st.text("abc", max_size=12)


def whole(pieces, strings):
    stop = StopStrings(strings)
    shown = [stop.push(piece) for piece in pieces]
    return "".join([*shown, stop.flush()]), stop.stopped


def by_hand(text, strings):
    for end in range(1, len(text) + 1):
        complete = [string for string in strings if text[:end].endswith(string)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@given(pieces=st.lists(LETTERS, max_size=8), strings=st.lists(st.text("abc", min_size=1, max_size=5), max_size=3))
def test_the_text_ends_before_the_first_stop_string_to_be_complete(pieces, strings):
    assert whole(pieces, strings) == by_hand("".join(pieces), strings)


@given(pieces=st.lists(LETTERS, max_size=8), strings=st.lists(st.text("abc", min_size=1, max_size=5), max_size=3))
def test_what_cannot_become_a_stop_string_is_shown_at_once(pieces, strings):
    stop, shown, text = StopStrings(strings), "", ""
    for piece in pieces:
        shown, text = shown + stop.push(piece), text + piece
        if stop.stopped:
            break
        held = text[len(shown) :]
        assert text.startswith(shown)
        assert not held or any(string.startswith(held) for string in strings)


def test_without_a_hook_nothing_is_wrapped():
    assert timed(None, "forward", len) is len


def test_a_hook_is_told_the_stage_and_the_seconds():
    heard = []
    assert timed(lambda stage, seconds: heard.append((stage, seconds >= 0)), "forward", len)("abc") == 3
    assert heard == [("forward", True)]
