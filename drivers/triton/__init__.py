"""Kernels of the CUDA driver, in Triton, and the plain torch definition of each."""
