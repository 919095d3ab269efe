"""Prove a fold before it is returned: run both, and fold less where they part.

    1  the original runs its calls once (see `proof_calls`)
    2  each attempt at a fold runs the same; small differences are accepted on sight, others are
       judged by `bnfold.verify` on these calls; where the outputs are equal, what the code asked
       on the way has to be as well (see `function_calls`)
    3  if they part, the removals to blame are searched for: halves are tried until what is left
       parts alone. These steps stay, for the reason `not-proven`

A model that differs from itself cannot be compared with anything. That is found by folding nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import nn
from torch.export import ExportedProgram

from bnfold.core.blame import Obstacle
from bnfold.core.plan import Plan
from bnfold.core.reasons import Reason
from bnfold.errors import BnfoldError, NotProvenError, UnsupportedModelError
from bnfold.frontends.halves import cleared_by_halves
from bnfold.frontends.torch import function_calls, runner
from bnfold.frontends.torch.copies import Snapshot, throwaway
from bnfold.frontends.torch.function_calls import Heard
from bnfold.frontends.torch.proof_calls import (
    Call,
    CallFailedError,
    ModelCalls,
    Shapes,
    run_original,
    shaken,
)
from bnfold.frontends.torch.restorable import Restorable
from bnfold.frontends.torch.runnable import runnable
from bnfold.report import FoldReport
from bnfold.verify import compare, sight
from bnfold.verify import thorough as verification
from bnfold.verify.result import VerifyResult
from bnfold.verify.runner import Output

_LOST = "The outputs differ, and the module cannot be copied, so its rounding cannot be measured."
_OTHER = (
    "The outputs differ, and so do those of a copy of the module ({}), so its rounding cannot be"
    " measured."
)
Model = TypeVar("Model", nn.Module, ExportedProgram)
_SHAKEN = 4
"""Shaken runs of the original, at most."""
Bans = Mapping[int, Obstacle]
"""The steps that an attempt may not remove."""


@dataclass(slots=True)
class Proof:
    """The original's side, run once, and what every fold of it is held against."""

    name: str
    original: ModelCalls
    outputs: list[Output]
    layers: int
    """How many ops round in one call."""
    inplace: bool = False
    """Whether the folded model is the user's own, which others may hold and run."""
    itself: bool = False
    """Whether these are the outputs of the model itself, and not of a copy."""
    repeats: bool = False
    """Whether the original is known to compute the same a second time."""
    shaken: list[Heard] = field(default_factory=list)
    """What the original's code asks on shaken inputs, as far as that was needed."""

    def check(self, folded: nn.Module | ExportedProgram) -> VerifyResult:
        """Whether the folded model computes the same. It is left as it was."""
        module = runnable(folded)
        with Snapshot(module.modules() if self.inplace else ()).restoring():
            trial = self.original.of(module)
            verdict = self._check(module, trial)
            asked = self._asked(trial) if verdict.equal else ""
        return replace(verdict, equal=False, notes=(*verdict.notes, asked)) if asked else verdict

    def _check(self, folded: nn.Module, trial: ModelCalls) -> VerifyResult:
        try:
            outputs = trial.run(listens=self.original.heard is not None, itself=self.itself)
        except CallFailedError as error:
            return _raised(error, len(self.original.calls))
        seen = sight.accept(self.outputs, outputs, self.layers, samples=len(self.original.calls))
        if (
            seen is not None or self.original.model is folded
        ):  # changed, and not to be had as it was
            return seen or VerifyResult(False, samples=1, truth="original", notes=(_LOST,))
        if not self.repeats and (parted := self._parted()):
            if not (self.inplace and self.itself):
                raise self._error(parted)
            return VerifyResult(False, samples=1, truth="original", notes=(_OTHER.format(parted),))
        self.repeats = True
        return self._measure(trial)

    def _asked(self, trial: ModelCalls) -> str:
        """What the folded model's code asks otherwise, in words; '' if nothing."""
        if self.original.heard is None or trial.heard is None:
            return ""
        while difference := function_calls.difference(
            self.original.heard, trial.heard, self.shaken
        ):
            if len(self.shaken) == _SHAKEN or self.original.model is trial.model:
                return difference
            again = shaken(self.original, len(self.shaken))
            try:
                again.run(listens=True)
            except CallFailedError:
                return difference
            if again.heard is None:
                return difference
            self.shaken.append(again.heard)
        return ""

    def _parted(self, *, itself: bool = False) -> str:
        """How another run of the original, or of a copy, parts from the first; '' if not."""
        try:
            again = self.original.run(itself=itself)
        except CallFailedError as error:
            return f"it raised {type(error.cause).__name__}: {error.cause}"
        for before, after in zip(self.outputs, again, strict=False):
            if before.values.shape != after.values.shape:
                return f"{before.name}: another shape"
            gap = compare.largest_gap(before.values, after.values)
            if gap and sight.accept([before], [after], self.layers, samples=1) is None:
                return f"{before.name}: off by {gap:.2g}"
        return ""

    def _error(self, parted: str) -> BnfoldError:
        """What to raise where a second run of the original parts from the first."""
        if not self.itself or self._parted(itself=True):
            return NotProvenError(self.name, parted)
        return UnsupportedModelError(
            f"{self.name} cannot be copied as it is: its copy (copy.deepcopy) computes something"
            f" else ({parted})",
            "call fold(..., inplace=True) on a model you can afford to change",
        )

    def _measure(self, trial: ModelCalls) -> VerifyResult:
        """The full verdict, for what rounding may or may not explain."""
        original = runner.call_runner(self.original, self.original.tensors, {}, self.name)
        folded = runner.call_runner(trial, self.original.tensors, {}, f"the folded {self.name}")
        samples = verification.choose_samples(original.specs, 1, 0)
        try:
            verdict = verification.verify(original, folded, samples, seed=None, look_inside=False)
            return replace(verdict, samples=len(self.original.calls))
        except BnfoldError as error:  # outputs of other shapes, another number of them
            return VerifyResult(False, samples=1, truth="original", notes=(error.problem,))


def start(
    name: str,
    model: nn.Module | ExportedProgram,
    calls: Sequence[Call],
    layers: int,
    *,
    shapes: Iterable[Shapes] = (),
    further: Sequence[Sequence[Call]] = (),
    inplace: bool = False,
    itself: bool = False,
    writes: bool = False,
    surroundings: Restorable | None = None,
) -> Proof:
    """Run the original, on other `shapes` and `further` calls, too, if it takes them.

    Raises ExampleInputError.

    `itself`: whether the model itself may be run, which a run leaves as it was, and no copy.
    `writes`: whether a run is known to change a parameter or buffer. `surroundings` are put back
    after each run.
    """
    module = runnable(model)
    listens = isinstance(model, nn.Module)  # a program is a graph, and asks nothing
    once = ModelCalls(module, calls, writes=writes, surroundings=surroundings)
    kept = throwaway(module) if inplace else None  # what it was, for when it is something else
    if kept is not None and not itself:
        once = once.of(kept)
    original, outputs = run_original(once, shapes, further, listens=listens, itself=itself)
    original.model = module if kept is None else kept
    return Proof(name, original, outputs, layers, inplace, itself)


def proven(
    proof: Proof,
    plan: Plan,
    groups: Mapping[int, Collection[int]],
    fold: Callable[[Bans], Model],
) -> tuple[Model, ProofResult]:
    """The fold that removes the most of what the plan removes, and computes the same.

    Args:
        proof: The original's side.
        plan: The whole fold, as it would be without a proof.
        groups: The calls that go or stay together, by each of them.
        fold: Folds with these steps banned.

    Raises NotProvenError: not even a fold that removes nothing computes the same.
    """
    folded = fold({})
    verdict = proof.check(folded)
    if verdict.equal:
        return folded, ProofResult({}, verdict)
    del folded  # its weights are not needed any more
    search = _Search(proof, fold, plan, verdict)
    steps = list(dict.fromkeys(tuple(groups[number]) for number in plan.removed))
    if not search.is_right([]):
        raise NotProvenError(proof.name, saying(search.last))
    cleared_by_halves(steps, search.is_right)
    assert search.best is not None
    return fold(search.best.bans), search.best


@dataclass(frozen=True, slots=True)
class ProofResult:
    """What a proof ended with."""

    bans: Bans
    """What the fold must not remove to be right."""
    verdict: VerifyResult
    """On the fold that keeps these."""
    parted: str = ""
    """How the whole fold parted from the original; '' if it did not."""

    def told(self, report: FoldReport) -> FoldReport:
        """The report with its verdict, and with what was seen before something had to stay."""
        if not self.parted:
            return replace(report, verdict=self.verdict)
        note = f"{_PARTED} With them gone as well: {self.parted}."
        return replace(report, verdict=self.verdict, notes=(*report.notes, note))


_PARTED = (
    "Some steps were kept because the model did something else without them: its code does"
    " what the analysis does not see."
)


Step = tuple[int, ...]


@dataclass(slots=True)
class _Search:
    """Which of the removed steps are to blame."""

    proof: Proof
    fold: Callable[[Bans], Any]
    plan: Plan
    first: VerifyResult
    """On the whole fold."""
    last: VerifyResult = field(init=False)
    best: ProofResult | None = None

    def is_right(self, steps: list[Step]) -> bool:
        """Whether a fold that removes these alone is right; the best so far, if it is."""
        gone = {number for step in steps for number in step}
        blamed = Obstacle(Reason.NOT_PROVEN, None)
        # What stays in the whole fold stays for its own reason; else it might go now.
        bans = {**self.plan.kept, **{n: blamed for n in self.plan.removed if n not in gone}}
        self.last = self.proof.check(self.fold(bans))
        if self.last.equal:
            self.best = ProofResult(bans, self.last, saying(self.first))
        return self.last.equal


def _raised(error: CallFailedError, samples: int) -> VerifyResult:
    text = f"the folded model raised {type(error.cause).__name__}: {error.cause}"
    return VerifyResult(False, samples=samples, truth="original", notes=(text.rstrip(".") + ".",))


def saying(verdict: VerifyResult) -> str:
    """What parted, in one line."""
    details = [output.detail for output in verdict.outputs if not output.equal and output.detail]
    return "; ".join([*details[:1], *(verdict.notes if not details else ())]).rstrip(".")
