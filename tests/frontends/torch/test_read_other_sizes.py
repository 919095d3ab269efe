"""Which channel an element belongs to may depend on the size: right on every size, or kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bnfold
from bnfold.frontends.torch import read_other_sizes
from bnfold.frontends.torch.read import read_module

D = torch.float64
SIZES = [(2, 4, 6, 6), (3, 4, 6, 6), (2, 4, 9, 6), (2, 4, 6, 10), (1, 4, 12, 4)]


class Net(nn.Module):
    """A BatchNorm on the input, what a test does behind it, and a head."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.stem, self.bn, self.run = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), forward
        self.relu = nn.ReLU()
        for name, part in parts.items():
            setattr(self, name, part)

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


def check(net: Net, *, gone: int, verify: bool, **options: str) -> None:
    """Folded on the first size, right on all that the original takes."""
    folded, report = bnfold.fold(net, torch.randn(SIZES[0], dtype=D), verify=verify, **options)
    for size in SIZES:
        x = torch.randn(size, dtype=D)
        try:
            want = net(x)
        except RuntimeError:
            continue
        assert (folded(x) - want).abs().max() <= 1e-9 * want.abs().max(), size
    assert report.removed == gone, report.table()


def first_channels_of_flat(net: Net, x: Tensor) -> Tensor:
    return net.bn(torch.sigmoid(x)).flatten(1)[:, :70].sigmoid() @ net.w


def rows_as_channels(net: Net, x: Tensor) -> Tensor:
    y = net.bn(torch.sigmoid(x))
    return net.conv(y.transpose(1, 2).reshape(x.shape[0], -1, 2, x.shape[3] * 2)[:, :5])


def unfolded_and_cut(net: Net, x: Tensor) -> Tensor:
    y = net.bn(torch.sigmoid(x)).reshape(x.shape[0], -1, x.shape[3])
    return net.line(y[:, 2:7].transpose(1, 2))


def batch_beside_channels(net: Net, x: Tensor) -> Tensor:
    y = net.bn(torch.sigmoid(x)).transpose(0, 1).reshape(1, -1, *x.shape[2:])
    return net.conv(y[:, :8])


def beside_zeros_along_the_width(net: Net, x: Tensor) -> Tensor:
    y = torch.cat([torch.zeros_like(x[..., :2]), net.bn(torch.sigmoid(x))], 3)
    return net.conv(net.relu(y))


def beside_itself_along_the_batch(net: Net, x: Tensor) -> Tensor:
    x = torch.sigmoid(x)
    return net.conv(net.relu(torch.cat([x, net.bn(x)], 0)))


def every_third_of_flat(net: Net, x: Tensor) -> Tensor:
    y = net.bn(torch.sigmoid(x)).flatten(1)[:, ::3]
    return functional.adaptive_avg_pool1d(y.sigmoid()[:, None], 5).flatten(1) @ net.w[:5]


class Flat(Net):
    """With a matrix of its own."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__(forward)
        self.w = nn.Parameter(torch.randn(70, 3))


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Flat(first_channels_of_flat),
        lambda: Flat(every_third_of_flat),
        lambda: Net(rows_as_channels, conv=nn.Conv2d(5, 3, 1)),
        lambda: Net(unfolded_and_cut, line=nn.Linear(5, 3)),
        lambda: Net(batch_beside_channels, conv=nn.Conv2d(8, 3, 1)),
        lambda: Net(beside_zeros_along_the_width, conv=nn.Conv2d(4, 3, 1)),
        lambda: Net(beside_itself_along_the_batch, conv=nn.Conv2d(4, 3, 1)),
    ],
)
def test_what_depends_on_the_size_stays(make, verify):
    check(trained(make()), gone=0, verify=verify, clip="always")


def shuffled(net: Net, x: Tensor) -> Tensor:
    y = net.bn(torch.sigmoid(x))
    n, c, h, w = y.shape
    return net.conv(y.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


def tokens(net: Net, x: Tensor) -> Tensor:
    return net.line(net.bn(torch.sigmoid(x)).flatten(2).transpose(1, 2))


def pooled_and_flat(net: Net, x: Tensor) -> Tensor:
    return net.line(functional.adaptive_avg_pool2d(net.bn(torch.sigmoid(x)), 1).flatten(1))


def bigger_pixels(net: Net, x: Tensor) -> Tensor:
    return net.conv(functional.pixel_unshuffle(net.bn(torch.sigmoid(x)), 2))


def beside_itself_along_the_height(net: Net, x: Tensor) -> Tensor:
    y = net.bn(torch.sigmoid(x))
    return net.conv(torch.cat([y, y.flip(2)], 2))


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Net(shuffled, conv=nn.Conv2d(4, 3, 1)),
        lambda: Net(tokens, line=nn.Linear(4, 3)),
        lambda: Net(pooled_and_flat, line=nn.Linear(4, 3)),
        lambda: Net(bigger_pixels, conv=nn.Conv2d(16, 3, 1)),
        lambda: Net(beside_itself_along_the_height, conv=nn.Conv2d(4, 3, 1)),
    ],
)
def test_what_does_not_goes(make, verify):
    check(trained(make()), gone=1, verify=verify)


def padded_to_even(net: Net, x: Tensor) -> Tensor:
    y = net.bn(torch.sigmoid(x))
    gate = y.flatten(1).sigmoid().mean()
    if x.shape[2] % 2:
        y = functional.pad(y, [0, 0, 0, 1])
    return net.conv(y) * gate


def test_another_path_on_another_size():
    """A shift cannot cross the zeros that are there for odd heights alone."""
    check(trained(Net(padded_to_even, conv=nn.Conv2d(4, 3, 1))), gone=0, verify=False)


def tracked_instance_norm(net: Net, x: Tensor) -> Tensor:
    return net.norm(torch.sigmoid(x))


def images_as_groups(net: Net, x: Tensor) -> Tensor:
    kernel, images = (
        net.line.weight.repeat(len(x), 1).view(-1, 1, 1, 1),
        x.reshape(1, -1, *x.shape[2:]),
    )
    return functional.conv2d(images, kernel, groups=kernel.shape[0]).view_as(x)


def gains_of_merged_images(net: Net, x: Tensor) -> Tensor:
    gains = net.line.weight.repeat(len(x), 1).view(1, -1, 1, 1)
    return (x.sigmoid().reshape(1, -1, *x.shape[2:]) * gains).view_as(x)


def rows_normalised_apart(net: Net, x: Tensor) -> Tensor:
    mean = torch.linspace(0, 1, x.shape[2], dtype=x.dtype)
    rows = x.sigmoid().transpose(1, 2)
    return functional.batch_norm(rows, mean, mean + 1).transpose(1, 2)


def mixed_along_the_width(net: Net, x: Tensor) -> Tensor:
    return functional.linear(x, net.wide.weight[: x.shape[3], : x.shape[3]])


def blurred_along_the_height(net: Net, x: Tensor) -> Tensor:
    kernel = torch.eye(x.shape[2], dtype=x.dtype)[:, :, None, None]
    return functional.conv2d(x.transpose(1, 2), kernel).transpose(1, 2)


def scaled_per_image(net: Net, x: Tensor) -> Tensor:
    return x.sigmoid() * net.table(torch.arange(len(x))).view(len(x), -1, 1, 1)


@pytest.mark.parametrize("clip", ["auto", "always"])
@pytest.mark.parametrize(
    "between",
    [
        tracked_instance_norm,
        images_as_groups,
        gains_of_merged_images,
        rows_normalised_apart,
        mixed_along_the_width,
        blurred_along_the_height,
        scaled_per_image,
    ],
)
def test_bounds_are_made_for_every_size(between, clip):
    """What the forward makes as long as an axis brings channels of its own along it."""
    net = Net(
        lambda net, x: net.conv(net.relu(net.bn(between(net, x)))),
        conv=nn.Conv2d(4, 3, 1),
        norm=nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        line=nn.Linear(4, 1),
        wide=nn.Linear(12, 12),
        table=nn.Embedding(4, 4),
    )
    check(trained(net), gone=1, verify=False, clip=clip)


def test_a_norm_whose_constants_are_repeated_is_kept_for_that():
    net = trained(
        Net(
            lambda net, x: net.conv(net.relu(net.bn(tracked_instance_norm(net, x)))),
            conv=nn.Conv2d(4, 3, 1),
            norm=nn.InstanceNorm2d(4, track_running_stats=True),
        )
    )
    _, report = bnfold.fold(net, torch.randn(SIZES[0], dtype=D))
    (kept,) = (item for item in report.items if not item.is_removed)
    assert kept.reason is bnfold.Reason.NOT_CONSTANT


def test_a_plain_network_is_read_once(monkeypatch):
    reads = []
    monkeypatch.setattr(
        read_other_sizes,
        "read_module",
        lambda *args, **options: reads.append(1) or read_module(*args, **options),
    )
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    ).eval()
    bnfold.fold(net, torch.randn(1, 4, 6, 6), verify=False)
    assert len(reads) == 1


def padded_to_windows(net: Net, x: Tensor) -> Tensor:
    y = functional.pad(net.bn(torch.sigmoid(x)), [0, -x.shape[3] % 4, 0, -x.shape[2] % 4])
    n, c, h, w = y.shape
    y = y.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)
    return net.line(y)


def test_a_pad_that_follows_the_size():
    """Padding by an amount that other sizes change counts as padding."""
    check(trained(Net(padded_to_windows, line=nn.Linear(4, 3))), gone=0, verify=False)


def test_a_state_that_another_size_does_not_fit() -> None:
    """It is refused for that, and not for the example inputs, which are taken."""

    def appends(net: Net, x: Tensor) -> Tensor:
        y = net.bn(net.stem(x)).mean((2, 3))
        rows = len(y)
        if net.rows + rows > len(net.kept):
            net.kept = torch.cat([net.kept, torch.zeros_like(net.kept)])
        net.kept[net.rows : net.rows + rows] = y
        net.rows += rows
        return net.kept[: net.rows].clone()

    net = Net(appends)
    net.rows = 0
    net.register_buffer("kept", torch.zeros(2, 4))
    x = torch.rand(2, 4, 6, 6, dtype=D)
    with pytest.raises(bnfold.UnsupportedModelError, match="on one size after the other"):
        bnfold.fold(trained(net), x)
