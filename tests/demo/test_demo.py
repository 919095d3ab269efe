"""The demo: what is shipped, what folds, what the run writes, and that it can say no."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import bnfold  # noqa: E402  # after the skip: torch is an extra
from bnfold.demo import run  # noqa: E402
from bnfold.demo.compare import Difference, accuracy, logits_of  # noqa: E402
from bnfold.demo.data import (  # noqa: E402
    FULL_INK,
    HELD_OUT_COUNT,
    HELD_OUT_FILE,
    load_digits_split,
    split_indices,
)
from bnfold.demo.latency import Latency  # noqa: E402
from bnfold.demo.network import WEIGHTS_FILE, DigitsNet, digits_net  # noqa: E402

BATCH_NORM_COUNT = 14
WEIGHTS_LIMIT = 500_000  # bytes


def batch_norms(net: torch.nn.Module) -> list[torch.nn.BatchNorm2d]:
    return [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]


@pytest.fixture
def short_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run without its seconds of timing."""

    def at_once(before: torch.nn.Module, after: torch.nn.Module, images: torch.Tensor) -> Latency:
        return Latency(len(images), 1, 1.0, 1.0, 1.0)

    monkeypatch.setattr(run, "measure", at_once)


# ------------------------------------------------------------------ what must not pass


@pytest.mark.usefixtures("short_latency")
def test_run_says_no_when_one_prediction_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = bnfold.fold

    def spoilt(model, inputs=None, **options):  # type: ignore[no-untyped-def]
        result = honest(model, inputs, **options)
        if next(model.parameters()).dtype == torch.float32:
            spoil_one_prediction(result.model)
        return result

    monkeypatch.setattr(bnfold, "fold", spoilt)
    assert run.main(tmp_path) == 1


def spoil_one_prediction(net: DigitsNet) -> None:
    """Raise one class's bias until exactly the first image changes over."""
    logits = logits_of(net, load_digits_split().images)
    gaps = logits.max(1).values[:, None] - logits  # (N, 10)
    gaps[gaps == 0] = float("inf")
    raised = int(gaps.min(0).values.argmin())
    smallest, second = gaps[:, raised].sort().values[:2]
    with torch.no_grad():
        net.classifier.bias[raised] += (smallest + second) / 2


@pytest.mark.usefixtures("short_latency")
def test_run_says_no_when_only_float64_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = bnfold.fold

    def spoilt(model, inputs=None, **options):  # type: ignore[no-untyped-def]
        result = honest(model, inputs, **options)
        if next(model.parameters()).dtype == torch.float64:
            with torch.no_grad():
                result.model.classifier.bias[3] += 1e-6
        return result

    monkeypatch.setattr(bnfold, "fold", spoilt)
    assert run.main(tmp_path) == 1


def test_difference_is_not_a_number_where_a_logit_is_not() -> None:
    before = torch.tensor([[1.0, -4.0]])
    difference = Difference.between(before, torch.tensor([[1.0, float("nan")]]))
    assert not difference.relative < run.FLOAT64_BOUND


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    target.write_text("old")

    def fails(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run.write_whole(target, fails)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


# ------------------------------------------------------------------ what is shipped


def test_weights_are_small_and_free_of_pickle() -> None:
    path = resources.files("bnfold.demo").joinpath(WEIGHTS_FILE)
    content = path.read_bytes()
    assert len(content) < WEIGHTS_LIMIT
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        assert all(arrays[name].dtype.kind in "fi" for name in arrays.files)


def test_network_loads_in_eval_mode() -> None:
    net = digits_net()
    assert not any(module.training for module in net.modules())
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
    assert len(batch_norms(net)) == BATCH_NORM_COUNT


def test_every_relu_is_its_own() -> None:
    calls: dict[torch.nn.Module, int] = {}
    net = digits_net()
    for module in net.modules():
        if isinstance(module, torch.nn.ReLU):
            module.register_forward_hook(
                lambda relu, _inputs, _output: calls.update({relu: calls.get(relu, 0) + 1})
            )
    net(load_digits_split().images[:1])
    assert len(calls) == BATCH_NORM_COUNT
    assert set(calls.values()) == {1}


def test_factors_of_every_batch_norm_have_both_signs() -> None:
    for norm in batch_norms(digits_net()):
        assert (norm.weight < 0).any()
        assert (norm.weight > 0).any()


def test_statistics_are_trained() -> None:
    for norm in batch_norms(digits_net()):
        assert norm.num_batches_tracked is not None
        assert norm.num_batches_tracked > 1000
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.running_mean.unique().numel() > norm.num_features / 2
        assert norm.running_var.unique().numel() > norm.num_features / 2
        assert norm.bias.abs().max() > 0.01


def test_held_out_digits_are_those_of_the_split() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    bunch = datasets.load_digits()
    train, held_out = split_indices(len(bunch.target))
    digits = load_digits_split()
    assert not set(train) & set(held_out)
    assert len(train) + len(held_out) == len(bunch.target)
    np.testing.assert_array_equal(digits.images[:, 0] * FULL_INK, bunch.images[held_out])
    np.testing.assert_array_equal(digits.labels, bunch.target[held_out])


def test_held_out_accuracy() -> None:
    digits = load_digits_split()
    assert digits.images.shape == (HELD_OUT_COUNT, 1, 8, 8)
    assert digits.images.dtype == torch.float32
    assert accuracy(logits_of(digits_net(), digits.images), digits.labels) >= 0.97


def test_held_out_file_is_small() -> None:
    assert len(resources.files("bnfold.demo").joinpath(HELD_OUT_FILE).read_bytes()) < 50_000


# ------------------------------------------------------------------ what folds


def test_every_batch_norm_folds_and_every_prediction_stays() -> None:
    digits = load_digits_split()
    net = digits_net()
    folded, report = bnfold.fold(net, digits.images[:1])
    assert (report.total, report.removed, report.kept) == (BATCH_NORM_COUNT, BATCH_NORM_COUNT, 0)
    assert len(batch_norms(folded)) == 0
    assert len(batch_norms(net)) == BATCH_NORM_COUNT
    before, after = logits_of(net, digits.images), logits_of(folded, digits.images)
    assert torch.equal(before.argmax(1), after.argmax(1))
    assert 0 < Difference.between(before, after).relative < 1e-5


def test_fold_is_exact_in_float64() -> None:
    assert run.float64_difference(load_digits_split()).relative < 1e-9


# ------------------------------------------------------------------ what the run writes


@pytest.mark.usefixtures("short_latency")
def test_run_writes_the_program_and_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output_dir = tmp_path / "new" / "out"
    assert run.main(output_dir) == 0
    names = (run.PROGRAM_FILE, run.REPORT_FILE, run.PAGE_FILE)
    assert {path.name for path in output_dir.iterdir()} == set(names)
    assert json.loads((output_dir / run.REPORT_FILE).read_text())
    printed = capsys.readouterr().out
    assert all(str(output_dir / name) in printed for name in names)
    page = (output_dir / run.PAGE_FILE).read_text("utf-8")
    assert 'id="before"' in page and 'id="verify"' in page
    written = hashlib.sha256((output_dir / run.PROGRAM_FILE).read_bytes()).hexdigest()
    assert written in page

    digits = load_digits_split()
    program = torch.export.load(output_dir / run.PROGRAM_FILE)
    assert not any("batch_norm" in str(node.target) for node in program.graph.nodes)
    before = logits_of(digits_net(), digits.images[:7])
    after = logits_of(program.module(), digits.images[:7])
    assert Difference.between(before, after).relative < 1e-5


def test_help_does_not_import_torch() -> None:
    script = (
        "import runpy, sys\n"
        "sys.argv = ['demo', '--help']\n"
        "try:\n"
        "    runpy.run_module('bnfold.demo', run_name='__main__')\n"
        "except SystemExit as exit:\n"
        "    assert exit.code == 0, exit.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)
