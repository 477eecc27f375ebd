"""What the processor does for the kernels: buffers, grids, constants, and which kernel runs when.

kernel_set.py says whose kernels are launched. problem.py turns a call into sizes, sources and branches;
forward.py and backward.py follow the steps. Where a file is named as one of ``triton/``, it launches the
kernels there; few_*.py launch the CUDA kernels of that name, which Triton has no twins of.
"""
