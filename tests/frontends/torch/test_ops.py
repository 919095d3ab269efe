"""An op is its whole name, and the tables know it in the forms that its schemas have."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bnfold.frontends.torch import arithmetic, batch_norms, lift_aten, lift_views, linear_ops
from bnfold.frontends.torch.ops import OVERLOADS, aten_name, functional, op_name
from tests.frontends.torch.support import assert_folds, build, image, in_core_aten

aten = torch.ops.aten

TABLES = {
    *lift_aten._TABLE,
    *lift_aten._COMPARISONS,
    *lift_aten._OPEN,
    *linear_ops._READERS,
    *arithmetic._ARITHMETIC,
    *batch_norms._BATCH_NORM_OPS,
    *OVERLOADS,
}


def overloads(name: str):
    packet = getattr(aten, name)
    return [getattr(packet, overload) for overload in packet.overloads()]


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_entry_is_an_op_with_the_overloads_that_are_named(name):
    """A name or overload that ATen does not have would never be looked up."""
    found = {str(op._overloadname).replace("default", "") for op in overloads(name)}
    assert set(OVERLOADS.get(name, ("",))) <= found


@pytest.mark.parametrize("name", sorted(TABLES))
def test_overloads_that_are_known_return_tensors(name):
    for op in overloads(name):
        if op_name(op):
            assert any("Tensor" in str(one.type) for one in op._schema.returns), op
            assert not any(argument.is_out for argument in op._schema.arguments), op
            dtypes = [a.name for a in op._schema.arguments if a.name == "out_dtype"]
            assert not dtypes, op


@pytest.mark.parametrize("name", sorted(arithmetic._ARITHMETIC))
def test_arithmetic_is_in_place_in_the_same_forms(name):
    twin = getattr(aten, f"{name}_", None)
    for overload in twin.overloads() if twin is not None else ():
        op = getattr(twin, overload)
        assert bool(op_name(op)) == bool(op_name(getattr(getattr(aten, name), overload, None))), op


@pytest.mark.parametrize(
    "op",
    [
        *(aten.max.other, aten.view.dtype, aten.clamp.Tensor, aten.mm.dtype, aten.add.out),
        *(aten.mean.out, aten.sum.int, aten.repeat_interleave.self_Tensor, aten.slice.str),
        *(aten.narrow.Tensor, aten.addmm.dtype, aten.relu.out, aten.clamp_min.Tensor),
        *(torch.ops.prims.transpose.default, torch.ops.prims.sum.default),
    ],
)
def test_overloads_that_mean_something_else_have_no_name(op):
    assert op_name(op) == ""


def test_names():
    assert aten_name(aten.add_.Tensor) == "add_"
    assert functional("add_") == "add"
    assert functional("__and__") == "__and__"
    assert op_name(aten.squeeze.dims) == "squeeze"
    assert op_name(torch.ops.prims.neg.default) == "neg"
    assert op_name(nn.ReLU()) == ""
    assert op_name(len) == ""


_library = torch.library.Library("strange", "DEF")
_OPS = {
    "linear": "(Tensor x, Tensor weight) -> Tensor",
    "relu": "(Tensor x) -> Tensor",
    "mul": "(Tensor x, Tensor other) -> Tensor",
    "clone": "(Tensor x) -> Tensor",
    "neg": "(Tensor x) -> Tensor",
    "mean": "(Tensor x) -> Tensor",
    "permute": "(Tensor x) -> Tensor",
    "batch_norm": "(Tensor input) -> Tensor",
}
for _name, _schema in _OPS.items():
    _library.define(_name + _schema)
    _library.impl(_name, lambda x, *rest: torch.tanh(x) * 1.5, "CPU")
    _library.impl(_name, lambda x, *rest: torch.empty_like(x), "Meta")


class Behind(nn.Module):
    """A BatchNorm, whatever `middle` does, and a convolution that could take the BatchNorm in."""

    def __init__(self, middle) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)
        self.weight = nn.Parameter(torch.rand(3, 3, 1, 1) + 0.5)
        self.gain = nn.Parameter(torch.rand(3, 1, 1) + 0.5)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.middle(self, self.bn(x)))


def strange(name: str):
    op = getattr(torch.ops.strange, name)
    extra = {"linear": ("weight",), "mul": ("gain",)}.get(name, ())
    return lambda net, y: op(y, *(getattr(net, part) for part in extra))


def centred(net, y):
    return y - y.mean((2, 3), keepdim=True, dtype=torch.float64)


FORMS = {
    **{f"strange::{name}": strange(name) for name in _OPS},
    "other maximum": lambda net, y: torch.max(y, net.gain),
    "floor": lambda net, y: torch.div(y, net.gain, rounding_mode="floor"),
    "tensor bounds": lambda net, y: y.clamp(net.gain - 1, net.gain),
    "crossed bounds": lambda net, y: y.clamp(1.0, -1.0),
    "to the power": lambda net, y: y**2,
    "where": lambda net, y: torch.where(y > 0.5, y, net.gain),
    "summand by keyword": lambda net, y: torch.ops.aten.add.Tensor(self=y, other=net.gain),
    "alpha": lambda net, y: torch.add(net.gain, y, alpha=2.5),
    "scalar alpha": lambda net, y: torch.ops.aten.add.Scalar(y, 3.0, 2.0),
    "mean in another dtype": centred,
    "sum in another dtype": lambda net, y: y + y.sum(1, keepdim=True, dtype=torch.float64),
    "complex": lambda net, y: (y * 1j).imag,
    "integer": lambda net, y: y * (y * 3).to(torch.int64),
    "bits": lambda net, y: torch.sin(y).view(torch.int64).view(torch.float64),
    "squeezed": lambda net, y: y.unsqueeze(0).squeeze((0,)),
    "rounded": lambda net, y: y.to(torch.float16).to(torch.float64) * 0 + y,
    "fixed kernel": lambda net, y: nn.functional.conv2d(
        y, torch.full((3, 1, 3, 3), 0.2, dtype=y.dtype), groups=3
    ),
    "standardised": lambda net, y: nn.functional.conv2d(y, net.weight - net.weight.mean()),
    "rescaled weight": lambda net, y: nn.functional.conv2d(
        y, net.weight * net.gain.view(3, 1, 1, 1)
    ),
    "einsum": lambda net, y: torch.einsum("nchw,oc->nohw", y, net.weight[:, :, 0, 0]),
    "vector": lambda net, y: (
        y + nn.functional.linear(y.movedim(1, -1), net.gain.view(-1)).unsqueeze(1)
    ),
    "weight in front": lambda net, y: torch.matmul(net.weight[:, :, 0, 0], y.flatten(2)).view(
        y.shape
    ),
    "one bias for all": lambda net, y: (
        torch.addmm(
            net.gain.view(-1)[:1], y.movedim(1, -1).reshape(-1, 3), net.weight[:, :, 0, 0].t()
        )
        .view(y.shape[0], y.shape[2], y.shape[3], 3)
        .movedim(-1, 1)
    ),
    "bilinear": lambda net, y: nn.functional.bilinear(
        y.movedim(1, -1).contiguous(),
        y.movedim(1, -1).contiguous(),
        net.weight.expand(3, 3, 3, 1)[..., 0].contiguous(),
    ).movedim(-1, 1),
    "numbers": lambda net, y: y * y.mean(),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_in_a_module(name):
    assert_folds(build(Behind(FORMS[name])), image(2, 3, 5, 5), inplace=False)


@pytest.mark.parametrize("name", FORMS)
def test_forms_in_a_program(name):
    import bnfold

    model = build(Behind(FORMS[name]))
    program = torch.export.export(model, (image(2, 3, 5, 5),))
    for decompose in (False, True):
        if decompose:
            program = in_core_aten(program)
        folded, _ = bnfold.fold(program, verify=not decompose)
        for seed in (0, 5):
            x = image(2, 3, 5, 5, seed=seed)
            expected = model(x)
            error = (folded.module()(x) - expected).abs().max()
            assert error <= 1e-9 * expected.abs().max()


def test_views_cope_with_labels():
    assert not [name for name in lift_views.VIEWS if not hasattr(aten, name)]
