"""PyTorch on one subject, one way of running it: "eager", "channels_last" or "compile" (frozen by the environment).

A whole image is made with DDIMScheduler of diffusers around the same module, in the way of their own pipelines.
"""

import time

from protocol import serve
from subjects import feeds, make


class Engine:
    def __init__(self, settings):
        import torch

        torch.set_num_threads(settings["threads"])
        subject = make(settings["subject"])
        self._name, self._inference, self._module = settings["name"], torch.inference_mode, subject.module
        self._feeds = {batch: tuple(feeds(subject, batch).values()) for batch in subject.batches}
        if settings["way"] != "eager":
            self._module = self._module.to(memory_format=torch.channels_last)
            self._feeds = {batch: tuple(map(_channels_last, found)) for batch, found in self._feeds.items()}
        if settings["way"] == "compile":
            # Each batch size for itself: code for any size, which the second would get, is slower.
            self._module = torch.compile(self._module, dynamic=False)
        self._run = _images(self._module, subject.steps) if subject.steps else self._module
        self.facts = {"versions": _versions("torch", *["diffusers"] * bool(subject.steps))}

    def generate(self, request):
        times_s, inputs = [], self._feeds[request["batch"]]
        with self._inference():
            for _ in range(request["runs"]):
                start_s = time.perf_counter()
                self._run(*inputs)
                times_s.append(time.perf_counter() - start_s)
        return {"times_s": {self._name: times_s}}


def _images(module, steps):
    """A function that makes images from noise to uint8 pixels; of its arguments it only takes the shapes."""
    import torch
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(clip_sample=False)  # as the bundle's schedule

    def make_images(sample, timestep):
        noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(0))
        current = noise.contiguous(memory_format=_layout(sample))
        scheduler.set_timesteps(steps)
        for time_step in scheduler.timesteps:
            prediction = module(current, time_step.expand(timestep.shape).to(timestep.dtype))
            current = scheduler.step(prediction, time_step, current).prev_sample
        pixels = (current / 2 + 0.5).clamp(0, 1) * 255
        return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    return make_images


def _layout(tensor):
    import torch

    return torch.contiguous_format if tensor.is_contiguous() else torch.channels_last


def _channels_last(tensor):
    import torch

    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _versions(*names):
    from importlib.metadata import version

    return {name: version(name) for name in names}


if __name__ == "__main__":
    serve(Engine)
