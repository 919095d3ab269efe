"""Fold and inspect PyTorch modules: read, lift, plan, apply, report."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from bnfold.core.fitting import Bans
from bnfold.core.fold_again import may_fold_again
from bnfold.core.merge import choices
from bnfold.core.modes import ClipMode
from bnfold.errors import BnfoldError, ExampleInputError, UnsupportedModelError, UsageError
from bnfold.frontend import Request
from bnfold.frontends.halves import cleared_by_halves
from bnfold.frontends.merge_report import Merging, told_in_turn
from bnfold.frontends.torch.apply import apply
from bnfold.frontends.torch.copies import Snapshot, is_small, same_randomness
from bnfold.frontends.torch.decide import Decided, decide_on, depth, not_run
from bnfold.frontends.torch.entries import Entry, as_entry, call, method, split_inputs
from bnfold.frontends.torch.failed_run import is_to_blame
from bnfold.frontends.torch.fold_report import is_more, report_of
from bnfold.frontends.torch.keep import read_to_fold
from bnfold.frontends.torch.leaf_modules import changes_gradients
from bnfold.frontends.torch.lending import loose_tensors
from bnfold.frontends.torch.looks import asks_for_values, leaves_nothing
from bnfold.frontends.torch.merge_apply import apply_merges, is_as_expected
from bnfold.frontends.torch.merge_module import NOT_BY_CODE, changes, in_groups, told_apart
from bnfold.frontends.torch.merge_walk import Change
from bnfold.frontends.torch.methods import split_by
from bnfold.frontends.torch.read import read_module
from bnfold.frontends.torch.resizing import elements, form, shapes
from bnfold.frontends.torch.surroundings import Surroundings
from bnfold.frontends.torch.unseen_paths import parts_by_dtype
from bnfold.report import FoldReport

if TYPE_CHECKING:
    from bnfold.frontends.torch import prove
    from bnfold.frontends.torch.proof_calls import Call


def fold_module(model: nn.Module, request: Request) -> tuple[nn.Module, FoldReport]:
    """See `bnfold.fold`."""
    before = _snapshot(model, request)
    verify, merges = request.verify, request.merge == "auto"
    try:
        folding = _folding(model, request, before)
        made = folding.merged(verify=verify) if merges else None
        folded, report = made or (folding.proven() if verify else folding.unproven())
        if made is None and merges:
            report = folding.unmerged(report)
        folded, report = folding.repeated(folded, report, merges=merges)
    except BaseException:
        before.restore()
        raise
    if not request.inplace:  # a closure, a hook or a global may have led a run to it
        before.restore()
    return folded, report


def _snapshot(model: nn.Module, request: Request) -> Snapshot:
    """What the model is; with its weights, which a thread may write to, where these are few."""
    if request.inputs is None:
        raise ExampleInputError(type(model).__name__, None)
    surroundings = Surroundings(model)
    if surroundings.generators and not request.inplace:
        raise UnsupportedModelError(
            f"{type(model).__name__} reads a Python generator"
            f" ({surroundings.generators[0].__qualname__}), which can be neither copied nor put"
            " back after a run",
            "hand it the values as a list, or an iterator that can be copied (itertools, a class"
            " with __next__); or call fold(..., inplace=True) on a model you can afford to change",
        )
    return Snapshot(model.modules(), weights=is_small(model), surroundings=surroundings)


def _folding(model: nn.Module, request: Request, before: Snapshot) -> Folding:
    runs = runs_of(model, request.inputs, request.also, request.entry)
    return Folding(model, runs, request.clip, before, inplace=request.inplace, keep=request.keep)


Made = TypeVar("Made")
_MOST_ATTEMPTS, _MOST_WORK = 12, 6000
"""So many times a part of the merges is tried, where the code does not take all of them, and for
large networks as often as their ops are no more than this many in all."""


class Folding:
    """A module on its way to be folded."""

    def __init__(
        self,
        model: nn.Module,
        runs: Sequence[Any],
        clip: ClipMode,
        before: Snapshot,
        *,
        inplace: bool,
        keep: Sequence[str],
        is_merged: bool = False,
    ) -> None:
        self.model = model
        self.runs = runs
        self.clip = clip
        self.before = before
        """The module as it was given."""
        self.inplace = inplace
        self.keep = keep
        self.is_merged = is_merged
        self.recording, self.lifted = read_to_fold(
            model, runs, keep, before.surroundings, is_merged=is_merged
        )
        before.restore()
        self.mergeable: dict[bool, tuple[list[Change], Merging]] = {}
        """What could be merged, wide and not."""
        self.bans: Bans = {}
        self.final = self
        """Itself, or with what was merged: what it was folded as."""
        self.risky: list[str] = []
        """Methods that run a part of what was merged."""

    @functools.cached_property
    def decided(self) -> Decided:
        """What to do."""
        return decide_on(self.recording, self.lifted, self.clip, self.bans)

    def merged(self, *, verify: bool) -> tuple[nn.Module, FoldReport] | None:
        """The fold of the module with its branches merged; None where that is not to be had."""

        def attempt(todo: list[Change], merging: Merging) -> tuple[nn.Module, FoldReport] | None:
            proof = self.proof if verify else None
            inner = self._with(todo, inplace=self.inplace)
            if inner is None:
                return None
            folded, report = inner.unproven()
            verdict = None if proof is None else proof.check(folded)
            if verdict is not None and not verdict.equal:
                return None
            self.final = inner
            return folded, replace(merging.told(report), verdict=verdict)

        return self._most(attempt)

    def merged_report(self) -> FoldReport | None:
        """What such a fold would do."""

        def attempt(todo: list[Change], merging: Merging) -> FoldReport | None:
            inner = self._with(todo, inplace=False)
            if inner is None:
                return None
            self.final = inner
            return merging.told(report_of(inner.model, inner.decided, inner.risky))

        return self._most(attempt)

    def _most(self, attempt: Callable[[list[Change], Merging], Made | None]) -> Made | None:
        """What comes of the most that can be merged; None if nothing can."""

        def attempted(todo: list[Change], merging: Merging) -> Made | None:
            try:
                made = attempt(todo, merging)
            except (BnfoldError, AssertionError):  # its code does not take it
                made = None
            if made is None:
                self.before.restore()
            return made

        candidates = [*self._candidates()]
        for todo, merging in candidates:
            if (made := attempted(todo, merging)) is not None:
                return made
        return self._most_of(*candidates[0], attempted) if candidates else None

    def _most_of(
        self,
        todo: list[Change],
        merging: Merging,
        attempted: Callable[[list[Change], Merging], Made | None],
    ) -> Made | None:
        """The same where the code of one block stands in the way, and not that of the others."""
        most = _MOST_WORK // max(1, len(self.recording.events))
        tries = iter(range(min(max(most, 2), _MOST_ATTEMPTS)))

        def is_right(groups: list[list[Change]]) -> bool:
            return next(tries, None) is not None and bool(attempted([*chain(*groups)], merging))

        cleared = [*chain(*cleared_by_halves(in_groups(self.model, todo), is_right))]
        self.before.restore()
        return attempted(cleared, told_apart(merging, cleared, todo)) if cleared else None

    def unmerged(self, report: FoldReport) -> FoldReport:
        """The report of a fold without merges, with why there are none."""
        todo, merging = self._changes(wide=True)
        if todo:  # its code does not take them
            merging = replace(merging, freedom=NOT_BY_CODE)
        return merging.told(report)

    def _candidates(self) -> Iterator[tuple[list[Change], Merging]]:
        """What to merge, and less of it for where that does not do."""
        tried: list[set[int]] = []
        for wide in (True, False):
            todo, merging = self._changes(wide=wide)
            if not todo or self._may_part:
                break
            replaced = {id(module) for change in todo for module in change.modules}
            if replaced in tried:
                break
            tried.append(replaced)
            merges = [change.merge for change in todo]
            for chosen in choices(merging.graph, merging.parts, merges):
                if chosen:
                    yield (
                        [change for change in todo if change.merge in chosen],
                        replace(merging, merges=chosen),
                    )

    def _changes(self, *, wide: bool) -> tuple[list[Change], Merging]:
        if wide not in self.mergeable:
            parts = [self.model.get_submodule(name) for name in self.keep]
            inside = [module for module in self.model.modules() if module is not self.model]
            parts += filter(changes_gradients, inside)
            fixed = frozenset(id(module) for part in parts for module in part.modules())
            self.mergeable[wide] = changes(
                self.model, self.recording, self.lifted, fixed, wide=wide
            )
        return self.mergeable[wide]

    @functools.cached_property
    def _may_part(self) -> bool:
        """Whether the code may take paths that nobody has seen, on which branches do not meet."""
        shown = sum(not isinstance(run, Entry) for run in self.runs)
        if self.recording.counts or (shown == 1 and asks_for_values(self.recording)):
            return True
        with self.before.restoring(), same_randomness():
            return parts_by_dtype(self.model, self.runs, self.recording, self.before.surroundings)

    def _with(self, todo: Sequence[Change], *, inplace: bool) -> Folding | None:
        """The module with these changes; None if it does not do all else, or if more steps stay."""
        merged = apply_merges(self.model, todo, inplace=inplace)
        before = Snapshot(merged.modules(), surroundings=self.before.surroundings)
        inner = Folding(
            merged, self.runs, self.clip, before, inplace=True, keep=self.keep, is_merged=True
        )
        if not is_as_expected(self.recording, inner.recording, todo):
            return None
        read = [form(each.runs) for each in inner.recording.further]
        for each in self.recording.further:  # an op that does nothing there may ask for a tensor
            if form(each.runs) not in read:
                read_module(
                    merged,
                    each.runs,
                    like=inner.recording,
                    surroundings=before.surroundings,
                )
        before.restore()
        inner.risky = split_by(self.model, self.recording, [change.part for change in todo])
        kept = len(inner.decided.plan.kept)
        return inner if not kept or kept <= len(self.decided.plan.kept) else None

    def repeated(
        self, folded: nn.Module, report: FoldReport, *, merges: bool
    ) -> tuple[nn.Module, FoldReport]:
        """Folded until nothing more goes: what is left may go from what a fold makes."""
        reports, last = [report], self.final
        while last.may_leave_more:
            before = Snapshot(folded.modules(), surroundings=self.before.surroundings)
            further = None
            try:
                later = Folding(folded, self.runs, self.clip, before, inplace=True, keep=self.keep)
                further, more = (later.merged(verify=False) if merges else None) or later.unproven()
                if report.verdict is not None:
                    more = replace(more, verdict=self.proof.check(further))
            except BnfoldError:  # it can be run, and not read
                further = None
            if further is None or not is_more(more):
                before.restore()
                break
            folded, last = further, later.final
            reports.append(more)
        return folded, told_in_turn(self.lifted.graph, reports)

    @property
    def may_leave_more(self) -> bool:
        """Whether another fold may find more, which is so only where this one changed something."""
        plan = self.decided.plan
        if self.is_merged:  # a step behind merged ones may be merged with them, or go
            return bool(plan.kept)
        return may_fold_again(self.lifted.graph, plan)

    @functools.cached_property
    def proof(self) -> prove.Proof:
        """The module as it came, run. Raises ExampleInputError."""
        from bnfold.frontends.torch import prove

        further = sorted(self.recording.further, key=lambda each: not each.is_other)
        own = shapes(self.runs)
        resized = [each for each in further if len(self.runs) == 1 and shapes(each.runs) != own]
        second = resized[:1]
        size = elements(self.runs)
        # Not all that a path hangs on is heard; another size, no larger than the example, costs
        # little. A mode in which the code goes the same way is the same calls once more.
        others = [
            each.runs
            for each in further
            if each not in second
            and (each.is_other or not (_has_mode(each.runs) or elements(each.runs) > size))
        ]
        again = [self.runs] * (self.recording.rounds - 2)
        last = [self.runs] if second or others else []  # with what the other sizes have left
        return prove.start(
            type(self.model).__name__,
            self.model,
            self._calls(self.runs),
            depth(self.recording),
            shapes=[dict(enumerate(shapes(each.runs))) for each in second],
            further=[self._calls(runs) for runs in (*again, *others, *last)],
            inplace=self.inplace,
            itself=leaves_nothing(self.recording) and loose_tensors(self.model) is not None,
            writes=bool(self.recording.changed),
            surroundings=self.before.surroundings,
        )

    def _calls(self, runs: Sequence[Any]) -> list[Call]:
        from bnfold.frontends.torch.proof_calls import Call

        return [Call(*split_inputs(run.inputs), run.entry, run.mode) for run in map(as_entry, runs)]

    def check_run(self) -> None:
        """Raise ExampleInputError where the model raises, which a run without values may not."""
        if not self.recording.is_structural:
            return
        from bnfold.frontends.torch.proof_calls import CallFailedError, ModelCalls, failure

        given = self._calls(self.runs)
        calls = ModelCalls(
            self.model,
            given,
            writes=bool(self.recording.changed),
            surroundings=self.before.surroundings,
        )
        try:
            with same_randomness():
                calls(*calls.tensors)
        except CallFailedError as failed:
            error = failure(self.model, given, failed)
            if self._is_to_blame(error):
                raise error from failed.cause

    def _is_to_blame(self, error: ExampleInputError) -> bool:
        return is_to_blame(error, self.model, [partial(call, run=run) for run in self.runs])

    def unproven(self) -> tuple[nn.Module, FoldReport]:
        """The fold as it was decided."""
        return self._write(), report_of(self.model, self.decided, self.risky)

    def proven(self) -> tuple[nn.Module, FoldReport]:
        """The largest fold that computes the same."""
        if not self.decided.plan.removed:
            folded, report = self.unproven()
            return folded, not_run(report)
        from bnfold.frontends.torch import prove

        try:
            proof = self.proof
        except ExampleInputError as error:  # it could be analysed, but not be run
            if self._is_to_blame(error):
                raise
            folded, report = self.unproven()
            return folded, not_run(report, error)
        groups = self.lifted.graph.affine_groups()
        folded, result = prove.proven(proof, self.decided.plan, groups, self._attempt)
        return folded, result.told(report_of(self.model, self.decided))

    def _attempt(self, bans: Bans) -> nn.Module:
        self.before.restore()
        if bans != self.bans:
            self.bans = bans
            self.decided = decide_on(self.recording, self.lifted, self.clip, bans)
        return self._write()

    def _write(self) -> nn.Module:
        decided = self.decided
        return apply(
            self.model, self.lifted, decided.plan, decided.new, decided.care, inplace=self.inplace
        )


def inspect_module(model: nn.Module, request: Request) -> FoldReport:
    """See `bnfold.inspect`; `request.inplace` is not set."""
    merges = request.merge == "auto"
    before = _snapshot(model, request)
    with before.restoring():
        folding = _folding(model, request, before)
        report = folding.merged_report() if merges else None
        if report is None:
            report = report_of(model, folding.decided)
            report = folding.unmerged(report) if merges else report
        if report.removed:
            folding.check_run()
        if folding.final.may_leave_more:
            made = folding.merged(verify=False) if merges else None
            folded, _ = made or folding.unproven()
            _, report = folding.repeated(folded, report, merges=merges)
        return report


def _has_mode(runs: Iterable[Any]) -> bool:
    return any(as_entry(run).mode for run in runs)


def runs_of(model: nn.Module, inputs: Any, also: Sequence[Any], entry: Sequence[str]) -> list[Any]:
    """Everything that is run: the model on its inputs, and each entry on the same. UsageError."""
    for name in entry:
        try:
            is_method = callable(method(model, name))
        except AttributeError:
            is_method = False
        if not is_method:
            raise UsageError(
                f"entry: {type(model).__name__} has no method {name!r}",
                "name one like 'forward_features', or 'encoder.forward' of a submodule",
            )
    further = [also] if isinstance(also, torch.Tensor | dict) else also  # one, without a list
    runs = [inputs, *further]
    return [*runs, *(Entry(name, run) for name in entry for run in runs)]
