"""A backend with a fault, in the place of one that is right."""

from types import SimpleNamespace

from pconv_ext import _backends


def plant(monkeypatch, operator, spoil, backend="cpu"):
    """Let `backend` return `spoil` of each output of `operator`, and all else as it is."""
    real = _backends._BACKENDS[backend]

    def wrong(*arguments):
        out, new_mask = getattr(real.operators, operator)(*arguments)
        return spoil(out), new_mask

    names = {
        name: getattr(real.operators, name) for name in ("partial_conv2d", "msfef", "upcat_partial_conv2d")
    }
    operators = SimpleNamespace(**(names | {operator: wrong}))
    monkeypatch.setitem(_backends._BACKENDS, backend, real._replace(operators=operators))
