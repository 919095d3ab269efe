"""Example inputs in objects that PyTorch's trees do not know: a graph, a batch, an encoding.

To PyTorch's trees such an object (a dataclass, a `UserDict`, a class of one's own) is a leaf, and
tensors in it were constants that the code finds by itself. So it is opened: among the inputs, a
node of PyTorch's trees stands for it, whose children are its tensors. Each call gets a deep copy of
the object, in which those that the node holds by then lie in the place of its own.
"""

from __future__ import annotations

import copy
import types
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold.errors import ExampleInputError
from bnfold.frontends.torch.code_names import is_foreign
from bnfold.frontends.torch.held import LIKE_TABLES, TABLES, is_a, is_iterator, named_parts

_SKIPPED = (int, float, complex, str, bytes, type(None), np.ndarray, torch.dtype, torch.device)
_SKIPPED += (type, nn.Module, types.ModuleType, types.FunctionType)  # type: ignore[assignment]
_LOOKED_INTO = (*TABLES, *LIKE_TABLES)
"""Of classes that are not the user's, these and what derives from them."""
_MOST_THINGS = 4096
_DEEPEST = 6


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A node of PyTorch's trees that stands for an object."""

    thing: Any
    own: dict[str, Tensor]
    """Its tensors, by where they lie in it."""
    held: tuple[Any, ...]
    """What a copy is to hold in their place, in the same order."""

    def closed(self, memo: dict[int, Any]) -> Any:
        """A copy of the object that holds these; `memo` as for copy.deepcopy."""
        for own, held in zip(self.own.values(), self.held, strict=True):
            memo.setdefault(id(own), held)
        return copy.deepcopy(self.thing, memo)


def opened(tree: Any) -> Any:
    """The same inputs with objects that hold tensors opened. Raises ExampleInputError."""
    try:
        return pytree.tree_map(_opened, tree)
    except RecursionError:
        raise ExampleInputError(
            "the model",
            None,
            "pass inputs whose containers are not as deep, and in none of which it lies itself",
            problem="an example input is a container in containers without an end",
        ) from None


def closed(tree: Any) -> Any:
    """The inputs as a call takes them: with copies of the objects that were opened."""
    if not any(isinstance(leaf, Opened) for leaf in pytree.tree_leaves(tree, is_leaf=_is_opened)):
        return tree
    memo: dict[int, Any] = {}
    return pytree.tree_map(
        lambda leaf: leaf.closed(memo) if _is_opened(leaf) else leaf, tree, is_leaf=_is_opened
    )


def as_given(tree: Any) -> Any:
    """The inputs as they were before they were opened."""
    return pytree.tree_map(
        lambda leaf: leaf.thing if _is_opened(leaf) else leaf, tree, is_leaf=_is_opened
    )


def unopened(tree: Any) -> list[str]:
    """The classes of objects among the inputs that hold tensors, or may, and cannot be opened."""
    leaves = pytree.tree_leaves(tree)
    kinds = (type(leaf).__name__ for leaf in leaves if is_a(leaf, Iterator) or _tensors_in(leaf))
    return list(dict.fromkeys(kinds))


def _opened(leaf: Any) -> Any:
    own = _tensors_in(leaf)
    if not own:
        return leaf
    node = Opened(leaf, own, tuple(own.values()))
    try:
        found = _tensors_in(node.closed({}))
    except Exception:  # whatever copying the user's objects raises
        return leaf
    is_copied = [*map(id, found.values())] == [*map(id, own.values())]
    return node if is_copied else leaf


def _tensors_in(leaf: Any) -> dict[str, Tensor]:
    """What lies in an object, by where; none in a tensor, or in what others made (a DataLoader)."""
    if is_a(leaf, (Tensor, *_SKIPPED)):
        return {}
    if is_foreign(type(leaf)) and not (is_a(leaf, _LOOKED_INTO) or is_iterator(leaf)):
        return {}
    found: dict[str, Tensor] = {}
    pending = deque([("", leaf, 0)])
    met: dict[int, Any] = {}  # kept alive, so that nothing else gets its id()
    while pending and len(met) < _MOST_THINGS:
        place, thing, depth = pending.popleft()
        if is_a(thing, _SKIPPED) or id(thing) in met:
            continue
        met[id(thing)] = thing
        if is_a(thing, Tensor):
            found[place] = thing
        elif depth < _DEEPEST:
            pending += [(f"{place}{name}", part, depth + 1) for name, part in named_parts(thing)]
    return found


def _is_opened(leaf: Any) -> bool:
    return isinstance(leaf, Opened)


def _children(node: Opened) -> tuple[list[Any], Any]:
    return list(node.held), node


def _named_children(node: Opened) -> tuple[list[tuple[Any, Any]], Any]:
    return list(zip(node.own, node.held, strict=True)), node


def _of_children(children: Any, node: Any) -> Opened:
    return Opened(node.thing, node.own, tuple(children))


pytree.register_pytree_node(Opened, _children, _of_children, flatten_with_keys_fn=_named_children)
