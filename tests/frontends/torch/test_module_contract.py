"""What comes out is a module like any other."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

import bnfold
from tests.frontends.torch.support import assert_same, build, image, run


class Net(nn.Module):
    """Removed, clipped, copied and kept BatchNorms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1, bias=False)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(4) for _ in range(3))
        self.relu1, self.relu2 = nn.ReLU(inplace=True), nn.ReLU()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn4 = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv1(self.relu1(self.bn1(x)))
        x = x + y
        y = self.bn2(x)
        y += 1.0
        x = x + self.conv2(self.relu2(self.bn3(y)))
        return self.bn4(torch.sigmoid(x))


@pytest.fixture(params=["auto", "always", "never"])
def folded(request):
    return bnfold.fold(build(Net()), image(2, 3, 5, 5), clip=request.param)[0]


X = image(2, 3, 5, 5, seed=7)


def test_state_dict_round_trip(folded):
    expected = run(folded, X)
    state = copy.deepcopy(folded.state_dict())
    other = copy.deepcopy(folded)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.zero_()
    other.load_state_dict(state)
    assert_same(expected, run(other, X), 0.0)


def test_deepcopy_and_pickle(folded):
    expected = run(folded, X)
    assert_same(expected, run(copy.deepcopy(folded), X), 0.0)
    assert_same(expected, run(pickle.loads(pickle.dumps(folded)), X), 0.0)
    buffer = io.BytesIO()
    torch.save(folded, buffer)
    buffer.seek(0)
    assert_same(expected, run(torch.load(buffer, weights_only=False), X), 0.0)


def test_compile(folded):
    torch._dynamo.reset()
    compiled = torch.compile(folded, backend="eager", fullgraph=True)
    assert_same(run(folded, X), run(compiled, X), 0.0)


def test_export(folded):
    program = torch.export.export(folded, (X,))
    assert_same(run(folded, X), run(program.module(), X), 0.0)


def test_symbolic_trace(folded):
    traced = torch.fx.symbolic_trace(folded)
    assert_same(run(folded, X), run(traced, X), 0.0)


def test_script(folded):
    scripted = torch.jit.trace(folded, X)
    assert_same(run(folded, X), run(scripted, X), 1e-12)


def test_move_between_dtypes(folded):
    narrow = copy.deepcopy(folded).float()
    assert_same([t.float() for t in run(folded, X)], run(narrow, X.float()), 1e-4)


def test_repr_and_modes(folded):
    assert repr(folded)
    assert folded.train().training
    assert not folded.eval().training
    assert not any(module.training for module in folded.modules())


@pytest.mark.parametrize("clip", ["auto", "always", "never"])
def test_fold_of_a_fold_changes_nothing(clip):
    x = image(2, 3, 5, 5)
    once, _ = bnfold.fold(build(Net()), x, clip=clip)
    twice, report = bnfold.fold(once, x, clip=clip)
    assert report.removed == 0
    assert [name for name, _ in once.named_modules()] == [n for n, _ in twice.named_modules()]
    for (key, old), (_, new) in zip(
        once.state_dict().items(), twice.state_dict().items(), strict=True
    ):
        assert torch.equal(old, new), key


def test_fold_is_deterministic():
    x = image(2, 3, 5, 5)
    model = build(Net())
    first, second = (bnfold.fold(model, x)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_other_attributes_of_the_model_are_kept():
    model = build(Net())
    model.labels = {"a": 1}
    model.register_buffer("table", torch.arange(3))
    folded, _ = bnfold.fold(model, image(2, 3, 5, 5))
    assert folded.labels == {"a": 1}
    assert torch.equal(folded.table, model.table)


def test_non_persistent_buffers_stay_so():
    model = build(Net())
    model.register_buffer("scratch", torch.arange(3), persistent=False)
    folded, _ = bnfold.fold(model, image(2, 3, 5, 5))
    assert "scratch" not in folded.state_dict()
