"""Training in PyTorch: the modules of a recipe, an objective from the literature, and one loop."""
