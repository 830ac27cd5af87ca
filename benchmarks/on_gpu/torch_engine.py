"""PyTorch on the same work: arrays on the host in, arrays on the host out; eager or compiled, in float32 or float16.

float32 means float32: TensorFloat-32 is off, as in edgegen's providers.
"""

import contextlib
import importlib.util
import time
from pathlib import Path

import numpy as np
from protocol import serve

PROMPT = 32
SEED = 0


class Engine:
    def __init__(self, settings):
        source = settings.get("source")
        if source and not (Path(source) / "config.json").exists():
            raise RuntimeError(f"there is no checkpoint in {Path(source).name}; --prepare makes it beside the bundles")
        import torch

        torch.set_num_threads(settings["threads"])
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        if settings["device"] != "cpu" and not torch.cuda.is_available():
            raise RuntimeError(f"this PyTorch ({torch.__version__}) sees no GPU; install one that was built for CUDA")
        self._name = settings["name"]
        self._work = (_text if settings["kind"] == "text" else _image)(torch, settings)
        self.facts = {"versions": {"torch": torch.__version__}}

    def generate(self, request):
        import torch

        with torch.inference_mode():
            return {"times_s": {self._name: self._work(request["batch"], request["runs"])}}


def _dtype(torch, settings):
    return torch.float32 if settings["precision"] == "fp32" else torch.float16


def _text(torch, settings):
    from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

    device, compiled = settings["device"], settings["way"] == "compile"
    model = AutoModelForCausalLM.from_pretrained(settings["source"], dtype=_dtype(torch, settings), local_files_only=True).to(
        device
    )
    model.eval()
    longest = settings["context"]
    static = StaticCache(config=model.config, max_cache_len=longest) if compiled else None
    run = torch.compile(model, dynamic=False, mode="reduce-overhead") if compiled else model
    rng, vocabulary = np.random.default_rng(SEED), model.config.vocab_size

    def step(ids, cache):
        tokens = torch.from_numpy(ids[None]).to(device)
        return int(run(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1].argmax())

    def fresh():
        if static is None:
            cache = DynamicCache(config=model.config)
        else:
            static.reset()
            cache = static
        step(rng.integers(3, vocabulary, PROMPT), cache)
        return cache, PROMPT

    def work(tokens, runs):
        times_s = []
        cache, length = fresh()
        for _ in range(runs):
            if length + tokens > longest or (tokens > 1 and length > PROMPT):
                cache, length = fresh()
            ids = rng.integers(3, vocabulary, tokens)
            start_s = time.perf_counter()
            step(ids, cache)
            times_s.append(time.perf_counter() - start_s)
            length += tokens
        return times_s

    return work


def _image(torch, settings):
    subjects = _beside("subjects")
    subject = subjects.make(settings["subject"])
    module = subject.module.to(settings["device"], _dtype(torch, settings))
    feeds = {batch: [value.numpy() for value in subjects.feeds(subject, batch).values()] for batch in subject.batches}
    if settings["way"] != "eager":
        module = module.to(memory_format=torch.channels_last)
    if settings["way"] == "compile":
        module = torch.compile(module, dynamic=False, mode="reduce-overhead" if settings["device"] != "cpu" else "default")
    once = _whole(torch, module, subject.steps, settings) if subject.steps else _plain(torch, module, settings)

    def work(batch, runs):
        times_s = []
        for _ in range(runs):
            start_s = time.perf_counter()
            once(feeds[batch])
            times_s.append(time.perf_counter() - start_s)
        return times_s

    return work


def _to_device(torch, array, settings):
    tensor = torch.from_numpy(array).to(settings["device"])
    tensor = tensor.to(_dtype(torch, settings)) if tensor.is_floating_point() else tensor
    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 and settings["way"] != "eager" else tensor


def _plain(torch, module, settings):
    def once(feed):
        output = module(*[_to_device(torch, array, settings) for array in feed])
        for tensor in output if isinstance(output, tuple | list) else [output]:
            tensor.cpu()  # waits for the device

    return once


def _whole(torch, module, steps, settings):
    """An image by diffusers' scheduler, from noise on the host to uint8 pixels on the host."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(clip_sample=False)

    def once(feed):
        noise = np.random.default_rng(SEED).standard_normal(feed[0].shape, np.float32)
        current = _to_device(torch, noise, settings)
        scheduler.set_timesteps(steps, device=settings["device"])
        for moment in scheduler.timesteps:
            prediction = module(current, moment.expand(current.shape[:1]).to(current.dtype)).clone()
            current = scheduler.step(prediction, moment, current).prev_sample
        pixels = (current / 2 + 0.5).clamp(0, 1) * 255
        pixels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    return once


def _beside(name):
    """A module of benchmarks/images, which is not a package of this folder."""
    path = Path(__file__).parents[1] / "images" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    with contextlib.suppress(KeyError):
        import sys

        sys.modules[name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    serve(Engine)
