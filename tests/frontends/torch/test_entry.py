"""entry=[...]: other methods of a folded module compute what they computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold import UsageError
from tests.frontends.torch.support import assert_same, build, image


class Features(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3), nn.ReLU()
        self.bn, self.last = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def stem(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.bn(self.stem(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Features()
        self.bn, self.head = nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        return {"early": self.encoder.stem(x), "late": self.forward_features(x)}

    def count(self, x: Tensor) -> int:
        return x.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bn(self.forward_features(x)))


X = image(2, 3, 7, 7)


@pytest.mark.parametrize(
    "entry",
    [
        ["forward_features"],
        ["encode"],
        ["encoder.forward"],
        ["encoder.stem"],
        ["encoder.stem", "forward_features"],
        ["count"],
        ["encoder.bn.forward"],
    ],
)
def test_an_entry_keeps_what_it_computes(entry: list[str]) -> None:
    model = build(Net())
    inputs = image(2, 4, 7, 7) if entry == ["encoder.bn.forward"] else X
    if entry == ["encoder.bn.forward"]:  # takes other inputs than the model: it cannot be run
        with pytest.raises(bnfold.ExampleInputError):
            bnfold.fold(model, X, entry=entry)
        return
    folded, report = bnfold.fold(model, inputs, entry=entry, clip="always")
    with torch.no_grad():
        for name in ["forward", *entry]:
            expected, found = model, folded
            for part in name.split("."):
                expected, found = getattr(expected, part), getattr(found, part)
            one, two = expected(inputs), found(inputs)
            for a, b in zip(*(torch.utils._pytree.tree_leaves(v) for v in (one, two)), strict=True):
                if isinstance(a, Tensor):
                    assert_same([a], [b], 1e-9)
    assert report.verdict is not None and report.verdict.samples >= 2 + 2 * len(entry)
    assert report.removed >= 1


def test_without_an_entry_other_methods_may_compute_something_else() -> None:
    model = build(Net())
    folded, _ = bnfold.fold(model, X, clip="always")
    with torch.no_grad():
        assert not torch.allclose(folded.forward_features(X), model.forward_features(X))


def test_a_method_of_another_name_is_refused() -> None:
    with pytest.raises(UsageError, match="no method 'nothing'"):
        bnfold.fold(build(Net()), X, entry=["nothing"])


class Decodes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.line = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(5, 2)

    def decode(self, z: Tensor) -> Tensor:
        return self.line(z)

    def encode(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x)


def test_an_entry_that_takes_other_inputs_is_named() -> None:
    with pytest.raises(bnfold.ExampleInputError, match=r"Decodes\.decode raised .*an entry is run"):
        bnfold.fold(build(Decodes()), image(2, 3, 8, 8), entry=["decode"])


@pytest.mark.parametrize("entry", ["line.weight", "training", "nothing"])
def test_an_entry_that_is_no_method(entry: str) -> None:
    with pytest.raises(bnfold.UsageError, match=f"has no method '{entry}'"):
        bnfold.fold(build(Decodes()), image(2, 3, 8, 8), entry=[entry])


def test_one_name_is_a_name_and_none_is_none() -> None:
    model, x = build(Decodes()), image(2, 3, 8, 8)
    several = bnfold.inspect(model, x, entry=["encode"], keep=["conv"])
    assert bnfold.inspect(model, x, entry="encode", keep="conv").items == several.items
    assert bnfold.inspect(model, x, entry=None, keep=None).removed == 1
