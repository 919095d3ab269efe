"""The arithmetic of a plan: the new content of parameters, in their dtypes, not yet written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, fx, nn

from bnfold._threads import share
from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.fitting import Overflow
from bnfold.core.plan import AffineEdit, LinearEdit, Plan
from bnfold.core.weights import Layout, fold_bias, fold_weight
from bnfold.frontends.torch.affine_batch_norm import can_gain
from bnfold.frontends.torch.lifter import AffineSite, ClipSite, Lifted, LinearSite
from bnfold.frontends.torch.limits import largest
from bnfold.frontends.torch.tensor_facts import array_over


@dataclass(slots=True)
class NewTensors:
    """The arithmetic of a plan, done but not yet written anywhere."""

    parameters: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Per id(old): old and new content."""
    born: list[tuple[nn.Module | fx.Node, str, Tensor]] = field(default_factory=list)
    """Parameters that did not exist: the module or node that gets it, name, content."""


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """One array to compute: NumPy works outside the interpreter lock, so jobs run side by side."""

    number: int
    """The op that asks for it."""
    content: Callable[[], FloatArray]
    like: Tensor
    """Gives the dtype and device."""
    place: Callable[[Tensor], None]
    """Where it goes."""

    def run(self) -> tuple[Tensor, bool]:
        """The tensor, and whether its values fit the dtype."""
        tensor = tensor_like(self.content(), self.like)
        return tensor, is_finite(tensor)


def _run_all(jobs: Sequence[_Job]) -> list[tuple[Tensor, bool]]:
    """The results, in the order of the jobs."""
    done: dict[int, tuple[Tensor, bool]] = {}

    def work(indices: Iterator[int]) -> None:
        for index in indices:
            done[index] = jobs[index].run()

    share(range(len(jobs)), work, threads=torch.get_num_threads())
    return [done[index] for index in range(len(jobs))]


def compute(lifted: Lifted, plan: Plan) -> NewTensors:
    """The new content of every parameter that the plan changes. Raises Overflow.

    Bounds are made where they are written; here it is only asked whether they fit.
    """
    new = NewTensors()
    overflown = []
    jobs: dict[object, _Job] = {}  # the uses of one parameter share one edit
    for number, edit in plan.linear.items():
        site = lifted.sites[number]
        assert isinstance(site, LinearSite)
        for key, job in _linear_jobs(new, number, site, edit):
            jobs.setdefault(key, job)
    for number, change in plan.affine.items():
        site = lifted.sites[number]
        assert isinstance(site, AffineSite)
        step = lifted.graph.step(number)
        assert isinstance(step, g.AffineStep)
        for key, job in _affine_jobs(new, number, step, site, change):
            jobs.setdefault(key, job)
    # The largest first, so that all threads are done at about the same time.
    ordered = sorted(jobs.values(), key=lambda job: -job.like.numel())
    for job, (tensor, fits) in zip(ordered, _run_all(ordered), strict=True):
        if not fits and is_finite(job.like):
            overflown.append(job.number)
        job.place(tensor)
    for number, bounds in plan.clip.items():
        site = lifted.sites[number]
        assert isinstance(site, ClipSite)
        if not bounds.fits(largest(site.value.dtype)):
            overflown.append(number)
    if overflown:
        raise Overflow(*overflown)
    return new


def _linear_jobs(
    new: NewTensors, number: int, site: LinearSite, edit: LinearEdit
) -> Iterator[tuple[object, _Job]]:
    in_rows = site.layout is Layout.ROWS_OUT  # an embedding: the weight takes the shift too
    if site.parameter is not None and (edit.rescales or in_rows):
        # Made here, in one thread: memory that the run gave back is taken again. A thread of the
        # pool would ask the system for more.
        old, room = _array(site.parameter), _array(torch.empty_like(site.parameter, device="cpu"))
        content = partial(fold_weight, old, edit, site.layout, site.groups, out=room)
        place = partial(_note_content, new, site.parameter)
        yield id(site.parameter), _Job(number, content, site.parameter, place)
    if in_rows or (site.bias is None and not edit.needs_bias):
        return
    bias = None if site.bias is None else _array(site.bias)
    weight = _array(site.weight)
    shifted = partial(fold_bias, weight, bias, edit, site.layout, site.groups)
    if site.bias is not None:
        yield (
            id(site.bias),
            _Job(number, shifted, site.bias, partial(_note_content, new, site.bias)),
        )
        return
    owner = site.module if site.module is not None else site.node
    if owner is None:  # shifts that a bias which stays as it is lets through
        return
    born = partial(_note_born, new, owner, "bias")
    yield (id(owner), "bias"), _Job(number, shifted, site.weight, born)


def _affine_jobs(
    new: NewTensors, number: int, step: g.AffineStep, site: AffineSite, edit: AffineEdit
) -> Iterator[tuple[object, _Job]]:
    """A step that stays: its new factors and summands; a BatchNorm's mean is moved or not."""
    assert site.mean is not None and site.deviation is not None and site.statistics is not None
    mean = site.mean
    if site.running_mean is not None and not np.array_equal(moved := edit.moved_mean(mean), mean):
        mean = moved
        place = partial(_note_content, new, site.running_mean)
        given = partial(np.asarray, mean)
        yield id(site.running_mean), _Job(number, given, site.running_mean, place)
    gamma, beta = edit.of_batchnorm(mean, site.deviation)
    wanted = (
        ("weight", step.factors, site.gamma, gamma),
        ("bias", step.summands, site.beta, beta),
    )
    for name, known, parameter, content in wanted:
        if known is not g.Parameter.EDITABLE:
            continue
        if parameter is not None:
            reshaped = content.reshape(tuple(parameter.shape))
            given = partial(np.asarray, reshaped)
            yield (
                id(parameter),
                _Job(number, given, parameter, partial(_note_content, new, parameter)),
            )
            continue
        owner = site.nodes[0] if site.nodes else site.module
        if owner is not None and (site.nodes or can_gain(site.module)):
            given = partial(np.asarray, content)
            born = partial(_note_born, new, owner, name)
            yield (id(owner), name), _Job(number, given, site.statistics, born)


def _note_born(new: NewTensors, owner: nn.Module | fx.Node, name: str, content: Tensor) -> None:
    """Note a parameter that somebody is to get."""
    new.born.append((owner, name, content))


def _note_content(new: NewTensors, parameter: Tensor, content: Tensor) -> None:
    """Note the new content of a parameter."""
    new.parameters[id(parameter)] = (parameter, content)


def is_finite(tensor: Tensor) -> bool:
    """Whether no entry is inf or NaN.

    A sum of squares says so in a twentieth of isfinite's time, where it is finite itself; the
    extremes in a tenth.
    """
    if not tensor.numel():
        return True
    array = _array(tensor)
    if array.dtype.itemsize > 2 and array.flags.c_contiguous:
        flat = array.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(flat @ flat):
                return True
    return bool(np.isfinite(array.min()) and np.isfinite(array.max()))


def _array(tensor: Tensor) -> FloatArray:
    """The content on the CPU; without a copy where NumPy knows the dtype."""
    plain = tensor.detach().cpu()
    if plain.dtype == torch.bfloat16:
        plain = plain.double()
    return array_over(plain)


def tensor_like(content: FloatArray, like: Tensor) -> Tensor:
    """The content in the dtype and on the device of another tensor."""
    tensor = torch.from_numpy(np.asarray(content))
    return tensor.to(device=like.device, dtype=like.dtype, copy=True)
