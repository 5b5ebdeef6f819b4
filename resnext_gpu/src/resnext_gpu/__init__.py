"""ResNeXt on NVIDIA GPUs, and torch's weight files."""
