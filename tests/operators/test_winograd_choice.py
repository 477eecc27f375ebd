"""Which calls of the CPU's kernels Winograd's products take, and that their bits are always the same."""

import contextlib
import random
import threading
import time

import pytest
import torch
from support import arguments
from support.winograd import WINDOWS, gradient_for, results, same_bits

FLOAT = torch.float32


def conv(shape=(2, 24, 24, 26), c_out=32, size=3, mask="rectangle", dtype=FLOAT, **options):
    return "partial_conv2d", arguments.partial_conv2d(
        "cpu", shape, c_out, size, mask, dtype=dtype, **{"padding": 1, **options}
    )


def msfef(shape=(2, 24, 24, 26), c_out=32, mask="rectangle", dtype=FLOAT, **options):
    return "msfef", arguments.msfef("cpu", shape, c_out, mask=mask, dtype=dtype, **options)


def upcat(low=(2, 24, 12, 13), c_skip=16, c_out=32, dtype=FLOAT, **options):
    given = {"size": (24, 26), "masks": ("rectangle", "rectangle"), **options}
    return "upcat_partial_conv2d", arguments.upcat_partial_conv2d(
        "cpu", low, c_skip, c_out=c_out, dtype=dtype, **given
    )


def both(operator, args):
    grad_out = gradient_for(operator, args)
    return [results(operator, args, grad_out, algorithm) for algorithm in ("auto", "direct")]


TAKEN = {
    **{
        f"{size} x {size}, stride {stride}": lambda size=size, stride=stride: conv(size=size, stride=stride)
        for size, stride in WINDOWS
    },
    "without a mask": lambda: conv(mask="none"),
    "some ratios above the limit": lambda: conv(mask="random", size=7, stride=2),
    "a mask of all channels": lambda: conv(mask="channels", size=5, stride=2),
    "5 x 6, stride 2": lambda: conv(size=(5, 6), stride=2),
    "groups of 16": lambda: conv((2, 32, 24, 26), 32, groups=2),
    "16 channels": lambda: conv((2, 16, 24, 26), 16),
    "msfef": msfef,
    "msfef, stride 1": lambda: msfef(sizes=(3,), stride=1),
    "upcat": upcat,
    "bfloat16": lambda: conv((2, 48, 24, 26), 64, dtype=torch.bfloat16),  # so many that roundings differ
    "float16": lambda: conv((2, 48, 24, 26), 64, dtype=torch.float16),
}
DIRECT = {
    "3 channels": lambda: conv((2, 3, 24, 26)),
    "15 channels": lambda: conv((2, 15, 24, 26)),
    "groups of 8": lambda: conv((2, 16, 24, 26), 32, groups=2),
    "3 outputs": lambda: conv(c_out=3),
    "8 outputs of each group": lambda: conv((2, 32, 24, 26), 16, groups=2),
    "dilation": lambda: conv(dilation=2),
    "stride 3": lambda: conv(stride=3),
    "stride (1, 2)": lambda: conv(stride=(1, 2)),
    "1 x 1": lambda: conv(size=1),
    "2 x 2, stride 2": lambda: conv(size=2, stride=2),
    "5 x 5, stride 1": lambda: conv(size=5),
    "3 x 4, stride 1": lambda: conv(size=(3, 4)),
    "9 x 9, stride 2": lambda: conv(size=9, stride=2),
    "float64": lambda: conv(dtype=torch.float64),
    "msfef of 3 channels": lambda: msfef((2, 3, 24, 26)),
    "msfef of 7 x 7, stride 1": lambda: msfef(stride=1),
}


@pytest.mark.parametrize("shape", TAKEN)
def test_taken(shape):
    """By all three passes: each gives bits of its own."""
    operator, args = TAKEN[shape]()
    auto, direct = both(operator, args)
    for name in auto:
        if "bias" in name:  # no product makes it
            continue
        assert not torch.equal(auto[name], direct[name]), f"{name} is the direct form's"


@pytest.mark.parametrize("shape", DIRECT)
def test_not_taken(shape):
    auto, direct = both(*DIRECT[shape]())
    for name in auto:
        assert same_bits(auto[name], direct[name]), f"{name} is not the direct form's"


@pytest.mark.parametrize("options", [{"c_skip": 3}, {"k": 5}], ids=str)
def test_the_gradient_of_an_upsampled_map_alone(options):
    """Which is a filter of stride 2 and one row more over the gradient, whatever the other passes take."""
    auto, direct = both(*upcat(**options))
    for name in auto:
        assert same_bits(auto[name], direct[name]) == (name != "x_low"), name


def test_ratios_above_the_limit_go_the_direct_way():
    """With four valid entries in each window, or fewer, outputs and their gradients are the direct form's."""
    operator, args = conv(mask="holes", size=7, stride=2)
    args["mask"][:, :, ::4, ::4] = True
    auto, direct = both(operator, args)
    for name in ("out", "x"):  # the sums of the weights' gradient are split in another way
        assert same_bits(auto[name], direct[name]), f"{name} is not the direct form's"


@contextlib.contextmanager
def busy_processor():
    """Other threads at work, in bursts that are not the same twice."""
    done = threading.Event()

    def work():
        numbers = torch.randn(5000)  # too few for torch to take threads of its own
        while not done.is_set():
            for _ in range(random.randrange(10)):
                numbers.sin()
            time.sleep(random.uniform(0, 1e-3))

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        done.set()
        for worker in workers:
            worker.join()


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize(
    "make",
    [
        lambda: conv((2, 32, 34, 38), 40, mask="random"),
        lambda: conv((1, 160, 10, 12), 144, mask="random"),
        lambda: msfef((2, 24, 40, 44), mask="random"),
        lambda: upcat((2, 32, 20, 22), 16, size=(39, 44), masks=("random", "random")),
    ],
    ids=["conv", "conv of many channels", "msfef", "upcat"],
)
def test_same_bits(make, count):
    """Also where other work delays some of the threads."""
    operator, args = make()
    grad_out = gradient_for(operator, args)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        first, *others = [results(operator, args, grad_out) for _ in range(3)]
        with busy_processor():
            others += [results(operator, args, grad_out) for _ in range(3)]
        direct = results(operator, args, grad_out, "direct")
    finally:
        torch.set_num_threads(before)
    assert not torch.equal(first["out"], direct["out"])
    for other in others:
        for name, result in other.items():
            assert same_bits(result, first[name]), name
