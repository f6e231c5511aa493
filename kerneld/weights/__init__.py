"""Models on the device: which are there, and how they come and go."""
