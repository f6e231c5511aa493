"""Named operations: plain definitions and their fused implementations."""
