"""edgegen as an application uses it: load() and stream() on text. Its clock includes tokenizing and detokenizing."""

import time

from protocol import serve, tokens_answer


class Engine:
    def __init__(self, settings):
        import edgegen

        self._model = edgegen.load(settings["model"], threads=settings["threads"])
        self._model.eos = frozenset()  # no token ends a text here, as in the other workers
        self.facts = {"threads": self._model.session.threads, "versions": _versions()}

    def generate(self, request):
        """The same token ids as the others get: checked before the clock starts, which then includes making them again."""
        prompt = request["prompt"]
        if self._model.tokenizer.encode(prompt) != request["prompt_ids"]:
            raise SystemExit("this bundle's tokenizer gives other ids than the benchmark's")
        ids, times_s = [], []
        start_s = time.perf_counter()
        for piece in self._model.stream(prompt, max_new_tokens=request["new_tokens"], **request["options"]):
            now_s = time.perf_counter()
            for token in piece.token_ids:
                ids.append(token)
                times_s.append(now_s)
        return tokens_answer(start_s, ids, times_s)


def _versions():
    from importlib.metadata import version

    return {name: version(name) for name in ("edgegen", "onnxruntime")}


if __name__ == "__main__":
    serve(Engine)
