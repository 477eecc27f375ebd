"""The CUDA C++ kernels of ``csrc/cuda``: the library that they are compiled into is loaded here."""
