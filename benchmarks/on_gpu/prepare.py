"""What a run on a GPU takes with it, made beforehand on a machine without one: bundles, their inputs, a checkpoint for PyTorch.

One folder with `prepared.json`. What could not be made is named in it, and the run says so again.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
SUBJECTS = ("dcgan", "stylegan2-synthesis", "vae-128", "unet-step", "ddim-20")
TEXT_PRECISIONS, IMAGE_PRECISIONS = ("fp16", "int4"), ("fp32", "fp16")
TEXT = "a language model in the shape of SmolLM2-135M with random weights"
_SHAPE = {  # of SmolLM2-135M
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
_TINY = _SHAPE | {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
_ANY_QUALITY = 1e9  # random weights have none to lose
_WORDS = "the river had been low all summer and the boats lay on the mud like sleeping animals "


def prepare(folder, *, subjects=SUBJECTS, texts=TEXT_PRECISIONS, images=IMAGE_PRECISIONS, source=None, tiny=False, say=print):
    """Fill `folder`, as far as it can be done; return what is in prepared.json.

    `source`: a Hugging Face directory or a recipe; None for SmolLM2's if its checkpoint can be had, else random weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {"text": None, "items": [], "failed": {}}
    if texts:
        attempt(found, "text source", lambda: found.update(text=_text_source(folder, source, tiny, say)))
    for precision in texts if found["text"] else ():
        attempt(
            found,
            f"text:{precision}",
            lambda precision=precision: found["items"].append(_text(folder, found["text"], precision)),
        )
        say(f"text {precision}: {found['failed'].get(f'text:{precision}', 'ready')}")
    for name in subjects:
        for precision in images:
            key = f"image:{name}:{precision}"
            attempt(found, key, lambda name=name, precision=precision: found["items"].append(_image(folder, name, precision)))
            say(f"{name} {precision}: {found['failed'].get(key, 'ready')}")
    (folder / "prepared.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def attempt(found, key, make):
    """Do it, and write down what failed and why."""
    try:
        make()
    except Exception as error:  # whatever it is, the other pieces go on
        found["failed"][key] = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _text_source(folder, source, tiny, say):
    target = folder / "text-source"
    if (target / "config.json").exists():
        return json.loads((target / "made.json").read_text(encoding="utf-8"))
    if source is None and not tiny:
        try:
            return _checkpoint(ROOT / "export" / "smollm2_135m.py", target, "SmolLM2-135M-Instruct")
        except RuntimeError as error:
            say(f"SmolLM2's checkpoint cannot be had ({error}): random weights of its shape instead")
    if source is not None:
        return _checkpoint(source, target, str(Path(source).name))
    return _random(target, _TINY if tiny else _SHAPE)


def _checkpoint(source, target, name):
    """A recipe's or a directory's model as a float32 Hugging Face directory."""
    command = [sys.executable, str(ROOT / "benchmarks" / "peers" / "make_checkpoint.py"), str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shutil.rmtree(target, ignore_errors=True)
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return _noted(target, {"name": name, "limit": None})


def _random(target, shape):
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=1, eos_token_id=2)).save_pretrained(target)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<unk>", "<s>", "</s>"]
    tokenizer.train_from_iterator(
        [_WORDS * 4],
        trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    (target / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (target / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return _noted(target, {"name": TEXT, "limit": _ANY_QUALITY})


def _noted(target, facts):
    facts = {"path": target.name, **facts}
    (target / "made.json").write_text(json.dumps(facts), encoding="utf-8")
    return facts


def _text(folder, source, precision):
    from edgegen.export import export

    bundle = folder / f"text-{precision}.bundle"
    if not bundle.exists():
        limit = {} if source["limit"] is None else {"limit": source["limit"]}
        # For every GPU that there may be: JetPack 6 has TensorRT 10.3. CUDA's attention kernel has float16 alone.
        variants = ("tensorrt-legacy",) if precision == "fp32" else ("tensorrt-legacy", "onnxruntime-cuda")
        export(str(folder / source["path"]), bundle, precision=precision, variants=variants, **limit)
    return {"kind": "text", "name": "text", "precision": precision, "bundle": bundle.name, "graph": "decoder", "steps": 0,
            "batches": [1, 128]}  # fmt: skip


def _image(folder, name, precision):
    from images.bundles import bundle_of, write_feeds
    from images.subjects import make

    subject = make(name)
    bundle, feeds = folder / f"{subject.bundle_name}-{precision}.bundle", folder / f"{name}.npz"
    if not bundle.exists():
        shutil.copytree(bundle_of(subject, precision), bundle)
    if not feeds.exists():
        write_feeds(subject, feeds)
    with np.load(feeds) as archive:
        batches = sorted({int(key.partition(":")[0]) for key in archive.files})
    return {"kind": "image", "name": name, "precision": precision, "bundle": bundle.name, "graph": subject.graph,
            "steps": subject.steps, "batches": batches, "feeds": feeds.name}  # fmt: skip
