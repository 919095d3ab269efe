"""What the user can do about a step that stays, reason by reason: for the command and the page."""

from __future__ import annotations

from bnfold.core.reasons import Reason
from bnfold.outcomes import Item, Kept

_SHAPES = "a shape is not known; give those of the model's inputs with --input"


def next_step(item: Item) -> str:
    """In a line; or why nothing can be done, or where to read on; "" if it is gone."""
    if not isinstance(item.outcome, Kept):
        return ""
    if "--input" in (item.outcome.detail or ""):
        return _SHAPES
    reason = item.outcome.reason
    return _NEXT_STEPS.get(reason, f"see docs/reasons.md#{reason}")


_NEXT_STEPS = {
    Reason.CLIP_COST: "without them ONNX Runtime would be slower; --clip always removes them",
    Reason.ACTIVATION: "their sign or shift cannot pass the activation behind them",
    Reason.FUNCTIONAL: "called as functions; export the program and fold that",
    Reason.BATCH_STATISTICS: "in training mode; export the model in eval mode",
    Reason.OTHER_PHASE: "needed by layers for training; fold the deploy.prototxt",
    Reason.NOT_REACHED: "not run on the example inputs; give inputs that reach them",
    Reason.SHARED: "used several times; give each use weights of its own",
    Reason.FIXED_WEIGHT: "the weights beside are computed, not stored",
    Reason.HOOK: "remove the hook before the fold",
    Reason.PADDING: "their shift would cross zero padding",
    Reason.BRANCHES: "branches need different rescalings",
    Reason.NONLINEAR: "no rescaling passes the op behind or before them",
    Reason.OVERFLOW: "the folded weights do not fit their dtype; fold in float32",
}
