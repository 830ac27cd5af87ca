"""ESRGAN-slim x8 (UpscalerJS, MIT): super-resolution to eight times the size, from the npm package @upscalerjs/esrgan-slim."""

from edgegen.export.esrgan_slim import esrgan_slim

RECIPE = esrgan_slim(
    8,
    model=("d4278813adf94b7dff96c756b97f95a41f56ff7e85b4ecec25dc06ddea1d49b6", 12_340),
    shard=("0c5fe31649784135a431733f0f295838c5330f8f38011c10d29d36bd8dd7c293", 1_115_820),
)
