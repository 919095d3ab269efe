"""Run Caffe networks for a verification, without Caffe (see `run`): in float32 and in float64.

Tensors inside are known by the layer that makes them: "conv1", "slice1[1]" for its second top.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import DTypeLike

from bnfold.core.fitting import stay_as_well
from bnfold.core.modes import MergeMode
from bnfold.core.plan import Plan
from bnfold.core.rescaling import PlanRescalings, Rescaling, Rescalings, in_turn
from bnfold.errors import ExampleInputError, MissingExtraError, UnsupportedModelError
from bnfold.frontends.caffe.caffemodel import Blob, Caffemodel
from bnfold.frontends.caffe.fold import Folded, Round, merge_and_fold, read_files
from bnfold.frontends.caffe.lifter import Lifted
from bnfold.frontends.caffe.net import Net
from bnfold.frontends.caffe.read import read_net
from bnfold.frontends.caffe.shapes import infer
from bnfold.frontends.caffe.text_tree import Document
from bnfold.verify.runner import Array, Evaluation, InputSpec, Output, Rounded, Watch
from bnfold.verify.verdict import least_normal, unit

try:
    import torch
    from torch import Tensor
except ImportError as error:
    raise MissingExtraError("torch", "PyTorch") from error

from bnfold.frontends.caffe.run import example_inputs, run
from bnfold.frontends.caffe.run_layers import RunLayer

_FLOAT = np.dtype(np.float32)


@dataclass(slots=True)
class CaffeRunner:
    """A network whose shapes are inferred; see `verify.runner.Runner`."""

    net: Net
    name: str
    specs: Sequence[InputSpec]
    runtimes: Mapping[str, str] = field(
        default_factory=lambda: {"caffe": f"bnfold's own, on torch {torch.__version__}"}
    )
    notes: Sequence[str] = ()
    kind: str = "caffe"
    may_have_state: bool = False
    other_shapes: Sequence[Sequence[tuple[int, ...]]] = ()

    def rounded(self, original: object) -> Rounded | None:
        """Arrays of its own in float16; Caffe computes in float32."""
        known = _blobs(original.net) if isinstance(original, CaffeRunner) else {}
        for key, blob in _blobs(self.net).items():
            if blob.dtype.itemsize < _FLOAT.itemsize:
                old = known.get(key)
                if old is None or not np.array_equal(old.read(), blob.read(), equal_nan=True):
                    return Rounded(str(blob.dtype), is_only_stored=True)
        return None

    def is_same_as(self, other: object) -> bool:
        """Whether text and weights are the same."""
        if not isinstance(other, CaffeRunner) or self.net.document.text != other.net.document.text:
            return False
        first, second = self.net.weights, other.net.weights
        return first.size == second.size and bool(
            memoryview(first.wire.content) == memoryview(second.wire.content)
        )

    def reordered(self) -> None:
        """Caffe's layers are run in one order."""

    def not_taken(self, error: Exception | None) -> ExampleInputError:
        """In the words of what raised."""
        return ExampleInputError(self.name, error)

    def own(self) -> Evaluation:
        """In float32, which is what Caffe computes in."""
        return _Run(self, np.float32)

    def exact(self) -> Evaluation:
        """In float64."""
        return _Run(self, np.float64)

    def narrowest(self, inputs: Sequence[Array]) -> str:
        """Caffe computes in float32, whatever weights are stored in."""
        return ""

    def rescalings(self, folded: object) -> Sequence[Rescalings]:
        """What `fold` would do, merging and not; its clip modes are all the same here."""
        left = folded.net.layers if isinstance(folded, CaffeRunner) else ()
        names = {layer.name: layer.type for layer in left}
        same = {layer.name for layer in self.net.layers if names.get(layer.name) == layer.type}
        found: list[list[Round]] = []
        for merge in get_args(MergeMode):
            steps = list(merge_and_fold(self.net, "auto", "stored", merge=merge))
            found.append(steps)
            stays = stay_as_well(same, (name for step in steps for name in step.gone))
            if stays:
                kept = merge_and_fold(self.net, "auto", "stored", merge=merge, stays=stays)
                found.append(list(kept))
            if all(step.merged is None for step in steps):
                break
        return [reduce(in_turn, map(_of_round, steps)) for steps in found]


@dataclass(frozen=True, slots=True)
class _Run:
    """A network, and the dtype to run it in."""

    runner: CaffeRunner
    dtype: DTypeLike

    def run(
        self, inputs: Sequence[Array], watch: Watch | None = None, *, draw: int | None = None
    ) -> list[Output]:
        """See `Evaluation`."""
        runner = self.runner
        fed = dict(zip((spec.name for spec in runner.specs), inputs, strict=True))
        random = None if draw is None else np.random.default_rng(draw)

        def rounded(array: Array) -> Array:
            if random is None or array.dtype.kind != "f":
                return array
            dtype = str(array.dtype)
            moves = random.uniform(-1.0, 1.0, array.shape) * unit(dtype)
            least = least_normal(dtype)
            small = np.abs(array) < least
            return np.asarray(np.where(small, array + moves * least, array * (1.0 + moves)))

        def see(layer: RunLayer, tops: Sequence[Tensor | None]) -> None:
            if watch is None:
                return
            for place, top in enumerate(tops):
                if top is not None:
                    _show(watch, _key(layer.name, place), layer.type, top)

        execution = run(runner.net, fed, self.dtype, watch=see, change=rounded)
        if execution.left_out:
            runner.notes = (
                "Not run, and what they read is compared instead: "
                f"{', '.join(execution.left_out)}.",
            )
        if not execution.values:
            raise ValueError("no output depends on layers that bnfold can run")
        return [
            Output(name, value.numpy(), str(value.numpy().dtype))
            for name, value in execution.values.items()
        ]


def files_runner(network: Path, weights: Path, name: str | None = None) -> CaffeRunner:
    """A runner of a pair of files. Raises ModelUnreadableError, UnsupportedModelError."""
    return read_runner(*read_files(network, weights), name=name)


def read_runner(document: Document, weights: Caffemodel, name: str | None = None) -> CaffeRunner:
    """The same for files that are read."""
    return _runner(read_net(document, weights), name or document.name)


def net_runner(net: Net, name: str) -> CaffeRunner:
    """A runner of a network that is read and whose shapes are inferred."""
    return CaffeRunner(net, name, _specs(net, name))


def folded_runner(folded: Folded, name: str) -> CaffeRunner:
    """A runner of what is going to be written."""
    return net_runner(folded.decided.read(), name)


def _runner(net: Net, name: str) -> CaffeRunner:
    infer(net)
    return net_runner(net, name)


def _specs(net: Net, name: str) -> tuple[InputSpec, ...]:
    shapes = {value.name: value.shape for value in net.values if value.maker is None}
    drawn = example_inputs(net)
    if not drawn:
        raise UnsupportedModelError(
            f"{name} has no input whose shape can be found", "write its input_shape into the file"
        )
    return tuple(
        InputSpec(blob, array.shape, "float32", None, shapes.get(blob))
        for blob, array in drawn.items()
    )


def _blobs(net: Net) -> dict[tuple[str, int], Blob]:
    """All arrays, by layer and place."""
    return {
        (layer.name, place): blob for layer in net.layers for place, blob in enumerate(layer.blobs)
    }


def _key(layer: str, place: int) -> str:
    return f"{layer}[{place}]" if place else layer


def _taken_twice(net: Net) -> set[str]:
    """Names that several layers have."""
    counts = Counter(layer.name for layer in net.layers)
    return {name for name, count in counts.items() if count > 1}


def _of_round(step: Round) -> dict[str, Rescaling]:
    same = None if step.merged is None else step.merged.same
    return _rescalings(step.decided.net, step.decided.lifted, step.decided.plan, same)


def _rescalings(
    net: Net, lifted: Lifted, plan: Plan, same: Collection[tuple[str, int]] | None
) -> dict[str, Rescaling]:
    """How each top is stored; `same` are those that mean what they did before a merge."""
    rescalings = PlanRescalings(plan, is_rounded=same is not None)
    twice = _taken_twice(net)
    return {
        _key(layer.name, place): rescalings.of(lifted.tensors[number])
        for layer in net.layers
        if layer.bottoms and layer.name not in twice
        for place, number in enumerate(layer.outputs)
        if same is None or (layer.name, place) in same
    }


def _show(watch: Watch, key: str, kind: str, top: Tensor) -> None:
    def gather(places: Array) -> Array:
        picked: Array = top.reshape(-1).numpy().take(places)
        return picked

    watch(key, kind, tuple(top.shape), gather)
