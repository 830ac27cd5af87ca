"""TensorRT and TensorRT-RTX: one backend for both, given the library's module."""
