"""A fold is proven before it is returned; the original is afterwards what it was."""

from __future__ import annotations

import copy
import queue
import random
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold import Kept, NotProvenError, Reason, UnsupportedModelError
from bnfold.core.plan import make_plan
from bnfold.frontends.torch import apply as apply_module
from bnfold.frontends.torch import decide
from bnfold.frontends.torch import merge_apply as merge_apply_module
from bnfold.frontends.torch.copies import Snapshot, deep_copy
from tests.frontends.torch.support import assert_same, build, image, run


class Net(nn.Module):
    """conv, bn, head, with what `between` does to the normalised value."""

    def __init__(self, between: Any = None, **parts: Any) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.between = between
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return self.head(y if self.between is None else self.between(self, y))


X = image(2, 3, 7, 7)


def content(model: nn.Module) -> dict[str, Any]:
    """What a module holds, to be compared bit for bit."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        found[f"{name} class"] = type(module)
        for key, value in vars(module).items():
            found[f"{name} {key}"] = dict(value) if isinstance(value, dict) else value
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found[f"{name} bits"] = tensor.detach().numpy().tobytes()
        found[f"{name} place"] = (tensor.data_ptr(), tensor.requires_grad, tensor.grad)
    return found


def wrong_plan(monkeypatch: pytest.MonkeyPatch, *faulty: str) -> None:
    """Plans get the output of these convolutions wrong as soon as they take something in."""

    def planned(*args: Any, **kwargs: Any) -> Any:
        plan = make_plan(*args, **kwargs)
        graph = args[0]
        for number, edit in plan.linear.items():
            if graph.ops[number].name in faulty:
                edit.output_shift[...] += 0.25
        return plan

    monkeypatch.setattr(decide, "make_plan", planned)


# ------------------------------------------------------------------- must not be changed


def marks_itself(net: Net, y: Tensor) -> Tensor:
    net.calls = net.calls + 1
    return y * net.calls


def registers_a_hook(net: Net, y: Tensor) -> Tensor:
    if not net.head._forward_hooks:
        net.head.register_forward_hook(lambda module, inputs, output: output + 1)
    return y


def writes_to_a_buffer(net: Net, y: Tensor) -> Tensor:
    net.seen.data.add_(1.0)
    return y + net.seen


def writes_through_numpy(net: Net, y: Tensor) -> Tensor:
    net.seen.numpy()[...] += 1.0
    return y + net.seen


def fills_a_list(net: Net, y: Tensor) -> Tensor:
    net.past.append(y.mean())
    return y * len(net.past)


def freezes(net: Net, y: Tensor) -> Tensor:
    net.conv.weight.requires_grad_(False)
    net.head.training = True
    return y


def replaces_a_buffer(net: Net, y: Tensor) -> Tensor:
    net.seen = y.detach()[:1, :, :1, :1]
    return y + net.seen


def writes_to_a_weight(net: Net, y: Tensor) -> Tensor:
    net.head.weight.data.mul_(0.5)
    return y


def draws(net: Net, y: Tensor) -> Tensor:
    return y + torch.rand(()) + random.random() + np.random.rand()


def parted(*functions: Any) -> list[Any]:
    return [pytest.param(function, id=function.__name__) for function in functions]


STATEFUL = parted(
    marks_itself,
    registers_a_hook,
    writes_to_a_buffer,
    writes_through_numpy,
    fills_a_list,
    freezes,
    replaces_a_buffer,
    writes_to_a_weight,
    draws,
)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("between", STATEFUL)
def test_the_original_is_what_it_was(between: Any, verify: bool, inplace: bool) -> None:
    model = build(Net(between, calls=0, past=[]))
    model.register_buffer("seen", torch.zeros(1, 4, 1, 1, dtype=torch.float64))
    other = copy.deepcopy(model)
    given = model
    before = content(given)
    randomness = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    try:
        folded, _ = bnfold.fold(given, X, verify=verify, inplace=inplace)
    except bnfold.BnfoldError:
        folded = None
    if folded is None or not inplace:
        assert content(given) == before
    assert torch.equal(torch.get_rng_state(), randomness[0])
    assert random.getstate() == randomness[1]
    assert np.random.get_state()[1].tolist() == randomness[2]
    if folded is not None and verify:
        for _ in range(3):  # whatever it keeps, it goes on as the original does
            torch.manual_seed(1), random.seed(1), np.random.seed(1)
            expected = run(other, X)
            torch.manual_seed(1), random.seed(1), np.random.seed(1)
            assert_same(expected, run(folded, X), 1e-9)


class Slots(nn.BatchNorm2d):
    __slots__ = ("extra",)


class Refusing(nn.Conv2d):
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "bias" and "bias" in self.__dict__.get("_parameters", {}):
            raise AttributeError("this layer has no bias")
        super().__setattr__(name, value)


class Final(nn.BatchNorm2d):
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__class__":
            raise TypeError("final")
        super().__setattr__(name, value)


def refusing(first: nn.Module, norm: nn.Module, last: nn.Module) -> nn.Module:
    return build(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), first, norm, last))


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(
    ("model", "name"),
    [
        (refusing(nn.Conv2d(4, 4, 1), Slots(4), nn.Conv2d(4, 2, 1)), "4"),
        (refusing(nn.Conv2d(4, 4, 1), Final(4), nn.Conv2d(4, 2, 1)), "4"),
        (refusing(Refusing(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Sigmoid()), "3"),
        (refusing(nn.Conv2d(4, 4, 1), Slots(4), nn.ReLU()), "4"),
        (refusing(nn.Conv2d(4, 4, 1), Final(4), nn.Sigmoid()), "4"),
        (refusing(Refusing(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)), "3"),
    ],
)
def test_in_place_is_all_or_nothing(model: nn.Module, name: str, verify: bool) -> None:
    before = content(model)
    with pytest.raises(UnsupportedModelError, match=f"^{name}, a ") as raised:
        bnfold.fold(model, X, inplace=True, verify=verify, merge="never")
    assert "cannot be changed" in str(raised.value)
    assert content(model) == before


@pytest.mark.parametrize("merge", ["auto", "never"])
def test_a_failure_in_the_middle_of_an_edit_is_undone(
    monkeypatch: pytest.MonkeyPatch, merge: Literal["auto", "never"]
) -> None:
    model = build(Net())
    before = content(model)

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    for module in (apply_module, merge_apply_module):
        monkeypatch.setattr(module, "become", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bnfold.fold(model, X, inplace=True, merge=merge)
    assert content(model) == before


# ------------------------------------------------------------------- what is blamed


def asks_for_the_class(net: Net, y: Tensor) -> Tensor:
    return y * (1 if isinstance(net.bn, nn.BatchNorm2d) else 2)


def asks_for_a_weight(net: Net, y: Tensor) -> Tensor:
    return y * float(net.conv.weight.abs().max())


def counts_modules(net: Net, y: Tensor) -> Tensor:
    return y * sum(type(module) is nn.Identity for module in net.modules()) + y


def returns_a_weight(net: Net, y: Tensor) -> Tensor:
    return y + net.conv.weight.mean()


def raises_without_eps(net: Net, y: Tensor) -> Tensor:
    return y + net.bn.eps


def asks_for_the_bias(net: Net, y: Tensor) -> Tensor:
    return y if net.conv.bias is None else y + net.conv.bias.view(1, -1, 1, 1)


@pytest.mark.parametrize(
    "between",
    parted(
        asks_for_the_class,
        asks_for_a_weight,
        counts_modules,
        returns_a_weight,
        raises_without_eps,
        asks_for_the_bias,
    ),
)
def test_what_the_code_asks_of_a_module_is_answered_as_before(between: Any) -> None:
    model = build(Net(between))
    expected = run(model, X)
    folded, _ = bnfold.fold(model, X)
    assert_same(expected, run(folded, X), 1e-9)
    assert_same(expected, run(model, X), 0.0)


def chain(length: int) -> nn.Module:
    """Convolutions and BatchNorms in turn, with something between that nothing passes."""
    parts: list[nn.Module] = [nn.Conv2d(3, 4, 1)]
    for _ in range(length):
        parts += [nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Sigmoid()]
    return build(nn.Sequential(*parts))


@pytest.mark.parametrize(
    ("faulty", "inplace"),
    [
        *((("1",), False), (("10",), True), (("16",), False)),
        *((("4", "13"), False), (("4", "13"), True), (("1", "4", "7"), True)),
    ],
)
def test_only_the_steps_to_blame_are_kept(
    faulty: tuple[str, ...], inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = chain(6)
    expected = run(model, X)
    wrong_plan(monkeypatch, *faulty)
    folded, report = bnfold.fold(model, X, inplace=inplace)
    kept = {item.name for item in report.items if not item.is_removed}
    assert kept == {str(int(name) + 1) for name in faulty}
    assert {item.reason for item in report.items if not item.is_removed} == {Reason.NOT_PROVEN}
    assert report.verdict is not None and report.verdict.equal
    assert any("off by" in note for note in report.notes)
    assert_same(expected, run(folded, X), 1e-9)


def test_what_stays_for_another_reason_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(
        nn.Sequential(nn.BatchNorm2d(3), nn.Sigmoid(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    )
    wrong_plan(monkeypatch, "2")
    report = bnfold.fold(model, X).report
    reasons = [item.reason for item in report.items]
    assert reasons == [bnfold.inspect(model, X).items[0].reason, Reason.NOT_PROVEN]


def test_a_program_keeps_what_is_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain(4)
    program = torch.export.export(model, (X,))
    wrong_plan(monkeypatch, "4")
    folded, report = bnfold.fold(program)
    assert [item.is_removed for item in report.items] == [True, False, True, True]
    assert_same(run(model, X), run(folded.module(), X), 1e-9)


def test_a_program_is_run_on_a_second_size() -> None:
    model = build(Net())
    batch, height = torch.export.Dim("batch", min=2), torch.export.Dim("height", min=4, max=64)
    program = torch.export.export(model, (X,), dynamic_shapes=({0: batch, 2: height},))
    report = bnfold.fold(program).report
    assert report.verdict is not None
    shapes = [output.shape for output in report.verdict.outputs if "input" not in output.name]
    assert shapes == [(2, 4, 5, 5), (3, 4, 6, 5)]


# ------------------------------------------------------------------- what cannot be proven


COUNTER = [0.0]


def counts_outside(net: Net, y: Tensor) -> Tensor:
    COUNTER[0] += 1.0
    return y + COUNTER[0]


def asks_the_system(net: Net, y: Tensor) -> Tensor:
    return y + random.SystemRandom().random()


OUTSIDE = torch.Generator().manual_seed(3)


def draws_outside(net: Net, y: Tensor) -> Tensor:
    return y + torch.rand((), generator=OUTSIDE, dtype=torch.float64)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("between", parted(counts_outside, draws_outside))
def test_what_lies_outside_of_a_model_is_put_back(between: Any, inplace: bool) -> None:
    COUNTER[0] = 5.0
    model, drawn = build(Net(between)), OUTSIDE.get_state()
    assert bnfold.fold(model, X, inplace=inplace).report.removed == 1
    assert COUNTER[0] == 5.0 and torch.equal(OUTSIDE.get_state(), drawn)


def steps_on(net: Net, y: Tensor) -> Tensor:
    STEPS.put(1)
    return y + STEPS.qsize()


STEPS: queue.SimpleQueue[int] = queue.SimpleQueue()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("between", parted(asks_the_system, steps_on))
def test_a_model_that_differs_from_itself_is_not_proven(between: Any, inplace: bool) -> None:
    model = build(Net(between))
    before = content(model)
    with pytest.raises(NotProvenError, match="differs from itself") as raised:
        bnfold.fold(model, X, inplace=inplace)
    assert "verify=False" in raised.value.next_step
    assert content(model) == before
    assert bnfold.fold(model, X, verify=False).report.removed == 1


# ------------------------------------------------------------------- the verdict


def test_the_report_carries_the_verdict() -> None:
    report = bnfold.fold(build(Net()), X).report
    assert report.verdict is not None and report.verdict.equal and report.unverified is None
    assert report.verdict.samples == 2
    again = bnfold.FoldReport.from_json(report.to_json())
    assert again.verdict == report.verdict
    assert "compared in 2 runs: equal" in str(report)
    assert "computes the same" in report.to_html()


def test_nothing_is_run_where_nothing_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).double().eval()
    report = bnfold.fold(model, X).report
    assert report.verdict is None and report.unverified == "nothing was removed"


def test_verify_false_runs_nothing() -> None:
    report = bnfold.fold(build(Net()), X, verify=False).report
    assert report.verdict is None and report.unverified is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_right_folds_are_accepted_in_every_dtype(dtype: torch.dtype) -> None:
    model = build(chain(4), dtype=dtype)
    report = bnfold.fold(model, X.to(dtype)).report
    assert report.removed == 4 and report.verdict is not None and report.verdict.equal


def test_each_further_input_is_run_too() -> None:
    report = bnfold.fold(build(Net()), X, also=[X[:1], image(1, 3, 9, 8)]).report
    assert report.verdict is not None and report.verdict.samples == 6


# ------------------------------------------------------------------- copies


def test_a_copy_shares_what_the_original_shares() -> None:
    model = build(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    model[1].weight = model[0].weight
    model[2].register_buffer("alias", model[2].running_mean)
    model.again = model[0]
    made = deep_copy(model, {})
    assert made[1].weight is made[0].weight and made.again is made[0]
    assert made[2].alias is made[2].running_mean
    assert made[0].weight is not model[0].weight
    assert_same(run(model, X), run(made, X), 0.0)


SHARING: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "another shape": lambda: (base := torch.arange(6.0), base.view(2, 3)),
    "a part": lambda: (base := torch.arange(6.0), base[2:5]),
    "a part first": lambda: ((base := torch.arange(6.0))[2:5], base),
    "two parts": lambda: ((base := torch.arange(6.0))[:3], base[3:]),
    "turned": lambda: ((base := torch.arange(6.0).view(2, 3)), base.t()),
    "other numbers": lambda: (base := torch.arange(6.0), base.view(torch.int32)),
    "expanded": lambda: (base := torch.ones(1), base.expand(4)),
}


@pytest.mark.parametrize("pair", SHARING.values(), ids=SHARING)
@pytest.mark.parametrize("is_listed", [False, True])
def test_what_shares_memory_shares_it_in_the_copy(
    pair: Callable[[], tuple[Tensor, Tensor]], *, is_listed: bool
) -> None:
    model = build(Net())
    first, second = pair()
    model.register_buffer("first", first)
    if is_listed:
        model.seen = [second]
    else:
        model.bn.register_buffer("second", second)
    made = deep_copy(model, {})
    twin = made.seen[0] if is_listed else made.bn.second
    assert made.first.untyped_storage()._cdata == twin.untyped_storage()._cdata
    assert made.first.untyped_storage()._cdata != first.untyped_storage()._cdata
    for one, other in ((first, made.first), (second, twin)):
        assert torch.equal(one, other)
        assert (one.stride(), one.storage_offset()) == (other.stride(), other.storage_offset())


BUFFERS: dict[str, Callable[[], Tensor]] = {
    "conjugate": lambda: torch.randn(3, dtype=torch.complex64).conj(),
    "negative": lambda: torch.randn(3, dtype=torch.complex64).conj().imag,
    "sparse": lambda: torch.eye(3).to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(torch.rand(3), 0.1, 2, torch.quint8),
    "plain": lambda: torch.rand(3),
    "without elements": lambda: torch.zeros(0, 3),
    "with gradients": lambda: torch.ones(3, requires_grad=True),
    "in channels_last": lambda: torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("make", BUFFERS.values(), ids=BUFFERS)
@pytest.mark.parametrize("labels", [{}, {"label": ["mine"]}])
def test_a_buffer_that_is_not_mere_numbers_is_copied_as_pytorch_does(
    make: Callable[[], Tensor], labels: dict[str, Any]
) -> None:
    model = build(Net())
    model.register_buffer("held", buffer := make())
    buffer.__dict__.update(labels)
    made, wanted = deep_copy(model, {}).held, copy.deepcopy(model).held
    for part in ("dtype", "layout", "requires_grad", *labels):
        assert getattr(made, part) == getattr(wanted, part)
    assert all(getattr(made, name) is not label for name, label in labels.items())
    if made.layout is torch.strided:
        assert made.stride() == wanted.stride() and made.is_conj() == wanted.is_conj()
    made, wanted = (t.dequantize() if t.is_quantized else t.to_dense() for t in (made, wanted))
    assert torch.equal(made, wanted)


def test_a_snapshot_puts_back_what_was_changed() -> None:
    model = build(Net(calls=[1, 2], draw=torch.Generator()))
    before, snapshot = content(model), Snapshot(model.modules())
    model.calls.append(3)
    model.conv.weight.data = torch.zeros(1)
    model.bn.running_mean.add_(1.0)
    model.head.register_forward_hook(lambda *values: None)
    model.head.__class__ = nn.Identity
    model.draw.manual_seed(5)
    del model.bn
    snapshot.restore()
    assert content(model) == before and model.calls == [1, 2]
    assert model.draw.initial_seed() == torch.Generator().initial_seed()


def test_kept_is_a_value() -> None:
    model = build(Net(asks_for_the_class))
    outcome = bnfold.fold(model, X).report.items[0].outcome
    assert isinstance(outcome, Kept)
