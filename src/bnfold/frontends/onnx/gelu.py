"""GELU written out: ONNX Runtime, and other runtimes, run its nodes as one op while all are there.

    x * (1 + erf(x / sqrt(2))) * 0.5        in any order of the factors, or with tanh

Its single numbers could go: into the weights around, one of them through x itself. Five nodes in
place of one op would be left, so they stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bnfold.frontends.onnx.nodes import Network, Node

_ARITHMETIC = frozenset(("Add", "Sub", "Mul", "Div"))


def gelu_nodes(network: Network) -> frozenset[int]:
    """The indices of the nodes that do arithmetic in one."""
    indices: set[int] = set()
    for node in network.nodes:
        if node.op in ("Erf", "Tanh"):
            indices.update(part.index for part in _around(network, node))
    return frozenset(indices)


def _around(network: Network, node: Node) -> Iterator[Node]:
    """The nodes of the GELU around an Erf or Tanh; none where there is no such thing."""
    inner = _arithmetic([network.makers.get(node.inputs[0])])
    sums = [reader for reader, _ in network.value_readers(node.outputs[0])]
    if len(inner) != 1 or len(sums) != 1 or sums[0].op != "Add":
        return
    first = _factors(network, sums)
    second = _factors(network, first)
    makers = [network.makers.get(name) for factor in (*first, *second) for name in factor.inputs]
    if first:
        yield from (*inner, *sums, *first, *second, *_arithmetic(makers))


def _factors(network: Network, nodes: Iterable[Node]) -> list[Node]:
    """The products that read what these nodes make."""
    readers = (r for node in nodes for r, _ in network.value_readers(node.outputs[0]))
    return [reader for reader in readers if reader.op in ("Mul", "Div")]


def _arithmetic(nodes: Iterable[Node | None]) -> list[Node]:
    return [node for node in nodes if node is not None and node.op in _ARITHMETIC]
