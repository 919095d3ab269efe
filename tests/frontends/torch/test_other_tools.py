"""Tools that fuse BatchNorms themselves: before a fold they work, after it they fail loudly.

What stands where a BatchNorm was is a plain nn.Identity and does not pretend to be a BatchNorm with
mean 0 and variance 1. To some of these tools it could: ultralytics folds into the convolution's own
bias. Others (RepVGG and its kin) take it that a convolution before a BatchNorm has no bias, and
would drop the one that the fold has given it, without a word.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import bnfold
from benchmarks.zoo import load_vision
from tests.frontends.torch.support import assert_same, build, image, run

# ------------------------------------------------------------ marks at modules, as in YOLO


class Marked(nn.Module):
    """Each layer says where its input comes from, and is asked."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)]
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(4), nn.Conv2d(8, 2, 1))
        for number, layer in enumerate(self.layers):
            layer.i, layer.f, layer.kind = number, -1, type(layer).__name__
        self.layers[-1].f = 2

    def forward(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        for layer in self.layers:
            x = layer(x if layer.f == -1 else torch.cat([x, seen[layer.f]], dim=1))
            seen.append(x)
        return x


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("clip", ["auto", "always"])
def test_what_stands_for_a_module_keeps_its_marks(clip: Any, inplace: bool, verify: bool) -> None:
    model, x = build(Marked()), image(2, 3, 7, 7)
    expected, kinds = run(model, x), [layer.kind for layer in model.layers]
    folded, report = bnfold.fold(model, x, clip=clip, inplace=inplace, verify=verify)
    assert report.removed == 2
    assert_same(expected, run(folded, x), 1e-9)
    assert [layer.i for layer in folded.layers] == list(range(6))
    assert [layer.kind for layer in folded.layers] == kinds


class MarkedClip(nn.Module):
    """An activation with a mark of the name of what bounds per channel need, and that is read."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.stem, self.bn, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.act, self.mark = nn.ReLU(inplace=True), mark
        setattr(self.act, mark, 0.25)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return (x + self.head(self.act(self.bn(x)))) * getattr(self.act, self.mark)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("mark", ["lower", "upper", "_may_write_to"])
def test_a_mark_in_the_place_of_a_bound_leaves_no_room_for_bounds(
    mark: str, inplace: bool, verify: bool
) -> None:
    model, x = build(MarkedClip(mark)), image(2, 3, 7, 7)
    expected = run(model, x)
    folded, report = bnfold.fold(model, x, clip="always", inplace=inplace, verify=verify)
    assert [item.reason for item in report.items] == [bnfold.Reason.ACTIVATION]
    assert type(folded.act) is nn.ReLU
    assert_same(expected, run(folded, x), 1e-9)


def test_other_marks_leave_room_for_bounds() -> None:
    model, x = build(MarkedClip("stage")), image(2, 3, 7, 7)
    folded, report = bnfold.fold(model, x, clip="always")
    assert report.removed == 1
    assert folded.act.stage == 0.25
    assert_same(run(model, x), run(folded, x), 1e-9)


# ------------------------------------------------------------------- fuse(), as in YOLO


class Conv(nn.Module):
    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(ins, outs, 3, padding=1, bias=False)
        self.bn, self.act = nn.BatchNorm2d(outs), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def forward_fuse(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


def fuse_conv_and_bn(conv: nn.Conv2d, bn: nn.Module) -> nn.Conv2d:
    fused = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1).to(conv.weight)
    scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    bias = torch.zeros_like(bn.bias) if conv.bias is None else conv.bias
    with torch.no_grad():
        fused.weight.copy_(conv.weight * scale.view(-1, 1, 1, 1))
        fused.bias.copy_(bn.bias + (bias - bn.running_mean) * scale)
    return fused


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(Conv(3, 4), Conv(4, 4))
        self.norm, self.head = nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.model(x)))

    def fuse(self) -> Detector:
        for module in self.modules():
            if isinstance(module, Conv) and hasattr(module, "bn"):
                module.conv = fuse_conv_and_bn(module.conv, module.bn)
                delattr(module, "bn")
                module.forward = module.forward_fuse
        return self


X = image(2, 3, 6, 6)


@pytest.fixture
def detector() -> Detector:
    model = build(Detector())
    assert isinstance(model, Detector)
    return model


def test_fuse_then_fold(detector: Detector) -> None:
    expected = run(detector, X)
    detector.fuse()
    for inplace in (False, True):
        folded, report = bnfold.fold(copy.deepcopy(detector), X, inplace=inplace)
        assert [item.name for item in report.items] == ["norm"]
        assert report.removed == 1
        assert_same(expected, run(folded, X), 1e-9)
        assert_same(expected, run(folded.fuse(), X), 1e-9)  # nothing is left to do


def test_fuse_after_a_fold_fails_and_changes_nothing(detector: Detector) -> None:
    folded, report = bnfold.fold(detector, X)
    assert report.removed == 3
    with pytest.raises(AttributeError, match="'Identity' object has no attribute"):
        folded.fuse()
    assert_same(run(detector, X), run(folded, X), 1e-9)


def test_a_folded_model_can_be_told_that_it_is_fused(detector: Detector) -> None:
    folded, _ = bnfold.fold(detector, X)
    for module in folded.modules():
        if hasattr(module, "forward_fuse") and isinstance(module.bn, nn.Identity):
            module.forward = module.forward_fuse
            del module.bn
    assert_same(run(detector, X), run(folded.fuse(), X), 1e-9)


# -------------------------------------------------------------------- reparameterize_model of timm


@pytest.mark.parametrize("name", ["repvgg_a0", "repghostnet_050"])
def test_reparameterise_then_fold(name: str) -> None:
    timm = load_vision().timm
    model = build(timm.create_model(name, pretrained=False))
    x = image(1, 3, 32, 32)
    expected = run(model, x)
    folded, report = bnfold.fold(timm.utils.reparameterize_model(model), x, verify=False)
    assert report.kept == 0
    assert_same(expected, run(folded, x), 1e-9)


@pytest.mark.parametrize("name", ["repvgg_a0", "repghostnet_050"])
@pytest.mark.parametrize("merge", ["auto", "never"])
def test_reparameterise_after_a_fold_fails(name: str, merge: Literal["auto", "never"]) -> None:
    timm = load_vision().timm
    model, x = build(timm.create_model(name)), image(1, 3, 32, 32)
    folded, _ = bnfold.fold(model, x, verify=False, merge=merge)
    with pytest.raises((AttributeError, AssertionError)):  # timm asserts that it is a BatchNorm
        timm.utils.reparameterize_model(folded)


# ------------------------------------------------------------------- fuse_modules of torch.ao


def test_fuse_modules_takes_what_is_left() -> None:
    from torch.ao.quantization import fuse_modules

    model = build(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()))
    folded, _ = bnfold.fold(model, X)
    with pytest.raises((AssertionError, NotImplementedError), match="Identity"):
        fuse_modules(folded, [["0", "1", "2"]])
    fused = fuse_modules(folded, [["0", "2"]])
    assert_same(run(model, X), run(fused, X), 1e-9)


@pytest.mark.parametrize("make", [Detector, lambda: Conv(3, 4)])
def test_where_a_batch_norm_was_is_nothing_but_an_identity(make: type[nn.Module]) -> None:
    folded, _ = bnfold.fold(build(make()), X)
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in folded.modules():
        if isinstance(module, nn.Identity):
            assert type(module) is nn.Identity
            assert vars(module) == vars(nn.Identity().eval())


# -------------------------------------------------------------------- PT2E and torchao


class Norms(nn.Module):
    """A BatchNorm in front of a convolution, two behind, one of them across a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3)
        self.bn, self.again = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.last, self.head = nn.BatchNorm2d(8), nn.Linear(8, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.norm(x))
        x = torch.relu(self.bn(x))
        return self.head(torch.relu(self.last(self.again(x))).mean((2, 3)))


@pytest.fixture
def quantizer() -> Any:
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    chosen = x86.X86InductorQuantizer()
    return chosen.set_global(x86.get_default_x86_inductor_quantization_config())


def quantised(module: Any, quantizer: Any, *inputs: Tensor) -> Any:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    prepared = prepare_pt2e(module, quantizer)
    for x in inputs:
        prepared(x)
    return convert_pt2e(prepared)


def norms_in(module: Any) -> list[str]:
    return [node.name for node in module.graph.nodes if "batch_norm" in str(node.target)]


@pytest.mark.parametrize("clip", ["never", "auto"])
@pytest.mark.parametrize("how", ["program", "module"])
def test_fold_before_prepare_pt2e(clip: Any, how: str, quantizer: Any) -> None:
    model = build(Norms()).float()
    x = X.float()
    if how == "program":
        program, report = bnfold.fold(torch.export.export(model, (x,)), clip=clip)
    else:
        folded, report = bnfold.fold(model, x, clip=clip)
        program = torch.export.export(folded, (x,))
    assert (report.removed, report.kept) == (3, 0)
    made = quantised(program.module(), quantizer, x, x * 0.5)
    assert norms_in(made) == []
    expected = model(x)
    assert float((made(x) - expected).abs().max() / expected.abs().max()) < 0.1
    rounded = sum("quantize_per" in str(node.target) for node in made.graph.nodes)
    assert rounded > 3


def test_what_pt2e_has_made_folds_no_further(quantizer: Any) -> None:
    model = build(Norms()).float()
    program, _ = bnfold.fold(torch.export.export(model, (X.float(),)), clip="never")
    made = quantised(program.module(), quantizer, X.float())
    again, report = bnfold.fold(torch.export.export(made, (X.float(),)))
    assert report.removed == 0
    assert torch.equal(again.module()(X.float()), made(X.float()))


def test_weights_of_torchao_after_a_fold() -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = build(Norms()).float()
    folded, report = bnfold.fold(model, X.float(), clip="never")
    quantize_(folded, Int8WeightOnlyConfig())
    assert (report.kept, type(folded.head.weight) is nn.Parameter) == (0, False)
    expected = model(X.float())
    assert float((folded(X.float()) - expected).detach().abs().max()) < 0.05 * float(
        expected.abs().max()
    )


def test_a_norm_beside_weights_of_torchao_stays() -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = build(nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64))).float()
    quantize_(model, Int8WeightOnlyConfig())
    x = torch.rand(4, 8)
    expected = model(x)
    folded, report = bnfold.fold(model, x)
    assert (report.removed, report.kept) == (0, 1)
    assert torch.equal(folded(x), expected)
