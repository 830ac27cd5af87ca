"""What the library says reaches whoever it concerns, and becomes one line."""

import threading
import types

import pytest
from simulated_tensorrt import simulate

from edgegen.backends.trt.log import Log, parser_errors


@pytest.fixture
def trt() -> types.ModuleType:
    return simulate("11.4").trt


def say(log: Log, trt: types.ModuleType, severity: str, message: str) -> None:
    log.logger.log(getattr(trt.ILogger.Severity, severity), message)


def test_there_is_one_logger_for_a_library_because_it_takes_no_second(trt):
    assert Log(trt).logger is Log(trt).logger
    assert Log(trt).logger is not Log(simulate("11.4").trt).logger


def test_a_message_goes_to_the_log_that_its_thread_has_entered(trt):
    outer, inner, elsewhere = Log(trt), Log(trt), Log(trt)
    entered, done = threading.Event(), threading.Event()

    def stay() -> None:
        with elsewhere:
            entered.set()
            done.wait(10)

    thread = threading.Thread(target=stay)
    thread.start()
    entered.wait(10)
    with outer:
        say(outer, trt, "ERROR", "one")
        with inner:
            say(outer, trt, "ERROR", "two")
        say(outer, trt, "INTERNAL_ERROR", "three")
    done.set()
    thread.join()
    say(outer, trt, "ERROR", "to nobody")
    assert (outer.errors(), inner.errors(), elsewhere.errors()) == (["one", "three"], ["two"], [])


def test_a_message_of_a_thread_of_the_librarys_own_goes_to_every_log_that_is_entered(trt):
    one, other = Log(trt), Log(trt)
    with one:
        worker = threading.Thread(target=say, args=(one, trt, "ERROR", "from a worker"))
        worker.start()
        worker.join()
    assert (one.errors(), other.errors()) == (["from a worker"], [])


def test_an_error_is_one_line_that_says_each_message_once(trt):
    with Log(trt) as log:
        for message in ("first\n  and its second line", "again", "again"):
            say(log, trt, "ERROR", message)
        say(log, trt, "WARNING", "no error")
        assert str(log.failure("it failed", "do this")) == "it failed: first and its second line; again; do this"
        log.clear()
        assert str(log.failure("it failed")) == "it failed: it gives no reason"


def test_a_long_message_is_cut_and_many_are_not_kept(trt):
    with Log(trt) as log:
        for count in range(3000):
            say(log, trt, "ERROR", f"message {count}")
        assert len(log.errors()) == 1000
        assert len(str(log.failure("it failed"))) < 700


def test_dropped_inputs_are_found_among_the_warnings(trt):
    with Log(trt) as log:
        for message in (
            "Make sure x has Int64 binding.",
            "ModelImporter.cpp:1: Unused Input: 'valid'",
            "Unused Input: more",
        ):
            say(log, trt, "WARNING", message)
        say(log, trt, "INFO", "Unused Input: only information")
        assert log.unused_inputs() == ["valid", "more"]


def test_a_parsers_errors_name_node_and_operator_where_it_tells_them():
    whole = types.SimpleNamespace(node_name=lambda: "att", node_operator=lambda: "Attention", desc=lambda: "no\nsoftcap")
    unsupported = types.SimpleNamespace(node_name=lambda: "", node_operator=lambda: "MatMulInteger", desc=lambda: "false")
    bare = types.SimpleNamespace(desc=lambda: "no graph")
    found = [whole, unsupported, bare]
    parser = types.SimpleNamespace(num_errors=3, get_error=lambda place: found[place])
    assert parser_errors(parser) == [
        "node 'att' (Attention): no softcap",
        "operator MatMulInteger: it does not support this operator",
        "no graph",
    ]
