"""Why an affine step stayed: one word per obstacle, each with its section in docs/reasons.md."""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class _Worded(StrEnum):
    """A stable, machine-readable code, which is the value, and what it says to people."""

    sentence: str
    """One plain sentence, with {blocker} where the op that stands in the way is named."""

    def __new__(cls, code: str, sentence: str = "") -> Self:
        """A member, as `"code", "sentence"` states it; with the code alone, the member it is of."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.sentence = sentence
        return member


class Reason(_Worded):
    """The obstacle that kept a BatchNorm."""

    PADDING = "padding", "its shift would have to cross the zero padding of {blocker}"
    """Its shift would have to cross the zero padding (or the missing taps) of the blocker."""
    ACTIVATION = "activation", "its sign or shift cannot pass {blocker}"
    """Its sign or shift cannot pass the blocker, an activation without bounds of its own."""
    NONLINEAR = "nonlinear", "no rescaling passes {blocker}"
    """The blocker is a function that no rescaling passes (sigmoid, softmax, an unknown op)."""
    GRAPH_INPUT = "graph-input", "it would change {blocker}, which the user of the network sets"
    """It would have to go into the value that the user passes in."""
    GRAPH_OUTPUT = "graph-output", "it would change {blocker}, which the user of the network sees"
    """It would have to go into the value that the network returns."""
    OTHER_PHASE = "other-phase", "it would change what {blocker} reads or makes in the other phase"
    """It would have to go into a value that a layer for training needs as it is."""
    BRANCHES = "branches", "the branches that meet at {blocker} need different rescalings"
    """Two readers or operands need different rescalings of the same value."""
    SHARED = (
        "shared",
        "{blocker} is used several times and would need a different edit for each use",
    )
    """A module or weight with several uses would need a different edit for each."""
    FIXED_WEIGHT = "fixed-weight", "the weight or bias of {blocker} cannot be edited"
    """The blocker's weight or bias cannot be edited (computed, not a parameter, used elsewhere)."""
    BATCH_STATISTICS = "batch-statistics", "it normalises with the statistics of the batch"
    """It normalises with the statistics of the batch, so it is not constant."""
    OVERRIDABLE = (
        "overridable",
        "its parameters are inputs of the network, which the caller may override",
    )
    """Its parameters are inputs of the network, with a default: the caller may pass others."""
    NOT_CONSTANT = "not-constant", "its parameters are computed in each run, or passed in"
    """Its parameters are computed in each run, or passed in."""
    VARIES = "varies", "what the code calls, or computes with, is not the same in every run"
    """State, chance or values decide what the code calls, and how often, or with which numbers."""
    BAD_STATISTICS = (
        "bad-statistics",
        "its statistics are not usable (NaN, infinite, or var + eps <= 0)",
    )
    """Its statistics are NaN or infinite, or var + eps is not positive."""
    ZERO_GAMMA = (
        "zero-gamma",
        "a channel with gamma 0 has a constant that cannot move past {blocker}",
    )
    """A channel has gamma 0 and its constant cannot be moved to another op."""
    HOOK = "hook", "a hook on {blocker} reads or changes the value"
    """A hook reads or changes the value."""
    FUNCTIONAL = "functional", "it is called as a function; export the program to fold it"
    """It is called as a function, so a module edit cannot remove it; the exported program can."""
    MODULE_DOES_MORE = "module-does-more", "its module does more than normalise"
    """Its module does other work that cannot be separated from the normalisation."""
    OVERFLOW = "overflow", "the new numbers of {blocker} would not fit their dtype"
    """New weights, or bounds, of the blocker do not fit their dtype."""
    SCALE_RANGE = "scale-range", "a stored value would be scaled out of the safe range of its dtype"
    """A stored value would be scaled beyond the range that its dtype carries safely."""
    CLIP_COST = (
        "clip-cost",
        "{blocker} would need bounds per channel, which cost more than they save;"
        ' clip="always" allows them',
    )
    """Removing it would cost more in rescaled activations than it saves on this target."""
    NOT_PROVEN = "not-proven", "with it removed, the model was run and did something else"
    """Without it the model did something else, for a reason that the analysis did not see."""
    NOT_REACHED = "not-reached", "the run on the example inputs did not reach it"
    """The run on the example inputs did not call it, so nothing is known about it."""


class MergeReason(_Worded):
    """Why linear ops of one tensor that meet in a sum stay several."""

    READ = "read-elsewhere", "somebody else reads what {blocker} makes"
    """Somebody else reads what the blocker makes, or it leaves the network."""
    WEIGHT = "fixed-weight", "the weight or bias of {blocker} is not its own to change"
    """The blocker's weight, or its bias, is shared, computed, quantised, or in fewer bits."""
    STEP = "step-stays", "{blocker} has to stay"
    """The blocker is a step that has to stay."""
    PADDING = "padding", "zero padding behind {blocker} would see another value"
    """One op pads with zeros what another in front of it has shifted, or pads as well."""
    GRID = "no-common-grid", "their strides, sizes, padding or dtypes do not fit one op"
    """Strides, sizes, padding, axes or dtypes leave no one op that does the work of both."""
    COST = "cost", "one op would cost more than they do"
    """One op would take more multiplications, or a larger weight, than they do."""
    SUM = "sum", "the sum would change what else is in it, or no op can carry all"
    """The sum, without them, would change what else is in it; or nothing in it can carry all."""
    CODE = "code", "the module's code puts them together: its exported program may merge them"
    """A module's code adds or concatenates them, or uses the blocker otherwise; its exported
    program may merge them."""
