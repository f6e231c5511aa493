"""The CUDA driver: one NVIDIA device, decode steps as captured graphs, rows that live on the device."""
