"""One file per method. There is one so far: `weight_only`."""
