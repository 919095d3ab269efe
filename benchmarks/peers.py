"""The tools that bnfold is measured against, and the floors that nothing can beat."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor, nn

from benchmarks.randomize import batchnorm_modules

if TYPE_CHECKING:
    import onnx

Folder = Callable[[nn.Module, Tensor], nn.Module]
"""Takes a model in eval mode and an example input, gives a new model; the first is untouched."""


def fold_with_bnfold(model: nn.Module, example: Tensor) -> nn.Module:
    """What this project does, without proving it: the others do not."""
    import bnfold

    return bnfold.fold(model, example, verify=False).model


def fold_with_torch_fx(model: nn.Module, _example: Tensor) -> nn.Module:
    """PyTorch's own: symbolic tracing, then Conv -> BatchNorm and Linear -> BatchNorm pairs."""
    from torch.fx.experimental.optimization import fuse

    return fuse(model)


FOLDERS: dict[str, Folder] = {"bnfold": fold_with_bnfold, "torch_fx": fold_with_torch_fx}


def without_batchnorms(model: nn.Module) -> nn.Module:
    """A copy with every BatchNorm deleted: another function, but the least work there can be.

    What a module does besides normalising stays: timm's BatchNormAct2d becomes its activation.
    """
    model = copy.deepcopy(model)
    for name, module in list(batchnorm_modules(model)):
        parent_name, _, attribute = name.rpartition(".")
        remainder = [
            part
            for part in (getattr(module, "drop", None), getattr(module, "act", None))
            if isinstance(part, nn.Module) and not isinstance(part, nn.Identity)
        ]
        setattr(model.get_submodule(parent_name), attribute, _chain(remainder))
    return model


def with_plain_activations(folded: nn.Module) -> nn.Module:
    """A copy of a folded network with ReLUs where its activations have bounds per channel.

    Another function again, but one with the biases that the folded network has, and with new
    memory where an activation must not overwrite what others read: no fold can do without these.
    """
    from bnfold.frontends.torch.modules import RescaledClip

    plain = copy.deepcopy(folded)
    for parent in list(plain.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, RescaledClip):
                setattr(parent, name, nn.ReLU(inplace=module.inplace))
    return plain


def without_batchnorm_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an ONNX model with its BatchNorms deleted; what a fold kept is gone."""
    bare = copy.deepcopy(model)
    nodes = list(bare.graph.node)
    source = {n.output[0]: n.input[0] for n in nodes if n.op_type == "BatchNormalization"}
    del bare.graph.node[:]
    for node in nodes:
        if node.op_type == "BatchNormalization":
            continue
        for place, name in enumerate(node.input):
            node.input[place] = source.get(name, name)
        bare.graph.node.append(node)
    return bare


def _chain(modules: list[nn.Module]) -> nn.Module:
    if not modules:
        return nn.Identity()
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)
