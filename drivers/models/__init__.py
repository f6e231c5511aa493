"""Models as drivers see them: configs, weights on disk, and the forward pass."""
