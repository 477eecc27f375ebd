"""The CUDA kernels tell their arguments, and those without a Triton twin what they can compute."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from pconv_ext.kernels import operators
from pconv_ext.kernels.cuda import library
from pconv_ext.kernels.host import kernel_set
from support.cases import deep_without_gpu

from pconv_ext._geometry import centred
from pconv_ext.ops.call import Call, Needs, Source

pytestmark = [*deep_without_gpu]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TWINS = [name for name in kernel_set.Kernels._fields if name not in kernel_set.Kernels._field_defaults]
ALONE = [*kernel_set.Kernels._field_defaults]


@pytest.mark.parametrize("name", TWINS)
def test_twins_have_the_same_arguments(name, cuda_kernels):
    twin = getattr(kernel_set.triton(), name)
    assert list(inspect.signature(twin.fn).parameters) == list(getattr(cuda_kernels, name).arguments.kinds)


def fold_bias(**changed):
    """Arguments of a launch of `fold_bias`."""
    tensors = {
        "biases": torch.ones(2, 3, device=DEVICE),
        "scales": torch.full((2, 3), 2.0, device=DEVICE),
        "total": torch.empty(3, device=DEVICE),
    }
    return tensors | {"NOUT": 3, "N_BRANCHES": 2, "BLOCK": 256} | changed


def test_a_launch_by_name(cuda_kernels):
    arguments = fold_bias()
    cuda_kernels.fold_bias[(1,)](**dict(reversed(arguments.items())), num_warps=4, num_stages=2)
    assert torch.equal(arguments["total"].cpu(), torch.full((3,), 4.0))


@pytest.mark.parametrize(
    ("missing", "changed", "told"),
    [
        ("NOUT", {}, "NOUT is missing"),
        ("biases", {}, "biases is missing"),
        (None, {"CUT_H": 1}, "CUT_H is none of its arguments"),
        ("NOUT", {"N_OUT": 3}, "NOUT is missing; N_OUT is none of its arguments"),
        (None, {"NOUT": 3.5}, r"NOUT must be int, got 3\.5"),
        (None, {"NOUT": (3,)}, r"NOUT must be int, got \(3,\)"),
        (None, {"scales": 7}, "scales must be tensor, got 7"),
        (None, {"scales": torch.ones(1, dtype=torch.complex64)}, "scales must be tensor"),
    ],
)
def test_wrong_arguments(missing, changed, told, cuda_kernels):
    arguments = fold_bias(**changed)
    arguments.pop(missing, None)
    with pytest.raises(TypeError, match=f"CUDA kernel fold_bias: {told}"):
        cuda_kernels.fold_bias[(1,)](**arguments)


def test_rows_of_a_wrong_width(cuda_kernels):
    arguments = dict.fromkeys(cuda_kernels.pack_taps.arguments.kinds, 1)
    tensor = torch.ones(1, device=DEVICE)
    arguments |= {"weights": tensor, "scales": tensor, "packed": tensor, "BRANCHES": ((1, 1, 0, 0, 0, 0),)}
    with pytest.raises(TypeError, match=r"pack_taps: PASSES must be rows7, got \(\(1, 1\),\)"):
        cuda_kernels.pack_taps[(1, 1, 1)](**arguments | {"PASSES": ((1, 1),)})


def test_numbers_that_do_not_fit_are_refused(cuda_kernels):
    with pytest.raises(RuntimeError, match=r"kernel fold_bias was not launched: error 1, \w+"):
        cuda_kernels.fold_bias[(1,)](**fold_bias(NOUT=2**32 + 3))


def test_a_library_that_tells_nothing_is_refused():
    silent = SimpleNamespace(pconv_compact_arguments=lambda: b"", _name="libold.so")
    with pytest.raises(RuntimeError, match=r"pconv_compact of libold\.so does not tell its arguments"):
        library.Arguments(silent, "pconv_compact")


def test_limits(cuda_kernels):
    """One branch more than there may be is more passes than fit the tables, one more stride more residues."""
    most = library.limits(cuda_kernels)
    x = torch.ones(1, 9, 2, 2, device=DEVICE)
    weights = [torch.ones(1, 9, 1, 1, device=DEVICE)] * most.branches

    def run(n, stride):
        geometry = centred(1, [stride, 1])
        scales = torch.ones(n, 1, device=DEVICE)
        call = Call("msfef", (Source(x, None),), weights[:1] * n, [], scales, geometry)
        with kernel_set.using(cuda_kernels):
            out, _ = operators.forward(call)
            operators.backward(call, out, Needs([True], True, False, True))

    run(most.branches, 1)
    run(1, most.stride)
    for n, stride in ((most.branches + 1, 1), (1, most.stride + 1)):
        with pytest.raises(RuntimeError, match="was not launched: error 1"):
            run(n, stride)


class Recorded:
    """A kernel that keeps the arguments of its last plan and launch."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def launch(**arguments):
            self.grid, self.arguments = grid, arguments
            self.kernel[grid](**arguments)

        return launch

    def plan(self, **sizes):
        self.sizes = sizes
        return self.kernel.plan(**sizes)


def features(*shape):
    return torch.ones(shape, device=DEVICE)


#: A call that each kernel takes, and changes to its sizes that it cannot take.
CASES = {
    "few_inputs": (
        lambda: Call(
            "msfef", (Source(features(1, 3, 8, 9), None),), [features(9, 3, k, k) for k in (3, 5)], [],
            features(2, 9), centred(5, [2, 2]),
        ),
        [{"SH": 3}, {"DW": 2}, {"x_w": 2**25}, {"KP": 0}, {"PASSES": ((9, 3, 0, 0, 0, 0, 1),)}],
    ),
    "few_inputs_gradients": (
        lambda: Call(
            "msfef", (Source(features(1, 3, 8, 9), None),), [features(9, 3, k, k) for k in (3, 5)], [],
            features(2, 9), centred(5, [2, 2]),
        ),
        [{"SW": 3}, {"DH": 2}, {"mask_h": 2**25}, {"CP": 0}, {"WINDOWS": ((3, 9, 0, 0),)}],
    ),
    "few_outputs": (
        lambda: Call(
            "upcat_partial_conv2d",
            (Source(features(1, 9, 4, 5), None, True), Source(features(1, 3, 8, 9), None)),
            [features(3, 12, 3, 3)], [], None, centred(3, [1, 1]),
        ),
        [{"NOUT": 9}, {"KH": 8}, {"SW": 2}, {"DH": 2}, {"NOUT": 0}],
    ),
    "few_outputs_gradients": (
        lambda: Call(
            "partial_conv2d", (Source(features(1, 9, 8, 9), None),), [features(3, 9, 3, 3)], [], None,
            centred(3, [1, 1]),
        ),
        [{"NOUT": 5}, {"KW": 6}, {"KH": 5, "KW": 4}, {"SH": 2}, {"DW": 2}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ALONE)
def test_plans_and_launches_agree(name, cuda_kernels):
    make, changes = CASES[name]
    kernel = Recorded(getattr(cuda_kernels, name))
    call = make()
    with kernel_set.using(cuda_kernels._replace(**{name: kernel})):
        if name.endswith("gradients"):
            needs = Needs([False] * len(call.sources), True, False, call.scales is not None)
            operators.backward(
                call, torch.ones(1, call.weights[0].shape[0], *call.output_size).to(DEVICE), needs
            )
        else:
            operators.forward(call)
    assert kernel.plan(**kernel.sizes).fits
    assert kernel.sizes.keys() - kernel.arguments.keys() <= {"ITEM", "PROCESSORS"}
    for change in changes:
        assert change.keys() <= kernel.sizes.keys() & kernel.arguments.keys()
        assert not kernel.plan(**kernel.sizes | change).fits, change
        with pytest.raises(RuntimeError, match=f"{name} was not launched: error 1"):
            kernel[kernel.grid](**kernel.arguments | change)


@pytest.mark.parametrize("name", ALONE)
def test_a_plan_of_wrong_sizes(name, cuda_kernels):
    with pytest.raises(TypeError, match=f"CUDA kernel {name}_plan: .*ITEM is missing.*WIDTH is none of"):
        getattr(cuda_kernels, name).plan(WIDTH=1)
