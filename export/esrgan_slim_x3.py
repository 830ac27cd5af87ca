"""ESRGAN-slim x3 (UpscalerJS, MIT): super-resolution to three times the size, from the npm package @upscalerjs/esrgan-slim."""

from edgegen.export.esrgan_slim import esrgan_slim

RECIPE = esrgan_slim(
    3,
    model=("642208758cf6c42a4f88745894b45cc03776681a46027b85963f01fe003e9917", 12_336),
    shard=("9d344609abd1e29bd3924f9c4e9ffaa1aee6be7c3586bab0f52863597858a2ba", 907_260),
)
