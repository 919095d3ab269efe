"""What users may rely on: the names, the signatures, and an import that costs nothing."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib.resources import files

import pytest

import bnfold

NAMES = [
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


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'flod'"):
        bnfold.flod  # noqa: B018


def test_import_loads_nothing_but_the_standard_library_and_numpy() -> None:
    code = (
        "import sys; before = set(sys.modules); import bnfold\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - sys.stdlib_module_names - {'bnfold', 'numpy'}))"
    )
    assert run_python(code).split() == []


def test_every_name_can_be_had_without_a_framework() -> None:
    code = (
        "import sys, bnfold\n"
        "for name in bnfold.__all__: getattr(bnfold, name)\n"
        "print(*{'torch', 'onnx', 'rich'} & set(sys.modules))"
    )
    assert run_python(code).split() == []


def test_names() -> None:
    assert bnfold.__all__ == NAMES
    assert dir(bnfold) == sorted(NAMES)
    for name in NAMES:
        assert getattr(bnfold, name) is not None


def test_fold_signature() -> None:
    assert str(inspect.signature(bnfold.fold)) == (
        "(model: 'Any', inputs: 'Any' = None, *, also: 'Sequence[Any]' = (),"
        " inplace: 'bool' = False, clip: 'ClipMode' = 'auto',"
        " merge: 'MergeMode' = 'auto', verify: 'bool' = True,"
        " keep: 'Sequence[str]' = (), entry: 'Sequence[str]' = (),"
        " output: 'str | os.PathLike[str] | None' = None, force: 'bool' = False,"
        " phase: \"Literal['test'] | None\" = None, weights: 'Weights' = 'stored')"
        " -> 'FoldResult[Any]'"
    )


def test_inspect_signature() -> None:
    assert str(inspect.signature(bnfold.inspect)) == (
        "(model: 'Any', inputs: 'Any' = None, *, also: 'Sequence[Any]' = (),"
        " clip: 'ClipMode' = 'auto', merge: 'MergeMode' = 'auto', keep: 'Sequence[str]' = (),"
        " entry: 'Sequence[str]' = (),"
        " phase: \"Literal['test'] | None\" = None, weights: 'Weights' = 'stored')"
        " -> 'FoldReport'"
    )


def test_bench_signature() -> None:
    assert str(inspect.signature(bnfold.bench)) == (
        "(model: 'Any', folded: 'Any' = None, inputs: 'Any' = None, *,"
        " others: 'Mapping[str, Any] | None' = None,"
        " against: \"Sequence[Literal['torch.fx']]\" = (),"
        " runtimes: 'Sequence[str] | None' = None, device: 'str' = 'cpu',"
        " dtype: 'str | Sequence[str] | None' = None,"
        " layout: 'str | Sequence[str] | None' = None,"
        " batch: 'int | Sequence[int] | None' = None,"
        " threads: 'int | Sequence[int] | None' = None,"
        " seconds: 'float' = 3.0, rounds: 'int | None' = None, clip: 'ClipMode' = 'auto',"
        " progress: 'Progress | None' = None, found: 'Found | None' = None) -> 'BenchResult'"
    )


@pytest.mark.parametrize("first", ["import bnfold.bench.result", "bnfold.bench", "pass"])
def test_a_package_of_the_same_name_does_not_hide_the_function(first: str) -> None:
    code = (
        f"import bnfold; {first}\n"
        "from bnfold.bench.timing import Budget\n"
        "import bnfold.bench.machine\n"
        "print(bnfold.bench.__name__, bnfold.bench is bnfold.bench, Budget.__name__)"
    )
    assert run_python(code).split() == ["bench", "True", "Budget"]


def test_verify_signature() -> None:
    signature = (
        "(original: 'Any', folded: 'Any', inputs: 'Any' = None, *, data: 'Data | None' = None,"
        " mean: 'Sequence[float] | None' = None, std: 'Sequence[float] | None' = None,"
        " samples: 'int | None' = None, seed: 'int' = 0, layers: 'bool' = True)"
        " -> 'VerifyResult'"
    )
    assert str(inspect.signature(bnfold.verify)) == signature
    # The package has the name of the call; whoever imports it first can still call it.
    code = (
        "import bnfold.verify.result, inspect\n"
        "print(inspect.signature(bnfold.verify), callable(bnfold.verify))"
    )
    assert run_python(code).strip() == f"{signature} True"


def test_fold_result_fields() -> None:
    assert bnfold.FoldResult._fields == ("model", "report")


def test_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert bnfold.__version__ == version("bnfold")


@pytest.mark.parametrize("name", ["py.typed", "report.schema.json"])
def test_data_files_are_shipped(name: str) -> None:
    assert files("bnfold").joinpath(name).is_file()
