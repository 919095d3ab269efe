"""What `bnfold.verify` expects inside of a folded module or program, through what was merged."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # as everybody calls it

import bnfold
from tests.frontends.torch.support import build, image

X = image(2, 8, 7, 7)


def normed(kernel):
    return nn.Sequential(
        nn.Conv2d(8, 8, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(8)
    )


class Plain(nn.Module):
    """Layers that are compared, whatever is merged beside them."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(normed(3), nn.ReLU(), normed(1), nn.ReLU(), normed(3))

    def forward(self, x):
        return F.relu(self.layers(x))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn, self.wide, self.point = nn.BatchNorm2d(8), normed(3), normed(1)

    def forward(self, x):
        return F.relu(self.bn(x) + self.wide(x) + self.point(x))


class Counted(Branches):
    """Where the convolution stands in the place of the BatchNorm."""

    def forward(self, x):
        short, out = self.bn(x), 0
        for part in (self.wide, self.point):
            out += part(x)
        out += short
        return F.relu(out)


class Kept(Branches):
    """Two of three operands are one: the sum stays."""

    def forward(self, x):
        return F.relu(self.wide(x) + F.gelu(x) + self.point(x))


class InARow(nn.Module):
    def __init__(self):
        super().__init__()
        self.point, self.wide = nn.Conv2d(8, 8, 1, bias=False), normed(3)

    def forward(self, x):
        return F.relu(self.wide(self.point(x)))


class Halved(nn.Module):
    """A number in code, which a fold knows."""

    def __init__(self):
        super().__init__()
        self.first, self.second = normed(3), normed(3)

    def forward(self, x):
        return self.second(F.relu(self.first(x) * 0.5))


class Partial(Branches):
    """Sums in between hold more of what is merged, or less."""

    def forward(self, x):
        other = F.gelu(x)
        return F.relu(((self.wide(x) - other) + self.bn(x)) + (F.silu(x) - self.point(x)))


BLOCKS = [Branches, Counted, Kept, InARow, Halved, Partial]


def network(block):
    return build(nn.Sequential(Plain(), block(), Plain())).float()


def folded(form, block, merge):
    """A network, and its fold, as modules or as programs."""
    model = network(block)
    if form == "module":
        return model, *bnfold.fold(model, X.float(), merge=merge, verify=False)
    program = torch.export.export(model, (X.float(),))
    return program, *bnfold.fold(program, merge=merge, verify=False)


CASES = [(block, form) for block in BLOCKS for form in ("module", "program")]
CASES_IN_WORDS = [f"{block.__name__} as {form}" for block, form in CASES]


@pytest.mark.parametrize(("block", "form"), CASES, ids=CASES_IN_WORDS)
def test_layers_are_compared_through_a_merge(block, form):
    model, made, report = folded(form, block, "auto")
    assert bool(report.merged) == (block is not Halved)
    assert_compared(model, made)


@pytest.mark.parametrize("form", ["module", "program"])
def test_layers_are_compared_where_nothing_is_merged(form):
    model, made, report = folded(form, Branches, "never")
    assert not report.merged
    assert_compared(model, made)


def assert_compared(model, made):
    result = bnfold.verify(model, made, X.float())
    assert result.equal, result
    assert len(result.layers) >= 10
    assert all(layer.equal for layer in result.layers)


@pytest.mark.parametrize(
    ("block", "form"), [(Counted, "module"), (Kept, "module"), (Branches, "program")]
)
def test_a_fault_behind_a_merge_is_found_where_it_is(block, form):
    model, made, _ = folded(form, block, "auto")
    tensors = dict(made.named_parameters()) if form == "module" else made.state_dict
    with torch.no_grad():
        tensors["2.layers.2.0.weight"][3] *= 1.01
    result = bnfold.verify(model, made, X.float())
    assert not result.equal
    first = next(layer for layer in result.layers if not layer.equal)
    place = {"module": "2.layers.2.0", "program": "conv2d"}[form]
    assert first.name.startswith(place)
    assert first.channel == 3


class Asked(Branches):
    """Whose BatchNorm is asked for what nothing else has."""

    def forward(self, x):
        return F.relu(self.bn(x) + self.wide(x)) * self.bn.eps


def parts_of(block):
    return ["1", *(f"1.{name}" for name, _ in block().named_children())]


@pytest.mark.parametrize(("block", "merge"), [(Branches, "never"), (Counted, "auto")])
def test_layers_are_compared_beside_what_was_kept(block, merge):
    model = network(block)
    for keep in parts_of(block):
        made, _ = bnfold.fold(model, X.float(), keep=[keep], merge=merge, verify=False)
        result = bnfold.verify(model, made, X.float())
        assert result.equal, (keep, result)
        assert len(result.layers) >= 10
        assert all(layer.equal for layer in result.layers)


def test_a_fault_beside_what_was_kept_is_found_where_it_is():
    model = network(Branches)
    made, _ = bnfold.fold(model, X.float(), keep=["1.bn"])
    with torch.no_grad():
        made.get_parameter("2.layers.2.0.weight")[3] *= 1.01
    result = bnfold.verify(model, made, X.float())
    assert not result.equal
    first = next(layer for layer in result.layers if not layer.equal)
    assert (first.name, first.channel) == ("2.layers.2.0", 3)


def test_layers_are_compared_beside_a_step_that_had_to_stay():
    model = network(Asked)
    made, report = bnfold.fold(model, X.float())
    assert report.kept
    result = bnfold.verify(model, made, X.float())
    assert result.equal, result
    assert len(result.layers) >= 10
