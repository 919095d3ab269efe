"""From a number to a program."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.property.programs.block import HABITS
from tests.property.programs.description import Options, Piece, Program
from tests.property.programs.inputs import LAYOUTS
from tests.property.programs.parts import HEADS, HOLDING, PARTS, STEADY

KINDS = sorted({name.split(".")[0] for name in HABITS})
_PLAIN = ["conv", "conv", "conv", "bn", "bn", "bn", "bn", "relu", "relu", *STEADY]
_RESIZING = [name for name in PARTS if name not in STEADY and name not in HEADS]


def draw(seed: int, attempt: int = 0, only: Sequence[str] = ()) -> Program:
    """One to four habits among plain parts. `only`: kinds or names of the habits to draw from."""
    rand = random.Random(f"{seed}/{attempt}")
    habits = [name for name in HABITS if not only or name in only or name.split(".")[0] in only]
    by_kind = {kind: [h for h in habits if h.split(".")[0] == kind] for kind in KINDS}
    kinds = [kind for kind in KINDS if by_kind[kind]]
    pieces: list[Piece] = []
    for _ in range(rand.choice((1, 1, 2, 2, 3, 4))):
        pieces += _parts(rand, rand.randint(0, 3), resizing=True)
        name = rand.choice(by_kind[rand.choice(kinds)])
        inner = _chain(rand, habits) if rand.random() < 0.3 else ()
        pieces.append(Piece(name, rand.randrange(2**31), inner))
    pieces += _parts(rand, rand.randint(0, 3), resizing=True)
    if rand.random() < 0.8:
        pieces.append(Piece(rand.choice(HEADS), rand.randrange(2**31)))
    return Program(tuple(pieces), _options(rand), rand.randrange(2**31))


def _options(rand: random.Random) -> Options:
    return Options(
        layout=rand.choice(("contiguous", "contiguous", *LAYOUTS)),
        call=rand.choice(("tensor", "tensor", "tuple", "dict")),
        clip=rand.choice(("auto", "auto", "always", "never")),
        inplace=rand.random() < 0.2,
        also=rand.random() < 0.1,
        inspect=rand.random() < 0.2,
    )


def _parts(rand: random.Random, count: int, *, resizing: bool = False) -> list[Piece]:
    names = [*_PLAIN, *_RESIZING] if resizing else _PLAIN
    made = []
    for _ in range(count):
        name = rand.choice(names)
        inner = tuple(_parts(rand, rand.randint(1, 3))) if name in HOLDING else ()
        made.append(Piece(name, rand.randrange(2**31), inner))
    return made


def _chain(rand: random.Random, habits: Sequence[str]) -> tuple[Piece, ...]:
    """What a habit holds: parts, and sometimes another habit."""
    pieces = _parts(rand, rand.randint(1, 3))
    if rand.random() < 0.4:
        habit = Piece(rand.choice(habits), rand.randrange(2**31))
        pieces.insert(rand.randrange(len(pieces) + 1), habit)
    return tuple(pieces)
