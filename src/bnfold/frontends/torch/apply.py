"""Apply a plan to a module: new weights first, then the modules that change their kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnfold.core.plan import ClipEdit, Plan
from bnfold.errors import BnfoldError, UnsupportedModelError
from bnfold.frontends.torch.aliasing import Precautions
from bnfold.frontends.torch.batch_norms import is_batch_norm_event
from bnfold.frontends.torch.copies import Snapshot, deep_copy
from bnfold.frontends.torch.lifter import AffineSite, ClipSite, Lifted
from bnfold.frontends.torch.modules import FreshCopy, GaplessCopy, RescaledClip
from bnfold.frontends.torch.new_tensors import NewTensors
from bnfold.frontends.torch.twins import NotAsItIsError


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
    for number in plan.clipped:
        site = lifted.sites[number]
        assert isinstance(site, ClipSite) and site.module is not None
        module = find(site.module)
        inplace = bool(getattr(module, "inplace", False))
        with changing(model, site.module):
            become(module, RescaledClip(*clip_bounds(plan.clip[number], site), inplace=inplace))
    for removed, copies in _removed_modules(lifted, plan, care):
        assert removed.module is not None
        if find is _itself or removed.successors:
            rest = [find(module) for module in removed.successors]
            with changing(model, removed.module):
                become(find(removed.module), _remainder([*copies, *rest]))


@contextmanager
def changing(model: nn.Module, module: nn.Module) -> Iterator[None]:
    """What a class says that does not want to be changed comes with the layer's name."""
    try:
        yield
    except BnfoldError:
        raise
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
    for site, copies in _removed_modules(lifted, plan, care):
        if not site.successors:
            left = _remainder(copies).eval()
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
    given = dict(memo)
    try:
        folded = deep_copy(model, memo)
    except NotAsItIsError as error:
        raise _not_copied(model, f" as it is: {error}") from error
    except Exception as error:
        raise _not_copied(model, f" ({error})") from error
    if folded is model:
        raise _not_copied(model, ": its __deepcopy__ returns the module itself")
    if _kind(folded) is not _kind(model) or folded.training != model.training:
        raise _not_copied(model, f": its copy is {_a(folded)}")
    for key, stand_in in given.items():
        if isinstance(stand_in, nn.Module) and memo[key] is not stand_in:
            become(cast(nn.Module, memo[key]), stand_in)  # it was copied without the memo
    own = {id(module) for module in model.modules()}
    held = {id(parameter) for parameter in model.parameters()}
    for name, module in folded.named_modules():
        # One that is shared as a whole may stay as it is, if nothing of it was to be another.
        kept = given if id(module) in own else held
        if any(id(parameter) in kept for parameter in module._parameters.values()):
            raise _not_copied(model, f": its copy shares the parameters of {name or 'it'} with it")

    def find(module: nn.Module) -> nn.Module:
        copied = memo.get(id(module))
        if not isinstance(copied, nn.Module) or copied is module:
            raise _not_copied(model, f": its copy has no {type(module).__name__} of its own")
        return copied

    return folded, find


def _kind(module: nn.Module) -> type:
    """The class that somebody wrote; fx derives one from it for each GraphModule that there is."""
    kind = type(module)
    if not issubclass(kind, fx.GraphModule):
        return kind
    return next(base for base in kind.__mro__ if not base.__qualname__.endswith("GraphModuleImpl"))


def _a(module: nn.Module) -> str:
    return f"a {type(module).__name__} in {'training' if module.training else 'evaluation'} mode"


def _not_copied(model: nn.Module, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{type(model).__name__} cannot be copied{why}",
        "call fold(..., inplace=True) on a model you can afford to change",
    )


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
) -> Iterator[tuple[AffineSite, list[nn.Module]]]:
    """Each module to remove once, whatever the number of its calls, and the copy it leaves."""
    sites: dict[int, AffineSite] = {}
    copies: dict[int, nn.Module] = {}
    for number in plan.removed:
        site = lifted.sites[number]
        assert isinstance(site, AffineSite)
        sites[id(site.module)] = site
        if number in care.copies:
            event = lifted.events.get(number)
            is_arithmetic = event is not None and not is_batch_norm_event(event)
            copies[id(site.module)] = GaplessCopy() if is_arithmetic else FreshCopy()
    # The later first: what a module leaves behind may itself be a module that goes.
    for key, site in sorted(sites.items(), key=lambda item: -item[1].event):
        yield site, [copies[key]] if key in copies else []


def _remainder(parts: Sequence[nn.Module]) -> nn.Module:
    """What the module did besides the affine step, in order."""
    if not parts:
        return nn.Identity()
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)
