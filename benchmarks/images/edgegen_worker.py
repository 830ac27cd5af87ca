"""edgegen on one subject, beside the very same onnxruntime session without edgegen; or, "plain", onnxruntime on its own.

What is timed, each by its name in the settings:
    whole: what an application calls: a run of edgegen's session, or a whole image of a diffusion pipeline.
    session: for whole images, as many runs of edgegen's session as the image has steps, and nothing else.
    bare: the same runs on the native session inside edgegen's, called directly: what they cost without edgegen.
    plain: the same runs on a session that onnxruntime made of the same file with its own options: no kernels of edgegen.
"""

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
        open_ways = _plain if "plain" in settings["names"] else _edgegen
        ways, self.facts = open_ways(settings)
        self._ways = {name: ways[way] for way, name in settings["names"].items()}

    def generate(self, request):
        """Each way in turn, `runs` times, in an order that changes from run to run: what disturbs one disturbs the others."""
        feed, order = self._feeds[request["batch"]], list(self._ways)
        times_s = {name: [] for name in order}
        for _ in range(request["runs"]):
            for name in order:
                start_s = time.perf_counter()
                self._ways[name](feed)
                times_s[name].append(time.perf_counter() - start_s)
            order.reverse()
        return {"times_s": times_s}


def _edgegen(settings):
    """The ways through edgegen, and the bare one inside it."""
    from edgegen.backends import open_session
    from edgegen.bundle import Bundle
    from edgegen.runtime import pipeline_class

    bundle, steps = Bundle.open(settings["bundle"]), settings["steps"]
    session = open_session("onnxruntime", bundle, settings["graph"], threads=settings["threads"])
    native = session._native  # on purpose: only the same session in the same process tells what edgegen adds to it
    runs = max(steps, 1)
    ways = {"session": _repeated(session.run, runs), "bare": _repeated(lambda feed: native.run(None, feed), runs)}
    ways["whole"] = ways["session"]
    if steps:  # as edgegen.load makes it, but on the session that is measured beside it
        pipeline = pipeline_class(bundle.manifest.family).from_bundle(bundle, {settings["graph"]: session}.__getitem__)
        ways["whole"] = lambda feed: _image(pipeline, len(feed["sample"]), steps)
    return ways, {"versions": _versions("edgegen", "onnxruntime", "numpy"), "kernels": session.kernels}


def _image(pipeline, count, steps):
    return pipeline.generate(count=count, seed=list(range(count)), steps=steps, stepper="ddim")


def _plain(settings):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = settings["threads"], 3
    session = onnxruntime.InferenceSession(settings["model"], options, providers=["CPUExecutionProvider"])
    ways = {"plain": _repeated(lambda feed: session.run(None, feed), max(settings["steps"], 1))}
    return ways, {"versions": _versions("onnxruntime", "numpy")}


def _repeated(run, count):
    def several(feed):
        for _ in range(count):
            run(feed)

    return run if count == 1 else several


def _versions(*names):
    from importlib.metadata import version

    return {name: version(name) for name in names}


if __name__ == "__main__":
    serve(Engine)
