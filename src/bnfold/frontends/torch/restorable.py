"""What knows how something was, and can put it back."""

from __future__ import annotations

import copy
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch


class Restorable(ABC):
    """What knows how something was."""

    @abstractmethod
    def restore(self) -> None:
        """Put it back; what did not change is not touched."""

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Whatever happens inside, it is put back."""
        try:
            yield
        finally:
            self.restore()


GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)


def rewinding(generator: Any) -> Callable[[], object]:
    """What sets a generator of random numbers back to where it is now."""
    if isinstance(generator, random.SystemRandom):
        return lambda: None  # it has no state
    if isinstance(generator, random.Random):
        return partial(generator.setstate, generator.getstate())
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        return partial(setattr, bits, "state", copy.deepcopy(bits.state))
    return partial(generator.set_state, generator.get_state())
