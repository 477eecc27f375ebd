"""Triton's interpreter, which runs the kernels on the CPU where no GPU is, and mends for its defects."""

import importlib.util
import os

import torch


def use_without_gpu():
    """Choose the interpreter where there is Triton but no GPU. Call it before Triton is imported."""
    if importlib.util.find_spec("triton") is None or torch.cuda.is_available():
        return
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if os.environ["TRITON_INTERPRET"] == "1":
        _mend()


def _mend():
    """Bounds of ``range`` with numpy >= 2.4 (Triton 3.6), bools of scalars in blocks (3.9), bfloat16 dots."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    patch_tensor, create_dot = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot

    def with_index(tensor, scope):
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(np.asarray(self.handle.data).reshape(-1)[0]))

    def widened(handle):
        if handle.dtype.scalar == tl.bfloat16 and handle.data.dtype == np.uint16:
            return interpreter.TensorHandle(
                (handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32
            )
        return handle

    def dot(self, a, b, *rest):
        return create_dot(self, widened(a), widened(b), *rest)

    def splat(self, ret_ty, arg):
        scalar = arg.data.reshape(-1)[0]
        return interpreter.TensorHandle(np.full(ret_ty.shape, scalar, dtype=arg.data.dtype), arg.dtype.scalar)

    interpreter._patch_lang_tensor = with_index
    interpreter.InterpreterBuilder.create_splat = splat
    interpreter.InterpreterBuilder.create_dot = dot
