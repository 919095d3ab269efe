"""Programs whose code asks for sizes: folded on one size, right on all that the original takes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bnfold
from bnfold.frontends.torch import read_other_sizes
from bnfold.frontends.torch.read import read_module
from tests.pairwise import pairwise

D = torch.float64
Run = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Layers by name, and what a test does with them."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.tight, self.strided = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.up, self.bn3 = nn.ConvTranspose2d(8, 8, 2, stride=2), nn.BatchNorm2d(8)
        self.join, self.head = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 2, 1)
        self.line, self.relu = nn.Linear(8, 2), nn.ReLU()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def trained(module: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    module = module.to(D)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            part.weight.data = torch.randn_like(part.weight)
            part.bias.data = torch.randn_like(part.bias)
    return module.eval()


SIZES = [
    *((2, 4, h, w) for h in (12, 13) for w in (12, 13)),
    *((n, 4, 12, 12) for n in (1, 3)),
    *((1, 4, h, w) for h, w in ((8, 16), (17, 20), (33, 31), (40, 72), (65, 65), (72, 73))),
]


def check(run: Run, gone: int, *, verify: bool, first: tuple[int, ...] = (2, 4, 12, 12)) -> None:
    """Folded on the first size, right on all that the original takes."""
    net = trained(Net(run))
    folded, report = bnfold.fold(net, torch.randn(first, dtype=D), verify=verify)
    compared = 0
    for size in [first, *SIZES]:
        x = torch.randn(size, dtype=D)
        try:
            want = net(x)
        except RuntimeError:
            continue
        assert (folded(x) - want).abs().max() <= 1e-9 * want.abs().max(), size
        compared += 1
    assert compared > 3
    assert report.removed >= gone, report.table()


@pytest.mark.parametrize(
    "count",
    [
        lambda y: y.nbytes // 8,
        lambda y: y.numel(),
        lambda y: y.nelement(),
        lambda y: y.shape.numel(),
        lambda y: math.prod(y.shape),
        lambda y: len(y) * y.size(1) * y.size(2) * y.size(3),
    ],
)
def test_code_that_counts_elements(count: Callable[[Tensor], int]) -> None:
    def large(net: Net, x: Tensor) -> Tensor:
        y = net.stem(x)
        return net.head(net.bn(y).relu() if count(y) <= 8 * 288 else y.relu())

    check(large, 0, verify=False)


def padded_if_odd(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.stem(x).sigmoid())
    if y.shape[2] % 2:
        y = functional.pad(y, (0, 0, 0, 1))
    if y.shape[3] % 2:
        y = functional.pad(y, (0, 1))
    return net.tight(y)


def padded_if_any_is_odd(net: Net, x: Tensor) -> Tensor:
    """As in Swin's patch merging."""
    y = net.bn(net.stem(x).sigmoid())
    _, _, h, w = y.shape
    if (h % 2 == 1) or (w % 2 == 1):
        y = functional.pad(y, (0, w % 2, 0, h % 2))
    parts = [y[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    return net.join(torch.cat(parts, 1)[:, :16])


def padded_if_not_odd(net: Net, x: Tensor) -> Tensor:
    """The example takes the pad, others do not."""
    y = net.bn(net.stem(x).sigmoid())
    return net.tight(y if y.size(-1) % 2 else functional.pad(y, (1, 0, 1, 0)))


def pooled_if_large(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.stem(x).sigmoid())
    if x.shape[-1] > 64:
        y = functional.max_pool2d(y, 2)
    return net.head(net.bn2(net.conv(y)))


def shrunk_if_large(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.stem(x).sigmoid())
    if min(x.shape[2:]) >= 32:
        y = functional.interpolate(y, scale_factor=0.5, mode="bilinear")
    return net.head(y)


def another_activation_if_large(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.stem(x).sigmoid())
    y = torch.sigmoid(y) if x.shape[-1] > 70 else functional.relu(y)
    return net.head(net.bn2(net.conv(y)))


def shifted_if_large(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.stem(x).sigmoid())
    return net.head(functional.relu(y) + 1 if x.shape[2] > 70 else y)


def same_padding(net: Net, x: Tensor) -> Tensor:
    """As in EfficientNet: the amount follows from the size."""
    y = net.bn(net.stem(x).sigmoid())
    h, w = y.size()[-2:]
    pads = [max((math.ceil(n / 2) - 1) * 2 + 3 - n, 0) for n in (h, w)]
    y = functional.pad(
        y, [pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2]
    )
    return functional.conv2d(y, net.tight.weight, net.tight.bias, stride=2)


def same_padding_where_needed(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.stem(x).sigmoid())
    h, w = y.shape[-2:]
    pads = [max((-(-n // 3) - 1) * 3 + 3 - n, 0) for n in (h, w)]
    if any(p > 0 for p in pads):
        y = functional.pad(y, [0, pads[1], 0, pads[0]])
    return functional.conv2d(y, net.tight.weight, net.tight.bias, stride=3)


def unet(align: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Run:
    def run(net: Net, x: Tensor) -> Tensor:
        skip = net.relu(net.bn(net.stem(x).sigmoid()))
        y = net.bn2(net.conv(functional.max_pool2d(skip, 2)))
        y, skip = align(net.bn3(net.up(y)), skip)
        return net.head(net.join(torch.cat([y, skip], 1)))

    run.__name__ = f"unet_{align.__name__}"
    return run


@unet
def padded(y: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    h, w = skip.size(2) - y.size(2), skip.size(3) - y.size(3)
    return functional.pad(y, [w // 2, w - w // 2, h // 2, h - h // 2]), skip


@unet
def padded_if_differing(y: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    if y.shape[2:] != skip.shape[2:]:
        h, w = (a - b for a, b in zip(skip.shape[2:], y.shape[2:], strict=True))
        y = functional.pad(y, (0, w, 0, h))
    return y, skip


@unet
def replicated_if_differing(y: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    """As in fastai and MONAI."""
    pads = [0, skip.shape[3] - y.shape[3], 0, skip.shape[2] - y.shape[2]]
    return (functional.pad(y, pads, "replicate") if any(pads) else y), skip


@unet
def resized_if_differing(y: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    if y.shape != skip.shape:
        y = functional.interpolate(y, size=skip.shape[2:], mode="bilinear")
    return y, skip


@unet
def cropped(y: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    return y, skip[:, :, : y.shape[2], : y.shape[3]]


@unet
def cropped_in_the_middle(y: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    h, w = (skip.shape[2] - y.shape[2]) // 2, (skip.shape[3] - y.shape[3]) // 2
    if h or w:
        skip = skip[:, :, h : h + y.shape[2], w : w + y.shape[3]]
    return functional.pad(y, (0, 0)), skip[:, :, : y.shape[2], : y.shape[3]]


def padded_deep_down(net: Net, x: Tensor) -> Tensor:
    """Odd only after three layers that halve; the example is even there."""
    y = net.relu(net.bn(net.stem(x).sigmoid()))
    for _ in range(3):
        y = functional.max_pool2d(y, 2, ceil_mode=True)
    y = net.bn2(net.conv(y))
    if y.shape[2] % 2:
        y = functional.pad(y, (0, 0, 0, 1))
    return net.tight(functional.pad(y, (1, 1, 1, 1), "replicate"))


def windows(net: Net, x: Tensor) -> Tensor:
    """Window attention with padding, and without."""
    y = net.bn(net.stem(x).sigmoid()).permute(0, 2, 3, 1)
    n, h, w, c = y.shape
    bottom, right = (4 - h % 4) % 4, (4 - w % 4) % 4
    if bottom > 0 or right > 0:
        y = functional.pad(y, (0, 0, 0, right, 0, bottom))
    _, hp, wp, _ = y.shape
    y = y.view(n, hp // 4, 4, wp // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
    y = net.line(y).view(n, hp // 4, wp // 4, 4, 4, 2).permute(0, 1, 3, 2, 4, 5)
    return y.reshape(n, hp, wp, 2)[:, :h, :w].permute(0, 3, 1, 2)


def loop_over_rows(net: Net, x: Tensor) -> Tensor:
    y, state = net.bn(net.stem(x).sigmoid()), torch.zeros_like(x[:, :1, 0])
    for row in range(y.shape[2]):
        state = state + y[:, :, row]
    return net.line(state.transpose(1, 2))


def halved_while_large(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.stem(x).sigmoid())
    while y.shape[-1] > 8:
        y = functional.relu(net.bn2(net.strided(y)))
    return net.head(y)


def early_exit(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.stem(x).sigmoid())
    if x.shape[2] * x.shape[3] < 100:
        return net.head(y)
    return net.head(functional.relu(net.bn2(net.conv(y))))


def by_batch(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.stem(x).sigmoid())
    return net.head(y if len(x) > 1 else torch.tanh(y))


def one_by_one(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.stem(x).sigmoid())
    return torch.stack([net.head(part) for part in y])


def first_against_the_others(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.stem(x).sigmoid())
    if x.size(0) == 1:
        return net.head(y)
    return net.head(torch.cat([y[:1], functional.relu(y[1:])]))


def not_square(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.stem(x).sigmoid())
    h, w = y.shape[-2:]
    if h != w:
        side = max(h, w)
        y = functional.pad(y, (0, side - w, 0, side - h))
    return net.tight(y)


def transposed_if_wide(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.stem(x).sigmoid())
    return net.head(torch.tanh(y.transpose(2, 3)) if x.shape[3] > x.shape[2] else y)


def tried(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.stem(x).sigmoid())
    try:
        y = y.view(*y.shape[:2], y.shape[2] // 2, 2, y.shape[3]).mean(3)
    except RuntimeError:
        y = torch.sigmoid(y)
    return net.head(y)


def grid(net: Net, x: Tensor) -> Tensor:
    """As in a detector's head: what is added follows from the size."""
    y = net.head(net.bn(net.stem(x).sigmoid()))
    rows, columns = torch.meshgrid(
        torch.arange(y.shape[2], dtype=D), torch.arange(y.shape[3], dtype=D), indexing="ij"
    )
    return y.sigmoid() + torch.stack([rows, columns])[None]


def cached_grid(net: Net, x: Tensor) -> Tensor:
    y = net.head(net.bn(net.stem(x).sigmoid()))
    known = net.__dict__.get("grid")
    if known is None or known.shape[-2:] != y.shape[-2:]:
        known = net.grid = torch.linspace(0, 1, y.shape[2], dtype=D)[:, None].expand(y.shape[2:])
    return y + known


def global_pool(net: Net, x: Tensor) -> Tensor:
    y = functional.relu(net.bn(net.stem(x).sigmoid()))
    return net.head(functional.avg_pool2d(net.bn2(net.conv(y)), y.size()[2:]))


def scaled_by_area(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.stem(x).sigmoid())
    return net.head(net.bn2(net.conv(y)) / (x.shape[2] * x.shape[3]) ** 0.5)


def other_layer_if_large(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.stem(x).sigmoid())
    return net.head(net.conv(y) if x.shape[2] < 50 else net.strided(y))


def other_input_if_large(net: Net, x: Tensor) -> Tensor:
    """The same ops, of other values."""
    y = net.stem(x).sigmoid()
    z = net.bn(y)
    return net.head(z if x.shape[2] < 50 else y)


def other_output_if_odd(net: Net, x: Tensor) -> Tensor:
    y = net.head(net.bn(net.stem(x).sigmoid()))
    z = torch.sigmoid(y)
    return z if x.shape[2] % 2 else y


def middle_row(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.stem(x).sigmoid())
    return net.line(y[:, :, y.shape[2] // 2].mT).mean(1) + net.line(y[..., -1].mT).mean(1)


def half_the_size(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.stem(x).sigmoid())
    one, two = y.split([y.shape[2] // 2, y.shape[2] - y.shape[2] // 2], 2)
    return net.head(torch.cat([functional.relu(one), two], 2))


def rolled_by_half(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.stem(x).sigmoid())
    return net.head(torch.roll(y, (y.shape[2] // 2, y.shape[3] // 2), (2, 3)))


def in_place_if_large(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.stem(x).sigmoid())
    if x.shape[-1] >= 64:
        y[:, :, ::2].mul_(0.5)
    return net.head(y)


class Block(nn.Module):
    """Asks for sizes in a submodule of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({"even": nn.Identity(), "odd": nn.ReLU()})

    def forward(self, y: Tensor) -> Tensor:
        return self.branches["odd" if y.shape[-1] % 2 else "even"](y)


def routed_by_name(net: Net, x: Tensor) -> Tensor:
    if not hasattr(net, "block"):
        net.block = Block()
    return net.head(net.block(net.bn(net.stem(x).sigmoid())))


PROGRAMS: list[tuple[Run, int]] = [
    (padded_if_odd, 0),
    (padded_if_any_is_odd, 0),
    (padded_if_not_odd, 0),
    (pooled_if_large, 1),
    (shrunk_if_large, 1),
    (another_activation_if_large, 1),
    (shifted_if_large, 0),
    (same_padding, 0),
    (same_padding_where_needed, 0),
    (padded, 2),
    (padded_if_differing, 2),
    (replicated_if_differing, 2),
    (resized_if_differing, 2),
    (cropped, 2),
    (cropped_in_the_middle, 2),
    (padded_deep_down, 1),
    (windows, 0),
    (loop_over_rows, 0),
    (halved_while_large, 1),
    (early_exit, 1),
    (by_batch, 0),
    (one_by_one, 1),
    (first_against_the_others, 0),
    (not_square, 0),
    (transposed_if_wide, 0),
    (tried, 0),
    (grid, 1),
    (cached_grid, 1),
    (global_pool, 1),
    (scaled_by_area, 1),
    (other_layer_if_large, 0),
    (other_input_if_large, 0),
    (other_output_if_odd, 1),
    (middle_row, 1),
    (half_the_size, 0),
    (rolled_by_half, 1),
    (in_place_if_large, 0),
    (routed_by_name, 0),
]


@pytest.mark.parametrize("run, gone", PROGRAMS, ids=[run.__name__ for run, _ in PROGRAMS])
def test_right_on_every_size(run: Run, gone: int):
    """The proof takes nothing back that should go."""
    check(run, gone, verify=True)


FIRST = pairwise([run for run, _ in PROGRAMS], [(1, 4, 13, 13), (1, 4, 40, 72)], lambda run: ())


@pytest.mark.parametrize(("run", "first"), FIRST, ids=lambda part: getattr(part, "__name__", None))
def test_right_from_every_size(run: Run, first: tuple[int, ...]):
    """Without the proof, which would take a wrong fold back."""
    check(run, 0, verify=False, first=first)


def reads_of(run: Run, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a fold runs the program to read it."""
    reads = []

    def counted(*args: object, **options: object) -> object:
        reads.append(1)
        return read_module(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(read_other_sizes, "read_module", counted)
    x = torch.randn(2, 4, 12, 12, dtype=D)
    bnfold.fold(trained(Net(run)), x, verify=False, merge="never")
    return len(reads)


def test_who_asks_for_no_size_is_read_once(monkeypatch):
    assert (
        reads_of(lambda net, x: net.head(torch.flatten(net.bn(net.stem(x)), 3)), monkeypatch) == 1
    )


def test_who_asks_for_the_channels_of_a_weight_is_read_once(monkeypatch):
    def run(net: Net, x: Tensor) -> Tensor:
        assert net.stem.weight.shape[1] == 4
        return net.head(net.bn(net.stem(x)))

    assert reads_of(run, monkeypatch) == 1


def test_who_compares_no_size_is_read_on_two_others(monkeypatch):
    def run(net: Net, x: Tensor) -> Tensor:
        return net.head(net.bn(net.stem(x))) / x.shape[2]

    assert reads_of(run, monkeypatch) == 3


def test_nothing_to_fold_is_read_once(monkeypatch):
    assert reads_of(lambda net, x: net.stem(x)[:, :, : x.shape[2] // 2], monkeypatch) == 1


def test_sizes_are_plain_numbers_again():
    bnfold.fold(trained(Net(same_padding)), torch.randn(2, 4, 12, 12, dtype=D))
    x = torch.zeros(2, 3)
    assert {type(n) for n in (*x.shape, *x.size(), x.size(0), x.numel(), len(x))} == {int}
    assert "shape" not in vars(torch.Tensor)
    assert "size" not in vars(torch.Tensor)


def test_the_report_counts_calls_on_the_example():
    net = trained(Net(early_exit))
    report = bnfold.inspect(net, torch.randn(2, 4, 12, 12, dtype=D))
    assert {item.name: item.calls for item in report.items} == {"bn": 1, "bn2": 1, "bn3": 0}


def test_the_proof_runs_another_size():
    """Where the two part, the proof sees it on its own."""
    net = trained(Net(pooled_if_large))
    recording = read_other_sizes.read_as_needed(net, [torch.randn(2, 4, 12, 12, dtype=D)])
    assert any(further.is_other for further in recording.further)
    assert all(run.shape[1] == 4 for further in recording.further for run in further.runs)
