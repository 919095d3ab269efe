"""Does the folded model compute the same? NumPy only; runners live in the frontends.

    api         the call: which runner each model gets
    runner      what a frontend provides
    inputs      what the models are run on
    probe       a sample of each tensor inside of a run
    compare     the distances between two outputs
    verdict     what rounding explains, and why
    layers      where the two part
    course      the course of it
    result      what was found; render shows it

`bnfold.verify` is both this package and the call, so the package can be called.
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any

from bnfold.verify.result import LayerDifference, OutputDifference, VerifyResult

__all__ = ["LayerDifference", "OutputDifference", "VerifyResult"]


class _Callable(ModuleType):
    """A module that does what its call of the same name does."""

    def __call__(self, *args: Any, **kwargs: Any) -> VerifyResult:
        """See `bnfold.verify.api.verify`."""
        from bnfold.verify.api import verify

        return verify(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        from bnfold.verify.api import verify

        return inspect.signature(verify)


sys.modules[__name__].__class__ = _Callable
