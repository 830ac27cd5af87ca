"""edgegen on one backend: a run of a graph, a whole image, or steps of a language model, arrays in and arrays out."""

import time

import numpy as np
from protocol import serve

PROMPT = 32  # tokens before the first timed step
SEED = 0


class Engine:
    def __init__(self, settings):
        from edgegen.backends import open_session
        from edgegen.bundle import Bundle

        self._name, bundle = settings["name"], Bundle.open(settings["bundle"])
        options = settings.get("options", {}) | asked(settings, bundle)
        start_s = time.perf_counter()
        session = open_session(settings["backend"], bundle, settings["graph"], threads=settings["threads"], **options)
        self.facts = {
            "open_s": time.perf_counter() - start_s,
            "provider": getattr(session, "provider", None),
            "captured": getattr(session, "captured", None),
            "details": dict(session.details),
        }
        if settings["kind"] == "text":
            self._work = _text(session, bundle, settings["context"])
        else:
            self._work = _image(session, bundle, settings)

    def generate(self, request):
        return {"times_s": {self._name: self._work(request["batch"], request["runs"])}}


def asked(settings, bundle):
    """What a session is asked for: a cache as long as PyTorch's, for all of it is read; kernels that are there before a run."""
    from edgegen.backends import BACKENDS

    backend, is_text = BACKENDS[settings["backend"]], settings["kind"] == "text"
    length = min(settings["context"], bundle.manifest.settings["context_length"]) if is_text else None
    if backend.engines:
        from edgegen.backends.trt.engine import RunOptions
        from edgegen.backends.trt.profiles import BuildOptions

        return {"run": RunOptions(specialization="eager")} | ({"build": BuildOptions(cache_length=length)} if is_text else {})
    if not is_text:
        return {}
    from edgegen.backends.ort.providers import PROVIDERS  # imports onnxruntime

    provider = PROVIDERS[backend.options.get("provider", "cpu")]
    return {"cache_length": length} if provider.fixed_state else {}


def _text(session, bundle, longest):
    """Seconds of each run over `tokens` tokens behind the same prompt, up to the next token's id."""
    from edgegen.kv_cache import KVCache

    settings = bundle.manifest.settings
    rng, context = np.random.default_rng(SEED), min(longest, settings["context_length"])

    def work(tokens, runs):
        times_s = []
        with KVCache(session, context, min(context, PROMPT + max(tokens, runs) + 1)) as cache:
            cache.append(rng.integers(3, settings["vocab_size"], PROMPT).tolist())
            for _ in range(runs):
                if len(cache) + tokens > context:
                    cache.rewind(PROMPT)
                ids = rng.integers(3, settings["vocab_size"], tokens).tolist()
                start_s = time.perf_counter()
                int(cache.append(ids).argmax())
                times_s.append(time.perf_counter() - start_s)
                if tokens > 1:
                    cache.rewind(PROMPT)
        return times_s

    return work


def _image(session, bundle, settings):
    from edgegen.runtime import pipeline_class

    with np.load(settings["feeds"]) as archive:
        feeds = {name: archive[name] for name in archive.files}
    feed = {}
    for name, array in feeds.items():
        batch, _, key = name.partition(":")
        feed.setdefault(int(batch), {})[key] = array.astype(session.inputs[key].dtype)
    steps = settings["steps"]
    if steps:
        pipeline = pipeline_class(bundle.manifest.family).from_bundle(bundle, {settings["graph"]: session}.__getitem__)

    def once(batch):
        if steps:
            pipeline.generate(count=batch, seed=list(range(batch)), steps=steps, stepper="ddim")
        else:
            session.run(feed[batch])

    def work(batch, runs):
        times_s = []
        for _ in range(runs):
            start_s = time.perf_counter()
            once(batch)
            times_s.append(time.perf_counter() - start_s)
        return times_s

    return work


if __name__ == "__main__":
    serve(Engine)
