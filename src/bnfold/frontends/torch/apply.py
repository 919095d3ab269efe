"""Apply a plan to a module: new weights first, then the modules that change their kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnfold._threads import share
from bnfold.core.affine import FloatArray
from bnfold.core.fitting import Overflow
from bnfold.core.plan import AffineEdit, ClipEdit, LinearEdit, Plan
from bnfold.core.weights import Layout, fold_bias, fold_weight
from bnfold.errors import UnsupportedModelError
from bnfold.frontends.torch.affine_batch_norm import can_gain
from bnfold.frontends.torch.aliasing import Precautions
from bnfold.frontends.torch.copies import Snapshot, deep_copy
from bnfold.frontends.torch.lifter import AffineSite, ClipSite, Lifted, LinearSite
from bnfold.frontends.torch.modules import FreshCopy, RescaledClip


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
    """The new content of every parameter that the plan changes. Raises Overflow."""
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
        for key, job in _affine_jobs(new, number, site, change):
            jobs.setdefault(key, job)
    # The largest first, so that all threads are done at about the same time.
    ordered = sorted(jobs.values(), key=lambda job: -job.like.numel())
    for job, (tensor, fits) in zip(ordered, _run_all(ordered), strict=True):
        if not fits and is_finite(job.like):
            overflown.append(job.number)
        job.place(tensor)
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
    new: NewTensors, number: int, site: AffineSite, edit: AffineEdit
) -> Iterator[tuple[object, _Job]]:
    """A BatchNorm that stays: its new gamma and beta, the mean itself moved or not."""
    assert site.mean is not None and site.deviation is not None and site.statistics is not None
    mean = site.mean
    if site.running_mean is not None and not np.array_equal(moved := edit.moved_mean(mean), mean):
        mean = moved
        place = partial(_note_content, new, site.running_mean)
        given = partial(np.asarray, mean)
        yield id(site.running_mean), _Job(number, given, site.running_mean, place)
    gamma, beta = edit.of_batchnorm(mean, site.deviation)
    wanted = (("weight", site.gamma, gamma), ("bias", site.beta, beta))
    for name, parameter, content in wanted:
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
    """Whether no entry is inf or NaN; looking at the extremes takes a tenth of isfinite's time."""
    if not tensor.numel():
        return True
    array = _array(tensor)
    return bool(np.isfinite(array.min()) and np.isfinite(array.max()))


def _array(tensor: Tensor) -> FloatArray:
    """The content on the CPU; without a copy where NumPy knows the dtype."""
    plain = tensor.detach().cpu()
    if plain.dtype == torch.bfloat16:
        plain = plain.double()
    array: FloatArray = plain.numpy()
    return array


def tensor_like(content: FloatArray, like: Tensor) -> Tensor:
    """The content in the dtype and on the device of another tensor."""
    tensor = torch.from_numpy(np.asarray(content))
    return tensor.to(device=like.device, dtype=like.dtype)


# -------------------------------------------------------------------- writing


def apply(
    model: nn.Module,
    lifted: Lifted,
    plan: Plan,
    new: NewTensors,
    care: Precautions,
    *,
    inplace: bool,
) -> nn.Module:
    """The folded module: the given one, or a copy that shares no parameter with it.

    Raises UnsupportedModelError: a layer cannot be changed. The model is as it was then, also with
    `inplace`.
    """
    if not inplace:
        folded, find = _copy(model, new, _vanishing(lifted, plan, care))
        _edit(model, find, lifted, plan, new, care)
        return folded
    before = Snapshot(model.modules())
    try:
        for parameter, content in new.parameters.values():
            parameter.data = content
        _edit(model, _itself, lifted, plan, new, care)
    except BaseException:
        before.restore()
        raise
    return model


def _edit(
    model: nn.Module,
    find: Find,
    lifted: Lifted,
    plan: Plan,
    new: NewTensors,
    care: Precautions,
) -> None:
    """Everything besides new content of parameters: what is born, bounds, what vanishes."""
    for owner, name, content in new.born:
        assert isinstance(owner, nn.Module)
        with changing(model, owner):
            _give(find(owner), name, content)
    for event in care.out_of_place:
        with changing(model, event.target):
            find(event.target).inplace = False  # type: ignore[assignment]
    for number, edit in plan.clip.items():
        site = lifted.sites[number]
        assert isinstance(site, ClipSite) and site.module is not None
        module = find(site.module)
        inplace = bool(getattr(module, "inplace", False))
        with changing(model, site.module):
            become(module, RescaledClip(*clip_bounds(edit, site), inplace=inplace))
    for removed, copied in _removed_modules(lifted, plan, care):
        assert removed.module is not None
        if find is _itself or removed.successors:
            rest = [find(module) for module in removed.successors]
            with changing(model, removed.module):
                become(find(removed.module), _remainder(rest, copied=copied))


@contextmanager
def changing(model: nn.Module, module: nn.Module) -> Iterator[None]:
    """What a class says that does not want to be changed comes with the layer's name."""
    try:
        yield
    except Exception as error:
        name = next((name for name, part in model.named_modules() if part is module), "")
        raise UnsupportedModelError(
            f"{name or type(model).__name__}, a {type(module).__name__}, cannot be changed"
            f" ({type(error).__name__}: {error})".rstrip("."),
            "leave it as it is with keep=[its name], or fold a copy (inplace=False)",
        ) from error


Find = Callable[[nn.Module], nn.Module]


def _itself(module: nn.Module) -> nn.Module:
    return module


def parameter_like(old: nn.Parameter, content: Tensor) -> nn.Parameter:
    """A parameter with new content and everything else of the old one."""
    new = nn.Parameter(content, requires_grad=old.requires_grad)
    new.__dict__.update(old.__dict__)
    return new


def _vanishing(lifted: Lifted, plan: Plan, care: Precautions) -> dict[int, object]:
    """What a copy gets in place of the modules of which nothing is left."""
    memo: dict[int, object] = {}
    for site, copied in _removed_modules(lifted, plan, care):
        if not site.successors:
            left = _remainder((), copied=copied).eval()
            left.__dict__.update(marks(site.module))
            memo[id(site.module)] = left
    return memo


def marks(module: nn.Module | None) -> dict[str, Any]:
    """What somebody noted at a module (`m.i`, `m.stage`), and may ask it for."""
    attributes = {} if module is None else module.__dict__
    return {
        name: value
        for name, value in attributes.items()
        if name not in _STANDARD and type(value) in (int, float, bool, str, type(None))
    }


_STANDARD = frozenset(
    name
    for module in (nn.BatchNorm2d(1), nn.ReLU(), nn.Hardtanh(), nn.Sequential())
    for name in module.__dict__
)


def _copy(model: nn.Module, new: NewTensors, memo: dict[int, object]) -> tuple[nn.Module, Find]:
    """A deep copy that takes the new parameters and modules instead of copying the old ones."""
    for key, (old, content) in new.parameters.items():
        if isinstance(old, nn.Parameter):
            memo[key] = parameter_like(old, content)
        else:
            memo[key] = content
    return copied_with(model, memo)


def copied_with(model: nn.Module, memo: dict[int, object]) -> tuple[nn.Module, Find]:
    """A deep copy that takes what is given in place of what has this id(), and the way to it."""
    try:
        folded = deep_copy(model, memo)
    except Exception as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be copied ({error})",
            "call fold(..., inplace=True) on a model you can afford to change",
        ) from error

    def find(module: nn.Module) -> nn.Module:
        copied = memo[id(module)]
        assert isinstance(copied, nn.Module)
        return copied

    return folded, find


def _give(module: nn.Module, name: str, content: Tensor) -> None:
    """Register a parameter; it asks for a gradient if the module's others do."""
    others = [p.requires_grad for p in module._parameters.values() if p is not None]
    setattr(module, name, nn.Parameter(content, requires_grad=all(others)))
    if isinstance(module, _BatchNorm):
        module.affine = True


def become(module: nn.Module, new: nn.Module) -> None:
    """Turn a module into another one, for everybody who holds it: parents, lists, closures."""
    training = module.training
    content = {**marks(module), **new.__dict__}
    for name in ("_parameters", "_buffers", "_modules"):
        content[name] = dict(content[name])
    module.__class__ = type(new)
    module.__dict__ = content
    module.training = training


def clip_bounds(edit: ClipEdit, site: ClipSite) -> list[Tensor | None]:
    """Lower and upper bound as tensors; None where there is none."""
    bounds: list[Tensor | None] = []
    for bound in (edit.lower, edit.upper):
        free = bool(np.isinf(bound).all())
        tensor = torch.from_numpy(np.ascontiguousarray(bound))
        bounds.append(None if free else tensor.to(device=site.device, dtype=site.value.dtype))
    return bounds


def _removed_modules(
    lifted: Lifted, plan: Plan, care: Precautions
) -> Iterator[tuple[AffineSite, bool]]:
    """Each module to remove once, whatever the number of its calls."""
    sites: dict[int, AffineSite] = {}
    copied: set[int] = set()
    for number in plan.removed:
        site = lifted.sites[number]
        assert isinstance(site, AffineSite)
        sites[id(site.module)] = site
        if number in care.copies:
            copied.add(id(site.module))
    # The later first: what a module leaves behind may itself be a module that goes.
    for key, site in sorted(sites.items(), key=lambda item: -item[1].event):
        yield site, key in copied


def _remainder(successors: Sequence[nn.Module], *, copied: bool) -> nn.Module:
    """What the module did besides the affine step."""
    parts = [FreshCopy(), *successors] if copied else list(successors)
    if not parts:
        return nn.Identity()
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)
