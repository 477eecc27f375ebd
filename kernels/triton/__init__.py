"""Device code in Triton's language, and nothing else; ``host/`` launches it. Its twins are in csrc/cuda."""
