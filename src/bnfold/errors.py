"""What can go wrong, as one tree.

    BnfoldError
    |-- UsageError             usage             exit 2   the call itself is off
    |-- TrainingModeError      training-mode     exit 2   the module is in training mode
    |-- ExampleInputError      example-input     exit 2   inputs are missing, or the model raised
    |-- UnsupportedModelError  unsupported       exit 3   not a model bnfold can edit
    |-- ModelUnreadableError   unreadable        exit 3   a file that is not what it says
    |-- MissingExtraError      missing-extra     exit 4   an optional dependency is not installed
    |-- NotProvenError         not-proven        exit 1   the model differs from itself
    `-- FoldFailedError        internal          exit 70  a bug in bnfold

Not folding a BatchNorm is no error: it is a `Kept` item of the report, with a reason.
"""

from __future__ import annotations

from typing import ClassVar


class BnfoldError(Exception):
    """Anything that bnfold raises on purpose."""

    code: ClassVar[str] = "error"
    """Stable, machine-readable name."""
    exit_code: ClassVar[int] = 70
    """Exit status of the command."""

    def __init__(self, problem: str, next_step: str) -> None:
        super().__init__(problem, next_step)
        self.problem = problem
        """What is wrong, and where."""
        self.next_step = next_step
        """What to do about it."""

    def __str__(self) -> str:
        end = "" if self.next_step.endswith("?") else "."
        return f"{self.problem}. Next: {self.next_step}{end}"


class UsageError(BnfoldError):
    """An argument has a value that means nothing."""

    code = "usage"
    exit_code = 2


class TrainingModeError(BnfoldError):
    """The module would normalise with the statistics of the batch."""

    code = "training-mode"
    exit_code = 2

    def __init__(self, model: str) -> None:
        super().__init__(
            f"{model} is in training mode, where BatchNorm is not a constant",
            "call model.eval() first (--eval on the command line)",
        )
        self.model = model


class ExampleInputError(BnfoldError):
    """Example inputs are missing, or the model raised when it was run on them."""

    code = "example-input"
    exit_code = 2

    def __init__(
        self,
        model: str,
        cause: BaseException | None,
        next_step: str | None = None,
        *,
        problem: str | None = None,
    ) -> None:
        if cause is None:
            what = f"{model} needs example inputs: a module is analysed by running it once"
            step = "pass inputs=torch.randn(1, 3, 224, 224), or --input 1x3x224x224"
        else:
            what = f"{model} raised {type(cause).__name__} on the example inputs: {cause}"
            step = (
                "pass inputs that model(*inputs) accepts: a tensor, a tuple, or a dict of keywords"
            )
        super().__init__((problem or what).rstrip("."), next_step or step)
        self.model = model
        self.cause = cause


class UnsupportedModelError(BnfoldError):
    """The object is not a model, or one that cannot be edited."""

    code = "unsupported"
    exit_code = 3


class ModelUnreadableError(BnfoldError):
    """A file could not be read as a model."""

    code = "unreadable"
    exit_code = 3

    def __init__(self, file: str, detail: str, next_step: str) -> None:
        super().__init__(f"{file}: {detail}", next_step)
        self.file = file
        self.detail = detail


class MissingExtraError(BnfoldError):
    """An optional dependency is not installed."""

    code = "missing-extra"
    exit_code = 4

    def __init__(self, extra: str, package: str) -> None:
        super().__init__(
            f"{package} is not installed", f'run: python -m pip install "bnfold[{extra}]"'
        )
        self.extra = extra
        self.package = package


class NotProvenError(BnfoldError):
    """The model computes something else each time, so nothing can be compared with it."""

    code = "not-proven"
    exit_code = 1

    def __init__(self, model: str, detail: str) -> None:
        super().__init__(
            f"{model} was run twice from the same state, on the same inputs and with the same"
            f" random numbers, and differs from itself ({detail}), so no fold of it can be proven",
            "make it compute the same each time: what it counts, caches or draws belongs into its"
            " buffers or attributes; or fold it unproven with verify=False",
        )
        self.model = model
        self.detail = detail


class FoldFailedError(BnfoldError):
    """The fold did not keep its promise: a bug in bnfold."""

    code = "internal"
    exit_code = 70

    def __init__(self, problem: str) -> None:
        super().__init__(problem, "please report it with the model or its structure")
