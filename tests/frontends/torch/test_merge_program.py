"""Exported programs whose linear ops become one: which must not, which must, and what is left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # PyTorch's own name for it
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import bnfold
from bnfold import FoldReport
from bnfold.frontends.torch import merge_program
from bnfold.frontends.torch.merge_nodes import Content
from tests.frontends.torch.support import build, image, in_core_aten
from tests.pairwise import pairwise


def count(program: ExportedProgram, *kinds: str) -> int:
    """How many nodes there are whose op has one of these in its name."""
    return sum(
        node.op == "call_function" and any(kind in str(node.target) for kind in kinds)
        for node in program.graph.nodes
    )


def linears(program: ExportedProgram) -> int:
    return count(program, "conv", "linear", "addmm", "aten.mm", "matmul")


def fold_equal(
    program: ExportedProgram, *inputs: Tensor, tolerance: float = 1e-9
) -> tuple[ExportedProgram, FoldReport]:
    """Fold; the outputs are those of the original, which is as it was."""
    before = [node.format_node() for node in program.graph.nodes]
    content = {name: tensor.clone() for name, tensor in program.state_dict.items()}
    expected = program.module()(*(tensor.clone() for tensor in inputs))
    folded, report = bnfold.fold(program)
    made = folded.module()(*(tensor.clone() for tensor in inputs))
    torch.testing.assert_close(made, expected, rtol=tolerance, atol=tolerance)
    assert [node.format_node() for node in program.graph.nodes] == before
    for name, tensor in program.state_dict.items():
        assert torch.equal(tensor, content[name]), name
    return folded, report


def fold_model(model: nn.Module, *inputs: Tensor) -> tuple[ExportedProgram, FoldReport]:
    return fold_equal(torch.export.export(build(model), inputs), *inputs)


def assert_merged(model: nn.Module, *inputs: Tensor, left: int = 1) -> ExportedProgram:
    """So many linear ops are left, no sum, and nothing that is not read."""
    folded, report = fold_model(model, *inputs)
    assert linears(folded) == left
    assert report.merged
    assert_no_rest(folded)
    return folded


def assert_not_merged(model: nn.Module, *inputs: Tensor) -> None:
    program = torch.export.export(build(model), inputs)
    folded, report = fold_equal(program, *inputs)
    assert linears(folded) == linears(program)
    assert not report.merged


def assert_no_rest(program: ExportedProgram) -> None:
    """Every parameter is read, and the tables name the same ones."""
    kept = {
        spec.target: spec.arg.name
        for spec in program.graph_signature.input_specs
        if spec.target is not None
    }
    users = {node.name: node.users for node in program.graph.nodes}
    assert all(users[name] for name in kept.values())
    assert kept.keys() == {*program.state_dict, *program.constants}


class Branches(nn.Module):
    """Branches that read one tensor and meet in a sum, with an activation behind."""

    def __init__(self, *branches: nn.Module, inplace: bool = False) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.act = nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> Tensor:
        made = [branch(x) for branch in self.branches]
        total = made[0]
        for one in made[1:]:
            total = total + one
        return self.act(total)


def conv_bn(ins: int, outs: int, kernel: Any = 3, **options: Any) -> nn.Sequential:
    options.setdefault("bias", False)
    if "padding" not in options:
        sizes = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        options["padding"] = tuple(size // 2 for size in sizes)
    return nn.Sequential(nn.Conv2d(ins, outs, kernel, **options), nn.BatchNorm2d(outs))


class Pair(nn.Module):
    """A 3x3 and a 1x1 with what is made of the two, of a weight and of the input."""

    def __init__(self, meet: Any, weight: Any = 0.3) -> None:
        super().__init__()
        self.a, self.b, self.meet = conv_bn(4, 4), conv_bn(4, 4, 1), meet
        self.weight = nn.Parameter(torch.tensor(weight), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.meet(self.a(x), self.b(x), self.weight, x))


# -------------------------------------------------------------------- what must not


@pytest.mark.parametrize(
    "meet",
    [
        pytest.param(lambda a, b, w, x: torch.lerp(a, b, x.amax()), id="a weight of the input"),
        pytest.param(lambda a, b, w, x: torch.where(x.amax() > 0, a, b), id="a choice"),
        pytest.param(lambda a, b, w, x: torch.where(x > 0, a, b), id="a choice per place"),
        pytest.param(lambda a, b, w, x: a + w * (b - a) + a.sigmoid(), id="read elsewhere"),
        pytest.param(lambda a, b, w, x: a + w * (b - a.abs()), id="something between"),
        pytest.param(lambda a, b, w, x: a + w * (b - a).mul_(x.amax()), id="a factor of the input"),
        pytest.param(lambda a, b, w, x: (a + b) * (a - b), id="sums that do not meet in one"),
    ],
)
def test_what_is_no_sum_of_two(meet: Any) -> None:
    assert_not_merged(Pair(meet), image(2, 4, 5, 5))


@pytest.mark.parametrize("weight", [[[[0.1]], [[0.2]], [[0.3]], [[0.4]]], [[[0.1]], [[0.9]]] * 2])
def test_a_lerp_with_a_weight_per_channel_stays(weight: Any) -> None:
    assert_not_merged(Pair(lambda a, b, w, x: torch.lerp(a, b, w), weight), image(2, 4, 5, 5))


def test_an_intermediate_that_is_an_output_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            one = self.a(x)
            return F.relu(one + self.b(x)), one

    assert_not_merged(Net(), image(2, 4, 6, 6))


def test_an_intermediate_that_is_read_elsewhere_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            one = self.a(x)
            return F.relu(one + self.b(x)) * torch.sigmoid(one)

    assert_not_merged(Net(), image(2, 4, 6, 6))


def test_tied_weights_stay() -> None:
    one = nn.Conv2d(4, 4, 3, padding=1)
    assert_not_merged(Branches(one, one), image(2, 4, 6, 6))


def test_a_weight_that_two_convolutions_share_stays() -> None:
    one, two, three = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
    two.weight = one.weight
    model = nn.Sequential(Branches(one, nn.Conv2d(4, 4, 1)), two, nn.ReLU(), three)
    assert_not_merged(model, image(2, 4, 6, 6))


def test_a_weight_that_is_also_returned_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return F.relu(self.a(x) + self.b(x)), self.a.weight.abs().sum()

    folded, _ = fold_model(Net(), image(2, 4, 6, 6))
    assert linears(folded) == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"kernel_size": 3, "stride": 1, "padding": 1}, {"kernel_size": 3, "padding": 0}),
        ({"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 1, "stride": 1}),
    ],
)
def test_other_sizes_or_strides_stay(first: dict[str, int], second: dict[str, int]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, **first), nn.Conv2d(4, 4, **second)

        def forward(self, x: Tensor) -> Tensor:
            one, two = self.a(x), self.b(x)
            return F.relu(one[:, :, :2, :2]) + F.relu(two[:, :, :2, :2])

    assert_not_merged(Net(), image(2, 4, 8, 8))


def test_dilations_that_would_need_a_larger_kernel_stay() -> None:
    model = Branches(
        nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 4, 3, padding=3, dilation=3)
    )
    assert_not_merged(model, image(2, 4, 9, 9))


def test_strides_of_which_the_outputs_are_as_many_by_chance_stay() -> None:
    """Eight by eight at stride 2 are as many as at stride 2 with other margins: not for all."""
    model = Branches(nn.Conv2d(4, 4, 2, stride=2), nn.Conv2d(4, 4, 1, stride=2))
    folded, report = fold_model(model, image(2, 4, 8, 8))
    assert linears(folded) == 2 and not report.merged


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_other_padding_stays(mode: str) -> None:
    model = Branches(
        nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode), nn.Conv2d(4, 4, 3, padding=1)
    )
    assert_not_merged(model, image(2, 4, 6, 6))


def test_zero_padding_behind_a_bias_stays() -> None:
    model = nn.Sequential(nn.Conv2d(4, 1, 1), nn.Conv2d(1, 4, 3, padding=1))
    assert_not_merged(model, image(2, 4, 6, 6))


def test_a_depthwise_branch_beside_a_dense_one_stays() -> None:
    model = Branches(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1))
    assert_not_merged(model, image(2, 16, 6, 6))


def test_depthwise_then_pointwise_stays() -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 24, 1))
    assert_not_merged(model, image(2, 16, 6, 6))


def test_half_precision_that_would_overflow_stays() -> None:
    model = build(Branches(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)), dtype=torch.float16)
    with torch.no_grad():
        for branch in model.branches:  # type: ignore[union-attr]
            branch.weight.fill_(4e4)
            branch.bias.zero_()
    x = image(1, 4, 3, 3, dtype=torch.float16) * 1e-3
    folded, report = fold_equal(torch.export.export(model, (x,)), x, tolerance=0.1)
    assert linears(folded) == 2 and not report.merged


def test_weights_that_are_not_finite_stay() -> None:
    model = build(Branches(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)))
    with torch.no_grad():
        model.branches[1].weight[0, 0] = float("inf")  # type: ignore[union-attr,index]
    x = image(1, 4, 3, 3)
    folded, report = bnfold.fold(torch.export.export(model, (x,)), verify=False)
    assert linears(folded) == 2 and not report.merged


def test_another_dtype_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.a(x).float() + self.b(x).float())

    assert_not_merged(Net(), image(2, 4, 6, 6))


def test_padding_by_the_size_stays() -> None:
    """As many zeros as make the size even: none in the run that is analysed."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(F.pad(x, (0, x.shape[3] % 2, 1, 1)))

    model = build(Net())
    shapes = ({3: Dim("width", min=4, max=64)},)
    program = torch.export.export(model, (image(2, 4, 6, 6),), dynamic_shapes=shapes)
    folded, report = fold_equal(program, image(2, 4, 6, 7))
    assert count(folded, "pad") == 1 and not report.merged


@pytest.mark.parametrize("amounts", [(0, 1, 0, 1), (1, 1, 1, 1, 1, 1)])
def test_padding_that_no_convolution_has_stays(amounts: tuple[int, ...]) -> None:
    """More behind than in front, and of channels."""
    channels = 6 if len(amounts) > 4 else 4
    model = nn.Sequential(nn.ConstantPad3d(amounts, 0.0), nn.Conv2d(channels, 4, 3, stride=2))
    if len(amounts) == 4:
        model[0] = nn.ZeroPad2d(amounts)
    assert_not_merged(model, image(2, 4, 6, 6))


@pytest.mark.parametrize("pad", [nn.ConstantPad2d(1, 0.5), nn.ReflectionPad2d(1)])
def test_padding_with_something_else_stays(pad: nn.Module) -> None:
    assert_not_merged(nn.Sequential(pad, nn.Conv2d(4, 4, 3)), image(2, 4, 6, 6))


def test_dropout_that_works_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.a(x), 0.5, training=True) + self.b(x)

    program = torch.export.export(build(Net()), (image(2, 4, 6, 6),))
    folded, report = bnfold.fold(program, verify=False)
    assert linears(folded) == 2 and not report.merged


def test_a_batch_norm_in_training_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(self.a(x), None, None, training=True) + self.b(x)

    assert_not_merged(Net(), image(2, 4, 6, 6))


def test_an_input_that_is_written_to_between_the_branches() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = x * 2
            one = self.a(x)
            return one + self.b(x.relu_())

    assert_not_merged(Net(), image(2, 4, 6, 6))


def test_a_branch_that_is_written_to() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            one = self.a(x)
            one[:, :, 0].zero_()
            return one + self.b(x)

    assert_not_merged(Net(), image(2, 4, 6, 6))


def test_a_weight_that_the_program_writes_to_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(4, 4, 3, padding=1)
            self.register_buffer("kernel", torch.randn(4, 4, 1, 1, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            made = self.a(x) + F.conv2d(x, self.kernel)
            self.kernel.mul_(0.5)
            return made

    model = build(Net())
    x = image(2, 4, 6, 6)
    folded, report = bnfold.fold(torch.export.export(model, (x,)))
    assert linears(folded) == 2 and not report.merged


def test_a_sum_that_is_written_to_the_input_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x.add_(self.a(x)).relu()

    assert_not_merged(Net(), image(2, 4, 6, 6))


def test_a_sum_that_lies_in_memory_as_its_first_operand_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x.transpose(1, 2)
            return (x + self.a(x)).transpose(1, 2).view(2, -1)

    assert_not_merged(Net(), image(2, 4, 6))


def test_a_mean_that_does_not_count_zeros_stays() -> None:
    model = Branches(
        nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
        nn.Conv2d(4, 4, 3, padding=1),
    )
    assert_not_merged(model, image(2, 4, 6, 6))


def test_a_mean_of_partial_windows_stays() -> None:
    model = Branches(nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(4, 4, 2, stride=2))
    assert_not_merged(model, image(2, 4, 6, 6))


def test_an_op_whose_numbers_come_from_sizes_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.add(self.a(x), self.b(x), alpha=x.shape[0])

    model = build(Net())
    program = torch.export.export(
        model, (image(2, 4, 6, 6),), dynamic_shapes=({0: Dim("batch", min=1, max=8)},)
    )
    folded, report = fold_equal(program, image(2, 4, 6, 6))
    assert linears(folded) == 2 and not report.merged


def test_what_cannot_be_proven_is_not_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    real = merge_program.content_of

    def wrong(*arguments: Any) -> Content:
        made = real(*arguments)
        return Content(made.weight * 1.01, made.bias)

    monkeypatch.setattr(merge_program, "content_of", wrong)
    program = torch.export.export(build(RepVgg()), (image(2, 4, 6, 6),))
    folded, report = fold_equal(program, image(2, 4, 6, 6))
    assert not report.merged and linears(folded) == 2
    assert report.removed == 3 and report.verdict is not None and report.verdict.equal


def test_what_cannot_be_run_is_not_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x.transpose(1, 2)
            return (x + self.a(x)).transpose(1, 2).view(2, -1)

    monkeypatch.setattr(merge_program, "lie_alike", lambda one, two: True)
    assert_not_merged(Net(), image(2, 4, 6))


def test_never() -> None:
    program = torch.export.export(
        build(Branches(conv_bn(4, 4), conv_bn(4, 4, 1))), (image(1, 4, 5, 5),)
    )
    folded, report = bnfold.fold(program, merge="never")
    assert linears(folded) == 2 and not report.merged
    assert not bnfold.inspect(program, merge="never").merged


# -------------------------------------------------------------------- what must


@pytest.mark.parametrize(
    "between",
    [
        pytest.param(lambda y: F.max_pool2d(y, 3, 1, 1), id="a pool of three"),
        pytest.param(lambda y: F.max_pool2d(y, 1, 2), id="a pool that skips"),
        pytest.param(lambda y: F.adaptive_max_pool2d(y, 1), id="a pool of all"),
        pytest.param(lambda y: F.interpolate(y, scale_factor=1.3, mode="bilinear"), id="near"),
    ],
)
def test_what_changes_places_stays(between: Any) -> None:
    """Of one place: as many come out, and by another size other ones."""
    meet = lambda a, b, w, x: a + between(b)  # noqa: E731
    program = torch.export.export(build(Pair(meet)), (image(2, 4, 1, 1),))
    folded, report = fold_equal(program, image(2, 4, 1, 1))
    assert count(folded, "conv") == 2 and not report.merged


MEETINGS = [
    pytest.param(lambda a, b, w, x: a + 0.3 * (b - a), id="a way"),
    pytest.param(lambda a, b, w, x: a + w * (b - a), id="a learned way"),
    pytest.param(lambda a, b, w, x: torch.lerp(a, b, 0.3), id="lerp"),
    pytest.param(lambda a, b, w, x: torch.lerp(b, a, w), id="a learned lerp"),
    pytest.param(lambda a, b, w, x: torch.lerp(torch.lerp(a, b, 0.7), x, 0.2), id="two lerps"),
    pytest.param(lambda a, b, w, x: a.lerp_(b, 0.3), id="in place"),
    pytest.param(lambda a, b, w, x: a + b + b, id="twice"),
    pytest.param(lambda a, b, w, x: a + a + (b - 2 * a), id="not at all"),
    pytest.param(lambda a, b, w, x: torch.where(w > 0, a + b, a - b), id="one of two"),
]


@pytest.mark.parametrize("meet", MEETINGS)
@pytest.mark.parametrize("is_decomposed", [False, True])
def test_operands_that_share_what_they_are_made_of(meet: Any, is_decomposed: bool) -> None:
    x = image(2, 4, 5, 5)
    program = torch.export.export(build(Pair(meet)), (x,))
    program = in_core_aten(program) if is_decomposed else program
    folded, report = fold_equal(program, x)
    assert linears(folded) == 1 and count(folded, "add", "sub", "mul", "lerp", "where") == 0
    assert report.removed == report.total
    assert len(folded.state_dict.keys() - {"weight"}) == 2


@pytest.mark.parametrize("meet", MEETINGS)
def test_in_a_module(meet: Any) -> None:
    model, x = build(Pair(meet)), image(2, 4, 5, 5)
    folded, report = bnfold.fold(model, x)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-9)
    assert report.removed == report.total


class RepVgg(Branches):
    def __init__(self, channels: int = 4, inplace: bool = False) -> None:
        super().__init__(
            conv_bn(channels, channels),
            conv_bn(channels, channels, 1),
            nn.BatchNorm2d(channels),
            inplace=inplace,
        )


@pytest.mark.parametrize("inplace", [False, True])
def test_repvgg(inplace: bool) -> None:
    model = nn.Sequential(RepVgg(inplace=inplace), RepVgg(inplace=inplace), RepVgg())
    folded = assert_merged(model, image(2, 4, 7, 7), left=3)
    assert not count(folded, "add", "batch_norm")


def test_a_strided_repvgg_block() -> None:
    model = Branches(conv_bn(4, 8, 3, stride=2), conv_bn(4, 8, 1, stride=2))
    assert_merged(model, image(2, 4, 8, 8))


def test_mobileone() -> None:
    over = [conv_bn(8, 8, groups=8) for _ in range(4)]
    depthwise = Branches(*over, conv_bn(8, 8, 1, groups=8), nn.BatchNorm2d(8))
    pointwise = Branches(*(conv_bn(8, 12, 1) for _ in range(4)))
    folded = assert_merged(nn.Sequential(depthwise, pointwise), image(2, 8, 7, 7), left=2)
    weights = [tuple(tensor.shape) for tensor in folded.state_dict.values() if tensor.ndim == 4]
    assert sorted(weights) == [(8, 1, 3, 3), (12, 8, 1, 1)]


def test_acnet() -> None:
    model = Branches(conv_bn(4, 6), conv_bn(4, 6, (1, 3)), conv_bn(4, 6, (3, 1)))
    assert_merged(model, image(2, 4, 7, 7))


def test_a_diverse_branch_block() -> None:
    """1x1 before 3x3 and before a mean, without a bias where zeros are padded; 3x3 and 1x1."""
    model = Branches(
        conv_bn(8, 8),
        conv_bn(8, 8, 1),
        nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), *conv_bn(8, 8)),
        nn.Sequential(
            nn.Conv2d(8, 8, 1, bias=False), nn.AvgPool2d(3, stride=1, padding=1), nn.BatchNorm2d(8)
        ),
    )
    assert_merged(model, image(2, 8, 7, 7))


@pytest.mark.parametrize("is_decomposed", [False, True])
def test_padding_by_an_op_of_its_own(is_decomposed: bool) -> None:
    """The serial branches of a diverse branch block, BatchNorms behind the zeros."""
    model = Branches(
        conv_bn(4, 4),
        nn.Sequential(
            *(nn.Conv2d(4, 4, 1, bias=False), nn.ZeroPad2d(1), nn.BatchNorm2d(4)),
            *(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)),
        ),
        nn.Sequential(
            *(nn.Conv2d(4, 4, 1, bias=False), nn.ZeroPad2d(1), nn.BatchNorm2d(4)),
            *(nn.AvgPool2d(3, 1), nn.BatchNorm2d(4)),
        ),
    )
    side = Dim("side", min=4, max=64)
    shapes = ({2: side, 3: side},)
    program = torch.export.export(build(model), (image(2, 4, 6, 6),), dynamic_shapes=shapes)
    program = program.run_decompositions() if is_decomposed else program
    folded, report = fold_equal(program, image(2, 4, 6, 6))
    assert linears(folded) == 1 and count(folded, "pad") == 0
    assert report.removed == report.total == 5
    assert_no_rest(folded)
    x = image(2, 4, 9, 9)
    torch.testing.assert_close(folded.module()(x), model(x), rtol=1e-9, atol=1e-9)


class Cut(nn.Module):
    """A slice."""

    def __init__(self, *cut: slice) -> None:
        super().__init__()
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        return x[(..., *self.cut)]


@pytest.mark.parametrize(
    ("cut", "kernel", "left"),
    [
        (slice(1, -1), (1, 3), 1),
        (slice(1, None), (2, 3), 1),
        (slice(1, 6), (1, 3), 2),  # as much, but of this size alone
    ],
)
def test_a_border_that_is_cut_off(cut: slice, kernel: tuple[int, int], left: int) -> None:
    """An asymmetric block without padding."""
    flat = nn.Sequential(Cut(cut, slice(None)), *conv_bn(4, 6, kernel))
    tall = nn.Sequential(Cut(slice(1, -1)), *conv_bn(4, 6, (3, 1)))
    square = nn.Sequential(*conv_bn(4, 6))
    flat[1].padding = tall[1].padding = square[0].padding = (0, 0)
    folded, _ = fold_model(Branches(square, flat, tall), image(2, 4, 7, 7))
    assert linears(folded) == left


@pytest.mark.parametrize("cut", [slice(0, None, 2), slice(-6, None)])
def test_a_slice_that_does_something_else_stays(cut: slice) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), Cut(cut), nn.Conv2d(4, 4, 1))
    assert_not_merged(model, image(2, 4, 7, 7))


def test_yolov7_repconv() -> None:
    class RepConv(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.rbr_dense = conv_bn(channels, channels)
            self.rbr_1x1 = conv_bn(channels, channels, 1)
            self.rbr_identity = nn.BatchNorm2d(channels)

        def forward(self, x: Tensor) -> Tensor:
            return F.silu(self.rbr_dense(x) + self.rbr_1x1(x) + self.rbr_identity(x))

    assert_merged(nn.Sequential(RepConv(6), RepConv(6)), image(2, 6, 7, 7), left=2)


def test_low_rank_updates_of_a_linear() -> None:
    class Lora(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(16, 12)
            self.down, self.up = nn.Linear(16, 4, bias=False), nn.Linear(4, 12, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.base(x) + 0.5 * self.up(self.down(x)))

    folded = assert_merged(Lora(), image(2, 5, 16))
    assert {name: tuple(t.shape) for name, t in folded.state_dict.items()} == {
        "base.weight": (12, 16),
        "base.bias": (12,),
    }


def test_linears_with_a_batch_norm() -> None:
    model = Branches(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)))
    assert_merged(model, image(3, 8))


def test_products_with_matrices() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.randn(8, 6))
            self.two = nn.Parameter(torch.randn(8, 6))
            self.three = nn.Linear(8, 6)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x @ self.one + self.three(x) - torch.mm(x, self.two))

    assert_merged(Net(), image(3, 8))


def test_fastvit_mixing() -> None:
    class RepMixer(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(channels)
            self.big = conv_bn(channels, channels, groups=channels)
            self.small = conv_bn(channels, channels, 1, groups=channels)
            self.skip = nn.BatchNorm2d(channels)
            self.gamma = nn.Parameter(torch.rand(channels, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            mixed = self.big(x) + self.small(x) + self.skip(x)
            return x + self.gamma * (mixed - self.norm(x))

    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.GELU(), RepMixer(6), nn.GELU())
    folded = assert_merged(model, image(2, 3, 9, 9), left=2)
    assert not count(folded, "add", "sub", "mul", "batch_norm")


@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks(rank: int) -> None:
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[rank]
    norm = {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}[rank]
    model = Branches(
        nn.Sequential(conv(4, 4, 3, padding=1, bias=False), norm(4)),
        nn.Sequential(conv(4, 4, 1), norm(4)),
        norm(4),
    )
    assert_merged(model, image(2, 4, *(5,) * rank))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transposed(rank: int, groups: int) -> None:
    transposed = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[rank]
    options = {"stride": 2, "groups": groups}
    model = Branches(
        transposed(4, 6, 4, padding=1, **options), transposed(4, 6, 2, padding=0, **options)
    )
    assert_merged(model, image(2, 4, *(4,) * rank))


def test_a_transposed_convolution_with_output_padding() -> None:
    model = Branches(
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
    )
    assert_merged(model, image(2, 4, 4, 4))


@pytest.mark.parametrize("groups", [(2, 2), (4, 2), (8, 4), (2, 4)])
def test_groups(groups: tuple[int, int]) -> None:
    one, two = groups
    model = Branches(
        nn.Conv2d(8, 8, 3, padding=1, groups=min(one, two)),
        nn.Conv2d(8, 8, 1, groups=max(one, two)),
    )
    assert_merged(model, image(2, 8, 6, 6))


def test_a_mean_beside_a_convolution() -> None:
    model = Branches(nn.AvgPool2d(3, stride=2, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1))
    assert_merged(model, image(2, 4, 7, 7))


def test_a_kernel_in_a_buffer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(4, 4, 3, padding=1)
            self.register_buffer("kernel", torch.randn(4, 4, 3, 3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.kernel, padding=1) - 2 * self.a(x) + 3 * x

    assert_merged(Net(), image(2, 4, 6, 6))


def test_padding_by_name() -> None:
    model = Branches(nn.Conv2d(4, 4, (3, 2), padding="same"), nn.Conv2d(4, 4, 1, padding="valid"))
    assert_merged(model, image(2, 4, 6, 6))


def test_dilations_on_one_grid() -> None:
    model = Branches(
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, (1, 3), padding=(0, 2), dilation=2),
        nn.Conv2d(4, 4, 1),
    )
    assert_merged(model, image(2, 4, 9, 9))


def test_a_chain() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3), nn.ReLU())
    assert_merged(model, image(2, 8, 6, 6))


class Signed(nn.Module):
    def __init__(self, how: Any) -> None:
        super().__init__()
        self.a, self.b = conv_bn(4, 4, 1, bias=False), conv_bn(4, 4, 3, padding=1, bias=False)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.how(self.a(x), self.b(x), x.sigmoid()))


def _taken_off_in_place(a: Tensor, b: Tensor, r: Tensor) -> Tensor:
    a -= r
    a += b
    return a


SIGNED = [
    lambda a, b, r: a - r + b,
    lambda a, b, r: a - r - b,
    lambda a, b, r: b - r + a,
    lambda a, b, r: a - (r + r * r) + b,
    lambda a, b, r: torch.add(torch.sub(a, r, alpha=2), b, alpha=3),
    lambda a, b, r: a - r.exp() + (b + r),
    _taken_off_in_place,
]


@pytest.mark.parametrize("how", SIGNED)
def test_a_subtrahend_between_two(how: Any) -> None:
    model = build(Signed(how))
    folded, report = fold_model(model, image(2, 4, 6, 6))
    assert linears(folded) == 1 and report.merged
    assert_no_rest(folded)
    alone = bnfold.fold(model, image(2, 4, 6, 6), verify=False)[0]
    torch.testing.assert_close(alone(image(3, 4, 5, 7)), model(image(3, 4, 5, 7)))
    program = torch.export.export(alone, (image(2, 4, 6, 6),))
    assert linears(program) == 1 and count(program, "add", "sub") < 4


def _dropped(x: Tensor) -> Tensor:
    return F.dropout(x, 0.5, training=False)


def _dropped_channels(x: Tensor) -> Tensor:
    return F.dropout2d(x, 0.5, training=False)


def _pooled(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 1)


def _resized(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=1.0, mode="bilinear")


def _dropped_for_selu(x: Tensor) -> Tensor:
    return F.alpha_dropout(x, 0.5, training=False)


def _dropped_twice(x: Tensor) -> Tensor:
    return _dropped(_dropped(x))


COPIES = [
    _pooled,
    _resized,
    *(_dropped, _dropped_channels, _dropped_for_selu, _dropped_twice),
    *(torch.clone, Tensor.contiguous, torch.positive, torch.ops.aten._to_copy.default),
]


PLACES = ["chain", "branch", "shortcut", "sum"]


def _what_it_is(copied: Any) -> set[str]:
    kinds = [kind for kind in ("drop", "pool", "resize") if kind in copied.__name__]
    return {*(kinds or ["copy"])}


@pytest.mark.parametrize(
    ("copied", "place"),
    pairwise(COPIES, PLACES, _what_it_is),
    ids=lambda part: part if isinstance(part, str) else part.__name__.strip("_"),
)
def test_copies_are_in_nobodys_way(copied: Any, place: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(x)
            if place == "chain":
                return F.relu(self.b(copied(self.a(x))))
            if place == "branch":
                return F.relu(copied(self.a(x)) + self.b(x))
            if place == "shortcut":
                return F.relu(copied(x) + self.b(x))
            return F.relu(copied(self.a(x) + self.b(x)) + x)

    program = torch.export.export(build(Net()), (image(2, 4, 6, 6),))
    for given in (program, in_core_aten(program)):
        folded, _ = fold_equal(given, image(2, 4, 6, 6))
        assert count(folded, "conv") == 1
        assert count(folded, "") == 3  # and the ReLUs


def test_adapters_behind_a_dropout() -> None:
    """Of low rank, beside projections of one tensor that others read, too."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(8, 8) for _ in "qkv")
            self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
            self.dropout = nn.Dropout(0.1)

        def adapter(self, x: Tensor) -> Tensor:
            return self.up(self.down(self.dropout(x))) * 2.0

        def forward(self, x: Tensor) -> Tensor:
            q, k = self.q(x) + self.adapter(x), self.k(x)
            return torch.softmax(q @ k.transpose(1, 2), -1) @ self.v(x) + x

    folded, report = fold_model(Net(), image(2, 5, 8))
    assert [merged.into for merged in report.merged] == ["q"]
    assert not count(folded, "dropout") and "up.weight" not in folded.state_dict


def test_a_dropout_that_two_read() -> None:
    """What reads its input does not read it."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(x)
            y = F.dropout(x, 0.5, training=False)
            first = self.a(y)
            x.add_(1)
            return first + self.b(y) + x

    fold_model(Net(), image(2, 4, 6, 6))


def test_a_copy_in_another_layout_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = x.contiguous(memory_format=torch.channels_last)
            return (self.a(x) + self.b(x)).permute(0, 2, 3, 1).view(2, 36, 4)

    assert_merged(Net(), image(2, 4, 6, 6))


def test_a_copy_that_is_taken_before_a_write() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = x * 2
            before = x.clone()
            first = self.a(x)
            x.add_(1)
            return first + self.b(before) + self.b.weight.sum() * x.relu()

    fold_model(Net(), image(2, 4, 6, 6))


def test_sums_of_normalised_shortcuts() -> None:
    """No convolution at all: one BatchNorm of two is left, or none."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.sigmoid(x)
            return torch.sigmoid(self.one(x) - self.two(x) + x)

    folded, report = fold_model(Net(), image(2, 4, 5, 5))
    assert count(folded, "batch_norm") == 1
    assert report.total == 2 and report.kept == 1


def test_a_shortcut_that_is_something_else_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(4, 4, 3, padding=1)
            self.rep = RepVgg()
            self.a, self.b = conv_bn(4, 4), conv_bn(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.first(x))
            y = self.rep(x)
            return F.relu(self.a(y) + x + self.b(y))

    folded = assert_merged(Net(), image(2, 4, 6, 6), left=3)
    assert count(folded, "add") == 1


@pytest.mark.parametrize("order", ["abz", "azb", "zab", "zba"])
def test_sums_in_place(order: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(4, 4, 3, padding=1)
            self.a, self.b = conv_bn(4, 4), conv_bn(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.sigmoid(self.first(x))
            y = torch.tanh(x)
            made = {"a": self.a(y), "b": self.b(y), "z": torch.sigmoid(y)}
            total = made[order[0]]
            for name in order[1:]:
                total += made[name]
            return total.relu_() + x

    folded, report = fold_model(Net(), image(2, 4, 6, 6))
    assert linears(folded) == 2 and report.merged


def test_an_operand_that_is_read_on_is_not_written_to() -> None:
    """The sum that is left with one operand shares its memory; the activation must not write."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(4, 4, 3, padding=1)
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            z = torch.sin(self.first(x))
            y = torch.sigmoid(x)
            total = z + self.a(y)
            total += self.b(y)
            total.relu_()
            return total * z

    folded, report = fold_model(Net(), image(2, 4, 6, 6))
    assert linears(folded) == 2 and report.merged


# -------------------------------------------------------------------- the program around it


def test_open_sizes() -> None:
    model = build(
        nn.Sequential(RepVgg(), Branches(conv_bn(4, 6, 3, stride=2), conv_bn(4, 6, 1, stride=2)))
    )
    side = Dim("side", min=4, max=64)
    shapes = {0: Dim("batch", min=1, max=8), 2: side, 3: side}
    program = torch.export.export(model, (image(2, 4, 8, 8),), dynamic_shapes=(shapes,))
    folded, _ = fold_equal(program, image(2, 4, 8, 8))
    assert linears(folded) == 2
    for size in (4, 7, 13):
        x = image(3, 4, size, size)
        torch.testing.assert_close(folded.module()(x), model(x), rtol=1e-9, atol=1e-9)


def test_core_aten() -> None:
    """Decomposed: one name for all convolutions, BatchNorms that return three results."""
    program = torch.export.export(build(nn.Sequential(RepVgg(), RepVgg())), (image(2, 4, 6, 6),))
    folded, report = fold_equal(program.run_decompositions(), image(2, 4, 6, 6))
    assert linears(folded) == 2 and count(folded, "aten.convolution") == 2
    assert report.removed == report.total == 6
    assert_no_rest(folded)


def test_names_and_interface_stay() -> None:
    program = torch.export.export(build(nn.Sequential(RepVgg(), RepVgg())), (image(2, 4, 6, 6),))
    folded, report = fold_equal(program, image(2, 4, 6, 6))
    assert [merged.into for merged in report.merged] == ["0.branches.0.0", "1.branches.0.0"]
    assert {*folded.state_dict} == {
        f"{block}.branches.0.0.{name}" for block in (0, 1) for name in ("weight", "bias")
    }
    assert folded.graph_signature.user_inputs == program.graph_signature.user_inputs
    assert folded.call_spec == program.call_spec


def test_a_merged_sum_that_is_the_output() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    folded = assert_merged(Net(), image(2, 4, 6, 6))
    (name,) = folded.graph_signature.user_outputs
    assert name in {node.name for node in folded.graph.nodes}


def test_saved_and_loaded(tmp_path: Any) -> None:
    program = torch.export.export(build(RepVgg()), (image(2, 4, 6, 6),))
    folded, _ = bnfold.fold(program)
    torch.export.save(folded, tmp_path / "folded.pt2")
    loaded = torch.export.load(tmp_path / "folded.pt2")
    x = image(2, 4, 6, 6)
    torch.testing.assert_close(loaded.module()(x), program.module()(x), rtol=1e-9, atol=1e-9)


class Matrices(nn.Module):
    """Linears of tokens, and what is made of them."""

    def __init__(self, meet: Any, *, bias: bool = True, hidden: int = 8) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8, bias=bias), nn.Linear(8, 8)
        self.down, self.up = nn.Linear(8, hidden, bias=False), nn.Linear(hidden, 8, bias=bias)
        self.meet = meet

    def forward(self, x: Tensor) -> Any:
        return self.meet(self, x)


def unread(program: ExportedProgram) -> set[str | None]:
    """What nobody reads of what it keeps."""
    named = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs}
    return {named[n.name] for n in program.graph.nodes if n.op == "placeholder" and not n.users}


def over(m: nn.Module, x: Tensor) -> Tensor:
    """Of a tensor that the steps alone can read: a view of it does not fit."""
    return m.a(2 * x) + m.b(3 * x)


def between_views(meet: Any, **options: Any) -> ExportedProgram:
    """A decomposed program, with views around its matrices; both of its sizes are open."""
    sizes = ({0: Dim("batch", min=2, max=9), 1: Dim("tokens", min=3, max=50)},)
    program = torch.export.export(
        build(Matrices(meet, **options)), (image(2, 5, 8),), dynamic_shapes=sizes
    )
    return program.run_decompositions()


@pytest.mark.parametrize(
    "meet",
    [
        pytest.param(lambda m, x: (m.a(x) + m.b(x), m.b(x)), id="shared weights"),
        pytest.param(lambda m, x: m.a(x) + m.a(2 * x), id="one weight, twice"),
        pytest.param(lambda m, x: m.a(x) + m.b(x.sigmoid()), id="two tensors"),
        pytest.param(lambda m, x: m.b(m.a(x).relu()), id="an activation between"),
        pytest.param(lambda m, x: torch.cat([m.a(x), m.b(x)], -1), id="siblings"),
        pytest.param(lambda m, x: over(m, x[:, :1].expand(-1, 5, -1)), id="spread"),
        pytest.param(lambda m, x: over(m, x[:, 1:]), id="cut off"),
    ],
)
def test_matrices_between_views_that_stay(meet: Any) -> None:
    program = between_views(meet)
    folded, report = fold_equal(program, image(3, 7, 8))
    assert not report.merged and linears(folded) == linears(program)


def test_a_matrix_between_views_that_is_an_output() -> None:
    def meet(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        inner = m.a(x)
        return inner + m.b(x), inner

    folded, report = fold_equal(between_views(meet), image(3, 7, 8))
    assert not report.merged and linears(folded) == 2


def low_rank(m: Any, x: Tensor) -> Tensor:
    return m.up(m.down(x))


@pytest.mark.parametrize(
    ("meet", "hidden", "left", "bias"),
    [
        pytest.param(lambda m, x: torch.relu(m.a(x) + m.b(x)), 8, 1, True, id="a sum"),
        pytest.param(lambda m, x: m.a(x) - 2 * m.b(x) + x, 8, 1, False, id="with the input"),
        pytest.param(lambda m, x: m.a(x) + low_rank(m, x) * 0.5, 2, 1, True, id="low rank, beside"),
        pytest.param(low_rank, 16, 1, False, id="wide between"),
        pytest.param(low_rank, 16, 1, True, id="wide between, biases"),
        pytest.param(low_rank, 2, 2, True, id="low rank"),
        pytest.param(lambda m, x: m.a(x) + x.sigmoid() + m.b(x), 8, 1, False, id="something else"),
        pytest.param(lambda m, x: m.a(x).add_(m.b(x)), 8, 1, False, id="in place"),
    ],
)
def test_matrices_between_views(meet: Any, hidden: int, left: int, bias: bool) -> None:
    program = between_views(meet, hidden=hidden, bias=bias)
    folded, report = fold_equal(program, image(3, 7, 8))
    assert (linears(folded), bool(report.merged)) == (left, left == 1)
    assert unread(folded) <= unread(program)
    told = {n.name: n.meta["val"].shape[-1] for n in folded.graph.nodes if "view" in n.name}
    assert len(told) in (2 * left, 2 * left + 2)
    again, report = fold_equal(folded, image(3, 7, 8))
    assert not report.merged and linears(again) == left


def test_a_product_between_views_of_two_sizes_that_agree_by_chance() -> None:
    """The rows go back in another order than they came: 2 x 4 tokens as 4 x 2."""

    def meet(m: Any, x: Tensor) -> Tensor:
        return m.a(x.reshape(8, 8)).reshape(4, 2, 8) + m.b(x.transpose(0, 1))

    x = image(2, 4, 8)
    program = torch.export.export(build(Matrices(meet)), (x,)).run_decompositions()
    _, report = fold_equal(program, x)
    assert not report.merged


def test_a_second_fold_changes_nothing() -> None:
    program = torch.export.export(build(nn.Sequential(RepVgg(), RepVgg())), (image(2, 4, 6, 6),))
    once, _ = bnfold.fold(program)
    twice, report = bnfold.fold(once)
    assert not report.merged and linears(twice) == linears(once)
    assert all(torch.equal(twice.state_dict[name], t) for name, t in once.state_dict.items())


class Parted(nn.Module):
    """Two sums, and between them a step that a fold takes out: then they are one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, k, padding=k // 2) for k in (1, 3, 3))
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.relu(self.a(x) + self.bn(self.b(x) + self.c(y)))


def test_what_a_step_parted_is_merged_at_once() -> None:
    program = torch.export.export(build(Parted()), (image(2, 4, 6, 6), image(2, 4, 6, 6)))
    once, report = fold_equal(program, image(2, 4, 6, 6, seed=3), image(2, 4, 6, 6, seed=4))
    assert linears(once) == 2
    assert [(item.name, item.is_removed) for item in report.items] == [("bn", True)]
    assert [merged.into for merged in report.merged] == ["b"]
    assert bnfold.inspect(program).merged == report.merged
    twice, again = bnfold.fold(once)
    assert not again.merged and linears(twice) == 2


class Stages(nn.Module):
    """All is one convolution, but the first has to stay for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.c, self.d = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) + self.b(x)
        return F.relu(self.c(y) + self.d(y))


def test_an_output_that_is_one_row() -> None:
    assert_merged(Stages(), image(2, 4, 5, 3), left=1)


def test_what_is_within_a_merge_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    can_write = merge_program._Merger.can_write

    def is_small(self: Any, merge: Any) -> bool:
        return len(merge.gone) <= 2 and can_write(self, merge)

    monkeypatch.setattr(merge_program._Merger, "can_write", is_small)
    assert_merged(Stages(), image(2, 4, 5, 3), left=2)


def test_the_report_tells_of_every_step_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), RepVgg())
    _, report = fold_model(model, image(2, 3, 8, 8))
    names = [item.name for item in report.items]
    assert names == ["1", "3.branches.0.1", "3.branches.1.1", "3.branches.2"]
    assert report.removed == 4
    (merged,) = report.merged
    assert merged.into == "3.branches.0.0"
    assert {*merged.parts} >= {"3.branches.1.0", "3.branches.2"}


def test_inspect_tells_the_same() -> None:
    program = torch.export.export(build(RepVgg()), (image(2, 4, 6, 6),))
    seen, (_, report) = bnfold.inspect(program), bnfold.fold(program)
    assert seen.merged == report.merged and seen.items == report.items


def test_channels_last_weights_stay_so() -> None:
    model = build(RepVgg()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = image(2, 4, 6, 6).to(memory_format=torch.channels_last)
    folded, _ = fold_equal(torch.export.export(model, (x,)), x)
    weight = folded.state_dict["branches.0.0.weight"]
    assert linears(folded) == 1 and weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_dtypes(dtype: torch.dtype) -> None:
    x = image(2, 4, 6, 6, dtype=dtype)
    program = torch.export.export(build(RepVgg(), dtype=dtype), (x,))
    folded, report = fold_equal(program, x, tolerance=64 * torch.finfo(dtype).eps)
    assert linears(folded) == 1 and report.removed == 3
