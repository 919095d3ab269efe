"""What a module's code keeps outside of the modules, put back after runs of it.

A run takes place on a copy, but what closures, default arguments, globals and classes hold is not
part of a copy: `n += 1` on a closure's counter, a list of what was seen, an iterator over parts;
nor are the flags of PyTorch and the environment. All of it is noted and put back as it was, see
`noted`. A Python generator cannot be put back: a module that reads one is refused before it runs.
"""

from __future__ import annotations

import os
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bnfold.frontends.torch.copies import Snapshot, is_small
from bnfold.frontends.torch.noted import Notes, code_of
from bnfold.frontends.torch.restorable import Restorable


class Surroundings(Restorable):
    """What lies outside of a model's modules, and how to put it back."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._notes = Notes((*modules, *model.parameters(), *model.buffers()))
        scripted = torch.jit.ScriptModule
        own = [module for module in modules if not isinstance(module, scripted)]
        self._notes.note(*(part for module in own for part in code_of(module)))
        others = self._notes.modules
        weights = all(map(is_small, others))
        self._others = Snapshot(others, weights=weights) if others else None
        self._flags = [(ask, tell, ask()) for ask, tell in _FLAGS]

    @property
    def generators(self) -> list[types.GeneratorType[Any, Any, Any]]:
        """Those that are not at their end."""
        return self._notes.generators

    def restore(self) -> None:
        """Put everything back; what did not change is not touched."""
        self._notes.restore()
        if self._others is not None:
            self._others.restore()
        for ask, tell, before in self._flags:
            if ask() != before:
                tell(before)


def _deterministic() -> tuple[bool, bool]:
    is_warning = torch.is_deterministic_algorithms_warn_only_enabled()
    return torch.are_deterministic_algorithms_enabled(), is_warning


def _set_deterministic(mode: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(mode[0], warn_only=mode[1])


def _set_environment(before: dict[str, str]) -> None:
    for name in [name for name in os.environ if name not in before]:
        del os.environ[name]
    os.environ.update(before)


_FLAGS: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_num_threads, torch.set_num_threads),
    (_deterministic, _set_deterministic),
    (lambda: dict(os.environ), _set_environment),
)
"""How to ask for what holds for the whole program, and how to set it."""


def flags() -> list[Any]:
    """How the whole program is set up now."""
    return [ask() for ask, _ in _FLAGS]
