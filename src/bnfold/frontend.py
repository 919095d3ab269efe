"""The door to the frontends: what is asked of one, what it owes, and which one serves which kind.

    Python call, command  ->  Request  ->  frontend_of(kind)  ->  inspect, fold, runner, subject

A frontend is a folder in `frontends` with a file `door.py` that has the functions of `Frontend`,
and a line for each of its kinds in `_FOLDERS`. Nothing is imported before a kind asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast, get_args

from bnfold._named_shapes import check_named
from bnfold._storage import Weights, refuse_for_torch
from bnfold.core.blame import Obstacle
from bnfold.core.modes import ClipMode, MergeMode
from bnfold.errors import UsageError
from bnfold.formats import ModelKind

if TYPE_CHECKING:
    from bnfold.bench.settings import Subject, Wishes
    from bnfold.report import FoldReport
    from bnfold.verify.result import VerifyResult
    from bnfold.verify.runner import InputSpec, Runner

Counts = Mapping[str, int]
"""How many ops of each type there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of a fold; see `bnfold.fold` for what each means, and `check` for whom."""

    inputs: Any = None
    also: Sequence[Any] = ()
    inplace: bool = False
    clip: ClipMode = "auto"
    merge: MergeMode = "auto"
    verify: bool = True
    keep: Sequence[str] = ()
    entry: Sequence[str] = ()
    output: Path | None = None
    """Where the folded files go; None where nothing is going to be written."""
    force: bool = False
    phase: Literal["test"] | None = None
    weights: Weights = "stored"
    external_data: bool = False
    """Whether weights go into a file of their own beside the model, whatever they were."""
    stays: Mapping[str, Obstacle] = field(default_factory=dict)
    """Steps of a file, by name, that must not be removed, and why."""
    ahead: bool = False
    """Whether the original will be compared with the fold, and may be run while that goes on."""
    step: Callable[[float], None] = lambda part: None
    """Is told how much of the output is written."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of a model without a fold."""

    report: FoldReport
    """What a fold would do, in words that say so."""
    counts: tuple[Counts, Counts]
    """Its ops, and those that a fold would leave."""
    files: Sequence[Path]
    """What it was read from; none where it was in memory."""
    facts: Sequence[str] = ()
    """What else its file says of it, a line each: its version, its inputs and outputs."""


class NotRunError(Exception):
    """A model and its fold cannot be compared here, which says nothing about the fold."""

    def __init__(self, problem: str, next_step: str = "") -> None:
        super().__init__(problem)
        self.next_step = next_step


Compare: TypeAlias = "Callable[[Folded], VerifyResult | str]"
"""What comparing a folded model with its original shows; or why nothing was run."""


class Folded(Protocol):
    """A folded model on its way to where it belongs."""

    @property
    def files(self) -> Sequence[Path]:
        """What the original was read from."""

    @property
    def report(self) -> FoldReport:
        """What was done."""

    @property
    def counts(self) -> tuple[Counts, Counts]:
        """Ops of the original and of the folded model."""

    def runners(self) -> tuple[Runner, Runner]:
        """What runs the original, and what will be delivered. Raises NotRunError."""

    def judged_quickly(self) -> VerifyResult | None:
        """That the two of `runners` are equal, in a fraction of the time; None says nothing."""

    def proven(self, found: VerifyResult, compare: Compare) -> tuple[Folded, VerifyResult | str]:
        """A fold without what the two part by, and what comparing it shows.

        The same, and what was `found`, where nobody looks for that.
        """

    def deliver(self) -> Any:
        """The folded model; for a request with an output the path, once all files lie there."""

    @property
    def written(self) -> Sequence[Path]:
        """The files that `deliver` writes, the one that was named first."""

    def close(self) -> None:
        """Leave nothing behind that was not delivered."""


class Frontend(Protocol):
    """What `door.py` of a frontend provides. `model` is what `bnfold.fold` takes, opened."""

    IS_TIMED: bool
    """Whether `subject` does more than to say where to measure instead."""

    def check(self, model: Any, request: Request) -> None:
        """Raise UsageError if the outputs cannot go where they should: before any work."""

    def inspect(self, model: Any, request: Request) -> Look:
        """What a fold would do."""

    def fold(self, model: Any, request: Request) -> Folded:
        """The fold, in memory or beside its place."""

    def runner(
        self, model: Any, name: str, inputs: Any, like: Sequence[InputSpec] | None
    ) -> Runner:
        """What runs the model; where it leaves its inputs open, they are like others."""

    def subject(
        self,
        models: Mapping[str, Any],
        inputs: Any,
        runtimes: Sequence[str] | None,
        wishes: Wishes,
    ) -> Subject:
        """What measures variants of a model. Raises UsageError where nothing can."""


_FOLDERS = {
    ModelKind.MODULE: "torch",
    ModelKind.PROGRAM: "torch",
    ModelKind.ONNX_PROTO: "onnx",
    ModelKind.ONNX_IR: "onnx",
    ModelKind.ONNX_FILE: "onnx",
    ModelKind.CAFFE_FILES: "caffe",
}
"""Which folder of `frontends` serves a kind."""


def folder_of(kind: ModelKind) -> str:
    """The name of the frontend: two models with one name run in the same runtimes."""
    return _FOLDERS[kind]


def frontend_of(kind: ModelKind) -> Frontend:
    """The frontend of a kind. Raises MissingExtraError."""
    import_module(f"bnfold.frontends.{folder_of(kind)}")  # says which extra is missing
    return cast(Frontend, import_module(f"bnfold.frontends.{folder_of(kind)}.door"))


def check(kind: ModelKind, request: Request) -> None:
    """Raise UsageError for a value that is none, or means nothing for this kind of model."""
    if request.clip not in get_args(ClipMode):
        raise UsageError(f"clip={request.clip!r} is not known", "use 'auto', 'always' or 'never'")
    if request.merge not in get_args(MergeMode):
        raise UsageError(f"merge={request.merge!r} is not known", "use 'auto' or 'never'")
    if request.weights not in get_args(Weights):
        raise UsageError(f"weights={request.weights!r} is not known", "use 'stored' or 'float32'")
    is_module = kind is ModelKind.MODULE
    foreign = {
        "also": not is_module and len(request.also) > 0,
        "entry": not is_module and bool(request.entry),
        "keep": not is_module and bool(request.keep),
        "inplace": not is_module and request.inplace,
        "output": not kind.is_file and request.output is not None,
        "force": not kind.is_file and request.force,
        "inputs": kind is ModelKind.CAFFE_FILES and request.inputs is not None,
        "phase": kind is not ModelKind.CAFFE_FILES and request.phase is not None,
    }
    for option, is_given in foreign.items():
        if is_given:
            raise UsageError(
                f"{option} means nothing for this kind of model ({kind.value})", "leave it out"
            )
    if request.weights != "stored" and folder_of(kind) == "torch":
        raise refuse_for_torch(f"weights={request.weights!r}")
    if folder_of(kind) == "onnx":
        check_named(request.inputs)
