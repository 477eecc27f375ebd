"""Autograd of an operator: one formula, for ``torch.autograd`` and for the transforms of ``torch.func``.

It is a ``torch.autograd.Function`` under the Autograd key, entered only when a gradient is asked for, with
``forward(ctx, ...)``: a recorded call with a kernel that does nothing takes 17 us so, 31 us with
``setup_context`` and 29 us with ``torch.library.register_autograd`` (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ._operator import Operator


def kernel(operator: Operator, forward: Any, backward: Any) -> Callable[..., Any]:
    """The kernel of `operator` for the Autograd key; `forward` and `backward` are its ``OpOverload``s."""
    formula = _formula(operator, forward, backward)
    recorded: Any = type(operator.name, (torch.autograd.Function,), formula)
    # In a kernel the dispatcher has chosen one of the transforms, so the function must not look for others.
    transformed: Any = type(operator.name, (torch.autograd.function._SingleLevelFunction,), formula)
    below_autograd = torch._C._AutoDispatchBelowAutograd
    transforms = torch._C._are_functorch_transforms_active
    differentiable, lists = operator.differentiable, operator.lists

    def wants_grad(arguments: Sequence[Any]) -> bool:
        """Whether to record; at a forward-mode level too, so that tangents are refused, not lost."""
        if forward_ad._current_level >= 0:
            return True
        if torch.is_grad_enabled():
            for i in differentiable:  # loops, for half the time of any(...)
                argument = arguments[i]
                for tensor in argument if i in lists else (argument,):
                    if tensor is not None and tensor.requires_grad:
                        return True
        return False

    def autograd(*arguments: Any) -> Any:
        if not wants_grad(arguments):
            with below_autograd():
                return forward(*arguments)
        flat = _flat(arguments, lists)
        if not transforms():
            return recorded.apply(*flat)
        with enable_single_level_autograd_function():
            return transformed.apply(*flat)

    return autograd


def _flat(arguments: Sequence[Any], lists: Sequence[int]) -> Sequence[Any]:
    """Autograd sees tensors only outside of lists: a list leaves its length behind, its tensors come last."""
    if not lists:
        return arguments
    flat = list(arguments)
    for i in lists:
        flat[i] = len(arguments[i])
        flat += arguments[i]
    return flat


def _slices(operator: Operator, lengths: Sequence[int]) -> list[slice]:
    """Where the tensors of each list lie in `_flat`."""
    slices, end = [], operator.count
    for length in lengths:
        slices.append(slice(end, end + length))
        end += length
    return slices


def _formula(operator: Operator, forward: Any, backward: Any) -> dict[str, Any]:
    """What a ``Function`` of flat arguments needs. It saves features, masks as given, and parameters."""
    below_autograd = torch._C._AutoDispatchBelowAutograd
    count, lists, unsaved = operator.count, operator.lists, operator.unsaved
    # Positions of what is saved and of the rest; in both together, of the arguments that the backward takes.
    saved = [i for i in operator.tensors if i not in unsaved]
    others = [i for i in range(count) if i not in operator.tensors]
    taken = [(saved + others).index(i) for i in range(count) if i not in unsaved]

    def record(ctx: Any, *flat: Any) -> Any:
        arguments: Sequence[Any] = flat
        slices = _slices(operator, [flat[i] for i in lists])
        if slices:
            arguments = list(flat[:count])
            for i, tensors in zip(lists, slices, strict=True):
                arguments[i] = flat[tensors]
        with below_autograd():
            out, new_mask = forward(*arguments)
        ctx.save_for_backward(*[flat[i] for i in saved], *flat[count:])
        ctx.others, ctx.slices = [flat[i] for i in others], slices
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(new_mask)
        return out, new_mask

    def restored(ctx: Any) -> list[Any]:
        """The arguments that the backward takes."""
        tensors = ctx.saved_tensors
        together = [*tensors[: len(saved)], *ctx.others]
        for i, its in zip(lists, ctx.slices, strict=True):
            offset = count - len(saved)
            together[(saved + others).index(i)] = tensors[its.start - offset : its.stop - offset]
        return [together[i] for i in taken]

    def differentiate(ctx: Any, grad_out: Tensor | None, _: None) -> tuple[Any, ...]:
        flags = ctx.needs_input_grad
        result: list[Tensor | None] = [None] * len(flags)
        if grad_out is None:
            return tuple(result)
        slices = dict(zip(lists, ctx.slices, strict=True))
        needs = [any(flags[slices[i]]) if i in slices else flags[i] for i in operator.differentiable]
        grads = _once(operator.name, backward, [grad_out, *restored(ctx), needs])
        for i, needed, grad in zip(operator.differentiable, needs, grads, strict=True):
            if needed and i in slices:
                result[slices[i]] = grad
            elif needed:
                result[i] = grad
        return tuple(result)

    def refuse(*_: Any) -> Any:
        raise RuntimeError(
            f"pconv_ext::{operator.name} has no forward-mode derivative (forward AD, jvp). "
            'Use backend="reference" where one is needed.'
        )

    functions = {"forward": record, "backward": differentiate, "jvp": refuse}
    return {name: staticmethod(function) for name, function in functions.items()}


def _once(name: str, backward: Any, arguments: list[Any]) -> Any:
    """The results of `backward`; to differentiate them is an error that says what to do instead.

    As ``torch.autograd.function.once_differentiable``, whose message cannot be chosen and which is nothing
    for ``torch.func``: a backward with ``create_graph=True`` works until its result is differentiated.
    """
    if not torch.is_grad_enabled():
        return backward(*arguments)
    with torch.no_grad():
        results = backward(*arguments)
    inputs = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    grads, structure = tree_flatten(results)
    return tree_unflatten(_Last.apply(name, len(inputs), *inputs, *grads), structure)


class _Last(torch.autograd.Function):
    """Copies of gradients that cannot be differentiated, though what they were made of can."""

    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, n_inputs: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for tensor in tensors[n_inputs:])

    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            f"pconv_ext::{ctx.name} is not twice differentiable: its backward was differentiated again. "
            'Use backend="reference" where second derivatives are needed.'
        )
