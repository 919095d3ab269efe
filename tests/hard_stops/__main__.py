"""Kill many runs while they write: `python -m tests.hard_stops --kills 500 --seed 1`.

A parent process imports everything once and forks a child per kill; the child runs the command, and
is killed by SIGKILL

    at a step    before its n-th step on a file (see `stepping`), for every n in turn
    by the clock at a random moment, counted from its start or from its first file

After each kill: the inputs are as they were; the output is the old one, the whole new one, or, of
two files, no model at all; files that are left over disturb no later run. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bnfold.cli import main as command
from tests.hard_stops import victims
from tests.hard_stops.stepping import stop_at
from tests.hard_stops.victims import State, Victim

_WIDTH = 512
"""Channels: a weight of 9 MB, which takes a while to write."""


def main() -> int:
    """Kill, look, count. Returns 1 if anything was found that must not be."""
    parser = argparse.ArgumentParser(prog="python -m tests.hard_stops", description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    _import_all()
    record: dict[str, object] = {"seed": arguments.seed}
    intact = 0
    with tempfile.TemporaryDirectory(prefix="bnfold-kills-") as root:
        share = -(-arguments.kills // len(victims.KINDS))
        for kind in victims.KINDS:
            folder = Path(root, kind)
            folder.mkdir()
            count = min(share, arguments.kills - intact)
            found = _kill_many(victims.make(kind, folder, width=_WIDTH), count, rng)
            intact += count
            record[kind] = dict(found)
            print(f"{kind}: {json.dumps(record[kind])}", flush=True)
    record["kills"] = intact
    print(json.dumps(record))
    return 0


def _import_all() -> None:
    import onnx  # noqa: F401
    import torch

    torch.set_num_threads(1)


def _kill_many(victim: Victim, count: int, rng: random.Random) -> Counter[str]:
    found: Counter[str] = Counter()
    whole, writing = _measure(victim)
    steps = {is_old: _count_steps(victim, is_old_there=is_old) for is_old in (False, True)}
    number = -1
    while found["kills"] < count:
        number += 1
        is_old = bool(number % 2)
        victim.reset(is_old_there=is_old)
        if number % 4 < 2:
            was_killed = _wait(_fork(victim, number // 4 % steps[is_old]))
        else:
            child = _fork(victim, -1)
            late = number % 8 < 6
            if late:
                _wait_for_file(victim, child)
            time.sleep(rng.uniform(0, writing if late else whole))
            os.kill(child, signal.SIGKILL)
            was_killed = _wait(child)
        state = victim.state(was_old_there=is_old)
        if was_killed:
            found["kills"] += 1
            found["at a step" if number % 4 < 2 else "by the clock"] += 1
            found[_moment(victim, state)] += 1
            found[f"left: {state.value}"] += 1
        if number % 10 == 0:  # what is left over disturbs nobody
            assert _wait(_fork(victim, -1)) is False
            assert victim.state(was_old_there=is_old) is State.NEW
    return found


def _moment(victim: Victim, state: State) -> str:
    if victim.leftovers() or state is State.NONE:
        return "killed while writing"
    return "killed before writing" if state is State.OLD else "killed after writing"


def _measure(victim: Victim) -> tuple[float, float]:
    """How long an undisturbed run takes, and how much of it is writing."""
    victim.reset(is_old_there=False)
    start = time.monotonic()
    child = _fork(victim, -1)
    _wait_for_file(victim, child)
    middle = time.monotonic()
    assert _wait(child) is False
    victim.learn()
    return time.monotonic() - start, time.monotonic() - middle


def _count_steps(victim: Victim, *, is_old_there: bool) -> int:
    """A run that is to be stopped at step n is not stopped, if there are only n steps."""
    step = 0
    while True:
        victim.reset(is_old_there=is_old_there)
        if not _wait(_fork(victim, step)):
            return step
        victim.state(was_old_there=is_old_there)
        step += 1


def _wait_for_file(victim: Victim, child: int) -> None:
    while not victim.leftovers() and os.waitid(os.P_PID, child, _LOOK) is None:
        time.sleep(0.0005)


_LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT


def _fork(victim: Victim, step: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        stop_at(str(victim.folder), step, signal.SIGKILL)
        code = command(victim.arguments())
    finally:
        os._exit(code)
    return 0


def _wait(child: int) -> bool:
    """Whether it was killed. Raises AssertionError if it failed by itself."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, f"exit status {os.WEXITSTATUS(status)}"
    return False


if __name__ == "__main__":
    sys.exit(main())
