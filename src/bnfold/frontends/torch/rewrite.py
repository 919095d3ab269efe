"""Rewrite an exported program as a plan says."""

from __future__ import annotations

from torch import fx
from torch.export import ExportedProgram

from bnfold.frontends.torch.aliasing import functional_twin
from bnfold.frontends.torch.apply import clip_bounds
from bnfold.frontends.torch.decide import Decided
from bnfold.frontends.torch.editor import Editor, argument_with
from bnfold.frontends.torch.lifter import AffineSite, ClipSite
from bnfold.frontends.torch.sweep import sweep


def rewrite(program: ExportedProgram, decided: Decided) -> ExportedProgram:
    """The folded program."""
    editor = Editor(program, decided.recording.written)
    for old, content in decided.new.parameters.values():
        editor.replace_tensor(old, content)
    for owner, name, content in decided.new.born:
        assert isinstance(owner, fx.Node)
        editor.give(editor.find(owner), name, content)
    for event in decided.care.out_of_place:
        assert event.call.node is not None
        editor.find(event.call.node).target = functional_twin(event.target)
    for number, edit in decided.plan.clip.items():
        site = decided.lifted.sites[number]
        assert isinstance(site, ClipSite) and site.node is not None
        editor.rescale_clip(editor.find(site.node), *clip_bounds(edit, site))
    for number in decided.plan.removed:
        site = decided.lifted.sites[number]
        assert isinstance(site, AffineSite) and site.source is not None
        event, node = decided.lifted.events[number], editor.find(site.nodes[0])
        source = argument_with(event, node, site.source.__eq__)
        assert source is not None
        editor.remove(node, source, copied=number in decided.care.copies)
    sweep(editor, editor.released)
    return editor.finish()
