"""What a kind of model provides so that it can be verified; the runners live in the frontends.

An array is NumPy's. bfloat16, which NumPy does not have, is handed over as float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bnfold.core.forest import IntArray
from bnfold.core.rescaling import Rescalings
from bnfold.errors import ExampleInputError

Array = NDArray[Any]
Gather = Callable[[IntArray], Array]
"""The elements of a tensor at these places of its flattened form."""
Watch = Callable[[str, str, tuple[int, ...], Gather], None]
"""Is told of each tensor inside of a run: its key, what made it, its shape, its content. A key
names the same tensor in the original and in the folded model."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What an input of a model looks like."""

    name: str
    shape: tuple[int, ...]
    """Its size along each axis; what the model leaves open has a size that fits."""
    dtype: str
    """float32, bfloat16, int64, bool, ..."""
    given: Array | None = None
    """An example that came with the model."""
    declared: tuple[int | None, ...] | None = None
    """The shape as the model declares it, None where it is open; None if it declares none."""


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """One output of a run."""

    name: str
    values: Array
    dtype: str
    """The name of the dtype that the model returned."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """Weights that a fold changed, and that are rounded to 16 bits for it once more."""

    dtype: str
    is_only_stored: bool
    """Whether the arithmetic is finer, so that they could as well be stored in float32."""


class Evaluation(Protocol):
    """A loaded model."""

    def run(
        self, inputs: Sequence[Array], watch: Watch | None = None, *, draw: int | None = None
    ) -> list[Output]:
        """One run. With `draw`, every weight is rounded once more, at random: see `verdict`.

        In float64 by up to half a unit in the last place of its own dtype; in its own dtype it
        is one of its neighbours, or what it is.
        """


@dataclass(frozen=True, slots=True)
class Lane:
    """One of several runs that go through a network side by side."""

    dtype: str
    """What it computes in."""
    draw: int | None = None
    """With which its weights are rounded once more; see `Evaluation`."""
    watch: Watch | None = None
    enlarged: float = 1.0
    """So many times as far as rounding goes: what a coarser dtype adds is next to nothing then."""


class Runner(Protocol):
    """A model that can be run."""

    name: str
    """How to call it in messages."""
    runtimes: Mapping[str, str]
    """What runs it, with versions."""
    specs: Sequence[InputSpec]
    """Its inputs, in order."""
    notes: Sequence[str]
    """What the reader should know about its runs."""

    @property
    def kind(self) -> str:
        """module, program, onnx, caffe: two of one kind name their tensors alike."""

    @property
    def may_have_state(self) -> bool:
        """Whether a run may leave something that shows in the next one."""

    def rounded(self, original: Any) -> Rounded | None:
        """Weights in 16 bits that are not those of the original; of another kind, any such."""

    @property
    def other_shapes(self) -> Sequence[Sequence[tuple[int, ...]]]:
        """Other shapes of all inputs, which the model may take; none where none are open."""

    def is_same_as(self, other: Any) -> bool:
        """Whether the other is the same model, bit for bit, as far as that is seen at no cost."""

    def not_taken(self, error: Exception | None) -> ExampleInputError:
        """What to raise where it raised on its inputs, or cannot take them as it is."""

    def own(self) -> Evaluation:
        """A fresh copy in its own dtypes, the runtime's own optimisations off. It knows no watch.

        Raises NotRunnableError where the runtime is missing, or has no kernels for the model.
        """

    def reordered(self) -> Evaluation | None:
        """The same with its sums in another order; None where there is no such runtime."""

    def exact(self) -> Evaluation:
        """A fresh copy in float64. Raises NotExactError where that cannot be."""

    def narrowest(self, inputs: Sequence[Array]) -> str:
        """The coarsest floating-point dtype of the values inside; "" where it is that outside."""

    def rescalings(self, folded: Runner) -> Sequence[Rescalings]:
        """How a fold of it may store each tensor, by key; the likeliest fold first.

        A fold may have kept what others remove; what is left of that is seen in the folded model.
        """


class NotRunnableError(Exception):
    """The model cannot be run in its own dtypes here; the text says why."""


class NotExactError(Exception):
    """The model cannot be run in float64; the text says why."""


def wide(array: Array) -> NDArray[np.float64]:
    """In float64."""
    return np.asarray(array, dtype=np.float64)
