"""A training step of the whole network, on our operators and on the naive forms: time and peak memory.

Forward, the pixel losses, backward and Adam, which all forms share. VGG-16, whose share is the same for all,
is left out; kernels of ones are made before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forms.naive import naive_partial_conv2d
from measure import timing
from measure.case import DTYPES, Settings
from measure.correctness import WrongResult
from measure.forms import Form, our_backends
from measure.inputs import IMAGE_SIZE, make_mask, photographs
from measure.memory import allocations
from names import COMPILED, NAIVE_1, NAIVE_C
from operators.msfef import naive_msfef
from operators.upcat_partial_conv2d import naive_upcat_1, naive_upcat_c
from pconv_ext import MSFEF, InpaintingNet, PartialConv2d
from pconv_ext.losses import InpaintingLoss

# Largest ||g - ours|| / ||ours|| over all gradients of a step together: a whole network rounds more often
# than an operator, and a form that computes something else differs by more than a tenth.
TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Case:
    """The paper's network, narrower for a quick look; `compiled` adds a form under torch.compile."""

    width: int = 64
    compiled: bool = False

    def __str__(self) -> str:
        return f"network{self.width}-trainingstep"


def kernels_of_ones(net: InpaintingNet, multi_channel: bool) -> list[list[Tensor]]:
    """What the naive forms count masks with: for each stage one of each of its kernels."""

    def ones(weight: Tensor) -> Tensor:
        return torch.ones_like(weight if multi_channel else weight[:1, :1], requires_grad=False)

    stages = [stage.conv for stage in (*net.encoder, *net.decoder)]
    return [
        [ones(part.weight) for part in (conv.branches if isinstance(conv, MSFEF) else [conv])]
        for conv in stages
    ]


def naive_forward(
    net: InpaintingNet, image: Tensor, plane: Tensor, multi_channel: bool, ones: list[list[Tensor]]
) -> Tensor:
    """The network as everybody writes it; masks of C channels where skips are concatenated, or of one."""
    upcat = naive_upcat_c if multi_channel else naive_upcat_1

    def spread(mask: Tensor, x: Tensor) -> Tensor:
        return mask.expand_as(x) if multi_channel else mask

    x, mask, skips = image, spread(plane, image), []
    encoder, decoder = ones[: len(net.encoder)], ones[len(net.encoder) :]
    for stage, of_stage in zip(net.encoder, encoder, strict=True):
        skips.append((x, mask))
        conv = stage.conv
        if isinstance(conv, MSFEF):
            weights, biases = ([getattr(b, name) for b in conv.branches] for name in ("weight", "bias"))
            out, mask = naive_msfef(x, mask, weights, biases, conv.scales, 2, *of_stage)
        else:
            weight, padding = conv.weight, conv.weight.shape[-1] // 2
            out, mask = naive_partial_conv2d(x, mask, weight, conv.bias, 2, padding, 1, 1, *of_stage)
        x = stage.activation(stage.norm(out))
    for stage, of_stage in zip(net.decoder, decoder, strict=True):
        skip, mask_skip = skips.pop()
        weight, bias = stage.conv.weight, stage.conv.bias
        out, mask = upcat(x, mask, skip, mask_skip, weight, bias, *of_stage)
        x = stage.activation(stage.norm(out))
    return x


def forms(net: InpaintingNet, image: Tensor, mask: Tensor, settings: Settings, compiled: bool) -> list[Form]:
    """Ours first. A step of each trains the same network, with a learning rate of 0."""
    parameters = list(net.parameters())
    optimizer = torch.optim.Adam(parameters, lr=0.0, fused=True)
    loss = InpaintingLoss(None, {"perceptual": 0, "style": 0}).to(settings.device)
    autocast = torch.autocast(settings.device, DTYPES[settings.dtype], enabled=settings.dtype != "float32")
    plane = mask.to(image.dtype)

    def form(name: str, forward: Callable[[], Tensor]) -> Form:
        def step() -> tuple[Tensor, None]:
            with torch.enable_grad():
                with autocast:
                    total = loss(forward(), image, mask)["total"]
                total.backward()
            optimizer.step()
            return total.detach(), None

        return Form(name, step, parameters)

    def ours(backend: str) -> Callable[[], Tensor]:
        def forward() -> Tensor:
            for module in net.modules():
                if isinstance(module, (MSFEF, PartialConv2d)):  # a decoder stage asks its convolution
                    module.backend = backend
            return net(image, mask)

        return forward

    made = [form(name, ours(name)) for name in dict.fromkeys([*our_backends(settings.device), "reference"])]

    def naive(multi_channel: bool) -> Callable[[], Tensor]:
        ones = kernels_of_ones(net, multi_channel)
        return lambda: naive_forward(net, image, plane, multi_channel, ones)

    made += [form(NAIVE_C, naive(True)), form(NAIVE_1, naive(False))]
    if compiled:
        torch.compiler.reset()
        made.append(form(COMPILED, torch.compile(naive(False), dynamic=False)))
    return made


def prepare(case: Case, settings: Settings) -> tuple[list[Form], dict[str, str]]:
    """Our form and the others, checked against it; and why a form is missing."""
    torch.manual_seed(0)
    batch = settings.batch
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    net = InpaintingNet(case.width).to(settings.device, memory_format=layout)  # type: ignore[call-overload]
    image = photographs(batch, IMAGE_SIZE).to(settings.device, memory_format=layout)
    mask = make_mask("rectangle", batch, IMAGE_SIZE)
    assert mask is not None
    mask = mask.to(settings.device)
    made, missing = forms(net, image, mask, settings, case.compiled), {}
    with timing.cudnn_search():
        expected = gradients(made[0])
        for form in made[1:]:
            try:
                error = ((gradients(form) - expected).norm() / expected.norm()).item()
            except RuntimeError as failure:
                if form.name != COMPILED:
                    raise
                missing[form.name] = str(failure).strip().partition("\n")[0]
                continue
            limit = TOLERANCE[DTYPES[settings.dtype]]
            if not error <= limit:
                raise WrongResult(f"{form.name}: gradients differ from ours by {error}, limit {limit}")
    return [form for form in made if form.name not in missing], missing


def measure(case: Case, settings: Settings) -> tuple[dict[str, Any], Form]:
    """The record of a case, and our form."""
    made, missing = prepare(case, settings)
    with timing.cudnn_search():
        samples = timing.interleaved(
            made, None, settings.device, settings.min_rounds, settings.max_rounds, 4 * settings.seconds
        )
        peaks = {form.name: peak_mb(form, settings.device) for form in made}
    record = {
        "width": case.width,
        "batch": settings.batch,
        "resolution": IMAGE_SIZE,
        "dtype": settings.dtype,
        "ours": our_backends(settings.device),
        "forms": {
            name: {"samples_ms": [round(ms, 3) for ms in samples[name]], "peak_mb": peaks[name]}
            for name in samples
        },
        "missing": missing,
    }
    return record, made[0]


def gradients(form: Form) -> Tensor:
    form.clear_gradients()
    form.run()
    return torch.cat([leaf.grad.flatten().double() for leaf in form.leaves])


def peak_mb(form: Form, device: str) -> float:
    """Peak MB (1e6 bytes) of a step above parameters, states of Adam and inputs; gradients included."""
    sizes, on_gpu = allocations(form, timing.step_of(form, None), device)
    peak = max(itertools.accumulate(sizes)) if on_gpu is None else on_gpu
    return round(peak / 1e6, 1)
