"""Exported programs: folded as graphs, on disk and off, with the interface they came with."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # PyTorch's own name for it
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

import bnfold
from bnfold import FoldReport, Kept, Reason
from tests.frontends.torch.support import build, image, in_core_aten
from tests.pairwise import pairwise


def export(model: nn.Module, *inputs: Tensor, **options: Any) -> ExportedProgram:
    return torch.export.export(model, inputs, **options)


def reloaded(program: ExportedProgram) -> ExportedProgram:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    return torch.export.load(buffer)


def batch_norms(program: ExportedProgram) -> int:
    graphs = [
        part.graph for part in program.graph_module.modules() if isinstance(part, fx.GraphModule)
    ]
    return sum(
        node.op == "call_function" and "batch_norm" in str(node.target)
        for graph in graphs
        for node in graph.nodes
    )


def fold_equal(
    program: ExportedProgram, *inputs: Tensor, clip: str = "auto"
) -> tuple[ExportedProgram, FoldReport]:
    """Fold; the outputs are those of the original, also once saved and loaded."""
    before = [node.format_node() for node in program.graph.nodes]
    content = {name: tensor.clone() for name, tensor in program.state_dict.items()}
    folded, report = bnfold.fold(program, clip=clip)
    expected = program.module()(*inputs)
    for candidate in (folded, reloaded(folded)):
        torch.testing.assert_close(candidate.module()(*inputs), expected, rtol=1e-9, atol=1e-9)
        assert batch_norms(candidate) == report.kept
    assert [node.format_node() for node in program.graph.nodes] == before
    for name, tensor in program.state_dict.items():
        assert torch.equal(tensor, content[name]), name
    return folded, report


class Functional(nn.Module):
    """batch_norm and relu as functions, with the statistics in buffers."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, bias=False)
        self.last = nn.Conv2d(channels, 5, 3)
        draw = torch.Generator().manual_seed(3)
        self.gamma = nn.Parameter(torch.randn(channels, generator=draw))
        self.beta = nn.Parameter(torch.randn(channels, generator=draw))
        self.register_buffer("mean", torch.randn(channels, generator=draw))
        self.register_buffer("var", torch.rand(channels, generator=draw) + 0.3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        x = F.batch_norm(x, self.mean, self.var, self.gamma, self.beta, False, 0.1, 1e-3)
        return self.last(F.relu(x))


# -------------------------------------------------------------------- what must stay


def test_training_mode_is_kept():
    model = build(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model.train()
    program = export(model, image(2, 3, 8, 8))
    _, report = bnfold.fold(program)
    assert [item.outcome.reason for item in report.items if isinstance(item.outcome, Kept)] == [
        Reason.BATCH_STATISTICS
    ]


def test_padding_is_kept():
    model = build(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)))
    _, report = fold_equal(export(model, image(1, 3, 8, 8)), image(1, 3, 8, 8, seed=5))
    assert report.kept == 1
    assert isinstance(report.items[0].outcome, Kept)
    assert report.items[0].outcome.reason is Reason.PADDING


def test_an_intermediate_result_that_is_returned_keeps_its_value():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            return y, self.norm(y)

    _, report = fold_equal(export(build(Two()), image(1, 3, 8, 8)), image(1, 3, 8, 8, seed=5))
    assert report.kept == 1


# -------------------------------------------------------------------- what must go


def test_an_argument_with_the_name_of_a_builtin():
    """nn.Sequential calls its argument `input`, which a copied graph renames."""
    model = build(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    program = export(model, image(1, 3, 8, 8))
    folded, report = fold_equal(program, image(1, 3, 8, 8, seed=5))
    assert report.kept == 0
    assert folded.graph_signature.user_inputs == program.graph_signature.user_inputs
    folded, _ = fold_equal(reloaded(program), image(1, 3, 8, 8, seed=5))
    assert list(folded.graph_signature.user_inputs) == ["input"]


@pytest.mark.parametrize("name", ["max", "lambda_", "id", "self_", "float", "p_conv_bias"])
def test_argument_names(name):
    """Names that a copied graph, or a bias that is born, could take for itself."""
    scope: dict[str, Any] = {}
    exec(f"def forward(self, {name}):\n    return self.norm(self.conv({name}))", scope)
    kind = type("Named", (nn.Module,), {"forward": scope["forward"]})
    model = kind()
    model.conv, model.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
    program = export(build(model), image(1, 3, 8, 8))
    folded, report = fold_equal(program, image(1, 3, 8, 8, seed=5))
    assert report.kept == 0
    assert folded.graph_signature.user_inputs == program.graph_signature.user_inputs


def test_batch_norm_as_a_function_between_functional_activations():
    program = export(Functional(), image(1, 3, 9, 9))
    _, report = fold_equal(program, image(1, 3, 9, 9, seed=5))
    assert (report.total, report.kept) == (1, 0)


def test_plain_activations_where_bounds_are_not_wanted():
    program = export(Functional(), image(1, 3, 9, 9))
    folded, _ = fold_equal(program, image(1, 3, 9, 9, seed=5), clip="never")
    targets = {str(node.target) for node in folded.graph.nodes}
    assert not targets & {"aten.maximum.default", "aten.minimum.default"}


def test_a_symbolic_batch_stays_symbolic():
    model = build(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = export(model, image(2, 3, 8, 8), dynamic_shapes=({0: batch},))
    folded, report = fold_equal(program, image(7, 3, 8, 8, seed=5))
    assert report.kept == 0
    assert folded.module()(image(31, 3, 8, 8)).shape[0] == 31


def test_decomposed_programs():
    model = build(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()))
    program = in_core_aten(export(model, image(1, 3, 8, 8)))
    _, report = fold_equal(program, image(1, 3, 8, 8, seed=5))
    assert (report.total, report.kept) == (1, 0)


class Spelled(nn.Module):
    """Steps whose constants are computed, and one constant that something else reads, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.scale, self.both = nn.Parameter(torch.rand(4) + 0.5), nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(self.conv(x)) * (self.scale * 2)[:, None, None] + self.both[:, None, None]
        return y.relu().mean((2, 3)), self.both * 3


@pytest.mark.parametrize("decomposed", [False, True])
def test_what_nobody_reads_any_more_leaves(decomposed: bool) -> None:
    model, x = build(Spelled()), image(2, 3, 8, 8)
    program = export(model, x)
    program = in_core_aten(program) if decomposed else program
    folded, report = bnfold.fold(program)
    assert not report.kept
    assert set(folded.state_dict) == {"conv.weight", "conv.bias", "both"}
    assert [spec.target for spec in folded.graph_signature.input_specs if spec.target] == [
        "both",
        "conv.weight",
        "conv.bias",
    ]
    for again in (folded, reloaded(folded)):
        for expected, actual in zip(model(x), again.module()(x), strict=True):
            torch.testing.assert_close(actual, expected)


def test_what_nobody_ever_read_stays_with_the_model():
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("labels", torch.arange(4))
            self.scale = nn.Parameter(torch.rand(4) + 0.5)
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) * self.scale[:, None, None]

    folded, report = bnfold.fold(export(build(Labelled()), image(1, 3, 8, 8)))
    assert report.removed == 1
    assert set(folded.state_dict) == {"conv.weight", "conv.bias", "labels"}


class Summing(nn.Module):
    """Sums that begin with a number, as code that counts its branches writes them."""

    def __init__(self, branches: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(branches))

    def forward(self, x: Tensor) -> Tensor:
        out = 0
        for branch in self.branches:
            out += branch(x)
        return torch.relu_(x * 1 - 0) + out / 1.0


@pytest.mark.parametrize("branches", [1, 3])
def test_steps_that_do_nothing_go(branches: int) -> None:
    model, x = build(Summing(branches)), image(1, 3, 6, 6)
    program = export(model, x)
    folded, _ = bnfold.fold(program)
    ops = [node.name for node in folded.graph.nodes if node.op == "call_function"]
    assert [name.rstrip("_0123456789") for name in ops] == ["conv2d", "relu", "add"]
    given = x.clone()
    torch.testing.assert_close(folded.module()(given), model(x.clone()))
    assert torch.equal(given, x)


@pytest.mark.parametrize("number", [0.5, -1, torch.tensor([1.0, 1.5])])
def test_steps_that_do_something_stay(number: Any) -> None:
    class Step(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * number).relu()

    folded, _ = bnfold.fold(export(Step(), image(1, 2, 6, 2)))
    assert any("mul" in node.name for node in folded.graph.nodes)


def test_a_fold_of_a_fold_changes_nothing():
    folded, _ = bnfold.fold(export(Functional(), image(1, 3, 9, 9)))
    again, report = bnfold.fold(folded)
    assert report.total == 0
    for name, tensor in folded.state_dict.items():
        assert torch.equal(tensor, again.state_dict[name]), name


def test_a_cast_between_float_dtypes():
    """torch.export puts an assertion about the dtype in front of each cast; it reads no values."""

    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.norm(torch.sigmoid(x)).double())

    program = export(build(Cast()), image(1, 3, 8, 8))
    assert any("_assert_tensor_metadata" in str(node.target) for node in program.graph.nodes)
    _, report = fold_equal(program, image(1, 3, 8, 8, seed=5))
    assert report.kept == 0


class Guarded(nn.Module):
    """One BatchNorm in a region without autocast, one in a branch, one in neither."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.conv, self.guarded = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.stem(x)).relu()
        with torch.autocast("cpu", enabled=False):
            return self.guarded(self.conv(x))


class Branches(Guarded):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.stem(x))
        return torch.cond(y.sum() > 0, lambda t: self.guarded(t), lambda t: t * 2, (y,))


@pytest.mark.parametrize("kind", [Guarded, Branches])
def test_a_batch_norm_inside_a_higher_order_op_is_listed(kind: type[nn.Module]) -> None:
    program = export(build(kind()), image(2, 3, 4, 4))
    for report in (fold_equal(program, image(2, 3, 4, 4, seed=5))[1], bnfold.inspect(program)):
        (kept,) = [item for item in report.items if isinstance(item.outcome, Kept)]
        assert (kept.outcome.reason, kept.channels) == (Reason.MODULE_DOES_MORE, 4)
        assert kept.outcome.detail.startswith("it is in the body of a higher-order op")
        assert "run_decompositions({})" in kept.outcome.detail and report.removed == 1


@pytest.mark.parametrize(
    "region", [torch.no_grad, partial(torch.autocast, "cpu", enabled=False), torch.enable_grad]
)
def test_what_it_says_to_do_about_a_region_helps(region: Any) -> None:
    """A backbone that is frozen in forward, as people write it."""

    class Frozen(Guarded):
        def forward(self, x: Tensor) -> Tensor:
            with region():
                x = self.bn(self.stem(x)).relu()
            return self.guarded(self.conv(x))

    program = export(build(Frozen()), image(2, 3, 4, 4))
    assert bnfold.inspect(program).removed == 1 + (region is torch.enable_grad)
    x = image(2, 3, 4, 4, seed=5)
    assert fold_equal(program.run_decompositions({}), x)[1].removed == 2


class StartsWith(nn.Module):
    """A sum of branches that begins with a tensor of one number."""

    def __init__(self, start: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.start = start
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 4, k, padding=k // 2), nn.BatchNorm2d(4)) for k in (1, 3)
        )
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        made = [branch(x) for branch in self.branches]
        y = self.start(made[0])
        for branch in made:
            y = y + branch
        return self.head(torch.relu(y))


STARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros_like": torch.zeros_like,
    "full_like": lambda y: torch.full_like(y, 0.3),
    "new_zeros": lambda y: y.new_zeros(y.shape),
    "new_full": lambda y: y.new_full((1, 4, 1, 1), -0.7),
    "zeros": lambda y: torch.zeros(y.shape, dtype=y.dtype),
    "times 0": lambda y: y * 0.0,
    "ones_like": lambda y: torch.ones_like(y),
}


@pytest.mark.parametrize("is_decomposed", [False, True])
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS.keys())
def test_a_sum_that_begins_with_numbers(
    start: Callable[[Tensor], Tensor], *, is_decomposed: bool
) -> None:
    """Its readers read the branch that is no constant, whichever operand that is."""
    program = export(build(StartsWith(start)), image(2, 3, 5, 5))
    program = in_core_aten(program) if is_decomposed else program
    other = image(2, 3, 5, 5, seed=3)
    expected = program.module()(other)
    for verify in (True, False):
        folded, report = bnfold.fold(program, verify=verify)
        assert not report.kept
        torch.testing.assert_close(folded.module()(other), expected, rtol=1e-9, atol=1e-9)


# -------------------------------------------------------------------- names that are taken


class Taken(nn.Module):
    """Something of its own bears the name that a new tensor would get, and is read, or is not."""

    def __init__(self, name: str, kind: str, *, is_read: bool = True) -> None:
        super().__init__()
        self.name, self.kind, self.is_read = name, kind, is_read
        own: dict[str, Callable[[], Any]] = {
            "parameter": lambda: nn.Parameter(torch.rand(4, 1, 1)),
            "tensor": lambda: torch.rand(4, 1, 1, dtype=torch.float64),
            "module": lambda: nn.Conv2d(4, 4, 1),
            "module without tensors": lambda: nn.Sequential(nn.Sigmoid()),
        }
        if kind in own:
            setattr(self, name, own[kind]())
        else:
            self.register_buffer(name, torch.rand(4, 1, 1), persistent=kind == "buffer")

    def read(self, y: Tensor) -> Tensor:
        if not self.is_read:
            return y
        own = getattr(self, self.name)
        return own(y) if "module" in self.kind else y * own


class NewBias(Taken):
    def __init__(self, kind: str, *, is_read: bool = True) -> None:
        super().__init__("bias", kind, is_read=is_read)
        self.weight, self.bn = nn.Parameter(torch.randn(4, 3, 1, 1)), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.bn(F.conv2d(x, self.weight)).sigmoid())


class NewBound(Taken):
    def __init__(self, kind: str, bound: str) -> None:
        super().__init__(f"relu_{bound}", kind)
        self.stem, self.head, self.bn = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return y + self.read(self.head(torch.relu(self.bn(y))).sigmoid())


class NewBiasOfTheMerged(Taken):
    """Two branches, one of which stands with its weight where the bias would."""

    def __init__(self, kind: str) -> None:
        super().__init__("bias", kind)
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.point, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.conv2d(x, self.weight, padding=1)
        return self.read(self.bn(wide + self.point(x)).sigmoid())


KINDS = (
    *("parameter", "buffer", "buffer that is not saved", "tensor"),
    *("module", "module without tensors"),
)


MADE = [(made, kind) for made in ("bias", "lower", "upper", "merged") for kind in KINDS]


@pytest.mark.parametrize(
    ("made", "kind", "verify"),
    [(*case, verify) for case, verify in pairwise(MADE, [True, False], lambda case: case)],
)
def test_a_name_that_is_taken(made: str, kind: str, verify: bool) -> None:
    makers: dict[str, Callable[[], nn.Module]] = {
        "bias": lambda: NewBias(kind),
        "merged": lambda: NewBiasOfTheMerged(kind),
    }
    model = build(makers.get(made, lambda: NewBound(kind, made))())
    x = image(2, 3, 6, 6)
    program = export(model, x)
    folded, report = bnfold.fold(program, clip="always", verify=verify)
    assert batch_norms(folded) == 0
    assert bool(report.merged) == (made == "merged")
    expected = program.module()(x)
    for candidate in (folded, reloaded(folded)):
        for module in (candidate.module(), torch.export.unflatten(candidate)):
            torch.testing.assert_close(module(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_is_taken_and_not_read(kind: str) -> None:
    x = image(2, 3, 6, 6)
    folded, _ = fold_equal(export(build(NewBias(kind, is_read=False)), x), x)
    torch.testing.assert_close(torch.export.unflatten(folded)(x), folded.module()(x))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1), (1, 1, 1, 1)])
def test_one_parameter_for_all_channels_goes(shape):
    class LearnableAffine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.scale = nn.Parameter(torch.full(shape, -0.7))
            self.bias = nn.Parameter(torch.full(shape, 0.3))

        def forward(self, x: Tensor) -> Tensor:
            return F.hardswish(self.scale * self.conv(x) + self.bias)

    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    program = export(LearnableAffine().double().eval(), x)
    folded, report = fold_equal(program, x)
    assert [item.name for item in report.items if item.is_removed] == ["mul", "add"]
    calls = [node for node in folded.graph.nodes if node.op == "call_function"]
    assert [node.target for node in calls] == [
        torch.ops.aten.conv2d.default,
        torch.ops.aten.hardswish.default,
    ]
