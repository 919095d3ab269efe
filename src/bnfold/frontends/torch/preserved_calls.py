"""The calls of modules that a program lists with what they take and return, each by its node.

torch.export.export(preserve_module_call_signature=...) asks for the list, and by it
torch.export.unflatten makes modules that are called as they were. In an edited program

    a node that stays                   has its name
    a node that was taken out           is named by what is read in its place
    a module of which no node is left   has no signature any more: nothing can be made of it. Where
                                        that is one call of several, none has: they are one module
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from torch import fx
from torch.export import ModuleCallEntry
from torch.export.graph_signature import ArgumentSpec, ConstantArgument


def preserved(
    entries: Sequence[ModuleCallEntry], graph: fx.Graph, stand_ins: Mapping[str, str]
) -> list[ModuleCallEntry]:
    """The list for an edited graph.

    `stand_ins`: for each name of a node that was taken out, that of what is read in its place.
    """
    left = _calls(graph)
    gone = {_module(entry.fqn) for entry in entries if entry.fqn and entry.fqn not in left}
    return [
        ModuleCallEntry(entry.fqn)
        if entry.fqn and _module(entry.fqn) in gone
        else _renamed(entry, stand_ins)
        for entry in entries
    ]


def promised(entries: Collection[ModuleCallEntry]) -> frozenset[str]:
    """The names of the nodes by which parts of a program can be told apart again."""
    return frozenset(
        argument.name
        for entry in entries
        if entry.fqn and entry.signature is not None
        for argument in (*entry.signature.inputs, *entry.signature.outputs)
        if not isinstance(argument, ConstantArgument)
    )


def _renamed(entry: ModuleCallEntry, stand_ins: Mapping[str, str]) -> ModuleCallEntry:
    signature = entry.signature
    if signature is None:
        return entry
    inputs, outputs = (
        [_standing_in(argument, stand_ins) for argument in arguments]
        for arguments in (signature.inputs, signature.outputs)
    )
    return ModuleCallEntry(entry.fqn, replace(signature, inputs=inputs, outputs=outputs))


def _standing_in(argument: ArgumentSpec, stand_ins: Mapping[str, str]) -> ArgumentSpec:
    if argument.name not in stand_ins or isinstance(argument, ConstantArgument):
        return argument
    return replace(argument, name=stand_ins[argument.name])


def _calls(graph: fx.Graph) -> set[str]:
    """The calls of modules that nodes come from: `block.bn`, and `block.bn@1` for a second one."""
    found: set[str] = set()
    for node in graph.nodes:
        for key, (path, _) in node.meta.get("nn_module_stack", {}).items():
            _, is_again, number = key.partition("@")
            found.add(f"{path}@{number}" if is_again and number != "0" else path)
    return found


def _module(call: str) -> str:
    """The module that is called."""
    return call.partition("@")[0]
