"""Does it fit, and how fast can it be: planned from a bundle and a device's figures, before anything is copied to a device."""
