"""Networks of timm with fewer of the same blocks: each kind of block is there, few come twice.

What is shown about a block is shown by one of them, and by one that reads another one's output.
The whole networks are folded by the benchmarks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.vision import load_vision

_STAGES = {
    "resnet18": ("layers", (2, 1, 1, 1)),
    "resnet50": ("layers", (2, 1, 1, 1)),
    "resnetv2_18": ("layers", (2, 1, 1, 1)),
    "resnetv2_50": ("layers", (2, 1, 1, 1)),
    "res2net50_14w_8s": ("layers", (2, 1, 1, 1)),
    "densenet121": ("block_config", (3, 2, 2, 2)),
    "levit_128s": ("depth", (1, 1, 1)),
    "fastvit_t8": ("layers", (1, 1, 1, 1)),
    "repvit_m0_9": ("depth", (1, 1, 2, 1)),
}
_OF_TWO = ("repvgg_a0", "repvgg_a2", "mobileone_s0", "mobileone_s1")
"""Stages of two blocks: the first has another stride, and no branch that is its input."""


def shallow(name: str) -> dict[str, Any]:
    """What to give timm's `create_model` with the name; nothing for a network that is small."""
    name = name.removeprefix("timm:")
    if name in _OF_TWO:
        blocks = load_vision().timm.models.byobnet.model_cfgs[name].blocks
        return {"blocks": tuple(map(_few, blocks))}
    return dict([_STAGES[name]]) if name in _STAGES else {}


def _few(stage: Any) -> Any:
    """Of a stage, which is one description and a number, or a description of each block."""
    return stage[:2] if isinstance(stage, list) else replace(stage, d=min(stage.d, 2))
