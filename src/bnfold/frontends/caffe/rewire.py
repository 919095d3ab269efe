"""Names for the values that are left when layers go.

With a layer gone, its input and its output are one value. It takes the name of the last of them,
so that a network output keeps its name, and so that a name keeps its meaning: what was the output
of the BatchNorm still is. Caffe's rules for names (InsertSplits, Net::AppendTop):

    - a name may be taken again only by a layer that works in place: top i is called like bottom i,
    - and only if nobody else reads that bottom, or memory that it shares (see `memory`).

So where the last name cannot be taken, an earlier one is, or a new one. A value that is known
outside under several names keeps one of its layers, and so does an output that would be read: what
a layer reads is no output any more.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import pairwise

from bnfold.core.blame import Obstacle
from bnfold.core.reasons import Reason
from bnfold.frontends.caffe.memory import overwriting
from bnfold.frontends.caffe.net import Layer, Net
from bnfold.frontends.names import Namer


@dataclass(slots=True)
class Wiring:
    """What every value is called now."""

    roots: list[int]
    """Per value: the value that it is now, which is the first of those that became one."""
    names: dict[int, str] = field(default_factory=dict)
    """Per root."""

    def name(self, value: int) -> str:
        """What a value of the old network is called in the new one."""
        return self.names[self.roots[value]]


class NameTaken(Exception):  # noqa: N818  # control flow, not an error
    """There is no name for a value; a layer has to stay."""

    def __init__(self, layer: Layer, obstacle: Obstacle) -> None:
        super().__init__(obstacle.blocker)
        self.layer = layer
        """The last of the layers that made the values one."""
        self.obstacle = obstacle
        """Who knows the value by the name that it would need."""


def rewire(net: Net, removed: Collection[Layer]) -> Wiring:
    """Find names. Raises NameTaken."""
    return _Rewirer(net, removed).rewire()


class _Rewirer:
    def __init__(self, net: Net, removed: Collection[Layer]) -> None:
        self.net = net
        gone = set(map(id, removed))
        self.seen = net.outputs.keys() | net.elsewhere.keys()
        """Values that are known outside of the phase."""
        self.layers = [layer for layer in net.layers if id(layer) not in gone]
        self.wiring = Wiring(list(range(len(net.values))))
        self.members: dict[int, list[int]] = {}
        self.gone: dict[int, Layer] = {}
        """Per value, the removed layer that made it."""
        roots = self.wiring.roots
        for layer in net.layers:
            if id(layer) in gone:
                root = roots[layer.inputs[0]]
                roots[layer.outputs[0]] = root
                self.members.setdefault(root, [root]).append(layer.outputs[0])
                self.gone[layer.outputs[0]] = layer
        self.readers: dict[int, int] = {}
        for layer in self.layers:
            for number in layer.inputs:
                self.readers[roots[number]] = self.readers.get(roots[number], 0) + 1
        self.makers = {
            out: (layer, n) for layer in self.layers for n, out in enumerate(layer.outputs)
        }
        self.by_name: dict[str, list[int]] = {}
        """The roots of each name that is settled, in the order in which they are made."""
        self.before: dict[int, int] = {}
        """Per value, the one of the same name before it in the old network."""
        self.foreign = {top.string for layer in net.others for top in layer.tops}
        read = {bottom.string for layer in net.others for bottom in layer.bottoms}
        self.namer = Namer({value.name for value in net.values} | self.foreign | read)

    def rewire(self) -> Wiring:
        """Give every value that several became its last name; where that breaks a rule, another."""
        roots = self.wiring.roots
        latest: dict[str, int] = {}
        for number, value in enumerate(self.net.values):
            self.before[number] = latest.get(value.name, -1)
            latest[value.name] = number
            if roots[number] == number:
                self._call(number, value.name)
        for root in self.members:
            self._call(root, self._candidates(root)[0])
        for root in self.members:
            self._settle(root)
        for root in self.members:  # a later choice may have spoiled an earlier one
            self._settle(root)
        for root in self.members:
            if not self._is_sound(root):
                raise self._taken(root)
        self._keep_out_of_memory()
        return self.wiring

    def _keep_out_of_memory(self) -> None:
        """Rename what would be overwritten while others read its memory: then it is copied."""
        everything = range(len(self.net.values))
        before = overwriting(self.net, self.net.layers, everything, self._old_name)
        accepted = {id(layer) for layer, _ in before}
        while True:
            after = overwriting(self.net, self.layers, self.wiring.roots, self.wiring.name)
            clashes = [(layer, value) for layer, value in after if id(layer) not in accepted]
            if not clashes:
                return
            self._part_from(clashes[0][1])

    def _old_name(self, value: int) -> str:
        return self.net.values[value].name

    def _part_from(self, value: int) -> None:
        """Call a value, and what was made in place before it, something else."""
        chain = self.by_name[self.wiring.names[value]]
        earlier = chain[: chain.index(value) + 1]
        fixed = [version for version in earlier if self._mandatory(version)]
        if fixed:
            raise self._taken(self._gone_near(value))
        fresh = self.namer.fresh(f"{self.wiring.names[value]}_folded")
        for version in earlier:
            self._call(version, fresh)

    def _gone_near(self, value: int) -> int:
        """The last value before this one that several values became."""
        return max((root for root in self.members if root <= value), default=max(self.members))

    def _call(self, root: int, name: str) -> None:
        old = self.wiring.names.get(root)
        if old is not None:
            self.by_name[old].remove(root)
        self.wiring.names[root] = name
        insort(self.by_name.setdefault(name, []), root)

    def _settle(self, root: int) -> None:
        """Try names until one breaks no rule."""
        if self._is_sound(root):
            return
        fresh = f"{self.net.values[self.members[root][-1]].name}_folded"
        for name in self._candidates(root):
            self._call(root, name)
            if self._is_sound(root):
                return
        if self._mandatory(root):
            raise self._taken(root)
        self._call(root, self.namer.fresh(fresh))

    def _candidates(self, root: int) -> list[str]:
        """The names that its members had, the last one first; one only if it is known outside."""
        wanted = self._mandatory(root)
        unread = [number for number in self.members[root] if not self.net.values[number].readers]
        if len(wanted) > 1 or (unread and self.readers.get(root, 0)):
            raise self._taken(root)
        own = self.net.values[root].name
        names = [self.net.values[number].name for number in reversed(self.members[root])]
        return wanted or [name for name in dict.fromkeys(names) if self._is_free(name, own)]

    def _taken(self, root: int) -> NameTaken:
        """The layer to keep: the one that makes what is known outside, or else the last one."""
        made = [number for number in self.members[root] if number in self.gone]
        outside = [number for number in made if number in self.seen]
        number = (outside or made)[-1]
        obstacle = Obstacle(Reason.GRAPH_OUTPUT, self.net.values[number].name)
        if number in self.net.elsewhere and number not in self.net.outputs:
            obstacle = Obstacle(Reason.OTHER_PHASE, self.net.elsewhere[number])
        return NameTaken(self.gone[number], obstacle)

    def _is_free(self, name: str, own: str) -> bool:
        """Whether the other phase does not make a blob of this name."""
        return name == own or name not in self.foreign

    def _mandatory(self, root: int) -> list[str]:
        """The names under which somebody outside knows the value."""
        names = []
        for number in self.members.get(root, [root]):
            is_input = number in self.net.inputs or (
                number in self.makers and not self.makers[number][0].bottoms
            )
            if is_input or number in self.seen:
                names.append(self.net.values[number].name)
        return list(dict.fromkeys(names))

    def _is_sound(self, root: int) -> bool:
        """Whether the values of each name that it has or had form chains of work in place."""
        names = {self.net.values[number].name for number in self.members[root]}
        names.add(self.wiring.names[root])
        chains = (self.by_name.get(name, []) for name in names)
        return all(self._may_follow(a, b) for chain in chains for a, b in pairwise(chain))

    def _may_follow(self, first: int, second: int) -> bool:
        """Whether two values may have one name: they had it already, or by working in place."""
        is_old = first not in self.members and second not in self.members
        return (is_old and self.before[second] == first) or self._in_place(first, second)

    def _in_place(self, first: int, second: int) -> bool:
        """Whether the second value may take the name of the first."""
        if second not in self.makers or self.readers.get(first, 0) != 1:
            return False
        if any(number in self.seen for number in self.members.get(first, [first])):
            return False
        layer, position = self.makers[second]
        bottoms = [self.wiring.roots[number] for number in layer.inputs]
        return position < len(bottoms) and bottoms[position] == first
