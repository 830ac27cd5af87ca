"""Write the checkpoint that a recipe names as a float32 Hugging Face directory: make_checkpoint.py SOURCE DIRECTORY.

The same dequantized weights that edgegen quantizes, for onnxruntime-genai's model builder. Runs in edgegen's environment.
"""

import sys
from pathlib import Path


def main():
    from edgegen.export.sources import open_source

    checkpoint, target = open_source(sys.argv[1]), Path(sys.argv[2])
    model = checkpoint.load()
    # transformers will not save what it believes to be still in GGUF's quantization.
    for holder, name in ((model, "hf_quantizer"), (model, "is_quantized"), (model.config, "quantization_config")):
        if hasattr(holder, name):
            delattr(holder, name)
    model.save_pretrained(target)
    for name, content in checkpoint.tokenizer_files.items():
        (target / name).write_bytes(content)


if __name__ == "__main__":
    main()
