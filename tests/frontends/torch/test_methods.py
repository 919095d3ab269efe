"""The note on methods that see tensors which are stored rescaled now: named if, and only if, so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bnfold
from tests.frontends.torch.support import assert_same, build, image, run

X = image(2, 3, 6, 6)


class Body(nn.Module):
    """Ends in an activation, so that a BatchNorm behind it reaches back into its convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class Stem(Body):
    def stem(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Base(nn.Module):
    """What the body returns is read by a BatchNorm alone, and stored as that would return it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.bn, self.head = Body(), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 2, 1)
        self.stages = nn.ModuleList([nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.keep_spread(self.bn(self.body(x))))
        for stage in self.stages:
            x = stage(x)
        return x

    def keep_spread(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


def taps(body: nn.Module, x: Tensor) -> Tensor:
    return body(x)


class Silent(Base):
    """Methods that need no note."""

    def predict(self, x: Tensor) -> Tensor:
        return self(x).argmax(1)

    def predict_with_forward(self, x: Tensor) -> Tensor:
        return self.forward(x) * 2

    def everything(self, x: Tensor) -> Tensor:
        x = self.head(torch.tanh(self.bn(self.body(x))))
        return self.stages[1](self.stages[0](x))

    def normalised(self, x: Tensor) -> Tensor:
        return self.bn(self.body(x))  # its values are what they were

    def up_to_the_head(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.normalised(x)))

    def classifier(self) -> nn.Module:
        return self.body

    def freeze(self, flag: bool = True) -> None:
        for parameter in self.body.parameters():
            parameter.requires_grad_(not flag)

    def channels(self, index: int) -> int:
        return self.body.conv.out_channels + index

    def reset(self, channels: int) -> None:
        self.body = Body()
        self.head = nn.Conv2d(channels, 2, 1)

    def _private(self, x: Tensor) -> Tensor:
        return self.body(x)


class Features(Base):
    def forward_features(self, x: Tensor) -> Tensor:
        return self.body(x)


class Head(Base):
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.bn(x)
        return x if pre_logits else self.head(x)


class Inner(Base):
    def early(self, x: Tensor) -> dict[str, Tensor]:
        return {"early": self.body.conv(x)}


class OfSubmodule(Base):
    def __init__(self) -> None:
        super().__init__()
        self.body = Stem()

    def early(self, x: Tensor) -> Tensor:
        return self.body.stem(x)


class Through(Base):
    def encode(self, x: Tensor) -> Tensor:
        return self._encode(x)

    def _encode(self, x: Tensor) -> Tensor:
        return self.body.act(self.body.conv.forward(x))


class Looped(Base):
    def collect(self, x: Tensor) -> list[Tensor]:
        return [part(x) for part in (self.body,)]


class Handed(Base):
    @torch.no_grad()
    def extract(self, x: Tensor) -> Tensor:
        return taps(self.body, x)


class Inherited(Features):
    def forward_features(self, x: Tensor) -> Tensor:
        return super().forward_features(x) * 2


class Listed(Base):
    """The list itself is never called."""

    def all_stages(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return x

    def without_stages(self, x: Tensor) -> Tensor:
        return self.head(self.keep_spread(self.bn(self.body(x))))


AT_RISK: dict[type[Base], set[str]] = {
    Silent: set(),
    Listed: set(),
    Features: {"forward_features"},
    Head: {"forward_head"},
    Inner: {"early"},
    OfSubmodule: {"early", "body.stem"},
    Through: {"encode"},
    Looped: {"collect"},
    Handed: {"extract"},
    Inherited: {"forward_features"},
}
PUBLIC = {
    kind: [name for name in vars(kind) if not name.startswith("_") and name not in {"reset"}]
    for kind in AT_RISK
}


def noted(report: bnfold.FoldReport) -> set[str]:
    """The methods that the notes name."""
    notes = [note for note in report.notes if "Called by themselves" in note]
    assert len(notes) <= 1
    named = notes[0].partition("rescaled now: ")[2].partition(". Name")[0] if notes else ""
    return set(named.split(", ")) - {""}


@pytest.mark.parametrize("kind", AT_RISK)
def test_methods_at_risk_are_named(kind: type[Base]) -> None:
    model = build(kind())
    folded, report = bnfold.fold(model, X, clip="always", merge="never")
    assert report.removed == report.total == 2
    assert noted(report) == AT_RISK[kind]
    assert noted(bnfold.inspect(model, X, clip="always", merge="never")) == AT_RISK[kind]
    for name in PUBLIC[kind]:
        expected, actual = result(model, name), result(folded, name)
        is_same = all(map(torch.allclose, expected, actual))
        assert is_same is (name not in AT_RISK[kind]), name


MERGED: dict[type[Base], set[str]] = {
    **AT_RISK,
    Silent: {"up_to_the_head"},
    Listed: {"all_stages", "without_stages"},
}
"""The head and the first stage are one convolution after a merge."""


@pytest.mark.parametrize("kind", MERGED)
def test_methods_that_run_a_part_of_a_merge_are_named(kind: type[Base]) -> None:
    model = build(kind())
    folded, report = bnfold.fold(model, X, clip="always")
    assert len(report.merged) == 1
    assert MERGED[kind] <= noted(report)
    for name in {*PUBLIC[kind]} - noted(report):
        assert all(map(torch.allclose, result(model, name), result(folded, name))), name
    kept, report = bnfold.fold(model, X, clip="always", keep=["head"])
    assert report.merged == ()
    assert_same(run(model, X), run(kept, X), 1e-9)


def result(model: nn.Module, name: str) -> list[Tensor]:
    """What a method returns, as far as that is tensors."""
    given: object = X
    if name in {"channels"}:
        given = 1
    elif name == "forward_head":
        given = image(2, 4, 4, 4)
    elif name == "all_stages":
        given = image(2, 2, 4, 4)
    function = getattr(model, name)
    with torch.no_grad():
        returned = function() if name in {"classifier", "freeze"} else function(given)
    leaves = torch.utils._pytree.tree_leaves(returned)
    return [leaf.double() for leaf in leaves if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("kind", [Features, Inner, Through, Looped, Handed, Inherited])
def test_methods_that_are_entered_or_whose_modules_are_kept_are_at_no_risk(
    kind: type[Base],
) -> None:
    (name,) = AT_RISK[kind]
    model = build(kind())
    for options in ({"entry": [name]}, {"keep": ["body"]}):
        folded, report = bnfold.fold(model, X, clip="always", **options)
        assert noted(report) == set()
        assert all(map(torch.allclose, result(model, name), result(folded, name)))


def test_nothing_is_at_risk_where_nothing_was_removed() -> None:
    class Sigmoid(Features):
        def keep_spread(self, x: Tensor) -> Tensor:
            return x

        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.bn(torch.sigmoid(self.body(x))))

    report = bnfold.inspect(build(Sigmoid()), X)
    assert report.removed == 0
    assert noted(report) == set()


class Block(nn.Module):
    """Its methods are at risk."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))

    def before(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def forward_fuse(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Two(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(Block(), Block())


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)

    def encode(self, x: Tensor) -> Tensor:
        return self.inner[0].conv(x)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (Block, {"before"}),
        (Two, {"0.before"}),
        (lambda: Wrapper(Two()), {"inner.0.before"}),
        (lambda: nn.Sequential(Wrapper(Wrapper(Block()))), {"0.inner.inner.before"}),
        (lambda: nn.Sequential(Two(), nn.ReLU()), set()),
    ],
)
def test_the_methods_of_the_model_and_its_direct_submodules_count_once_per_class(
    make: Callable[[], nn.Module], named: set[str]
) -> None:
    assert noted(bnfold.inspect(build(make()), X)) == named


def test_methods_that_call_each_other_are_read_once() -> None:
    names = [f"method_{n}" for n in range(30)]
    calls = ", ".join(f"self.{name}(x)" for name in names)
    functions: dict[str, object] = {}
    for name in names:
        exec(f"def {name}(self, x): return self.body(x), {calls}", functions)
    kind = type("Tangled", (Base,), {name: functions[name] for name in names})
    (note,) = bnfold.inspect(build(kind()), X, clip="always").notes
    assert "method_0" in note


def test_a_script_inside_is_no_obstacle() -> None:
    class Scripted(Features):
        def __init__(self) -> None:
            super().__init__()
            self.body.conv = torch.jit.script(self.body.conv)
            self.after = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 1)))

        def more(self, x: Tensor) -> Tensor:
            return self.after.extra.deeper(self.body.conv.missing(x))

    assert noted(bnfold.inspect(Scripted().double().eval(), X)) == set()


def test_of_many_methods_a_few_are_named() -> None:
    source = "\n".join(f"def method_{n}(self, x): return self.body(x)" for n in range(9))
    functions: dict[str, object] = {}
    exec(source, functions)
    kind = type("Many", (Base,), {k: v for k, v in functions.items() if k.startswith("method")})
    (note,) = bnfold.inspect(build(kind()), X, clip="always").notes
    assert "method_0, method_1, method_2, method_3 and 5 more" in note
