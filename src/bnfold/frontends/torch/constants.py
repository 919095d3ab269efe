"""What a run takes for constant: which parameter a tensor is, or was made of, or whether neither.

Constants are told by their tensor objects, and parameters also by their memory, under any name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bnfold.frontends.torch.ledger import Ledger
from bnfold.frontends.torch.op_effects import result_of
from bnfold.frontends.torch.ops import aten_name
from bnfold.frontends.torch.recording import Const, Derivation, leaves_of
from bnfold.frontends.torch.shadow import NeedsMemory
from bnfold.frontends.torch.tensor_facts import AT_RANDOM, MADE, memory_of

_ADD_UP = ("index_add_", "scatter_add_")


class Constants:
    """The tensors of one run that do not depend on the input."""

    def __init__(self, ledger: Ledger, *, lends: bool) -> None:
        self.ledger = ledger
        self.recording = ledger.recording
        self.owned = ledger.recording.owned
        self.derived: dict[int, tuple[Tensor, Const]] = {}
        """By id(): what ops made of parameters. The tensor is held so that nothing else gets it."""
        self.owned_storages: dict[int | None, Tensor] | None = None
        """The parameters and buffers by their memory, once that was asked for."""
        self.strange = False
        """Whether a constant came from nobody knows where."""
        self.lends = lends
        """Whether the parameters' memory is the original's."""
        self.has_lent = False
        """Whether that memory was asked for: the run tells nothing any more."""

    def of(self, tensor: Tensor) -> Const:
        """What a tensor is that does not depend on the input."""
        known = self.derived.get(id(tensor))
        if known is not None and known[0] is tensor:
            return known[1]
        if id(tensor) not in self.owned and (owner := self.owner(tensor)) is not None:
            return Const(tensor, owner, Derivation.OTHER)  # another name for a parameter's memory
        if self._is_strange(tensor):
            self.strange = True
            if self.ledger.is_structural:
                raise self.ledger.void()
        return Const(tensor, tensor)

    def zeros_added_to(self, func: Any, args: tuple[Any, ...]) -> Const | None:
        """What `index_add_` and `scatter_add_` write to, where the run made it of zeros."""
        base = args[0] if aten_name(func) in _ADD_UP and args else None
        if not isinstance(base, Tensor) or getattr(base, MADE, None) != MADE or base.any():
            return None
        copy = base.clone()
        return Const(copy, copy)

    def owner(self, tensor: Tensor) -> Tensor | None:
        """The parameter or buffer whose memory this is."""
        if self.owned_storages is None:
            self.owned_storages = {memory_of(owned): owned for owned in self.owned.values()}
        memory = memory_of(tensor)
        return None if memory is None else self.owned_storages.get(memory)

    def _is_strange(self, tensor: Tensor) -> bool:
        """Whether a constant may come from anywhere, out of a thread that was handed values too.

        It is neither the model's, nor lent to it, nor made by an op of the run.
        """
        known = id(tensor) in self.owned or id(tensor) in self.recording.lent_biases
        return not known and not hasattr(tensor, MADE)

    def note_result(
        self, func: Any, args: tuple[Any, ...], tensors: Sequence[Tensor], result: Any
    ) -> None:
        """An op made something of constants; remember of which parameter."""
        self._sign(func, tensors, result)
        for tensor in tensors:
            constant = self.of(tensor)
            if id(constant.origin) not in self.owned:
                continue
            how = result_of(constant, func, args, result)
            if how is Derivation.OTHER or not isinstance(result, Tensor):
                self.ledger.note_other_use(tensor, constant.origin)
            if isinstance(result, Tensor) and result is not tensor:
                self.derived[id(result)] = (result, Const(result, constant.origin, how))

    def _sign(self, func: Any, tensors: Sequence[Tensor], result: Any) -> None:
        """Mark constants that ops make, and whether chance had a hand in them."""
        drawn = torch.Tag.nondeterministic_seeded in getattr(func, "tags", ()) or any(
            getattr(tensor, MADE, None) == AT_RANDOM for tensor in tensors
        )
        if drawn and not isinstance(result, Tensor) and not isinstance(result, tuple | list):
            self.recording.by_chance = True
        if not drawn and any(map(self._is_strange, tensors)):
            return
        for leaf in leaves_of(result):
            if isinstance(leaf, Tensor) and (drawn or id(leaf) not in self.owned):
                setattr(leaf, MADE, AT_RANDOM if drawn else MADE)

    def note_handed_out(self, tensor: Tensor) -> None:
        """The program takes a constant out of PyTorch: a parameter must not be edited then."""
        owner = tensor if id(tensor) in self.owned else self.owner(tensor)
        known = self.derived.get(id(tensor))
        if owner is None and known is not None and known[0] is tensor:
            owner = known[1].origin
        if owner is not None:
            self.ledger.note_other_use(tensor, owner)

    def guard_memory(self, tensor: Tensor) -> None:
        """Nobody may get hold of memory through which the original can be written to unseen."""
        if self.lends and isinstance(self.owner(tensor), nn.Parameter):
            self.has_lent = True
            raise NeedsMemory
