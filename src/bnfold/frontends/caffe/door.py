"""Caffe behind the door; see `bnfold.frontend` for what each function is. A model is two paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bnfold.errors import MissingExtraError, UnsupportedModelError, UsageError
from bnfold.frontend import Compare, Counts, Look, NotRunError, Request
from bnfold.frontends import fold_less
from bnfold.frontends.caffe import fold as folding
from bnfold.report import FoldReport

if TYPE_CHECKING:
    from bnfold.bench.settings import Wishes
    from bnfold.verify.result import VerifyResult
    from bnfold.verify.runner import InputSpec, Runner

IS_TIMED = False
Files = tuple[Path, Path]
"""The network, and its weights."""


def check(model: Files, request: Request) -> None:
    """Both outputs have to be free, and none of the inputs."""
    if request.output is not None:
        folding.check_target(request.output, model, force=request.force)


def inspect(model: Files, request: Request) -> Look:
    """Decided on, not written."""
    folded = Folded(model, request, *_decided(model, request))
    return Look(folded.report.planned(), folded.counts, model)


def fold(model: Files, request: Request) -> Folded:
    """Decided on; the new weights are computed when they are written."""
    return Folded(model, request, *_decided(model, request))


def _decided(model: Files, request: Request) -> tuple[folding.Folded, FoldReport]:
    return folding.fold_read(
        *folding.read_files(*model),
        clip=request.clip,
        phase=request.phase,
        storage=request.weights,
        merge=request.merge,
        stays=request.stays,
    )


@dataclass(frozen=True, slots=True)
class Folded:
    """A folded network, not written yet."""

    files: Files
    request: Request
    content: folding.Folded
    report: FoldReport

    @property
    def counts(self) -> tuple[Counts, Counts]:
        """Layers by type."""
        before = Counter(layer.type for layer in self.content.original.layers)
        left = Counter(layer.type for layer in self.content.decided.net.layers)
        return before, left - Counter(layer.type for layer in self.content.decided.new.removed)

    def runners(self) -> tuple[Runner, Runner]:
        """Caffe's layers as bnfold runs them, on PyTorch."""
        try:
            from bnfold.frontends.caffe.runner import folded_runner, net_runner
        except MissingExtraError as error:
            raise NotRunError(
                f"{error.problem}, and it is what runs Caffe's layers here"
            ) from error
        net = self.content.original
        name = net.name or str(self.files[0])
        try:
            return net_runner(net, name), folded_runner(self.content, f"the folded {name}")
        except UnsupportedModelError as error:
            raise NotRunError(error.problem) from error

    def judged_quickly(self) -> None:
        """There is no quicker judge."""

    @property
    def gone(self) -> Sequence[str]:
        """See `frontends.fold_less`."""
        return [item.name for item in self.report.items if item.is_removed]

    @property
    def late(self) -> Sequence[str]:
        """See `frontends.fold_less`."""
        return self.content.late

    def again(self, request: Request) -> Folded:
        """See `frontends.fold_less`."""
        return fold(self.files, request)

    def proven(
        self, found: VerifyResult, compare: Compare
    ) -> tuple[fold_less.FoldedFile, VerifyResult | str]:
        """Without merging, and with fewer steps removed where digits are lost."""
        return fold_less.proven(self, found, compare)

    def deliver(self) -> Path:
        """Two files, whole: network and weights."""
        network, weights = self.written
        self.content.write(network, weights)
        return network

    @property
    def written(self) -> Sequence[Path]:
        """The network, and the weights beside it."""
        assert self.request.output is not None
        return self.request.output, folding.weights_beside(self.request.output)

    def close(self) -> None:
        """There is nothing outside of memory."""


def runner(model: Files, name: str, inputs: Any, like: Sequence[InputSpec] | None) -> Runner:
    """A prototxt says its shapes itself."""
    from bnfold.frontends.caffe.runner import files_runner

    return files_runner(*model)


def subject(
    models: Mapping[str, Any], inputs: Any, runtimes: Sequence[str] | None, wishes: Wishes
) -> NoReturn:
    """There is nothing to measure in."""
    raise UsageError(
        "there is no Caffe here that could be timed: bnfold reads its files by itself",
        "time both networks where they run: caffe time -model deploy.prototxt"
        " -weights net.caffemodel",
    )
