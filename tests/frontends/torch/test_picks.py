"""Indices and masks that are computed, or passed in: the axes that they do not pick on go on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bnfold
from tests.frontends.torch.support import assert_same, build, run
from tests.tolerances import EXACT

Pick = Callable[[Tensor, Tensor], Tensor]
"""What is picked of (samples, 4 channels, places), by a score of (samples, places)."""


def _gathered(x: Tensor, score: Tensor) -> Tensor:
    return x.gather(2, score.argsort(1)[:, None, :2].expand(-1, 4, -1))


def _fewer_channels(x: Tensor, score: Tensor) -> Tensor:
    return x.gather(2, score.argsort(1)[:, None, :2].expand(-1, 3, -1))


def _best(x: Tensor, score: Tensor) -> Tensor:
    return torch.take_along_dim(x, score.topk(2, 1).indices[:, None], 2)


def _apart(x: Tensor, score: Tensor) -> Tensor:
    sample, place = (score > 0).nonzero(as_tuple=True)
    return x[sample, :, place]


def _together(x: Tensor, score: Tensor) -> Tensor:
    sample, place = (score > 0).nonzero(as_tuple=True)
    return x.transpose(1, 2)[sample, place]


def _one_sample_in_a_grid(x: Tensor, score: Tensor) -> Tensor:
    return x.transpose(0, 1)[:, score.argsort(1) % len(x)].transpose(0, 1).flatten(2)


PICKS: dict[str, Pick] = {
    "mask of places": lambda x, score: x[:, :, score[0] > 0],
    "mask of samples": lambda x, score: x[score[:, 0] > -9],
    "mask of both": lambda x, score: x.transpose(1, 2)[score > 0],
    "places": lambda x, score: x[:, :, score[0].argsort()[:2]],
    "one place": lambda x, score: x[:, :, score[0].argmax()],
    "grid": lambda x, score: x[:, :, score.argsort(1)].flatten(2),
    "index_select": lambda x, score: x.index_select(2, score[0].argsort()),
    "negative axis": lambda x, score: x.index_select(-1, score[0].argsort()[:1]),
    "gather": _gathered,
    "fewer channels": _fewer_channels,
    "take_along_dim": _best,
    "apart": _apart,
    "together": _together,
    "an axis in front": _one_sample_in_a_grid,
    "a mask and a number": lambda x, score: x[score[:, 0] > -9, :, score[0].argmax()],
}
ACROSS: dict[str, Pick] = {
    "channels": lambda x, score: x[:, score[0, :4].argsort()],
    "a mask of channels": lambda x, score: x[:, score[0, :4] > -9],
    "gathered channels": lambda x, score: x.gather(1, score[:, :4].argsort(1)[:, :, None]),
    "samples and channels": lambda x, score: x[score[:, :4] > -9].reshape(-1, 4),
}
"""Those that pick channels."""


class Behind(nn.Module):
    def __init__(self, pick: Pick, channels: int) -> None:
        super().__init__()
        self.conv, self.bn, self.pick = nn.Conv1d(3, 4, 1), nn.BatchNorm1d(channels), pick

    def forward(self, x: Tensor, score: Tensor) -> Tensor:
        return self.bn(self.pick(self.conv(x), score))


class InFront(nn.Module):
    def __init__(self, pick: Pick, channels: int) -> None:
        super().__init__()
        self.bn, self.pick = nn.BatchNorm1d(4), pick
        self.conv, self.linear = nn.Conv1d(channels, 3, 1), nn.Linear(channels, 3)

    def forward(self, x: Tensor, score: Tensor) -> Tensor:
        picked = self.pick(self.bn(torch.cat([x, x[:, :1]], 1).sigmoid()), score)
        return self.conv(picked) if picked.ndim == 3 else self.linear(picked)


def samples() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for count, places in ((2, 5), (2, 5), (3, 6)):
        x = torch.randn(count, 3, places, dtype=torch.float64, generator=generator)
        made.append((x, torch.randn(count, places, dtype=torch.float64, generator=generator)))
    return made


@pytest.mark.parametrize("kind", [Behind, InFront])
@pytest.mark.parametrize("name", PICKS)
def test_what_is_picked_of_other_axes(name, kind):
    model = build(kind(PICKS[name], 3 if name == "fewer channels" else 4))
    example, *others = samples()
    folded, report = bnfold.fold(model, example, verify=False)
    assert report.removed == 1, report
    for inputs in (example, *others):
        assert_same(run(model, inputs), run(folded, inputs), EXACT)


@pytest.mark.parametrize("kind", [Behind, InFront])
@pytest.mark.parametrize("name", ACROSS)
def test_what_is_picked_of_channels(name, kind):
    model = build(kind(ACROSS[name], 4))
    example, *others = samples()
    folded, report = bnfold.fold(model, example, verify=False)
    assert report.kept == 1, report
    for inputs in (example, *others[:1]):
        assert_same(run(model, inputs), run(folded, inputs), EXACT)


def test_a_graph_whose_edges_are_an_input():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sink, self.source = nn.Linear(6, 5), nn.Linear(6, 5)
            self.bn = nn.BatchNorm1d(5)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return torch.sigmoid(self.bn(self.sink(x)[edges[0]] + self.source(x)[edges[1]]))

    model = build(Gated())
    x = torch.randn(7, 6, dtype=torch.float64)
    edges = torch.randint(0, 7, (2, 12))
    for given in (model, torch.export.export(model, (x, edges))):
        folded, report = bnfold.fold(given, (x, edges)) if given is model else bnfold.fold(given)
        assert report.kept == 0, report
        runnable = folded if given is model else folded.module()
        for other in (edges, edges.flip(1), edges.flip(0)):
            assert_same(run(model, (x, other)), run(runnable, (x, other)), EXACT)


# ------------------------------------------------------------------ sums of who knows how many


Aggregate = Callable[["GraphConv", Tensor, Tensor, Tensor], Tensor]


class GraphConv(nn.Module):
    """What flows along the edges to each node is added up, and normalised."""

    def __init__(self, aggregate: Aggregate) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(6, 5), nn.BatchNorm1d(5)
        self.bias = nn.Parameter(torch.randn(5))
        self.register_buffer("memory", torch.zeros(7, 5))
        self.runs = 0
        self.aggregate = aggregate

    def forward(self, x: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
        y = self.linear(x)
        return self.bn(self.aggregate(self, y, edges, weights) + self.bias)


def _added(net: GraphConv, y: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
    return y.new_zeros(y.shape).index_add(0, edges[1], y[edges[0]] * weights[:, None])


def _added_in_place(net: GraphConv, y: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
    out = torch.zeros(y.shape[0], 5, dtype=y.dtype)
    out.index_add_(0, edges[1], y.index_select(0, edges[0]))
    return out


def _scattered(net: GraphConv, y: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
    flow = y[edges[0]]
    return torch.zeros_like(y).scatter_add_(0, edges[1].view(-1, 1).expand_as(flow), flow)


def _means(net: GraphConv, y: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
    degree = y.new_zeros(y.shape[0]).index_add_(0, edges[1], torch.ones_like(weights))
    return _added(net, y, edges, weights) / degree.clamp(min=1)[:, None]


AGGREGATES = (_added, _added_in_place, _scattered, _means)


def graphs() -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (
            torch.randn(nodes, 6, dtype=torch.float64, generator=generator),
            torch.randint(0, nodes, (2, edges), generator=generator),
            torch.rand(edges, dtype=torch.float64, generator=generator),
        )
        for nodes, edges in ((7, 12), (7, 12), (9, 20), (4, 3))
    ]


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_a_batch_norm_behind_a_graph_convolution(aggregate):
    model = build(GraphConv(aggregate))
    example, *others = graphs()
    folded, report = bnfold.fold(model, example)
    assert report.kept == 0, report
    for inputs in (example, *others):
        assert_same(run(model, inputs), run(folded, inputs), EXACT)


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("is_open", [False, True])
def test_the_same_as_a_program(aggregate, is_open):
    model = build(GraphConv(aggregate))
    example, *others = graphs()
    auto = torch.export.Dim.AUTO
    shapes = ({0: auto}, {1: auto}, {0: auto}) if is_open else None
    folded, report = bnfold.fold(torch.export.export(model, example, dynamic_shapes=shapes))
    assert report.kept <= 1, report  # the sum with the bias is a step as well
    for inputs in (example, *others) if is_open else (example, *others[:1]):
        assert_same(run(model, inputs), run(folded.module(), inputs), EXACT)


def _in_a_buffer(net: GraphConv, y: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
    return net.memory.index_add_(0, edges[1], y[edges[0]]).clone()


def _to_a_count(net: GraphConv, y: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
    net.runs += 1
    return torch.full_like(y, net.runs - 1.0).index_add_(0, edges[1], y[edges[0]])


def _to_ones(net: GraphConv, y: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
    return torch.ones_like(y).index_add(0, edges[1], y[edges[0]])


def _twice(net: GraphConv, y: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
    out = torch.zeros_like(y)
    out.index_add_(0, edges[1], y[edges[0]])
    out.index_add_(0, edges[0], weights[:, None].expand(-1, 5))
    return out


def _read_before(net: GraphConv, y: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
    out = torch.zeros_like(y)
    before = out[1:]
    out.index_add_(0, edges[1], y[edges[0]])
    return out * before.sum()


def _channels(net: GraphConv, y: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
    return torch.zeros_like(y).index_add(1, edges[0][:5] % 5, y)


def _part_of_it(net: GraphConv, y: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
    flow = y[edges[0]]
    return torch.zeros_like(y).scatter_add(0, edges[1, :2, None].expand(-1, 5), flow)


def _halved(net: GraphConv, y: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
    return torch.zeros_like(y).index_add(0, edges[1], y[edges[0]], alpha=0.5)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    "aggregate",
    [
        *(_in_a_buffer, _to_a_count, _to_ones, _twice),
        *(_read_before, _channels, _part_of_it, _halved),
    ],
)
def test_what_is_added_to_something_else(aggregate, verify):
    model = build(GraphConv(aggregate))
    example, *others = graphs()
    folded, _ = bnfold.fold(model, example, verify=verify)
    for inputs in (example, *others[:1], example):
        assert_same(run(model, inputs), run(folded, inputs), EXACT)
