"""What is told about an operator once, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._geometry import memory_format
from .call import Call, Gradients, Needs


class Operator:
    """An operator: its arguments, which have a gradient, and the `Call` that they are.

    Args:
        name: of the operator; its backward is NAME_backward.
        arguments: as in a schema, ``Tensor x, Tensor? mask, ...``. All operators return (out, new_mask).
        features, parameters: the arguments with a gradient: the feature maps of the sources, in their order,
            and a weight and a bias, or lists of both and scales. Their order is that of the backward's
            results, and of its argument ``needs``; what is not needed comes back as an empty list or as
            float32 [0].
        call: of all arguments.
        unsaved: the last of these that the backward does not take; `call` gets None for them.
    """

    def __init__(
        self,
        name: str,
        arguments: str,
        features: Sequence[str],
        parameters: Sequence[str],
        call: Callable[..., Call],
        unsaved: Sequence[str] = (),
    ) -> None:
        self.name, self.call = name, call
        types = {argument: kind for kind, argument in (a.rsplit(" ", 1) for a in arguments.split(", "))}
        names = list(types)
        differentiable = [*features, *parameters]
        saved = ", ".join(f"{types[a]} {a}" for a in names if a not in unsaved)
        results = ", ".join("Tensor[]" if types[a] == "Tensor[]" else "Tensor" for a in differentiable)
        self.schema = f"({arguments}) -> (Tensor, Tensor)"
        self.backward_schema = f"(Tensor grad_out, {saved}, bool[] needs) -> ({results})"
        self.count = len(names)
        #: Positions of arguments: tensors, lists of tensors, those with a gradient, those the backward lacks.
        self.tensors = tuple(i for i, a in enumerate(names) if types[a] in ("Tensor", "Tensor?"))
        self.lists = tuple(i for i, a in enumerate(names) if types[a] == "Tensor[]")
        self.differentiable = tuple(map(names.index, differentiable))
        self.unsaved = tuple(map(names.index, unsaved))
        self._n_features = len(features)
        forms = (["Tensor", "Tensor?"], ["Tensor[]", "Tensor[]", "Tensor"])
        given = [types[parameter] for parameter in parameters]
        if given not in forms or [*unsaved] not in ([], [*parameters][1:] if given == forms[0] else []):
            raise ValueError(
                f"{name}: parameters must be a weight and a bias, which may be unsaved, or lists of both and "
                f"scales, got {', '.join(parameters)} and unsaved {', '.join(unsaved)}"
            )

    @property
    def names(self) -> tuple[str, str]:
        """Of the operator and of its backward."""
        return self.name, f"{self.name}_backward"

    def backward_call(self, saved: Sequence[Any]) -> Call:
        """The `Call` of what the backward is given between grad_out and needs."""
        arguments = list(saved)
        for i in self.unsaved:
            arguments.insert(i, None)
        return self.call(*arguments)

    def needs(self, flags: Sequence[bool]) -> Needs:
        """The argument ``needs`` of the backward, by name."""
        return Needs(flags[: self._n_features], *flags[self._n_features :])

    def results(self, gradients: Gradients, like: Tensor) -> tuple[Any, ...]:
        """What the backward returns."""

        def one(gradient: Tensor | None) -> Tensor:
            return like.new_empty([0], dtype=torch.float32) if gradient is None else gradient

        sources = [one(gradient) for gradient in gradients.sources]
        if self.lists:
            return *sources, list(gradients.weights), list(gradients.biases), one(gradients.scales)
        weight, bias = (next(iter(group), None) for group in (gradients.weights, gradients.biases))
        return *sources, one(weight), one(bias)

    def fake(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        """Empty results of the operator."""
        call = self.call(*arguments)
        like = call.like
        n, size = like.shape[0], call.output_size
        out = torch.empty(
            (n, call.weights[0].shape[0], *size),
            dtype=like.dtype,
            device=like.device,
            memory_format=memory_format(like),
        )
        return out, like.new_empty((n, 1, *size), dtype=call.mask_like.dtype)

    def fake_backward(self, grad_out: Tensor, *saved: Any) -> tuple[Any, ...]:
        """Empty results of its backward: features in their layout, parameters contiguous."""
        call, needs = self.backward_call(saved[:-1]), self.needs(saved[-1])
        scales = call.scales
        with_bias = call.weights if self.unsaved else call.weights[: len(call.biases)]
        gradients = Gradients(
            [
                torch.empty_like(source.x, memory_format=memory_format(source.x)) if needed else None
                for source, needed in zip(call.sources, needs.sources, strict=True)
            ],
            [weight.new_empty(weight.shape) for weight in call.weights] if needs.weights else [],
            [weight.new_empty(weight.shape[:1]) for weight in with_bias] if needs.biases else [],
            None if scales is None or not needs.scales else scales.new_empty(scales.shape),
        )
        return self.results(gradients, call.like)
