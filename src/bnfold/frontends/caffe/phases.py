"""Which layers take part in a phase, and what the other phase needs to find as it was.

A train_val.prototxt is two networks with common layers. The TEST phase is folded; the layers that
both phases have are edited for both. So that the TRAIN phase keeps what it reads, these keep their
values: what a layer outside of TEST reads, and what reaches a common layer by another way than in
TRAIN, as behind a BatchNorm that each phase has of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from bnfold.frontends.caffe.net import Layer, Net
from bnfold.frontends.caffe.options import Options

PHASES = {0: "TRAIN", 1: "TEST"}


@dataclass(frozen=True, slots=True)
class State:
    """What the rules of a layer are compared with."""

    phase: str
    level: int = 0
    stages: frozenset[str] = frozenset()

    def meets(self, rule: Options) -> bool:
        """Net::StateMeetsRule."""
        wrong_phase = rule.has("phase") and rule.word("phase", "", PHASES) != self.phase
        too_low = rule.has("min_level") and self.level < rule.integer("min_level", 0)
        too_high = rule.has("max_level") and self.level > rule.integer("max_level", 0)
        lacks = not self.stages.issuperset(rule.texts("stage"))
        forbidden = not self.stages.isdisjoint(rule.texts("not_stage"))
        return not (wrong_phase or too_low or too_high or lacks or forbidden)

    def includes(self, layer: Options) -> bool:
        """Net::FilterNet: the include rules if there are any, else the exclude rules."""
        include = layer.parts("include")
        if include:
            return any(self.meets(rule) for rule in include)
        return not any(self.meets(rule) for rule in layer.parts("exclude"))


def state_of(whole: Options, phase: str) -> State:
    """The state that a file gives itself, in a phase."""
    given = whole.part("state")
    return State(phase, given.integer("level", 0), frozenset(given.texts("stage")))


def needed_elsewhere(net: Net, training: State) -> dict[int, str]:
    """The values that the other phase needs as they are, each with the layer to blame."""
    needed = _read_elsewhere(net)
    in_training = {id(layer) for layer in net.others if training.includes(layer.options)}
    if in_training:
        for value, name in _reached_otherwise(net, training, in_training).items():
            needed.setdefault(value, name)
    return needed


def _read_elsewhere(net: Net) -> dict[int, str]:
    """The versions of blobs that stand before a layer of the other phase which reads them."""
    versions: dict[str, list[int]] = {}
    for number, value in enumerate(net.values):
        versions.setdefault(value.name, []).append(number)
    needed: dict[int, str] = {}
    for layer in net.others:
        for bottom in layer.bottoms:
            before = [n for n in versions.get(bottom.string, ()) if _is_before(net, n, layer)]
            if before:
                needed.setdefault(before[-1], layer.name)
    return needed


def _is_before(net: Net, number: int, layer: Layer) -> bool:
    """Whether a value is made before a layer runs, in the order of the file."""
    maker = net.values[number].maker
    return maker is None or maker.place.start < layer.place.start


def _reached_otherwise(net: Net, training: State, in_training: set[int]) -> dict[int, str]:
    """What a common layer reads, where in TRAIN another layer makes that blob."""
    common = {id(layer) for layer in net.layers if training.includes(layer.options)}
    latest: dict[str, tuple[Layer, int]] = {}
    needed: dict[int, str] = {}
    for layer in sorted((*net.layers, *net.others), key=lambda layer: layer.place.start):
        if id(layer) not in common | in_training:
            continue
        for bottom, number in zip(layer.bottoms, layer.inputs, strict=False):
            maker = net.values[number].maker
            if maker is None or not maker.bottoms or bottom.string not in latest:
                continue  # data of the two phases
            other, place = latest[bottom.string]
            if other is not maker:
                is_training = id(other) in in_training
                needed.setdefault(number, other.name if is_training else layer.name)
                if not is_training:  # in TRAIN the layer reads this one at once
                    needed.setdefault(other.outputs[place], layer.name)
        for place, top in enumerate(layer.tops):
            latest[top.string] = layer, place
    return needed
