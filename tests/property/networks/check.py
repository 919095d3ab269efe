"""What must be true of a random network, in every frontend that can express it.

    numbers        the folded network computes the same in float64
    decisions      what is removed, and why the rest stays, is the same in every frontend
    fixed point    a fold of the folded network changes nothing, but in two cases of modules
    coverage       with linear ops merged, nothing stays that goes without
    input          the network that was given is what it was, bit by bit

Where frontends decide differently for a reason of their own, `differs` says which and why, and
nothing is compared there but numbers.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import torch

import bnfold
from bnfold.core.modes import ClipMode
from bnfold.core.reasons import Reason
from bnfold.outcomes import Item
from bnfold.report import FoldReport
from tests.frontends.caffe import support as caffe
from tests.property.networks.build_caffe import NotInCaffe, caffe_pair
from tests.property.networks.build_onnx import onnx_model
from tests.property.networks.build_torch import Model, run_torch, torch_inputs
from tests.property.networks.description import AFFINE, CLIPS, VIEWS, Network
from tests.property.networks.run_onnx import run_onnx
from tests.tolerances import EXACT

NEAR_ZERO = 1e-9
"""sign(x) of an x this close to 0 says nothing: rounding decides it."""
FRONTENDS = ("torch", "onnx", "caffe")


class WrongResultError(AssertionError):
    """A folded network computes something else."""


class DisagreementError(AssertionError):
    """Two frontends decide differently about one network."""


class UnsteadyError(AssertionError):
    """A fold of a folded network changes something, or a fold changed its input."""


Decision = tuple[str, str]
"""Outcome and reason."""
Decisions = dict[str, Decision]


@dataclass
class Tally:
    """What was looked at."""

    networks: int = 0
    folded: Counter[str] = field(default_factory=Counter)
    """Networks per frontend."""
    removed: Counter[str] = field(default_factory=Counter)
    merged: Counter[str] = field(default_factory=Counter)
    """Linear ops that others went into."""
    kept: Counter[str] = field(default_factory=Counter)
    """By reason, in the first frontend that looked."""
    compared: Counter[str] = field(default_factory=Counter)
    """Networks whose decisions were compared, per pair of frontends."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Nodes per kind."""
    skipped: Counter[str] = field(default_factory=Counter)


def check(
    network: Network,
    clip: ClipMode,
    *,
    frontends: tuple[str, ...] = FRONTENDS,
    tally: Tally | None = None,
) -> None:
    """All of the above. Raises one of the errors of this file, or what a frontend raised."""
    tally = Tally() if tally is None else tally
    tally.networks += 1
    tally.kinds.update(node.kind for node in network.nodes)
    expected = reference(network)
    if expected is None:
        tally.skipped["a sign of nearly 0, or no finite numbers"] += 1
        return
    found: dict[str, Decisions] = {}
    for name in frontends:
        try:
            report = _CHECKS[name](network, clip, expected)
        except NotInCaffe as why:
            tally.skipped[f"caffe: {why}"] += 1
            continue
        tally.folded[name] += 1
        tally.removed[name] += report.removed
        tally.merged[name] += len(report.merged)
        if not found:
            tally.kept.update(str(item.reason) for item in report.items if not item.is_removed)
        found[name] = decisions(report)
    compare(network, clip, found, tally)


def reference(network: Network) -> dict[str, Any] | None:
    """What the network computes, by value; None where that says nothing."""
    model = Model(network)
    margin = _Margin()
    with margin:
        made = {name: value.numpy() for name, value in run_torch(model, network).items()}
    if margin.smallest < NEAR_ZERO or not all(np.isfinite(v).all() for v in made.values()):
        return None
    return made


class _Margin(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes how close to 0 an operand of sign comes."""

    def __init__(self) -> None:
        super().__init__()
        self.smallest = np.inf

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.sign.default and args[0].numel():
            self.smallest = min(self.smallest, float(args[0].abs().min()))
        return func(*args, **(kwargs or {}))


def assert_same(
    expected: Mapping[str, Any], actual: Mapping[str, Any], where: str, tolerance: float = EXACT
) -> None:
    """Every output equal, relative to its largest value."""
    if expected.keys() != actual.keys():
        raise WrongResultError(f"{where}: other outputs, {sorted(actual)}")
    for name, wanted in expected.items():
        made = np.asarray(actual[name])
        if made.shape != wanted.shape:
            raise WrongResultError(f"{where}: {name} has shape {made.shape}, not {wanted.shape}")
        size = max(float(np.abs(wanted).max(initial=0.0)), 1e-6)
        error = float(np.abs(made - wanted).max(initial=0.0)) / size
        if not error <= tolerance:
            raise WrongResultError(f"{where}: {name} is off by {error:.2g} of its largest value")


# ------------------------------------------------------------------- one check per frontend


def check_torch(network: Network, clip: ClipMode, expected: dict[str, Any]) -> FoldReport:
    """The module."""
    model = Model(network)
    before = fingerprint(model)
    inputs = torch_inputs(network, torch.float64)
    folded, report = bnfold.fold(model, inputs, clip=clip)
    if fingerprint(model) != before:
        raise UnsteadyError("torch: the module was changed")
    assert_same(expected, _arrays(run_torch(folded, network)), "torch, folded")
    other = _arrays(run_torch(Model(network), network, 1))
    if "sign" not in network.kinds:
        assert_same(other, _arrays(run_torch(folded, network, 1)), "torch, other inputs")
    twice, again = bnfold.fold(folded, inputs, clip=clip)
    same = fingerprint(twice) == fingerprint(folded)
    if again.merged and not again.removed:  # what its code lets through is seen in a run only
        same = True
    assert_steady(replace(again, merged=()), same=same)
    if again.removed or again.merged:
        assert_same(expected, _arrays(run_torch(twice, network)), "torch, folded twice")
    if report.merged:
        return unmerged(report, bnfold.inspect(model, inputs, clip=clip, merge="never"))
    return report


def _arrays(values: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {name: value.numpy() for name, value in values.items()}


def assert_steady(again: FoldReport, *, same: bool) -> None:
    """A second fold did nothing."""
    if again.removed or again.merged or not same:
        raise UnsteadyError(f"a second fold changes something\n{again}")


def unmerged(report: FoldReport, without: FoldReport) -> FoldReport:
    """The report of a fold without merges, for what is decided; with them as much has to go."""
    gone, before = ({i.name for i in r.items if i.is_removed} for r in (report, without))
    far = any(i.reason is Reason.SCALE_RANGE for r in (report, without) for i in r.items)
    if len(before) > len(gone) and not far:  # of a sum's BatchNorms, another one may stay
        raise UnsteadyError(f"with merges {sorted(before - gone)} stay\n{report}\n{without}")
    return replace(without, merged=report.merged)


def fingerprint(model: torch.nn.Module) -> str:
    """Everything that a module holds, by name and bit by bit."""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        digest.update(f"{name} {type(module).__name__} {getattr(module, 'inplace', '')}".encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_onnx(network: Network, clip: ClipMode, expected: dict[str, Any]) -> FoldReport:
    """The model, its batch open in every second network."""
    model = onnx_model(network, open_batch=bool(network.seed % 2))
    before = model.SerializeToString()
    feed = network.feed()
    assert_same(expected, run_onnx(model, feed), "onnx, as built")
    folded, report = bnfold.fold(model, clip=clip)
    if model.SerializeToString() != before:
        raise UnsteadyError("onnx: the model was changed")
    assert_same(expected, run_onnx(folded, feed), "onnx, folded")
    twice, again = bnfold.fold(folded, clip=clip)
    assert_steady(again, same=twice.SerializeToString() == folded.SerializeToString())
    if report.merged:
        report = unmerged(report, bnfold.inspect(model, clip=clip, merge="never"))
    if any(node.same_as for node in network.nodes):
        return _tied(model, clip)
    return report


def _tied(model: onnx.ModelProto, clip: ClipMode) -> FoldReport:
    """The decisions with one edit for all uses of a weight: other frontends have nothing else.

    In ONNX an op may get a weight of its own, which is what `fold` does where more goes then.
    """
    from bnfold.frontends.onnx.fold import prepare
    from bnfold.frontends.onnx.folding import affine_items, decide
    from bnfold.frontends.onnx.lift import lift
    from bnfold.frontends.onnx.read import read_proto

    whole = prepare(read_proto(model), None, clip=clip)
    while whole.earlier is not None:
        whole = whole.earlier
    lifted = lift(whole.lifted.network, whole.lifted.constants, whole.shapes)
    return FoldReport(tuple(affine_items(lifted, decide(lifted, clip, {}))))


def check_caffe(network: Network, clip: ClipMode, expected: dict[str, Any]) -> FoldReport:
    """The pair of files, in double precision."""
    model, blobs = caffe_pair(network)
    caffe.assert_caffe_takes_it(model)
    feed = network.feed()
    made = caffe.values(model, feed)
    wanted = {blobs[name]: value for name, value in expected.items()}
    assert_same(wanted, made, "caffe, as built")
    folded, report = caffe.fold(model, clip=clip)
    caffe.assert_caffe_takes_it(folded)
    assert_same(wanted, caffe.values(folded, feed), "caffe, folded")
    twice, again = caffe.fold(folded, clip=clip)
    assert_steady(again, same=twice == folded)
    if report.merged:
        report = unmerged(report, caffe.fold(model, clip=clip, merge="never")[1])
    return report


_CHECKS: dict[str, Callable[[Network, ClipMode, dict[str, Any]], FoldReport]] = {
    "torch": check_torch,
    "onnx": check_onnx,
    "caffe": check_caffe,
}


# ------------------------------------------------------------------- decisions


def decisions(report: FoldReport) -> Decisions:
    """By the node's name; of a BatchNorm and its Scale in Caffe, the one that is left counts."""
    found: Decisions = {}
    for item in report.items:
        name = item.name.removesuffix("/scale")
        one = _decision(item)
        if found.get(name, ("removed", ""))[0] == "removed":
            found[name] = one
    return found


def _decision(item: Item) -> Decision:
    if item.is_removed:
        return ("removed", "")
    # An activation needs bounds: in the one case they are not wanted, in the other there is no room
    # for them.
    reason = Reason.ACTIVATION if item.reason is Reason.CLIP_COST else item.reason
    return ("kept", str(reason))


def differs(network: Network, clip: ClipMode) -> dict[str, str]:
    """Per frontend, why its decisions need not be those of the others."""
    found: dict[str, str] = {}
    if clip != "never" and any(node.kind in CLIPS for node in network.nodes):
        found["caffe"] = "no layer of Caffe has bounds per channel"
        if _roomless(network):
            found["torch"] = "a function, a module shared, or one in place at the end has no room"
    if clip == "auto" and any(node.kind in CLIPS for node in network.nodes):
        found["onnx"] = "bounds per channel cost more there than in the others"
    if _a_matmul_meets_one_channel(network):
        found["onnx"] = "one number for all elements could be a bias, which a MatMul has not"
    if "scale" in network.kinds:
        found["caffe"] = "a Scale can be given a bias; a product, and a module that is one, cannot"
    if _zero_meets_a_batch_norm(network):
        found["caffe"] = "a BatchNorm has no factors of its own that could take a constant in"
    if _returns_a_step_of_what_others_read(network):
        found["caffe"] = "an output has to be what no layer reads, and would be its input's value"
    if any(node.kind == "bn" and node.same_as for node in network.nodes):
        found["torch"] = "one module called twice goes for both calls or none; nodes go one by one"
    return found


def _is_tall(network: Network) -> bool:
    return any(node.kind == "concat" and node.options.get("axis") == 2 for node in network.nodes)


def _reshapes_a_constant(network: Network) -> bool:
    """Whether a channel of gamma 0 may meet a reshape."""
    reshapes = not {"flatten", "reshape", "shuffle"}.isdisjoint(network.kinds)
    return reshapes and any(0.0 in (node.get("gamma") or ()) for node in network.nodes)


def _has_a_matmul_without_bias(network: Network) -> bool:
    """Whether a linear layer of the network is a MatMul in ONNX, with no Add behind it."""
    return any(
        node.kind == "linear" and len(node.shape) > 2 and not node.get("bias")
        for node in network.nodes
    )


def _biases_of_matmuls(network: Network) -> set[str]:
    """Shifts behind a MatMul, which are its bias in ONNX where they fit, and steps elsewhere."""
    without = {
        name
        for node in network.nodes
        if node.kind == "linear" and len(node.shape) > 2 and not node.get("bias")
        for name in node.outputs
    }
    return {n.name for n in network.nodes if n.kind == "shift" and n.inputs[0] in without}


def _a_matmul_meets_one_channel(network: Network) -> bool:
    """Whether a shift per channel is one number where it comes to such a MatMul."""
    shapes = network.shapes
    return _has_a_matmul_without_bias(network) and any(
        node.kind == "linear" and shapes[node.inputs[0]][1] == 1 for node in network.nodes
    )


def _zero_meets_a_batch_norm(network: Network) -> bool:
    """Whether the constant that a gamma of 0 makes comes to a BatchNorm without a linear op."""
    constant: set[str] = set()
    for node in network.nodes:
        reads = not constant.isdisjoint(node.inputs)
        if reads and node.kind == "bn":
            return True
        passes = reads and node.kind not in ("conv", "deconv", "linear")
        if passes or 0.0 in (node.get("gamma") or ()):
            constant.update(node.outputs)
    return False


def _returns_a_step_of_what_others_read(network: Network) -> bool:
    makers = {name: node for node in network.nodes for name in node.outputs}
    readers = network.readers
    for name in network.results:
        node = makers[name]
        while node.kind in AFFINE or node.kind in VIEWS:
            (source,) = node.inputs
            if len(readers[source]) > 1 and node.kind in AFFINE:
                return True
            if source not in makers:
                break
            node = makers[source]
    return False


def _roomless(network: Network) -> bool:
    clips = [node for node in network.nodes if node.kind in CLIPS]
    shared = Counter(node.kind for node in clips if node.get("how") == "shared")
    if max(shared.values(), default=0) > 1 or any(node.get("how") == "function" for node in clips):
        return True
    # What is returned may be read by the name that its memory had before the write.
    returned = _families_of_results(network)
    return any(node.get("how") == "in place" and node.output in returned for node in clips)


def _families_of_results(network: Network) -> set[str]:
    """What is returned, and what that may be a view of."""
    returned = set(network.results)
    for node in reversed(network.nodes):
        if node.kind in VIEWS and not returned.isdisjoint(node.outputs):
            returned.update(node.inputs)
    return returned


def _out_of_range(found: Decisions) -> set[str]:
    return {name for name, (_, reason) in found.items() if reason == Reason.SCALE_RANGE}


def compare(
    network: Network, clip: ClipMode, found: dict[str, Decisions], tally: Tally | None = None
) -> None:
    """Raise DisagreementError if frontends that should agree do not."""
    apart = differs(network, clip)
    alike = [name for name in found if name not in apart]
    for name in alike[1:]:
        first, second = found[alike[0]], found[name]
        if name == "caffe" and _out_of_range(first) != _out_of_range(second):
            # Each layer is judged by its own numbers, and a BatchNorm is two.
            if tally is not None:
                tally.skipped["caffe: other layers are out of range"] += 1
            continue
        if name == "onnx" and _out_of_range(second) and any(node.same_as for node in network.nodes):
            # Those are decisions of a first fold; what it stores a second one may let go.
            if tally is not None:
                tally.skipped["onnx: out of range beside tied weights"] += 1
            continue
        if (
            name == "caffe"
            or _has_a_matmul_without_bias(network)
            or _is_tall(network)
            or _reshapes_a_constant(network)
        ):
            # Of several obstacles the first one met is named. A BatchNorm and its Scale, tried one
            # after the other, may meet another one first; and a MatMul cannot be given a bias. A
            # constant along the height, too, is rescaled in ONNX and is no step in a module.
            first, second = ({n: (one[0], "") for n, one in d.items()} for d in (first, second))
            biases = _biases_of_matmuls(network) if name == "onnx" else set()
            first = {n: one for n, one in first.items() if n in second or n not in biases}
        if alike[0] == "torch" and "reshape" in network.kinds:
            # Written for one size, it may part a channel at another, which a module may be given.
            first = {n: second.get(n, one) if one[0] == "kept" else one for n, one in first.items()}
        if first != second:
            names = sorted(first.keys() | second.keys())
            lines = [
                f"  {n}: {first.get(n)} in {alike[0]}, {second.get(n)} in {name}"
                for n in names
                if first.get(n) != second.get(n)
            ]
            raise DisagreementError("\n".join(["decisions differ:", *lines]))
        if tally is not None:
            tally.compared[f"{alike[0]}-{name}"] += 1
