"""SIGKILL at every step of the write path; `make kill-test N=500` does it at random moments too."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from bnfold.cli import main
from tests.hard_stops import stepping, victims
from tests.hard_stops.victims import State, Victim

WIDTH = 16


@pytest.fixture(scope="module", params=["caffe", "onnx-data"])
def victim(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Victim:
    """Two output files: what belongs together must never be mixed."""
    made = victims.make(request.param, tmp_path_factory.mktemp("kills"), width=WIDTH)
    assert main(made.arguments()) == 0
    made.learn()
    return made


def test_kills_at_each_step_over_an_old_model(victim: Victim) -> None:
    """Old until the old one is set aside, new from the last move on, and no model in between."""
    victim.reset(is_old_there=True)
    count = stepping.count_steps(victim.folder, victim.arguments())
    assert victim.state(was_old_there=True) is State.NEW
    assert victim.leftovers() == []
    assert count >= 10  # open 2 (or a folder and 2), move 4, remove the rest
    states = []
    for step in range(1, count):
        victim.reset(is_old_there=True)
        done = stepping.run(victim.folder, victim.arguments(), step)
        assert done.returncode == -signal.SIGKILL
        states.append(victim.state(was_old_there=True))
    order = [State.OLD, State.NONE, State.NEW]
    assert states == sorted(states, key=order.index)
    assert set(states) == set(order)


def test_what_a_kill_leaves_disturbs_nobody(victim: Victim) -> None:
    victim.reset(is_old_there=False)
    for step in (2, 3, 4):
        assert stepping.run(victim.folder, victim.arguments(), step).returncode < 0
    left = {path.name for path in victim.leftovers()}
    assert left
    assert all(name.startswith(".bnfold-") and name.endswith(".part") for name in left)
    assert main(victim.arguments()) == 0
    assert victim.state(was_old_there=False) is State.NEW
    assert {path.name for path in victim.leftovers()} == left


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_single_file_is_replaced_at_once(tmp_path: Path, kind: str) -> None:
    victim = victims.make(kind, tmp_path, width=WIDTH)
    assert main(victim.arguments()) == 0
    victim.learn()
    victim.reset(is_old_there=True)
    step = 1 if kind == "pt2" else 2  # before the move
    assert stepping.run(tmp_path, victim.arguments(), step).returncode == -signal.SIGKILL
    assert victim.state(was_old_there=True) is State.OLD
    assert victim.leftovers()
