"""onnxruntime-genai: its own generation loop in C++. The Generator, with its cache, is made before the clock starts."""

import json
import time

from protocol import serve, tokens_answer


class Engine:
    def __init__(self, settings):
        import onnxruntime_genai as og

        self._library = og
        config = og.Config(settings["model"])
        # Left alone it uses one thread of two. `overlay` is merged into genai_config.json as it is read.
        decoder = {"session_options": {"intra_op_num_threads": settings["threads"]}}
        config.overlay(json.dumps({"model": {"decoder": decoder}}))
        self._model = og.Model(config)
        self.facts = {"threads": settings["threads"], "versions": _versions()}

    def generate(self, request):
        prompt, count = request["prompt_ids"], request["new_tokens"]
        params = self._library.GeneratorParams(self._model)
        length = len(prompt) + count
        # min_length makes the one end-of-text token impossible, which costs one write per token: no text ends early.
        params.set_search_options(do_sample=False, min_length=length, max_length=length)
        generator = self._library.Generator(self._model, params)
        ids, times_s = [], []
        start_s = time.perf_counter()
        generator.append_tokens(prompt)
        for _ in range(count):
            generator.generate_next_token()
            ids.append(int(generator.get_next_tokens()[0]))
            times_s.append(time.perf_counter())
        return tokens_answer(start_s, ids, times_s)


def _versions():
    from importlib.metadata import version

    return {name: version(name) for name in ("onnxruntime-genai", "onnxruntime")}


if __name__ == "__main__":
    serve(Engine)
