"""PyTorch on one subject, one way of running it: "eager", "channels_last" or "compile" (frozen by the environment)."""

import time

from protocol import serve
from subjects import feeds, make


class Engine:
    def __init__(self, settings):
        import torch

        torch.set_num_threads(settings["threads"])
        subject = make(settings["subject"])
        self._inference, self._module = torch.inference_mode, subject.module
        self._feeds = {batch: tuple(feeds(subject, batch).values()) for batch in subject.batches}
        if settings["way"] != "eager":
            self._module = self._module.to(memory_format=torch.channels_last)
            last = {True: lambda x: x.to(memory_format=torch.channels_last), False: lambda x: x}
            self._feeds = {batch: tuple(last[x.ndim == 4](x) for x in found) for batch, found in self._feeds.items()}
        if settings["way"] == "compile":
            self._module = torch.compile(self._module)
        self.facts = {"versions": {"torch": torch.__version__}}

    def generate(self, request):
        times_s, inputs = [], self._feeds[request["batch"]]
        with self._inference():
            for _ in range(request["runs"]):
                start_s = time.perf_counter()
                self._module(*inputs)
                times_s.append(time.perf_counter() - start_s)
        return {"times_s": times_s}


if __name__ == "__main__":
    serve(Engine)
