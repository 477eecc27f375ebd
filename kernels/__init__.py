"""The three operators on a GPU, installed as ``pconv_ext.kernels``; `operators` is the way in.

The kernels are Triton's, here, or those of ``csrc/cuda``, which cuda.py loads: kernel_set.py says which are
launched.

How the parts follow each other in one call: masks become row lists (rows.py), weights are folded and laid out
(weights.py), a matrix kernel gathers and multiplies (gather.py); backward, the incoming gradient is scaled
(gradients.py), the matrix kernel runs once more over the input pixels, another over the weights (wgrad.py),
whose sums weights.py finishes. plan.py has the geometry, tuning.py the block sizes; launch.py launches the
matrix kernel, lists.py the row lists, launch_gradients.py what is backward alone. few_inputs.py,
few_outputs.py, few_inputs_gradients.py and few_outputs_gradients.py are shorter ways that CUDA has where
channels are few.
"""
