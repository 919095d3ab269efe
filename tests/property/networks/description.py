"""One network, described for all frontends at once: what it computes, and on which numbers.

A network is a list of nodes in the order in which they run. Every value has a name and a shape; a
value that nobody reads is an output, and so are those that `Network.outputs` names. Numbers come
from the network's seed and the node's name, so that a network stays the same one where another node
is taken out of it: that is what makes failing cases shrink.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Shape = tuple[int, ...]

AFFINE = ("bn", "scale", "shift")
"""Kinds that scale and shift by constants."""
CLIPS = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0), "clip": (-1.0, 1.5)}
"""Lower and upper bound."""


@dataclass(frozen=True)
class Node:
    """One step of a network."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: Mapping[str, Shape]
    """Name and shape of each value it makes; all but `split` make one."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the kind needs: kernel, stride, gamma, ..."""
    same_as: str = ""
    """The node whose module and weights this one uses too."""

    @property
    def output(self) -> str:
        """The name of the first value it makes."""
        return next(iter(self.outputs))

    @property
    def shape(self) -> Shape:
        """The shape of the first value it makes."""
        return next(iter(self.outputs.values()))

    def get(self, option: str, default: Any = None) -> Any:
        """An option, or its default."""
        return self.options.get(option, default)


@dataclass(frozen=True)
class Network:
    """A whole network."""

    inputs: Mapping[str, Shape]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...] = ()
    """Values that are read by other nodes and returned as well."""
    seed: int = 0

    @property
    def shapes(self) -> dict[str, Shape]:
        """Of every value."""
        found = dict(self.inputs)
        for node in self.nodes:
            found.update(node.outputs)
        return found

    @property
    def readers(self) -> dict[str, list[Node]]:
        """Of every value, in order; a node that reads a value twice is there twice."""
        found: dict[str, list[Node]] = {name: [] for name in self.shapes}
        for node in self.nodes:
            for name in node.inputs:
                found[name].append(node)
        return found

    @property
    def results(self) -> list[str]:
        """The names of what it returns."""
        readers = self.readers
        made = [name for node in self.nodes for name in node.outputs]
        return [name for name in made if not readers[name] or name in self.outputs]

    @property
    def kinds(self) -> set[str]:
        """Which kinds of nodes it has."""
        return {node.kind for node in self.nodes}

    def owner(self, node: Node) -> str:
        """The node that the weights belong to."""
        return node.same_as or node.name

    def feed(self, number: int = 0) -> dict[str, Array]:
        """Random inputs."""
        rng = np.random.default_rng([self.seed, number, 7])
        return {name: _single(1.3 * rng.normal(size=s) + 0.2) for name, s in self.inputs.items()}


def weights_of(network: Network) -> dict[str, dict[str, Array]]:
    """The arrays of every node that has some, by its name. All are exact in float32."""
    shapes = network.shapes
    return {
        node.name: found
        for node in network.nodes
        if not node.same_as and (found := _weights(network, node, shapes[node.inputs[0]]))
    }


def _weights(network: Network, node: Node, source: Shape) -> dict[str, Array]:
    rng = np.random.default_rng([network.seed, zlib.crc32(node.name.encode())])
    if node.kind in ("conv", "deconv", "linear"):
        return _linear(node, source, rng)
    if node.kind == "bn":
        return _batch_norm(node, source[1], rng)
    if node.kind == "scale":
        return {"weight": _single(np.array(node.get("gamma")))}
    if node.kind == "shift":
        return {"bias": _single(_plain_or_random(node, source[1], rng))}
    if node.kind == "prelu":
        return {"weight": _single(rng.uniform(0.05, 0.6, source[1]))}
    return {}


def _linear(node: Node, source: Shape, rng: np.random.Generator) -> dict[str, Array]:
    out, groups = node.get("out"), node.get("groups", 1)
    if node.kind == "linear":
        shape: Shape = (out, source[-1])
    elif node.kind == "conv":
        shape = (out, source[1] // groups, *node.get("kernel"))
    else:  # (in, out/groups, *kernel)
        shape = (source[1], out // groups, *node.get("kernel"))
    weight = rng.normal(size=shape) / math.sqrt(max(1, math.prod(shape[1:])))
    if node.get("binary"):
        weight = np.where(weight < 0, -0.5, 0.5)
    found = {"weight": _single(weight)}
    if node.get("bias"):
        found["bias"] = _single(0.4 * rng.normal(size=out))
    return found


def _batch_norm(node: Node, channels: int, rng: np.random.Generator) -> dict[str, Array]:
    if node.get("plain"):  # few numbers, so that they often fit each other by chance
        mean, beta = rng.choice([0.0, 0.0, 0.5, -1.0], (2, channels))
        variance = rng.choice([1.0, 4.0], channels)
    else:
        mean, beta = rng.normal(0, 0.7, (2, channels))
        variance = rng.uniform(0.2, 2.5, channels)
    found = {"mean": mean, "variance": variance}
    if node.get("gamma") is not None:
        found |= {"gamma": np.array(node.get("gamma")), "beta": beta}
    return {name: _single(array) for name, array in found.items()}


def _plain_or_random(node: Node, channels: int, rng: np.random.Generator) -> Array:
    if node.get("plain"):
        return rng.choice([0.0, 0.5, -1.0], channels)
    return rng.normal(size=channels)


def _single(values: Array) -> Array:
    """Float64 values that float32 has too: every frontend gets the very same numbers."""
    return np.asarray(values, dtype=np.float32).astype(np.float64)


def eps_of(node: Node) -> float:
    """ONNX and Caffe keep it as a float32."""
    return float(np.float32(node.get("eps", 1e-5)))


# ------------------------------------------------------------------- memory

VIEWS = ("flatten", "reshape", "tokens", "image", "swap", "split", "crop", "identity", "dropout")
"""Kinds whose outputs may be the memory of their input."""


def may_write(network: Network, node: Node) -> bool:
    """Whether the node may work in place: nobody reads its memory later, or returns it."""
    family = _families(network)
    mine = family[node.inputs[0]]
    if mine in network.inputs:
        return False
    if any(name in network.results for name, head in family.items() if head == mine):
        return False
    at = network.nodes.index(node)
    others = [n for later in network.nodes[at + 1 :] for n in later.inputs]
    return all(family[name] != mine for name in others if name != node.output)


def _families(network: Network) -> dict[str, str]:
    """For every value the one whose memory it may be."""
    heads = {name: name for name in network.inputs}
    for node in network.nodes:
        for name in node.outputs:
            heads[name] = heads[node.inputs[0]] if node.kind in VIEWS else name
    return heads
