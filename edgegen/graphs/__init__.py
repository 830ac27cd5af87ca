"""Serialized ONNX graphs without the library onnx: checked as untrusted bytes, read, and edited."""
