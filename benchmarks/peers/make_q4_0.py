"""Make llama.cpp's Q4_0 from any GGUF file, with its own quantizer: make_q4_0.py SOURCE TARGET PURE(0|1).

PURE 0 is llama.cpp's own mixture, which keeps the embedding, here also the output head, in more bits; 1 is Q4_0 throughout.
Runs in the peers' environment.
"""

import ctypes
import sys


def main():
    import llama_cpp

    source, target, pure = sys.argv[1:]
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    params.allow_requantize = True  # the source is Q4_1
    params.pure = pure == "1"
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)) != 0:
        sys.exit(f"llama_model_quantize failed on {source}")


if __name__ == "__main__":
    main()
