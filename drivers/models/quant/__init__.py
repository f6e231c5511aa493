"""Checkpoints that come quantized: one file for each format."""
