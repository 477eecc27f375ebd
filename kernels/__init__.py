"""Triton kernels, installed as ``pconv_ext.kernels``. None are part of this version yet."""
