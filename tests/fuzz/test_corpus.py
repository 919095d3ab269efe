"""Replay of the corpora, and a few hundred mutations of them with a fixed seed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import bnfold
from tests.fuzz import mutate, targets

MUTATORS = {
    "prototxt": mutate.text,
    "caffemodel": mutate.caffemodel,
    "onnx": mutate.onnx,
    "caffe": mutate.caffe(targets.SEPARATOR),
    "onnx-fold": mutate.onnx,
}
CASES = [(target, path) for target in targets.TARGETS for path in targets.corpus(target)]


@pytest.mark.parametrize(
    ("target", "path"), CASES, ids=[f"{target}-{path.name}" for target, path in CASES]
)
def test_replay(target: str, path: Path) -> None:
    targets.TARGETS[target](path.read_bytes())


@pytest.mark.parametrize("target", targets.TARGETS)
def test_mutations(target: str) -> None:
    rng = random.Random(0)
    seeds = [path.read_bytes() for path in targets.corpus(target)]
    for _ in range(150):
        targets.TARGETS[target](MUTATORS[target](rng.choice(seeds), rng))


def test_seeds_fold_at_all() -> None:
    """A corpus of which everything is refused at the door would show nothing."""
    removed = sum(
        bnfold.inspect(targets.CORPUS / "onnx" / f"{name}.onnx").removed
        for name in ("images", "views", "tokens", "open")
    )
    assert removed >= 5
