"""What must be true of a program that is folded, in eager mode.

    numbers    the folded program computes what a new original computes, in float64, on the example,
               other values, batches and sizes, one after the other, so that state shows
    original   the one that was given is what it was, bit by bit, and runs as a new one does

A fold may be refused, if it says why. A program that is no judge of anything is left out: it
raises, two new ones differ, or rounding alone moves it.
"""

from __future__ import annotations

import copy
import inspect
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import bnfold
from tests.property.programs.build import Built, build
from tests.property.programs.description import Program
from tests.property.programs.draw import draw
from tests.property.programs.inputs import again, inputs_of
from tests.property.programs.snapshot import difference, snapshot
from tests.tolerances import EXACT

SAME = 1e-12
"""Between two runs of one program."""
SHAKEN = 1e-13, 1e-10
"""Weights moved by the first must move nothing by more than the second."""
LEAST = 1e-3
"""Values are not asked to be more exact than if the largest were this."""
FAILURES = ("wrong", "crash", "changed")
_CAN_VERIFY = "verify" in inspect.signature(bnfold.fold).parameters
KINDS = ("folded", "partly", "nothing", "refused", "stopped", *FAILURES)
"""All, some, no steps removed; refused before, or stopped by its own check; and failures."""


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    kind: str
    program: Program
    message: str = ""
    removed: int = 0
    kept: int = 0
    compared: int = 0
    """Inputs on which it was compared."""

    @property
    def failed(self) -> bool:
        return self.kind in FAILURES


class NoJudgeError(Exception):
    """Nothing can be said about this program."""


def check_seed(seed: int, only: Sequence[str] = (), *, verify: bool = True) -> Outcome:
    """Draw programs until one can be judged, and check it. `verify` is that of `bnfold.fold`."""
    for attempt in range(100):
        program = draw(seed, attempt, only)
        program = replace(program, options=replace(program.options, verify=verify))
        try:
            return check(program)
        except NoJudgeError:
            continue
    raise NoJudgeError(f"100 programs of seed {seed}")


def check(program: Program) -> Outcome:
    """Raises NoJudgeError where nothing can be said."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        inputs, wanted = judge(program)
        outcome = _fold(program, inputs, wanted)
        if outcome.kind == "wrong" and not program.options.inplace:
            _judge_copy(program, inputs, wanted)
        return outcome


def _judge_copy(program: Program, inputs: list[Tensor], wanted: list[Any]) -> None:
    """Raises NoJudgeError where its deep copy computes something else: a fold returns a copy."""
    built = build(program)
    try:
        found = _runs(Built(copy.deepcopy(built.model), built.outside), inputs)
    except Exception:
        return
    if any(distance(want, got) > SAME for want, got in zip(wanted, found, strict=True)):
        raise NoJudgeError("its deep copy computes something else")


def _fold(program: Program, inputs: list[Tensor], wanted: list[Any]) -> Outcome:
    options, given = program.options, build(program)
    seed_all(0)
    before = snapshot(given.model)
    keywords: dict[str, Any] = {"clip": options.clip}
    if options.also:
        some = inputs[1 + program.seed % 2 :: 3]  # other values and heights, or batches and widths
        keywords["also"] = [_example(program, x) for x in some]
    checks = {"verify": False} if not options.verify and _CAN_VERIFY else {}
    try:
        if options.inspect:
            bnfold.inspect(given.model, _example(program, inputs[0]), **keywords)
            if part := difference(before, snapshot(given.model)):
                return Outcome("changed", program, f"by inspect: {part}")
        folded, report = bnfold.fold(
            given.model,
            _example(program, inputs[0]),
            inplace=options.inplace,
            **keywords,
            **checks,
        )
    except bnfold.BnfoldError as error:
        outcome = Outcome("stopped" if error.code == "internal" else "refused", program, str(error))
        return _unchanged(given, before, inputs, wanted, outcome)
    except (KeyboardInterrupt, TimeoutError):
        raise
    except BaseException as error:
        return Outcome("crash", program, _told(error))
    kind = "folded" if not report.kept else "partly" if report.removed else "nothing"
    counts = {"removed": report.removed, "kept": report.kept, "compared": len(inputs)}
    outcome = Outcome(kind, program, report.summary, **counts)
    if (folded is given.model) != options.inplace or type(folded) is not type(given.model):
        return Outcome("wrong", program, f"another object: {type(folded).__name__}", **counts)
    if options.inplace:
        return _right(given, inputs, wanted, outcome)
    if part := difference(before, snapshot(given.model)):
        return Outcome("changed", program, part, **counts)
    outcome = _right(Built(folded, given.outside), inputs, wanted, outcome)
    if outcome.failed:
        return outcome
    seed_all(0)
    return _unchanged(given, before, inputs, wanted, outcome)


def _unchanged(
    given: Built, before: Any, inputs: list[Tensor], wanted: list[Any], outcome: Outcome
) -> Outcome:
    """The outcome, if the original is what it was and runs as it did."""
    if part := difference(before, snapshot(given.model)):
        return Outcome("changed", outcome.program, f"{outcome.kind}, but {part}")
    try:
        found = _runs(given, inputs)
    except Exception as error:
        return Outcome("changed", outcome.program, f"the original raises {_told(error)}")
    for number, (want, got) in enumerate(zip(wanted, found, strict=True)):
        if (far := distance(want, got)) > SAME:
            text = f"the original is off by {far:.1e} on input {number}"
            return Outcome("changed", outcome.program, text)
    return outcome


def _right(folded: Built, inputs: list[Tensor], wanted: list[Any], outcome: Outcome) -> Outcome:
    try:
        found = _runs(folded, inputs)
    except Exception as error:
        return Outcome("wrong", outcome.program, f"the folded one raises {_told(error)}")
    for number, (want, got) in enumerate(zip(wanted, found, strict=True)):
        if not (far := distance(want, got)) <= EXACT:
            text = f"off by {far:.1e} on input {number}; {outcome.message}"
            return Outcome("wrong", outcome.program, text, outcome.removed, outcome.kept)
    return outcome


def _told(error: BaseException) -> str:
    where, line = error.__traceback__, 0
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    if where is not None:
        line = where.tb_lineno
    file = "" if where is None else where.tb_frame.f_code.co_filename.rsplit("/", 1)[-1]
    return f"{type(error).__name__} ({file}:{line}): {error}"


@torch.no_grad()
def judge(program: Program) -> tuple[list[Tensor], list[Any]]:
    """The inputs that the original takes, and what it makes of them."""
    inputs = inputs_of(program)
    try:
        accepted = _accepted(build(program), inputs)
        if not accepted or accepted[0] != 0:
            raise NoJudgeError("it does not take its example")
        inputs = [inputs[number] for number in accepted]
        wanted, repeated = _runs(build(program), inputs), _runs(build(program), inputs)
        moved = _runs(_shaken(build(program)), inputs)
    except NoJudgeError:
        raise
    except Exception as error:
        raise NoJudgeError(_told(error)) from error
    for want, twice, shaken in zip(wanted, repeated, moved, strict=True):
        if not all(leaf.isfinite().all() and leaf.abs().max() < 1e9 for leaf in _tensors(want)):
            raise NoJudgeError("it makes no finite numbers")
        if distance(want, twice) > SAME:
            raise NoJudgeError("two new ones differ")
        if distance(want, shaken) > SHAKEN[1]:
            raise NoJudgeError("rounding moves it")
    return inputs, wanted


def _accepted(built: Built, inputs: list[Tensor]) -> list[int]:
    built.outside.reset()
    found = []
    for number, x in enumerate(inputs):
        try:
            seed_all(number)
            built.model(again(x))
        except Exception:
            continue
        found.append(number)
    return found


def _runs(built: Built, inputs: list[Tensor]) -> list[Any]:
    """What it makes of each input, one after the other, and the inputs as it left them."""
    built.outside.reset()
    results = []
    for number, x in enumerate(inputs):
        seed_all(number)
        mine = again(x)
        result = pytree.tree_map_only(Tensor, _copy, built.model(mine))
        results.append((result, mine))
    return results


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _shaken(built: Built) -> Built:
    draw = torch.Generator().manual_seed(0)
    for weight in built.model.parameters():
        noise = torch.rand(weight.shape, generator=draw, dtype=weight.dtype) - 0.5
        weight.data.mul_(1 + 2 * SHAKEN[0] * noise)
    return built


def _example(program: Program, x: Tensor) -> Any:
    mine = again(x)
    return {"tensor": mine, "tuple": (mine,), "dict": {"x": mine}}[program.options.call]


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def distance(want: Any, got: Any) -> float:
    """The largest difference of any two leaves, relative to the largest value; or infinity."""
    one, two = pytree.tree_leaves(want), pytree.tree_leaves(got)
    if len(one) != len(two):
        return float("inf")
    return max((_apart(a, b) for a, b in zip(one, two, strict=True)), default=0.0)


def _apart(a: Any, b: Any) -> float:
    if isinstance(a, float | int) and isinstance(b, float | int):
        a, b = torch.tensor(float(a)), torch.tensor(float(b))
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return 0.0 if type(a) is type(b) and a == b else float("inf")
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if not a.numel():
        return 0.0
    far = (a.double() - b.double()).abs().max() / a.double().abs().max().clamp_min(LEAST)
    return float(far) if far.isfinite() else float("inf")


def seed_all(seed: int) -> None:
    torch.default_generator.manual_seed(seed)  # quicker than torch.manual_seed
    random.seed(seed)
    np.random.seed(seed)
