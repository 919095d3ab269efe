"""What nobody reads any more leaves an exported program: constants, and what is computed of them.

A module of which nothing is read any more leaves with all that it kept, also what was never read,
as how many batches a BatchNorm has seen; but for the model itself, whose tensors are its users'.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx
from torch.export.graph_signature import InputKind

from bnfold.frontends.torch.editor import Editor
from bnfold.frontends.torch.preserved_calls import promised


def sweep(editor: Editor, nodes: Iterable[fx.Node]) -> None:
    """Take out those of these nodes that nobody reads, and what nobody but them read."""
    pending = [*nodes]
    looked: set[fx.Node] = set()
    unread: set[str] = set()
    named = promised(editor.calls())
    while pending:
        node = pending.pop()
        if node in looked or node.users or node.name in named:
            continue
        looked.add(node)
        if node.op == "placeholder":
            unread.add(node.name)
        elif node.op == "call_function" and not node.is_impure():
            pending += node.all_input_nodes
            editor.graph.erase_node(node)
    _drop(editor, unread, named)


_CONSTANTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def _drop(editor: Editor, unread: set[str], named: frozenset[str]) -> None:
    """Take out placeholders, with their tensors, but for those that are named elsewhere."""
    written = {spec.target for spec in editor.program.graph_signature.output_specs}
    nodes = {node.name: node for node in editor.graph.nodes if node.op == "placeholder"}
    kept = [s for s in editor.inputs if s.kind in _CONSTANTS and s.target not in written]
    gone = {spec.target for spec in kept if spec.arg.name in unread}
    read = {_owner(spec.target) for spec in kept if nodes[spec.arg.name].users}
    read |= {_owner(target) for target in written}
    deserted = {_owner(target) for target in gone} - read - {""}
    gone |= {
        spec.target
        for spec in kept
        if _owner(spec.target) in deserted and not nodes[spec.arg.name].users
        if spec.arg.name not in named
    }
    for spec in kept:
        if spec.target in gone:
            editor.graph.erase_node(nodes[spec.arg.name])
            editor.inputs.remove(spec)
    left = {spec.target for spec in editor.inputs}
    for table in (editor.state, editor.constants):
        tensors = {id(table[target]) for target in gone if target in table}
        for name in [name for name, tensor in table.items() if id(tensor) in tensors]:
            if name not in left:
                del table[name]


def _owner(target: str | None) -> str:
    """The module that keeps a tensor."""
    return (target or "").rpartition(".")[0]
