"""What the tests of the PyTorch frontend share: random statistics, and one assertion for a fold.

Two proofs for each fold: structure (which BatchNorms still run) and numbers (float64 against the
original, on inputs the fold never saw too). The original must come out of it as it went in.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch._decomp import _core_aten_decompositions_post_autograd
from torch._export import utils as export_utils
from torch.export import ExportedProgram
from torch.export.decomp_utils import PRESERVED_ATEN_CIA_OPS
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import bnfold
from bnfold import FoldReport
from tests.tolerances import RELATIVE


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and parameters that differ per channel, negative gammas among them; eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor, low: float, high: float) -> None:
        content = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        tensor.copy_(content * (high - low) + low)

    for module in model.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            draw(module.running_mean, -0.5, 0.5)
            draw(module.running_var, 0.4, 1.6)
            if isinstance(getattr(module, "weight", None), Tensor):
                draw(module.weight, 0.5, 1.5)
                negative = torch.rand(module.weight.shape, generator=generator) < 0.3
                if module.weight.numel() > 1:
                    negative.view(-1)[1] = True  # at least one
                module.weight[negative] *= -1
            if isinstance(getattr(module, "bias", None), Tensor):
                draw(module.bias, -0.5, 0.5)
        elif getattr(module, "bias", None) is not None and isinstance(module.bias, nn.Parameter):
            draw(module.bias, -0.5, 0.5)
    return model.eval()


def build(model: nn.Module, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The model in eval mode and `dtype`, with random statistics."""
    return randomize(model, seed).to(dtype)


def image(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """A random tensor of that shape."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def in_core_aten(program: ExportedProgram) -> ExportedProgram:
    """The program, decomposed.

    PyTorch goes through all its composite operators, and tells each one twice to decompose, which
    it does anyway. Here that is said to those of the program, and to those with rules of their own.
    """
    parts = [part for part in program.graph_module.modules() if isinstance(part, fx.GraphModule)]
    own = {node.target for part in parts for node in part.graph.nodes}
    found = {op for op in _composite() if op in own or op in _with_rules()}
    with ExitStack() as patched:
        for name in (
            "exported_program._collect_all_valid_cia_ops",
            "decomp_utils._collect_all_valid_cia_ops",
            "decomp_utils._collect_all_valid_cia_ops_for_aten_namespace",
        ):
            patched.enter_context(patch(f"torch.export.{name}", lambda: found, create=True))
        return program.run_decompositions()


@cache
def _composite() -> set[Any]:
    return export_utils._collect_all_valid_cia_ops()


@cache
def _with_rules() -> set[Any]:
    return {*_core_aten_decompositions_post_autograd(), *PRESERVED_ATEN_CIA_OPS}


class _BatchNormCalls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "batch_norm" in str(func)
        return func(*args, **(kwargs or {}))


def batch_norm_calls(model: nn.Module, inputs: Any) -> int:
    """How many BatchNorms one run computes."""
    return run_counted(model, inputs)[1]


def run_counted(model: nn.Module, inputs: Any) -> tuple[list[Tensor], int]:
    """The output's tensors, and how many BatchNorms were computed on the way."""
    with _BatchNormCalls() as calls:
        made = run(model, inputs)
    return made, calls.count


def run(model: nn.Module, inputs: Any) -> list[Tensor]:
    """The output's tensors, as a user calls the model; the inputs stay as they are."""
    return run_on(model, copy.deepcopy(inputs))


def run_on(model: nn.Module, inputs: Any) -> list[Tensor]:
    """The same on the very inputs, which the model may write to."""
    torch.default_generator.manual_seed(0)  # quicker than torch.manual_seed
    with torch.no_grad():
        if isinstance(inputs, dict):
            result = model(**inputs)
        elif isinstance(inputs, tuple | list):
            result = model(*inputs)
        else:
            result = model(inputs)
    return [leaf for leaf in _leaves(result) if isinstance(leaf, Tensor)]


def _leaves(tree: Any) -> Iterator[Any]:
    for leaf in pytree.tree_leaves(tree):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            for field in dataclasses.fields(leaf):
                yield from _leaves(getattr(leaf, field.name))
        elif isinstance(leaf, dict):
            for value in leaf.values():
                yield from _leaves(value)
        else:
            yield leaf


def assert_same(expected: list[Tensor], actual: list[Tensor], relative: float) -> None:
    """Equal up to `relative` of the largest value; NaN and Inf at the same places."""
    assert len(expected) == len(actual)
    for old, new in zip(expected, actual, strict=True):
        assert old.shape == new.shape
        assert old.dtype == new.dtype
        if not old.numel():
            continue
        if not old.dtype.is_floating_point:
            assert torch.equal(old, new)
            continue
        old, new = old.double(), new.double()
        assert torch.equal(old.isfinite(), new.isfinite())
        finite = old.isfinite()
        if not finite.any():
            continue
        size = float(old[finite].abs().max())
        error = float((old[finite] - new[finite]).abs().max())
        assert error <= relative * max(size, 1e-3), f"relative error {error / max(size, 1e-3):.3g}"


def other_inputs(inputs: Any, seed: int = 99, batch: int | None = None) -> Any:
    """Inputs of the same kind with other random content, and another batch size if asked."""
    generator = torch.Generator().manual_seed(seed)

    def fresh(tensor: Tensor) -> Tensor:
        shape = list(tensor.shape)
        if batch is not None and shape:
            shape[0] = batch
        if not tensor.dtype.is_floating_point:
            high = int(tensor.max()) + 1 if tensor.numel() else 1
            content = torch.randint(0, max(high, 1), shape, generator=generator)
            return content.to(tensor.dtype)
        content = torch.randn(shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
        if tensor.dim() == 4 and not tensor.is_contiguous():
            content = content.contiguous(memory_format=torch.channels_last)
        return content

    return pytree.tree_map_only(Tensor, fresh, inputs)


def _batch_of(inputs: Any) -> int:
    sizes = [t.shape[0] for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor) and t.dim()]
    return sizes[0] if sizes else 1


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """The state, copied."""
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def assert_state(model: nn.Module, expected: dict[str, Tensor]) -> None:
    """The state is bitwise the expected one."""
    actual = model.state_dict()
    assert list(actual) == list(expected)
    for key, value in expected.items():
        assert torch.equal(
            actual[key].contiguous().view(-1).view(torch.uint8),
            value.contiguous().view(-1).view(torch.uint8),
        ), f"{key} changed"


def assert_folds(
    model: nn.Module,
    inputs: Any,
    removed: int | None = None,
    kept: int | None = None,
    dtype: torch.dtype = torch.float64,
    *,
    batches: bool = True,
    inplace: bool = True,
    make: Callable[[], nn.Module] | None = None,
    more: tuple[Any, ...] = (),
    **options: Any,
) -> FoldReport:
    """Fold the model and compare with it; returns the report.

    Args:
        model: in eval mode and in `dtype`.
        inputs: example inputs, also the first ones compared.
        removed: how many affine steps must be gone.
        kept: how many must be left.
        dtype: sets the tolerance; values are compared in float64.
        batches: whether another batch size is tried.
        inplace: whether fold(inplace=True) on a copy is tried, in every fourth test; without the
            proof, where that took nothing back.
        make: makes the model again, for one that cannot be copied.
        more: further inputs to compare.
        options: passed on to `bnfold.fold`.
    """
    relative = RELATIVE[str(dtype).removeprefix("torch.")]
    cases = [inputs, other_inputs(inputs), *options.get("also", ()), *more]
    if batches:
        cases.append(other_inputs(inputs, batch=_batch_of(inputs) + 1))
    state = snapshot(model)
    modes = {name: module.training for name, module in model.named_modules()}
    before = [run(model, case) for case in cases]
    assert_state(model, state)  # the test itself is sound
    example = copy.deepcopy(inputs)

    folded, report = bnfold.fold(model, inputs, **options)

    assert type(folded) is type(model)
    assert_state(model, state)
    assert modes == {name: module.training for name, module in model.named_modules()}
    _assert_inputs_untouched(example, inputs)
    for case, expected in zip(cases, before, strict=True):
        assert_same(expected, run(folded, case), relative)
        assert_same(expected, run(model, case), 0.0)
    fewer = _assert_same_writes(model, folded, inputs, relative)
    fewer += sum(
        batch_norm_calls(model, case) - batch_norm_calls(folded, case)
        for case in options.get("also", ())
    )
    if removed is not None:
        assert report.removed == removed, str(report)
    if kept is not None:
        assert report.kept == kept, str(report)
    _assert_structure(model, report, fewer)
    if inplace and _is_fourth(os.environ["PYTEST_CURRENT_TEST"]):
        again = make() if make else copy.deepcopy(model)
        if not any(item.reason is bnfold.Reason.NOT_PROVEN for item in report.items):
            options["verify"] = False
        result, second = bnfold.fold(again, inputs, inplace=True, **options)
        assert result is again
        assert second.removed == report.removed
        for case, expected in zip(cases, before, strict=True):
            assert_same(expected, run(result, case), relative)
    return report


def _is_fourth(test: str) -> bool:
    """A fourth of the tests, the same ones each time."""
    return zlib.crc32(test.encode()) % 4 == 0


def _assert_inputs_untouched(expected: Any, actual: Any) -> None:
    for old, new in zip(pytree.tree_leaves(expected), pytree.tree_leaves(actual), strict=True):
        if isinstance(old, Tensor):
            assert torch.equal(old, new), "the example input was changed"


def _assert_same_writes(model: nn.Module, folded: nn.Module, inputs: Any, relative: float) -> int:
    """What a run leaves in the inputs is what the original leaves; how many BatchNorms are less."""
    expected, actual = copy.deepcopy(inputs), copy.deepcopy(inputs)
    with _BatchNormCalls() as before:
        run_on(model, expected)
    with _BatchNormCalls() as after:
        run_on(folded, actual)
    assert_same(_tensors(expected), _tensors(actual), relative)
    return before.count - after.count


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _assert_structure(model: nn.Module, report: FoldReport, fewer: int) -> None:
    """Each removed BatchNorm call is one call less."""
    kinds = {name: module for name, module in model.named_modules() if _normalises(module)}
    real = sum(item.calls for item in report.items if item.is_removed and item.name in kinds)
    assert fewer == real, str(report)


def _normalises(module: nn.Module) -> bool:
    scripted = getattr(module, "original_name", "")  # of a ScriptModule
    return isinstance(module, _BatchNorm) or "BatchNorm" in scripted


def reasons(report: FoldReport) -> dict[str, str]:
    """The reason per kept step."""
    return {item.name: str(item.reason) for item in report.items if not item.is_removed}
