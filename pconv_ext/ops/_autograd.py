"""Autograd of an operator: one formula, for ``torch.autograd`` and for the transforms of ``torch.func``.

It is a ``torch.autograd.Function`` under the Autograd key, entered only when a gradient is asked for, with
``forward(ctx, ...)``: a recorded call with a kernel that does nothing takes 17 us so, 31 us with
``setup_context`` and 29 us with ``torch.library.register_autograd`` (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
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
    differentiable, lists = itemgetter(*operator.differentiable), operator.lists

    def autograd(*arguments: Any) -> Any:
        forward_mode = forward_ad._current_level >= 0  # recorded too, so that tangents are refused, not lost
        if forward_mode or torch.is_grad_enabled():
            tensors = differentiable(arguments)
            if lists:  # autograd sees tensors only outside of them
                tensors = _flat(tensors)
            for tensor in tensors:  # a loop, for half the time of any(...)
                if forward_mode or (tensor is not None and tensor.requires_grad):
                    if not transforms():
                        return recorded.apply(arguments, *tensors)
                    with enable_single_level_autograd_function():
                        return transformed.apply(arguments, *tensors)
        with below_autograd():
            return forward(*arguments)

    return autograd


def _flat(groups: Iterable[Any]) -> list[Any]:
    """The members of the lists among `groups`, and the rest."""
    flat: list[Any] = []
    for group in groups:
        if isinstance(group, (list, tuple)):
            flat += group
        else:
            flat.append(group)
    return flat


def _formula(operator: Operator, forward: Any, backward: Any) -> dict[str, Any]:
    """What a ``Function`` has, of the arguments and then, for autograd, of their differentiable tensors.

    It saves masks as given, features and parameters.
    """
    below_autograd = torch._C._AutoDispatchBelowAutograd
    lists, unsaved = operator.lists, operator.unsaved
    # Positions of arguments: masks, what else is saved (the first of the tensors), neither; in these
    # together, of those that the backward takes.
    masks = [i for i in operator.tensors if i not in operator.differentiable]
    saved = [i for i in operator.differentiable if i not in unsaved]
    others = [i for i in range(operator.count) if i not in operator.tensors and i not in lists]
    in_lists = [i in lists for i in operator.differentiable]
    positions = [*masks, *saved, *others]
    taken = [positions.index(i) for i in range(operator.count) if i not in unsaved]
    end = -len(unsaved) or None

    def record(ctx: Any, arguments: tuple[Any, ...], *tensors: Tensor | None) -> Any:
        with below_autograd():
            out, new_mask = forward(*arguments)
        ctx.save_for_backward(*[arguments[i] for i in masks], *tensors[:end])
        if others:
            ctx.others = [arguments[i] for i in others]
        if lists:
            ctx.lengths = [len(arguments[i]) for i in lists]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(new_mask)
        return out, new_mask

    def restored(ctx: Any) -> list[Any]:
        """The arguments that the backward takes."""
        together = list(ctx.saved_tensors)
        if lists:
            n = len(masks)
            together[n:] = by_argument(ctx, together[n:])
        if others:
            together += ctx.others
        return [together[i] for i in taken]

    def by_argument(ctx: Any, flat: Sequence[Any]) -> list[Any]:
        """Of what is there for each differentiable tensor, those of a list in a sequence."""
        groups, end, lengths = [], 0, iter(ctx.lengths)
        for in_list in in_lists:
            begin, end = end, end + (next(lengths) if in_list else 1)
            groups.append(flat[begin:end] if in_list else flat[begin])
        return groups

    def differentiate(ctx: Any, grad_out: Tensor | None, _: None) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad[1:]
        if grad_out is None:
            return (None,) * (1 + len(needed))
        if not lists:
            grads = _once(operator.name, backward, [grad_out, *restored(ctx), needed])
            return None, *[grad if need else None for grad, need in zip(grads, needed, strict=True)]
        groups = by_argument(ctx, needed)
        needs = [any(group) if in_list else group for group, in_list in zip(groups, in_lists, strict=True)]
        grads = _once(operator.name, backward, [grad_out, *restored(ctx), needs])
        result: list[Tensor | None] = [None]
        for group, grad, in_list in zip(groups, grads, in_lists, strict=True):
            if in_list:
                result += grad or [None] * len(group)
            else:
                result.append(grad if group else None)
        return tuple(result)

    def refuse(*_: Any) -> Any:
        raise _no_forward_mode(operator.name)

    functions: dict[str, Any] = {"forward": record, "backward": differentiate, "jvp": refuse}
    return {name: staticmethod(function) for name, function in functions.items()}


def _no_forward_mode(name: str) -> RuntimeError:
    return RuntimeError(
        f"pconv_ext::{name} has no forward-mode derivative (forward AD, jvp). "
        'Use backend="reference" where one is needed.'
    )


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
    def jvp(ctx: Any, *_: Any) -> Any:
        raise _no_forward_mode(ctx.name)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            f"pconv_ext::{ctx.name} is not twice differentiable: its backward was differentiated again. "
            'Use backend="reference" where second derivatives are needed.'
        )
