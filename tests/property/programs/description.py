"""A program is a chain of named pieces, each with a seed of its own, and how it is called.

A piece is a plain part of a network ("conv", "residual") or a habit ("state.gain_grows"): a small
piece of Python as people write it. Some hold a chain of pieces inside. As each has its own seed, a
piece that is left out changes nothing about the others but their number of channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Piece:
    """One link of a chain."""

    name: str
    seed: int = 0
    inner: tuple[Piece, ...] = ()

    def __str__(self) -> str:
        inside = f"[{chain(self.inner)}]" if self.inner else ""
        return f"{self.name}{inside}"

    def every(self) -> Iterator[Piece]:
        yield self
        for piece in self.inner:
            yield from piece.every()


@dataclass(frozen=True)
class Options:
    """How the program is called and folded."""

    layout: str = "contiguous"
    """See `inputs.LAYOUTS`."""
    call: str = "tensor"
    """How the example is passed: a tensor, a tuple, or a dict of keywords."""
    clip: str = "auto"
    inplace: bool = False
    also: bool = False
    """Whether the fold is given further examples of other sizes."""
    inspect: bool = False
    """Whether `bnfold.inspect` is called before the fold."""
    verify: bool = True
    """False leaves out the fold's own check, so that its reading alone is tried."""

    def __str__(self) -> str:
        usual = Options()
        return " ".join(
            f"{name}={value}" for name, value in vars(self).items() if value != getattr(usual, name)
        )


@dataclass(frozen=True)
class Program:
    """What is built, and how it is folded."""

    pieces: tuple[Piece, ...]
    options: Options = field(default_factory=Options)
    seed: int = 0
    """Of the inputs."""

    def __str__(self) -> str:
        return f"{chain(self.pieces)}  {self.options}".strip()

    @property
    def habits(self) -> list[str]:
        """Names of the habits in it."""
        names = (piece.name for top in self.pieces for piece in top.every())
        return sorted({name for name in names if "." in name})

    def smaller(self) -> Iterator[Program]:
        """Each program that has a little less: the big cuts first."""
        for pieces in _smaller(self.pieces):
            yield replace(self, pieces=pieces)
        usual = Options()
        for name, value in vars(self.options).items():
            if value != getattr(usual, name):
                plainer = replace(self.options, **{name: getattr(usual, name)})
                yield replace(self, options=plainer)


def chain(pieces: tuple[Piece, ...]) -> str:
    """Its text: conv > bn > state.gain_grows[bn > relu]."""
    return " > ".join(map(str, pieces))


def _smaller(pieces: tuple[Piece, ...]) -> Iterator[tuple[Piece, ...]]:
    half = len(pieces) // 2
    if half > 1:
        yield pieces[:half]
        yield pieces[half:]
    for at, piece in enumerate(pieces):
        yield pieces[:at] + pieces[at + 1 :]
        if piece.inner:
            yield pieces[:at] + piece.inner + pieces[at + 1 :]
    for at, piece in enumerate(pieces):
        for inner in _smaller(piece.inner):
            yield (*pieces[:at], replace(piece, inner=inner), *pieces[at + 1 :])
