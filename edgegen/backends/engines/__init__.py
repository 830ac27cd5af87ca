"""TensorRT engines: a cache on disk that serves only what was built here, from these bytes, for this device; and its builds."""
