"""Programs that people write: each is folded rightly, or kept or refused for a reason.

A case is a module and an example input. It holds if the fold raised a BnfoldError, or the folded
module computes what the original computes, in float64 to 1e-9 of the largest value, on the example
and on other inputs, and the original is what it was. `gone` is the least number of BatchNorms that
an exact fold removes. `program` cases are exported first.
"""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional

import bnfold

D = torch.float64
CASES = {}


def case(gone=0, shape=(2, 3, 9, 9), also=((3, 3, 9, 9), (1, 3, 9, 9)), program=False, **keywords):
    def register(make):
        others = () if program else also  # what is exported takes one size
        CASES[make.__name__] = (make, gone, shape, others, program, keywords)
        return make

    return register


def trained(module, seed=0):
    draw = torch.Generator().manual_seed(seed)

    def rand(like):
        return torch.rand(like.shape, generator=draw, dtype=D)

    module = module.to(D)
    for part in module.modules():
        if isinstance(getattr(part, "running_mean", None), torch.Tensor):
            part.running_mean.copy_(rand(part.running_mean) * 3 - 1)
            part.running_var.copy_(rand(part.running_var) * 2 + 0.3)
            if part.weight is not None:
                part.weight.data = (rand(part.weight) + 0.4) * torch.sign(rand(part.weight) - 0.35)
                part.bias.data = rand(part.bias) * 2 - 0.8
    if hasattr(module, "trained"):
        module.trained()
    return module.eval()


class Net(nn.Module):
    """conv, bn, head, and whatever a case does with them."""

    def __init__(self, forward=None, **parts):
        super().__init__()
        self.conv, self.bn, self.head = (
            nn.Conv2d(3, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 1),
        )
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


@torch.library.custom_op("acme_cases::linear", mutates_args=())
def acme_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return functional.linear(x.clamp(-1, 1), weight, bias)


@acme_linear.register_fake
def _(x, weight, bias):
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@case(shape=(50, 3), also=((7, 3),))
def op_of_another_namespace():
    """An op is what its full name says (acme::linear clamps), never what its last part says."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.w, self.b = (
                nn.BatchNorm1d(3),
                nn.Parameter(torch.randn(4, 3)),
                nn.Parameter(torch.randn(4)),
            )

        def forward(self, x):
            return acme_linear(self.bn(x), self.w, self.b)

    return Own()


@case()
def closure_over_a_module():
    """copy.deepcopy leaves what a closure holds: the copy still calls the original's BatchNorm."""
    net = Net()
    bn = net.bn
    net.run = lambda self, x: self.head(bn(self.conv(x)))
    return net


@case()
def forward_asks_for_the_type():
    return Net(
        lambda self, x: self.head(
            self.bn(self.conv(x)) * (1 if isinstance(self.bn, nn.BatchNorm2d) else 2)
        )
    )


@case()
def forward_asks_for_the_bias():
    def run(self, x):
        y = self.bn(self.conv(x))
        return self.head(y if self.conv.bias is None else y + self.conv.bias.view(1, -1, 1, 1))

    return Net(run)


@case()
def hook_registered_by_the_first_run():
    """The analysing run must leave no hooks: flags are put back, and the hook came twice."""

    def run(self, x):
        if not self.ready:
            self.conv.register_forward_hook(lambda module, inputs, output: output + 1)
            self.ready = True
        return self.head(self.bn(self.conv(x)))

    return Net(run, ready=False)


@case()
def thread_in_forward():
    def run(self, x):
        out = []
        worker = threading.Thread(target=lambda: out.append(torch.sigmoid(self.conv(x))))
        worker.start()
        worker.join()
        return self.head(self.bn(self.conv(x)) + out[0])

    return Net(run)


class First(nn.Module):
    """A BatchNorm on the input, what a case does behind it, and a convolution behind that."""

    def __init__(self, between, **parts):
        super().__init__()
        self.bn, self.head, self.between = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), between
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.head(self.between(self, self.bn(x)))


@case()
def bare_except_around_a_number():
    """What the analysis raises to say "no number here" is swallowed, and another path is taken."""

    def between(self, y):
        try:
            y.detach().numpy().max()
        except BaseException:
            return y
        return torch.sigmoid(y)

    return First(between)


@case()
def value_leaves_through_dlpack():
    return First(
        lambda self, y: torch.sigmoid(
            torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(y))
        )
    )


@case()
def value_becomes_a_parameter():
    return First(lambda self, y: torch.sigmoid(nn.Parameter(y)))


@case()
def buffer_changes_from_run_to_run():
    """A buffer that is 0 on the first run is not a constant 0 (a moving average)."""

    def run(self, x):
        y = self.bn(self.conv(x) + self.seen)
        self.seen = torch.tanh(y.mean((0, 2, 3), keepdim=True))
        return self.head(y)

    net = Net(run)
    net.register_buffer("seen", torch.zeros(1, 4, 1, 1))
    return net


@case()
def factor_changes_from_run_to_run():
    def run(self, x):
        y = self.bn(self.conv(x) * self.gain)
        self.gain.add_(0.5)
        return self.head(y)

    net = Net(run)
    net.register_buffer("gain", torch.ones(1, 4, 1, 1))
    return net


@case()
def number_that_changes_from_run_to_run():
    def run(self, x):
        y = self.conv(x) + self.step
        self.step += 1
        return self.head(self.bn(y))

    return Net(run, step=0)


@case()
def buffer_written_through_numpy():
    """The analysing run must leave no traces, however a buffer is written."""

    def run(self, x):
        y = self.bn(self.conv(x) + self.seen)
        self.seen.numpy()[:] += 1
        return self.head(y)

    net = Net(run)
    net.register_buffer("seen", torch.zeros(1, 4, 1, 1))
    return net


@case(shape=(2, 3, 9, 9))
def forward_mode_derivative():
    return Net(
        lambda self, x: self.head(
            torch.func.jvp(
                lambda t: t * 2,
                (self.bn(self.conv(x)),),
                (torch.ones(x.shape[0], 4, 9, 9, dtype=D),),
            )[1]
        )
    )


@case()
def output_is_a_weight():
    return Net(lambda self, x: (self.head(self.bn(self.conv(x))), self.conv.weight.detach()))


@case()
def blurs_with_a_constant():
    """A fixed depthwise kernel that forward makes: an AssertionError."""
    return First(
        lambda self, y: functional.conv2d(y, torch.full((3, 1, 3, 3), 1 / 9, dtype=D), groups=3)
    )


@case(shape="channels_last", also=((2, 3, 9, 9),))
def inplace_relu_behind_a_layout():
    """x.contiguous() is a copy for some layouts only: the caller's x is not written to."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.relu, self.head = (
                nn.BatchNorm2d(3),
                nn.ReLU(inplace=True),
                nn.Conv2d(3, 4, 1),
            )

        def forward(self, x):
            return self.head(self.relu(self.bn(x.contiguous()))) + x.mean()

    return Own()


@case(also=((2, 3, 12, 9), (1, 3, 5, 5)), clip="always")
def bounds_along_another_axis():
    """Zeros along the height: bounds that vary along it are wrong for other sizes."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.relu, self.head = nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.head(
                self.relu(self.bn(torch.cat([torch.zeros_like(x[:, :, :1]), x.roll(1, 2)], 2)))
            )

    return Own()


@case(gone=2)
def tied_gammas():
    """Two BatchNorms with one gamma and one beta, and statistics of their own, both go."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.c1, self.b1, self.c2, self.b2 = (
                nn.Conv2d(3, 3, 1),
                nn.BatchNorm2d(3),
                nn.Conv2d(3, 3, 1),
                nn.BatchNorm2d(3),
            )
            self.b2.weight, self.b2.bias = self.b1.weight, self.b1.bias

        def forward(self, x):
            return self.b2(self.c2(torch.relu(self.b1(self.c1(x)))))

    return Own()


@case(gone=1)
def shortcut_of_a_batch_norm():
    """x + bn(x) is one affine step: nothing needs different rescalings."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.bn, self.head = (
                nn.Conv2d(3, 3, 1),
                nn.BatchNorm2d(3),
                nn.Conv2d(3, 4, 1),
            )

        def forward(self, x):
            x = torch.sigmoid(self.stem(x))
            return self.head(x + self.bn(x))

    return Own()


@case(gone=1)
def centre_tap():
    """conv(x) + bn(x): a goes to the kernel's centre, b to its bias."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.dw, self.bn, self.head = (
                nn.Conv2d(3, 6, 3, padding=1),
                nn.Conv2d(6, 6, 3, padding=1, groups=6),
                nn.BatchNorm2d(6),
                nn.Conv2d(6, 4, 1),
            )

        def forward(self, x):
            x = functional.gelu(self.stem(x))
            return self.head(functional.gelu(self.dw(x) + self.bn(x)))

    return Own()


@case(gone=2)
def gamma_of_a_dead_channel():
    """A gamma of 1.4e-39 behind another affine step is a dead channel, not a matter of range."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.scale, self.act, self.head = (
                nn.Conv2d(3, 4, 3),
                nn.BatchNorm2d(4),
                nn.BatchNorm2d(4),
                nn.PReLU(4),
                nn.Conv2d(4, 2, 1),
            )

        def trained(self):
            self.scale.weight.data[2] = 1.4e-39

        def forward(self, x):
            return self.head(self.act(self.scale(self.bn(self.conv(x)))))

    return Own()


@case(program=True)
def program_that_writes_to_a_buffer():
    def run(self, x):
        y = self.bn(self.conv(x) * self.gain)
        self.gain.add_(0.5)
        return self.head(y)

    net = Net(run)
    net.register_buffer("gain", torch.ones(1, 4, 1, 1))
    return net


@case(program=True)
def program_that_returns_a_weight():
    return Net(lambda self, x: (self.head(self.bn(self.conv(x))), self.conv.weight))


@case(gone=1, program=True)
def program_with_a_vector_as_weight():
    """functional.linear with a 1-D weight: a ValueError."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.w = (
                nn.Conv2d(3, 4, 1),
                nn.BatchNorm2d(4),
                nn.Parameter(torch.randn(4)),
            )

        def forward(self, x):
            return functional.linear(self.bn(self.conv(x)).mean((2, 3)), self.w)

    return Own()


@case(also=((2, 3, 9, 9),))
def permuted_by_chance():
    """An index that is drawn anew in each run is no constant."""

    def run(self, x):
        order = torch.randperm(4, generator=self.draw)
        return self.head(self.bn(self.conv(x)[:, order]))

    net = Net(run)
    net.draw = Draw(7)
    return net


@case(also=((2, 3, 12, 9), (2, 3, 6, 9)))
def reshaped_by_the_height():
    """The channels of a slice depend on the height: right for the example only."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.last = nn.BatchNorm2d(3), nn.Conv2d(18, 4, 1)

        def forward(self, x):
            return self.last(self.bn(x).reshape(x.shape[0], -1, 9, 1)[:, :18])

    return Own()


class Draw(torch.Generator):
    """A generator that a copy of the module starts from the same place."""

    def __new__(cls, seed):
        draw = super().__new__(cls)
        draw.manual_seed(seed)
        return draw

    def __deepcopy__(self, memo):
        other = Draw(0)
        other.set_state(self.get_state())
        return other


def leaves(value):
    return [
        leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)
    ]


def distance(a, b):
    if len(a) != len(b) or any(x.shape != y.shape for x, y in zip(a, b, strict=True)):
        return float("inf")
    return max(
        float((x - y).abs().max() / x.abs().max().clamp_min(1e-300))
        for x, y in zip(a, b, strict=True)
    )


@torch.no_grad()
def outcome(make, gone, shape, also, program, keywords):
    # The original is made anew, so that nothing the fold did to it is missed.

    def fresh():
        return trained(seeded(make))

    inputs = [drawn(s, n) for n, s in enumerate((shape, *also))]
    given = fresh()
    if program:
        inputs.append(drawn(shape, 8))
        given = torch.export.export(given, (inputs[0],))
    try:
        folded, report = bnfold.fold(
            given, inputs[0].clone(memory_format=torch.preserve_format), **keywords
        )
    except bnfold.BnfoldError as error:
        return ("ok" if not gone else "KEPT"), f"refused: {error}"
    except Exception as error:
        return "CRASH", f"{type(error).__name__}: {error}"
    right, after = fresh(), given
    if program:
        folded, after = folded.module(), given.module()
    for number, x in enumerate(inputs):
        want = leaves(right(x.clone(memory_format=torch.preserve_format)))
        for who, module in (("folded", folded), ("original", after)):
            try:
                far = distance(want, leaves(module(x.clone(memory_format=torch.preserve_format))))
            except Exception as error:
                return "WRONG", f"{who} raises on input {number}: {error}"
            if not far < 1e-9:
                return "WRONG", f"{who} is off by {far:.1e} on input {number}; {report.summary}"
    return ("ok" if report.removed >= gone else "KEPT"), report.summary


def drawn(shape, seed):
    draw = torch.Generator().manual_seed(seed)
    if shape == "channels_last":
        return torch.randn((2, 3, 9, 9), dtype=D, generator=draw).contiguous(
            memory_format=torch.channels_last
        )
    return torch.randn(shape, dtype=D, generator=draw)


def seeded(make):
    torch.manual_seed(0)
    return make()


@pytest.mark.parametrize("name", CASES)
def test_a_case(name):
    status, text = outcome(*CASES[name])
    assert status == "ok", text
