"""The operators on a GPU, installed as ``pconv_ext.kernels``; `operators` is the way in.

``triton/`` has device code, ``cuda/`` loads that of ``csrc/cuda``; ``host/`` launches either. tuning.py has
the block sizes.

How the parts follow each other in one call: masks become row lists (rows.py), weights are folded and laid out
(weights.py), a matrix kernel gathers and multiplies (gather.py); backward, the incoming gradient is scaled
(gradients.py), the matrix kernel runs once more over the input pixels, another over the weights (wgrad.py),
whose sums weights.py finishes. Of each of these names there is a file in ``triton/`` with the kernels, one in
``host/`` that launches them, and the twins in ``csrc/cuda``. The kernels that few channels have, in CUDA
alone, are shorter ways.
"""
