"""The modules that a folded network may contain besides PyTorch's own.

They are written so that `torch.jit.script` can read them: annotations are types, not texts (no
`from __future__ import annotations`), and nothing is looked up in tables.
"""

import torch
from torch import Tensor, fx, nn
from torch.jit import is_scripting, is_tracing  # type: ignore[attr-defined]


class RescaledClip(nn.Module):
    """An activation with bounds per channel: min(max(x, lower), upper).

    It stands where a ReLU, ReLU6 or Hardtanh stood whose input is stored rescaled. `lower` and
    `upper` are buffers that broadcast to the input, (1, C, 1, 1) for an image, or None. With
    `inplace` it writes to its input, as the activation did; that takes half the time on a CPU.
    """

    lower: Tensor | None
    upper: Tensor | None

    def __init__(
        self, lower: Tensor | None, upper: Tensor | None, *, inplace: bool = False
    ) -> None:
        super().__init__()
        self.inplace = inplace
        self.register_buffer("lower", lower)
        self.register_buffer("upper", upper)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # PyTorch's name for it
        """The clipped tensor, of the input's shape and dtype."""
        # One bound at a time: clamp with two tensors is slower than both together. The second
        # one always finds memory of our own, or memory that we may write to.
        lower, upper = self.lower, self.upper
        inplace = self.inplace and self._may_write_to(input)
        clipped = input
        if lower is not None:
            clipped = clipped.clamp_min_(lower) if inplace else clipped.maximum(lower)
        if upper is not None:
            fresh = lower is None and not inplace
            clipped = clipped.minimum(upper) if fresh else clipped.clamp_max_(upper)
        return clipped

    def _may_write_to(self, input: Tensor) -> bool:  # noqa: A002
        """Without the BatchNorm, what made the input may need it for its gradient."""
        if not is_scripting():  # noqa: SIM102  # with "and", the script compiler reads on
            # It stands for any tensor, and what is traced for any mode.
            if isinstance(input, fx.Proxy) or is_tracing():  # type: ignore[no-untyped-call]
                return False
        return not (torch.is_grad_enabled() and input.requires_grad)

    def extra_repr(self) -> str:
        """Which bounds there are, and for how many channels."""
        bounds = [
            f"{name}={tuple(bound.shape)}"
            for name, bound in (("lower", self.lower), ("upper", self.upper))
            if bound is not None
        ]
        return ", ".join([*bounds, "inplace=True"] if self.inplace else bounds)


OWN_NAMES = ("lower", "upper", "_may_write_to")
"""What a RescaledClip has that the activation in whose place it stands has not."""


class FreshCopy(nn.Module):
    """A copy of the input, laid out as BatchNorm lays out its output.

    It stands where a BatchNorm stood whose output was a tensor of its own, or of another memory
    layout, and that is needed: all that is left of the BatchNorm is that copy.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # PyTorch's name for it
        """A tensor of its own memory with the same values, contiguous or channels_last."""
        return copy_as_batch_norm(input)


@fx.wrap  # the layout is not known while symbolic_trace traces
def copy_as_batch_norm(tensor: Tensor) -> Tensor:
    """A copy, in channels_last where the axes of an image are stored in that order; contiguous.

    Parts of larger tensors included: that is how a BatchNorm goes by the layout, and a concat.
    """
    if tensor.ndim > 3 and not tensor.is_contiguous():
        return torch.cat([tensor], 1)
    return tensor.clone(memory_format=torch.contiguous_format)


class GaplessCopy(nn.Module):
    """A copy of the input, laid out as arithmetic lays out its result.

    It stands where a module stood that scaled and shifted by constants of its own (LayerScale,
    FrozenBatchNorm2d), for the same reasons as `FreshCopy`.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # PyTorch's name for it
        """A tensor of its own memory with the same values, without gaps, in the same order."""
        return input.clone()
