"""Why an affine step stayed: one word per obstacle, each with its section in docs/reasons.md."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """The obstacle that kept a BatchNorm. The value is the stable, machine-readable code."""

    PADDING = "padding"
    """Its shift would have to cross the zero padding (or the missing taps) of the blocker."""
    ACTIVATION = "activation"
    """Its sign or shift cannot pass the blocker, an activation without bounds of its own."""
    NONLINEAR = "nonlinear"
    """The blocker is a function that no rescaling passes (sigmoid, softmax, an unknown op)."""
    GRAPH_INPUT = "graph-input"
    """It would have to go into the value that the user passes in."""
    GRAPH_OUTPUT = "graph-output"
    """It would have to go into the value that the network returns."""
    OTHER_PHASE = "other-phase"
    """It would have to go into a value that a layer for training needs as it is."""
    BRANCHES = "branches"
    """Two readers or operands need different rescalings of the same value."""
    SHARED = "shared"
    """A module or weight with several uses would need a different edit for each."""
    FIXED_WEIGHT = "fixed-weight"
    """The blocker's weight or bias cannot be edited (computed, not a parameter, used elsewhere)."""
    BATCH_STATISTICS = "batch-statistics"
    """It normalises with the statistics of the batch, so it is not constant."""
    OVERRIDABLE = "overridable"
    """Its parameters are inputs of the network, with a default: the caller may pass others."""
    NOT_CONSTANT = "not-constant"
    """Its parameters are computed in each run, or passed in."""
    BAD_STATISTICS = "bad-statistics"
    """Its statistics are NaN or infinite, or var + eps is not positive."""
    ZERO_GAMMA = "zero-gamma"
    """A channel has gamma 0 and its constant cannot be moved to another op."""
    HOOK = "hook"
    """A hook reads or changes the value."""
    FUNCTIONAL = "functional"
    """It is called as a function, so a module edit cannot remove it; the exported program can."""
    MODULE_DOES_MORE = "module-does-more"
    """Its module does other work that cannot be separated from the normalisation."""
    OVERFLOW = "overflow"
    """The folded weight of the blocker does not fit the weight's dtype."""
    SCALE_RANGE = "scale-range"
    """A stored value would be scaled beyond the range that its dtype carries safely."""
    CLIP_COST = "clip-cost"
    """Removing it would cost more in rescaled activations than it saves on this target."""
    NOT_PROVEN = "not-proven"
    """Without it the model did something else, for a reason that the analysis did not see."""
    NOT_REACHED = "not-reached"
    """The run on the example inputs did not call it, so nothing is known about it."""

    @property
    def sentence(self) -> str:
        """One plain sentence, with {blocker} where the op that stands in the way is named."""
        return _SENTENCES[self]


_SENTENCES = {
    Reason.PADDING: "its shift would have to cross the zero padding of {blocker}",
    Reason.ACTIVATION: "its sign or shift cannot pass {blocker}",
    Reason.NONLINEAR: "no rescaling passes {blocker}",
    Reason.GRAPH_INPUT: "it would change {blocker}, which the user of the network sets",
    Reason.GRAPH_OUTPUT: "it would change {blocker}, which the user of the network sees",
    Reason.OTHER_PHASE: "it would change what {blocker} reads or makes in the other phase",
    Reason.BRANCHES: "the branches that meet at {blocker} need different rescalings",
    Reason.SHARED: "{blocker} is used several times and would need a different edit for each use",
    Reason.FIXED_WEIGHT: "the weight or bias of {blocker} cannot be edited",
    Reason.BATCH_STATISTICS: "it normalises with the statistics of the batch",
    Reason.OVERRIDABLE: "its parameters are inputs of the network, which the caller may override",
    Reason.NOT_CONSTANT: "its parameters are computed in each run, or passed in",
    Reason.BAD_STATISTICS: "its statistics are not usable (NaN, infinite, or var + eps <= 0)",
    Reason.ZERO_GAMMA: "a channel with gamma 0 has a constant that cannot move past {blocker}",
    Reason.HOOK: "a hook on {blocker} reads or changes the value",
    Reason.FUNCTIONAL: "it is called as a function; export the program to fold it",
    Reason.MODULE_DOES_MORE: "its module does more than normalise",
    Reason.OVERFLOW: "the folded weight of {blocker} would not fit its dtype",
    Reason.SCALE_RANGE: "a stored value would be scaled out of the safe range of its dtype",
    Reason.CLIP_COST: "{blocker} would need bounds per channel, which cost more than they save;"
    ' clip="always" allows them',
    Reason.NOT_PROVEN: "with it removed, the model was run and did something else",
    Reason.NOT_REACHED: "the run on the example inputs did not reach it",
}
