"""bnfold removes BatchNorm from trained networks, exactly: the same function in fewer layers.

    folded, report = bnfold.fold(model.eval(), torch.randn(1, 3, 224, 224))

Importing this package loads no framework and takes no time; names are fetched when first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnfold._version import __version__
    from bnfold.api import FoldResult, fold, inspect
    from bnfold.bench.call import bench
    from bnfold.bench.result import BenchResult
    from bnfold.bench.rows import BenchRow
    from bnfold.core.reasons import Reason
    from bnfold.errors import (
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
    from bnfold.outcomes import Item, Kept, Removed
    from bnfold.report import FoldReport
    from bnfold.verify.api import verify
    from bnfold.verify.findings import LayerDifference, OutputDifference
    from bnfold.verify.result import VerifyResult

__all__ = [
    "BenchResult",
    "BenchRow",
    "BnfoldError",
    "ExampleInputError",
    "FoldFailedError",
    "FoldReport",
    "FoldResult",
    "Item",
    "Kept",
    "LayerDifference",
    "MissingExtraError",
    "ModelUnreadableError",
    "NotProvenError",
    "OutputDifference",
    "Reason",
    "Removed",
    "TrainingModeError",
    "UnsupportedModelError",
    "UsageError",
    "VerifyResult",
    "__version__",
    "bench",
    "fold",
    "inspect",
    "verify",
]

_HOMES = {
    "__version__": "bnfold._version",
    **dict.fromkeys(("FoldResult", "fold", "inspect"), "bnfold.api"),
    "bench": "bnfold.bench.call",
    "BenchResult": "bnfold.bench.result",
    "BenchRow": "bnfold.bench.rows",
    "verify": "bnfold.verify.api",
    "Reason": "bnfold.core.reasons",
    "FoldReport": "bnfold.report",
    **dict.fromkeys(("Item", "Kept", "Removed"), "bnfold.outcomes"),
    "VerifyResult": "bnfold.verify.result",
    **dict.fromkeys(("LayerDifference", "OutputDifference"), "bnfold.verify.findings"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'bnfold' has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "bnfold.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps a public name what it is: an import of bnfold.bench.result would bind the package."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in __all__):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
