"""Reference architectures in PyTorch: small, trainable here, and made to be captured."""
