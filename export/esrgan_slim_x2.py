"""ESRGAN-slim x2 (UpscalerJS, MIT): super-resolution to twice the size, from the npm package @upscalerjs/esrgan-slim."""

from edgegen.export.esrgan_slim import esrgan_slim

RECIPE = esrgan_slim(
    2,
    model=("8efb488c2caed0196a6163e3f06798f9245e92623ffd50654a26c372e09150ea", 12_336),
    shard=("5cb464ae4d390ce0a771afd5feaf60fbfcdb18ab48a56db98cdf6b88202369de", 888_300),
)
