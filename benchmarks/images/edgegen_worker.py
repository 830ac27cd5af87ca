"""edgegen's session on one graph of a bundle; with `bare` the same graph in onnxruntime alone, no edgegen in between."""

import time

import numpy as np
from protocol import serve


class Engine:
    def __init__(self, settings):
        with np.load(settings["feeds"]) as archive:
            feeds = {name: archive[name] for name in archive.files}
        self._feeds = {}
        for name, array in feeds.items():
            batch, _, key = name.partition(":")
            self._feeds.setdefault(int(batch), {})[key] = array
        self._run = _bare(settings) if settings["bare"] else _session(settings)
        self.facts = {"versions": _versions()}

    def generate(self, request):
        times_s, feed = [], self._feeds[request["batch"]]
        for _ in range(request["runs"]):
            start_s = time.perf_counter()
            self._run(feed)
            times_s.append(time.perf_counter() - start_s)
        return {"times_s": times_s}


def _session(settings):
    from edgegen.backends import open_session
    from edgegen.bundle import Bundle

    bundle = Bundle.open(settings["bundle"])
    return open_session("auto", bundle, settings["graph"], threads=settings["threads"]).run


def _bare(settings):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = settings["threads"], 3
    session = onnxruntime.InferenceSession(settings["model"], options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)


def _versions():
    from importlib.metadata import version

    return {name: version(name) for name in ("edgegen", "onnxruntime")}


if __name__ == "__main__":
    serve(Engine)
