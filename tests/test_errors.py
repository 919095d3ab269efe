"""The tree of errors: codes, exit statuses, fields, and a next step in every message."""

from __future__ import annotations

import pickle

import pytest

import bnfold
from bnfold import (
    BnfoldError,
    ExampleInputError,
    FoldFailedError,
    MissingExtraError,
    ModelUnreadableError,
    NotProvenError,
    TrainingModeError,
    UnsupportedModelError,
    UsageError,
)

EXAMPLES = [
    (UsageError("clip='x' is not known", "use 'auto'"), "usage", 2),
    (TrainingModeError("Net"), "training-mode", 2),
    (ExampleInputError("Net", None), "example-input", 2),
    (ExampleInputError("Net", ValueError("bad size.")), "example-input", 2),
    (UnsupportedModelError("int is not a model", "pass a Module"), "unsupported", 3),
    (ModelUnreadableError("a.pt2", "cut off", "write it anew"), "unreadable", 3),
    (MissingExtraError("torch", "PyTorch"), "missing-extra", 4),
    (NotProvenError("Net", "output: off by 0.1"), "not-proven", 1),
    (FoldFailedError("outputs differ"), "internal", 70),
]
IDS = [f"{type(error).__name__}-{number}" for number, (error, _, _) in enumerate(EXAMPLES)]


@pytest.mark.parametrize(("error", "code", "exit_code"), EXAMPLES, ids=IDS)
def test_code_and_exit_status(error: BnfoldError, code: str, exit_code: int) -> None:
    assert isinstance(error, BnfoldError)
    assert (error.code, error.exit_code) == (code, exit_code)


@pytest.mark.parametrize(("error", "code", "exit_code"), EXAMPLES, ids=IDS)
def test_message_ends_with_the_next_step(error: BnfoldError, code: str, exit_code: int) -> None:
    assert str(error) == f"{error.problem}. Next: {error.next_step}."
    assert error.problem and error.next_step
    assert ".." not in str(error)


def test_every_public_error_is_shown_here() -> None:
    public = {
        value
        for name in bnfold.__all__
        if isinstance(value := getattr(bnfold, name), type) and issubclass(value, BnfoldError)
    }
    assert public == {type(error) for error, _, _ in EXAMPLES} | {BnfoldError}


def test_codes_are_distinct() -> None:
    codes = {type(error): code for error, code, _ in EXAMPLES}
    assert len(set(codes.values())) == len(codes)


def test_fields() -> None:
    cause = ValueError("bad size")
    assert TrainingModeError("Net").model == "Net"
    assert ExampleInputError("Net", cause).cause is cause
    assert "ValueError" in str(ExampleInputError("Net", cause))
    unreadable = ModelUnreadableError("a.pt2", "cut off", "write it anew")
    assert (unreadable.file, unreadable.detail) == ("a.pt2", "cut off")
    missing = MissingExtraError("torch", "PyTorch")
    assert (missing.extra, missing.package) == ("torch", "PyTorch")
    assert 'python -m pip install "bnfold[torch]"' in str(missing)


def test_training_mode_names_the_way_out_in_python_and_on_the_command_line() -> None:
    assert "model.eval()" in str(TrainingModeError("Net"))
    assert "--eval" in str(TrainingModeError("Net"))


def test_a_plain_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(UsageError("a", "b")))
    assert (type(error), str(error)) == (UsageError, "a. Next: b.")
