"""The operators that are measured: a file here with an `OPERATOR` declares one, and nothing else lists it."""

from __future__ import annotations

import importlib
import pkgutil

from torch import Tensor

from operators.declaration import Layer, Operator, Problem


def _declared() -> dict[str, Operator]:
    modules = [
        importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)
    ]
    operators = [module.OPERATOR for module in modules if hasattr(module, "OPERATOR")]
    return {operator.name: operator for operator in operators}


#: By name.
OPERATORS = _declared()
_LAYERS: list[Layer] = [layer for operator in OPERATORS.values() for layer in operator.layers]
#: The paper's network in its order.
NETWORK = sorted((layer for layer in _LAYERS if layer.stage), key=lambda layer: layer.stage)
#: By name, those of the network first.
LAYERS = {layer.name: layer for layer in [*NETWORK, *_LAYERS]}


def call(namespace: object, problem: Problem, **options: str) -> tuple[Tensor, Tensor]:
    """The problem's operator out of `pconv_ext` or `pconv_ext.reference`."""
    name = problem.layer.operator
    return getattr(namespace, name)(*OPERATORS[name].arguments(problem), **options)
