"""Weights that a program computes of its constants: which are to stay so, and which are stored."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.functional import batch_norm, conv2d, linear, pad, softmax

import bnfold
from bnfold.frontends.torch.read_program import lifted_tensors, read_program
from bnfold.frontends.torch.stored_weights import with_weights_stored
from tests.frontends.torch.support import build, image, in_core_aten


class Net(nn.Module):
    """A function of an image, a kernel, a BatchNorm, and what else it is made of."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)

        def made(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator))

        self.function = function
        self.kernel, self.wide = made(6, 6, 3, 3), made(12, 6, 3, 3)
        self.factor, self.single = made(6, 1, 1, 1), made(6, 6, 1, 1)
        self.matrix, self.pair = made(6, 6), made(2)
        self.register_buffer("mask", torch.rand(6, 6, 3, 3, generator=generator) > 0.4)
        self.register_buffer("steps", torch.ones(6, 1, 1, 1))
        self.register_buffer("coded", torch.arange(324, dtype=torch.int8).view(6, 6, 3, 3))
        self.bn, self.bn2 = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 3))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


X = image(2, 6, 7, 7)


def exported(function: Callable[[Any, Tensor], Any], **options: Any) -> ExportedProgram:
    return torch.export.export(build(Net(function)), (X,), **options)


def texts(program: ExportedProgram) -> list[str]:
    return [str(node.format_node()) for node in program.graph.nodes]


def fold(program: ExportedProgram) -> tuple[ExportedProgram, bnfold.FoldReport]:
    """Fold; two calls in a row return what the original returns, which is as it was."""
    before, content = texts(program), {k: t.clone() for k, t in program.state_dict.items()}
    folded, report = bnfold.fold(program, verify=False)
    assert texts(program) == before
    assert all(torch.equal(tensor, content[k]) for k, tensor in program.state_dict.items())
    original, made = program.module(), folded.module()
    for seed in (0, 1):
        x = image(2, 6, 7, 7, seed=seed)
        torch.testing.assert_close(made(x), original(x), rtol=1e-9, atol=1e-9)
    return folded, report


def written_to(net: Net, x: Tensor) -> Tensor:
    kernel = net.kernel * 2
    first = conv2d(x, kernel)
    kernel[0].mul_(3)
    return net.bn(first + conv2d(x, kernel))


def state(net: Net, x: Tensor) -> Tensor:
    made = net.bn(conv2d(x, net.kernel * net.steps))
    net.steps[0].add_(1)
    return made


def returned(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    kernel = net.kernel * net.factor
    return net.bn(conv2d(x, kernel)), kernel


def drawn(net: Net, x: Tensor) -> Tensor:
    return net.bn(conv2d(x, net.kernel + 0 * torch.rand_like(net.kernel)))


STAY: list[Callable[[Any, Tensor], Any]] = [
    written_to,
    state,
    returned,
    drawn,
    lambda s, x: s.bn(conv2d(x, s.kernel * x.mean())),
    lambda s, x: s.bn(conv2d(x, torch.sign(s.kernel))),
    lambda s, x: s.bn(conv2d(x, torch.round(s.kernel * 8) / 8)),
    lambda s, x: s.bn(conv2d(x, s.coded * s.factor)),
    lambda s, x: s.bn(conv2d(x, s.kernel.float().double() * 2)),
    # These would take more room than what they are made of, or as much again.
    lambda s, x: s.bn(conv2d(x, s.factor.expand(6, 6, 3, 3) * 2)),
    lambda s, x: s.bn(conv2d(x, s.kernel * 2)) + conv2d(x, s.kernel).sigmoid(),
]


def bias_written_to(net: Net, x: Tensor) -> Tensor:
    bias = net.bn2.bias * 2
    first = net.bn(conv2d(x, net.kernel, bias))
    bias[0].mul_(3)
    return first.relu() + bias.view(6, 1, 1)


def test_what_is_written_to_in_part_is_no_constant() -> None:
    program = exported(bias_written_to)
    assert with_weights_stored(program, ()) is None
    fold(program)


@pytest.mark.parametrize("function", STAY)
def test_what_has_to_be_computed_stays(function: Callable[[Any, Tensor], Any]) -> None:
    program = exported(function)
    folded, report = fold(program)
    assert not report.removed
    assert texts(folded) == texts(program)


def test_a_program_of_which_nothing_goes_stays_as_it_is() -> None:
    program = exported(lambda s, x: conv2d(x, s.kernel * s.factor).relu())
    folded, _ = fold(program)
    assert texts(folded) == texts(program)


def test_what_is_made_of_a_size_stays() -> None:
    program = exported(
        lambda s, x: s.bn(conv2d(x, s.kernel * x.shape[2])), dynamic_shapes=({2: Dim.DYNAMIC},)
    )
    folded, report = fold(program)
    assert not report.removed
    assert torch.allclose(folded.module()(image(2, 6, 9, 7)), program.module()(image(2, 6, 9, 7)))


def test_what_a_promised_module_makes_stays() -> None:
    path = "normed.parametrizations.weight"
    program = exported(lambda s, x: s.normed(s.bn(x)), preserve_module_call_signature=(path,))
    folded, report = fold(program)
    assert not report.removed
    assert texts(folded) == texts(program)


def test_a_matrix_that_may_be_edited_where_it_is_keeps_its_name() -> None:
    program = exported(lambda s, x: s.bn(linear(x.movedim(1, -1), s.matrix.t()).movedim(-1, 1)))
    assert with_weights_stored(program, ()) is None


def computed_gamma(net: Net, x: Tensor) -> Tensor:
    bn = net.bn
    made = conv2d(x, net.kernel)
    gamma, beta = bn.weight * 2, bn.bias + net.factor.view(6)
    return batch_norm(made, bn.running_mean, bn.running_var, gamma, beta)


GO: list[Callable[[Any, Tensor], Any]] = [
    lambda s, x: s.bn(conv2d(x, s.kernel * s.factor)),
    lambda s, x: s.bn(conv2d(x, s.kernel * s.mask)),
    lambda s, x: s.bn(conv2d(x, s.wide[:6])),
    lambda s, x: s.bn(conv2d(x, s.wide[:6])).relu() + s.bn2(conv2d(x, s.wide[6:])),
    lambda s, x: s.bn(conv2d(x, (s.kernel - s.kernel.mean((1, 2, 3), keepdim=True)) / 3)),
    lambda s, x: s.bn(conv2d(x, s.kernel + pad(s.single, [1] * 4))),
    lambda s, x: s.bn(conv2d(x, s.kernel + torch.einsum("oi,iabc->oabc", s.matrix, s.kernel))),
    lambda s, x: s.normed(s.bn(x)),
    lambda s, x: s.bn(conv2d(x, s.kernel, s.bn2.bias * 2)),
    computed_gamma,
]


@pytest.mark.parametrize("prepare", [lambda program: program, in_core_aten])
@pytest.mark.parametrize("function", GO)
def test_a_computed_weight_is_stored(
    function: Callable[[Any, Tensor], Any],
    prepare: Callable[[ExportedProgram], ExportedProgram],
) -> None:
    program = prepare(exported(function))
    folded, report = fold(program)
    assert report.removed and not report.kept
    assert unread(folded) <= unread(program)
    assert numbers(folded) <= numbers(program)
    again, _ = fold(folded)
    assert texts(again) == texts(folded)


def unread(program: ExportedProgram) -> set[str]:
    return {
        node.name for node in program.graph.nodes if node.op == "placeholder" and not node.users
    }


def numbers(program: ExportedProgram) -> int:
    return sum(tensor.numel() for tensor in program.state_dict.values())


def test_branches_of_computed_kernels_become_one() -> None:
    def branches(net: Net, x: Tensor) -> Tensor:
        first, second = softmax(net.pair, 0)
        edges = conv2d(x, net.factor * net.mask[:, :1], padding=1, groups=6)
        return first * conv2d(x, net.kernel * 2, padding=1) + second * edges

    folded, report = fold(exported(branches))
    (merged,) = report.merged
    assert {"conv2d_1", "add"} <= {*merged.parts}
    assert "conv2d_weight" in folded.state_dict
    assert not folded.state_dict.keys() & {"kernel", "factor", "pair"}


def test_one_value_that_is_computed_twice_is_stored_once() -> None:
    program = exported(lambda s, x: s.normed(s.normed(x).sigmoid()))
    stored = with_weights_stored(program, ())
    assert stored is not None
    assert stored.state_dict.keys() - program.state_dict.keys() == {"normed.weight"}
    assert torch.equal(stored.module()(X), program.module()(X))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_is_stored_is_bit_for_bit_what_was_computed(dtype: torch.dtype) -> None:
    x = X.to(dtype)
    model = Net(lambda s, x: s.normed(conv2d(x, (s.matrix @ s.matrix)[..., None, None])))
    program = torch.export.export(build(model, dtype=dtype), (x,))
    with torch.autocast("cpu", torch.bfloat16):  # is not the program's
        stored = with_weights_stored(program, ())
    assert stored is not None
    assert torch.equal(stored.module()(x), program.module()(x))


def test_the_proof_and_a_saved_file_hold() -> None:
    program = exported(lambda s, x: s.bn(conv2d(x, s.kernel * s.factor)))
    folded, report = bnfold.fold(program)
    assert report.verdict is not None and report.verdict.equal
    file = io.BytesIO()
    torch.export.save(folded, file)
    file.seek(0)
    loaded = torch.export.load(file)
    torch.testing.assert_close(loaded.module()(X), program.module()(X), rtol=1e-9, atol=1e-9)


def test_what_is_left_of_any_size_is_stored() -> None:
    program = exported(
        lambda s, x: s.bn(conv2d(x, s.kernel * s.factor)),
        dynamic_shapes=({0: Dim.DYNAMIC, 2: Dim.DYNAMIC},),
    )
    folded, report = fold(program)
    assert report.removed == 1
    x = image(3, 6, 11, 7)
    torch.testing.assert_close(folded.module()(x), program.module()(x), rtol=1e-9, atol=1e-9)


def test_what_is_written_to_under_another_name_stays() -> None:
    def counted(net: Net, x: Tensor) -> Tensor:
        made = net.bn(conv2d(x, net.kernel * net.steps))
        net.other.add_(1)
        return made

    model = build(Net(counted))
    model.register_buffer("other", model.steps.view(6))
    program = torch.export.export(model, (X,))
    assert not read_program(program, lifted_tensors(program)).written.isdisjoint({"b_other"})
    folded, report = fold(program)
    assert not report.removed
    assert texts(folded) == texts(program)
