"""An engine that is wanted: where it comes from, and who is told what meanwhile."""

import pytest

from edgegen.backends.engines import wanted as wanted_module
from edgegen.backends.engines.key import Target
from edgegen.backends.engines.store import Built, EngineStore
from edgegen.backends.engines.wanted import wanted
from edgegen.backends.trt.flavours import FLAVOURS, Flavour
from edgegen.backends.trt.profiles import BuildOptions
from edgegen.bundle import Bundle


class BusyStore(EngineStore):
    """A cache in which another process builds the engine first."""

    def obtain(self, key, make, *, waiting=None):
        waiting("process 7")
        return super().obtain(key, make, waiting=waiting)


@pytest.fixture
def want(tiny_bundle, monkeypatch):
    monkeypatch.setattr(Flavour, "load", lambda _self: None)
    monkeypatch.setattr(Flavour, "version", lambda _self: "1.7.1")
    monkeypatch.setattr(wanted_module, "build", lambda *_, **__: Built(b"vtrt", 1.0))
    with Bundle.open(tiny_bundle) as bundle:
        return wanted(bundle, "decoder", "canonical", FLAVOURS["tensorrt-rtx"], Target((89,)), BuildOptions())


def test_who_follows_a_build_is_told_that_another_process_does_it(want):
    heard = []
    assert want.obtain(BusyStore(), progress=lambda *said: heard.append(said)).data == b"vtrt"
    assert heard == [("waiting for process 7", 0, 0)]
    assert want.obtain(BusyStore()).data == b"vtrt"  # nobody follows
