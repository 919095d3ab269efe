"""What modules were set to, and where their parameters lay, before a program ran.

What is read off a module (its eps, its padding, whether it trains) is read when the run is over,
and what a parameter holds as well. A program may set it to something else for one call and set it
back: `bn.train(); y = bn(x); bn.eval()`, or `p.data = average` around a forward. Then the call does
not compute what the module says afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from bnfold.frontends.torch.leaf_modules import has_settings

_NAMES = (
    *("training", "eps", "track_running_stats"),
    *("stride", "padding", "dilation", "groups", "output_padding", "padding_mode"),
    *("_reversed_padding_repeated_twice", "inplace", "min_val", "max_val"),
)
"""What the forward of a leaf module asks of it, apart from its tensors."""
_TENSORS = ("weight", "bias", "running_mean", "running_var")

_Settings = tuple[object, ...]


def _settings_of(module: nn.Module) -> _Settings:
    own = module.__dict__
    held = own["_parameters"] | own["_buffers"]
    return (*map(own.get, _NAMES), *(held.get(name) is None for name in _TENSORS))


class Given:
    """Modules and tensors as they were given."""

    def __init__(
        self, modules: Iterable[nn.Module], address_of: Callable[[Tensor], int | None]
    ) -> None:
        self._address_of = address_of
        self._settings: dict[int, _Settings] = {}
        self._addresses: dict[int, int | None] = {}
        for module in modules:
            if isinstance(module, torch.jit.ScriptModule):
                continue
            if has_settings(module):
                self._settings[id(module)] = _settings_of(module)
            for tensor in module._parameters.values():
                if tensor is not None:
                    self._addresses[id(tensor)] = address_of(tensor)

    def has_reset(self, module: nn.Module) -> bool:
        """Whether a module is set to something else now; one not given, since it was met."""
        now = _settings_of(module)
        return self._settings.setdefault(id(module), now) != now

    def has_moved(self, tensor: Tensor) -> bool:
        """Whether a parameter lies in other memory now."""
        known = self._addresses.get(id(tensor))
        return known is not None and known != self._address_of(tensor)
