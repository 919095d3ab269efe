"""Where the new content of a constant goes, as edits.

in place              where nobody else reads the initializer, or all who do want the same
a name of its own     for the node that asks, else
in 16 bits            what is only stored in them (see `narrow`) is rounded to them again, or on
                      request becomes a float32 of its own
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial

from onnx import TensorProto, helper

from bnfold._storage import Weights
from bnfold.core.affine import FloatArray
from bnfold.frontends.names import Namer
from bnfold.frontends.onnx.edits import Array, Edits, NewTensor
from bnfold.frontends.onnx.narrow import cast_later, is_narrow
from bnfold.frontends.onnx.nodes import Node, named_values
from bnfold.frontends.onnx.shapes import Shape
from bnfold.frontends.onnx.sites import Lifted, LinearSite


class NewConstants:
    """Puts new content into edits, op by op."""

    def __init__(self, lifted: Lifted, removed: Collection[int], weights: Weights) -> None:
        self.lifted = lifted
        self.weights = weights
        self.network = lifted.network
        self.constants = lifted.constants
        self.edits = Edits()
        self.namer = Namer({*named_values(self.network.proto.graph), *self.network.taken})
        self.ties = self._ties()
        self.gone = {lifted.sites[number].node.index for number in removed}
        self.widened: dict[str, str] = {}
        """New float32 initializers, by the name of what they were made of."""

    def array(self, name: str) -> Array:
        """The value of a constant."""
        array = self.constants.array(name)
        assert array is not None
        return array

    def put(
        self,
        number: int,
        node: Node,
        position: int,
        name: str,
        shape: Shape | None,
        content: Callable[[], Array],
        *,
        like: str = "",
        copied: bool = False,
        factor: FloatArray | None = None,
    ) -> None:
        """Give an input of a node new content: in place, or under a name of its own."""
        old_shape = self.constants.shape(name) if name else None
        shape = old_shape if shape is None else shape
        assert shape is not None
        if self.is_narrow(node, position):
            if self.weights == "float32":
                self._widen(number, node, position, name, shape, content)
                return
            self.edits.rounded[name] = self._data_type(name)
        is_same = name in self.network.initializers and shape == old_shape and not copied
        if is_same and self._may_edit(number, name):
            if name not in self.edits.replaced:
                new = self._new(number, name, shape, content, name)
                self.edits.replaced[name] = replace(new, source=name, factor=factor)
            return
        wanted = f"{name}_folded" if name else f"{node.name}_bias"
        born = self.bear(number, wanted, name or like, shape, content, old=name)
        self.edits.born[born] = replace(self.edits.born[born], source=name, factor=factor)
        self.edits.inputs[node.index, position] = born

    def bear(
        self,
        number: int,
        wanted: str,
        like: str,
        shape: Shape,
        content: Callable[[], Array],
        *,
        old: str = "",
    ) -> str:
        """A new initializer, of the dtype of `like`; returns its name."""
        name = self.namer.fresh(wanted)
        self.edits.born[name] = self._new(number, like, shape, content, old)
        return name

    def is_narrow(self, node: Node, position: int) -> bool:
        """Whether an input of a node is only stored in 16 bits."""
        dtypes = self.constants.shapes.dtypes
        return is_narrow(self.network, dtypes, node, position, self.gone)

    def _widen(
        self,
        number: int,
        node: Node,
        position: int,
        name: str,
        shape: Shape,
        content: Callable[[], Array],
    ) -> None:
        """Let a node read float32; ops that want the same edit share it."""
        born = self.widened.get(name) if self._may_edit(number, name) else None
        if born is None:
            born = self.bear(number, f"{name}_folded", name, shape, content, old=name)
            wide = replace(self.edits.born[born], data_type=TensorProto.FLOAT)
            self.edits.born[born] = wide
            self.widened[name] = born
        self.edits.inputs[node.index, position] = born
        if node.op == "Gather":
            dtypes = self.constants.shapes.dtypes
            later = cast_later(self.network, dtypes, node, self.gone)
            assert later is not None
            self.edits.retyped |= {*later.values}
            for cast in later.casts:
                self.edits.removed.add(cast.index)
                self.edits.bypassed[cast.outputs[0]] = cast.inputs[0]

    def _may_edit(self, number: int, name: str) -> bool:
        """Whether everybody who reads the initializer wants this edit."""
        if self.network.is_pinned(name):
            return False
        readers = self.network.value_readers(name)
        if len(readers) == 1:
            return True
        tie = self._tie(number)
        return tie is not None and all(
            self.ties.get((node.index, position)) == tie for node, position in readers
        )

    def _tie(self, number: int) -> object:
        role = self.lifted.graph.ops[number].role
        return getattr(role, "tie", None)

    def _ties(self) -> dict[tuple[int, int], object]:
        """The tie of the op that reads a weight or bias, by (index of the node, position)."""
        ties: dict[tuple[int, int], object] = {}
        for number, site in self.lifted.sites.items():
            if isinstance(site, LinearSite) and (tie := self._tie(number)) is not None:
                ties[site.node.index, site.position] = tie
                if site.bias is not None and site.bias.factor == 1.0:
                    ties[site.bias.node.index, site.bias.position] = tie
        return ties

    def _new(
        self, number: int, like: str, shape: Shape, content: Callable[[], Array], old: str
    ) -> NewTensor:
        before = partial(self.array, old) if old else None
        return NewTensor(number, self._data_type(like), shape, content, before)

    def _data_type(self, name: str) -> int:
        tensor = self.network.initializers.get(name)
        if tensor is not None:
            return tensor.data_type
        known = self.constants.shapes.dtypes.get(name)
        if known:
            return known
        return int(helper.np_dtype_to_tensor_dtype(self.array(name).dtype))
