"""A program as a module: the same one, made anew, each time."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo  # patches torch where it is first needed, which a fold is not to blame for
from torch import Tensor, nn

from tests.property.programs import (  # noqa: F401  (each registers its habits)
    habits_closures,
    habits_escapes,
    habits_hooks,
    habits_layouts,
    habits_questions,
    habits_random,
    habits_sizes,
    habits_state,
    habits_structure,
    habits_threads,
)
from tests.property.programs.block import HABITS, Outside, Room
from tests.property.programs.description import Piece, Program
from tests.property.programs.parts import PARTS

CHANNELS = 3
"""Of the input."""


class Model(nn.Module):
    """Runs the pieces one after the other."""

    def __init__(self, pieces: list[nn.Module]) -> None:
        super().__init__()
        self.pieces = nn.ModuleList(pieces)
        self.tellers = [piece for piece in pieces if getattr(piece, "tells", False)]

    def forward(self, x: Tensor) -> Any:
        for piece in self.pieces:
            x = piece(x)
        if not self.tellers:
            return x
        return x, [teller.told for teller in self.tellers]


@dataclass
class Built:
    """A new module, and what it has outside of itself."""

    model: Model
    outside: Outside


def build(program: Program) -> Built:
    outside = Outside()
    pieces, channels = [], CHANNELS
    with torch.random.fork_rng(devices=[]):
        for piece in program.pieces:
            module, channels = _make(piece, channels, outside)
            pieces.append(module)
    model = Model(pieces)
    # Not .eval(): some pieces hold what was left in training mode.
    for module in (model, *_containers(model)):
        module.training = False
    return Built(model, outside)


def _containers(model: nn.Module) -> list[nn.Module]:
    mixed = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
    return [
        module
        for module in model.modules()
        if not isinstance(module, mixed) and not isinstance(module, torch.jit.ScriptModule)
    ]


def _make(piece: Piece, channels: int, outside: Outside) -> tuple[nn.Module, int]:
    inside = None
    if piece.inner:
        inner = []
        for each in piece.inner:
            module, channels = _make(each, channels, outside)
            inner.append(module)
        inside = nn.Sequential(*inner)
    torch.default_generator.manual_seed(piece.seed)  # quicker than torch.manual_seed
    room = Room(channels, random.Random(piece.seed), outside, inside)
    make = PARTS.get(piece.name) or HABITS[piece.name]
    return make(room), room.out or channels
