"""Random modules over all the ops of a convolutional network: no wrong result, ever."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from tests.frontends.torch.support import assert_folds, build, image

C = 4
LEAVES = {
    "conv": lambda: nn.Conv2d(C, C, 1),
    "no bias": lambda: nn.Conv2d(C, C, 1, bias=False),
    "padded": lambda: nn.Conv2d(C, C, 3, padding=1),
    "reflect": lambda: nn.Conv2d(C, C, 3, padding=1, padding_mode="reflect"),
    "depthwise": lambda: nn.Conv2d(C, C, 3, padding=1, groups=C, bias=False),
    "grouped": lambda: nn.Conv2d(C, C, 1, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(C, C, 3, padding=1, groups=2),
    "bn": lambda: nn.BatchNorm2d(C),
    "bn plain": lambda: nn.BatchNorm2d(C, affine=False),
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "relu6 in place": lambda: nn.ReLU6(inplace=True),
    "leaky": lambda: nn.LeakyReLU(0.2, inplace=True),
    "prelu": lambda: nn.PReLU(C),
    "sigmoid": nn.Sigmoid,
    "silu": lambda: nn.SiLU(inplace=True),
    "max": lambda: nn.MaxPool2d(3, 1, 1),
    "average": lambda: nn.AvgPool2d(3, 1, 1),
    "average inside": lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "dropout": nn.Dropout,
}
FUNCTIONS = {
    "relu": functional.relu,
    "relu in place": functional.relu_,
    "add in place": lambda x: x.add_(0.5),
    "scale in place": lambda x: x.mul_(-1.5),
    "affine": lambda x: 1 - 2 * x,
    "negate": lambda x: -x,
    "shuffle": lambda x: functional.channel_shuffle(x, 2),
    "flip": lambda x: x.flip(1),
    "halves": lambda x: torch.cat([functional.relu(x[:, :2]), x[:, 2:]], 1),
    "write half": lambda x: _write_half(x),
    "squeeze-excite": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "pad": lambda x: functional.pad(x, (1, 0, 0, 1))[..., :-1, 1:],
    "tokens": lambda x: x.flatten(2).transpose(1, 2).reshape(-1, C).view(len(x), -1, C)
    .transpose(1, 2).view(x.shape),
    "centre": lambda x: x - x.mean((2, 3), keepdim=True),
    "abs": torch.abs,
}  # fmt: skip


def _write_half(x: Tensor) -> Tensor:
    x[:, 1:3].clamp_(min=0)
    return x


class Random(nn.Module):
    """Runs a program: each step takes a value from the pool and puts its result back."""

    def __init__(self, modules: list[str], program: list[tuple], outputs: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, C, 1)
        self.parts = nn.ModuleList(LEAVES[name]() for name in modules)
        self.program, self.outputs = program, outputs

    def forward(self, x: Tensor) -> list[Tensor]:
        pool = [self.stem(x)]
        for kind, what, first, second in self.program:
            # Mostly the newest value, so that the program is deep.
            a, b = pool[-1 - first % min(len(pool), 3)], pool[-1 - second % len(pool)]
            if kind == "module":
                pool.append(self.parts[what % len(self.parts)](a))
            elif kind == "effect":
                self.parts[what % len(self.parts)](a)
            elif kind == "function":
                pool.append(list(FUNCTIONS.values())[what % len(FUNCTIONS)](a))
            elif what % 5 == 0:
                pool.append(torch.cat([a[:, :2], b[:, 2:]], 1))
            elif what % 5 == 1:
                pool.append(a * torch.sigmoid(b))
            elif what % 5 == 2:
                pool.append(torch.sub(a, b, alpha=0.5))
            elif what % 5 == 3 and a is not b:
                a += b
                pool.append(a)
            else:
                pool.append(a + b)
        return pool[-self.outputs :]


STEP = st.tuples(
    st.sampled_from(["module"] * 6 + ["function"] * 2 + ["pair"] * 2 + ["effect"]),
    st.integers(0, 59),
    st.sampled_from([0, 0, 0, 1, 2]),
    st.integers(0, 5),
)
NAME = st.sampled_from([*LEAVES, "bn", "bn", "bn", "conv", "conv", "relu in place"])


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    modules=st.lists(NAME, min_size=3, max_size=9),
    program=st.lists(STEP, min_size=3, max_size=14),
    outputs=st.integers(1, 2),
    seed=st.integers(0, 1000),
    clip=st.sampled_from(["auto", "always", "never"]),
    last=st.booleans(),
)
def test_random_module(modules, program, outputs, seed, clip, last):
    torch.manual_seed(seed)
    model = build(Random(modules, program, outputs), seed)
    x = image(2, 3, 5, 4, seed=seed)
    if last:
        model = model.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    assert_folds(model, x, clip=clip, inplace=seed % 2 == 0)
