"""ESRGAN-slim x4 (UpscalerJS, MIT): super-resolution to four times the size, from the npm package @upscalerjs/esrgan-slim."""

from edgegen.export.esrgan_slim import esrgan_slim

RECIPE = esrgan_slim(
    4,
    model=("3a2eaa642232567e7d2a2e7638c9704f42f63f355fc656c18aa78bf2da1d903d", 12_336),
    shard=("82637daaf3ba024df5e9da2389e8992e7a6e8a992ba6268ce6bc490c92e9516e", 933_804),
)
