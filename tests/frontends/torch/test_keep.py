"""keep=[...]: modules that stay as they are, and whose outputs keep their values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold import UsageError
from tests.frontends.torch.support import assert_same, build, image, run


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.encoder = Encoder()
        self.norm, self.head = nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.encoder(self.first(self.stem(x)))))


X = image(2, 3, 5, 5)


@pytest.mark.parametrize(
    ("keep", "stays"),
    [
        (["encoder"], {"encoder.bn"}),
        (["encoder.conv"], set()),
        (["encoder.bn"], {"encoder.bn"}),
        (["norm"], {"norm"}),
        (["first", "norm"], {"first", "norm"}),
        (["encoder.relu", "stem"], set()),
        ([], set()),
    ],
)
def test_kept_modules_stay_as_they_are(keep: list[str], stays: set[str]) -> None:
    model = build(Net())
    seen: dict[str, Tensor] = {}

    def watched(net: nn.Module) -> dict[str, Tensor]:
        seen.clear()
        for name in keep:
            net.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, name=name: seen.update({name: output.clone()})
            )
        run(net, X)
        return dict(seen)

    folded, report = bnfold.fold(model, X, keep=keep, clip="always")
    assert stays <= {item.name for item in report.items if not item.is_removed}
    assert bnfold.inspect(model, X, keep=keep, clip="always").items == report.items
    for name in keep:
        for old, new in zip(
            model.get_submodule(name).state_dict().values(),
            folded.get_submodule(name).state_dict().values(),
            strict=True,
        ):
            assert torch.equal(old, new)
    expected = watched(model)
    for name, output in watched(folded).items():
        assert_same([expected[name]], [output], 1e-9)


def test_a_module_of_another_name_is_refused() -> None:
    with pytest.raises(UsageError, match="no submodule 'nowhere'"):
        bnfold.fold(build(Net()), X, keep=["nowhere"])


def test_keep_means_nothing_for_a_program() -> None:
    program = torch.export.export(build(Net()), (X,))
    with pytest.raises(UsageError, match="keep means nothing"):
        bnfold.fold(program, keep=["encoder"])
