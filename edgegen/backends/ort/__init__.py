"""ONNX Runtime: one session for its processors and providers, and our own kernels in it."""
