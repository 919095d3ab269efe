"""Escapes: values that leave what can be watched, and come back."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from tests.property.programs.block import Room, habit

escape = habit("escapes")


@escape
def becomes_a_parameter(room: Room):
    return room.block(
        lambda self, x: self.conv(torch.sigmoid(nn.Parameter(self.bn(x)))), "conv", "bn"
    )


@escape
def becomes_a_buffer(room: Room):
    def run(self, x):
        self.kept = nn.Buffer(self.bn(x), persistent=False)
        return self.conv(torch.relu(self.kept))

    return room.block(run, "conv", "bn")


@escape
def data_assigned(room: Room):
    def run(self, x):
        y = self.bn(x)
        z = torch.empty_like(y)
        z.data = torch.tanh(y.data)
        return self.conv(z)

    return room.block(run, "conv", "bn")


@escape
def written_through_data(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        y.data.tanh_()
        return y

    return room.block(run, "conv", "bn")


@escape
def dlpack(room: Room):
    def run(self, x):
        y = torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(self.bn(x)))
        return self.conv(torch.sigmoid(y))

    return room.block(run, "conv", "bn")


@escape
def dlpack_by_protocol(room: Room):
    def run(self, x):
        return self.conv(torch.relu(torch.from_dlpack(self.bn(x).detach())))

    return room.block(run, "conv", "bn")


@escape
def numpy_and_back(room: Room):
    def run(self, x):
        array = self.bn(x).detach().numpy()
        return self.conv(torch.from_numpy(np.tanh(array)))

    return room.block(run, "conv", "bn")


@escape
def numpy_written(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x)).detach().contiguous()
        np.maximum(y.numpy(), 0.1, out=y.numpy())
        return y

    return room.block(run, "conv", "bn")


@escape
def array_protocol(room: Room):
    def run(self, x):
        return self.conv(torch.as_tensor(np.abs(np.asarray(self.bn(x).detach()))))

    return room.block(run, "conv", "bn")


@escape
def list_and_back(room: Room):
    def run(self, x):
        y = self.bn(x)
        return self.conv(torch.tensor(y.tolist(), dtype=y.dtype) + y.relu())

    return room.block(run, "conv", "bn")


class Named(Tensor):
    pass


@escape
def as_a_subclass(room: Room):
    def run(self, x):
        y = self.bn(x).as_subclass(Named)
        return self.conv(torch.sigmoid(y).as_subclass(Tensor))

    return room.block(run, "conv", "bn")


class Doubled(Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs)
        return result * 2 if function is Tensor.add else result


@escape
def subclass_that_differs(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x)).as_subclass(Doubled)
        return y.add(1).as_subclass(Tensor)

    return room.block(run, "conv", "bn")


@escape
def storage_shared(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x)).contiguous()
        z = torch.tensor([], dtype=y.dtype).set_(y.untyped_storage(), 0, y.shape, y.stride())
        return self.act(z)

    return room.block(run, "conv", "bn", "act")


@escape
def view_through_set(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x)).contiguous()
        z = torch.empty(0, dtype=y.dtype)
        z.set_(y)
        z.clamp_(min=0)
        return y

    return room.block(run, "conv", "bn")


@escape
def strided_view(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x)).contiguous()
        return y + torch.as_strided(y, y.shape, y.stride(), 0).flip(1)

    return room.block(run, "conv", "bn")


@escape
def deep_copied(room: Room):
    return room.block(
        lambda self, x: torch.relu(copy.deepcopy(self.bn(self.conv(x)))), "conv", "bn"
    )


@escape
def pickled(room: Room):
    def run(self, x):
        return self.conv(torch.sigmoid(pickle.loads(pickle.dumps(self.bn(x).detach()))))

    return room.block(run, "conv", "bn")


@escape
def saved_and_loaded(room: Room):
    def run(self, x):
        file = io.BytesIO()
        torch.save(self.bn(self.conv(x)).detach(), file)
        file.seek(0)
        return torch.load(file)

    return room.block(run, "conv", "bn")


@escape
def number_decides(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        return y if y.mean().item() > 0.1 else torch.tanh(y)

    return room.block(run, "conv", "bn")


@escape
def truth_decides(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        if (y > 3).any():
            y = y.clamp(max=3)
        return y

    return room.block(run, "conv", "bn")


@escape
def divided_by_its_largest(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        return y / float(y.abs().max() + 1)

    return room.block(run, "conv", "bn")


@escape
def bare_except(room: Room):
    def run(self, x):
        y = self.bn(x)
        try:
            y.detach().numpy().max()
        except:  # noqa: E722
            return self.conv(y)
        return self.conv(torch.sigmoid(y))

    return room.block(run, "conv", "bn")


@escape
def bare_except_around_item(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        try:
            factor = 1 + abs(y.sum().item())
        except BaseException:
            factor = 1
        return y / factor

    return room.block(run, "conv", "bn")


@escape
def except_then_another_path(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        try:
            return y.view(-1, 7)
        except RuntimeError:
            return self.act(y)

    block = room.block(run, "conv", "bn", "act")
    return room.block(lambda self, x: self.block(x).reshape(x.shape), block=block)


@escape
def finally_returns(room: Room):
    def run(self, x):
        y, found = self.bn(x), 0.0
        try:
            found = float(torch.tanh(y.mean()))
        finally:
            return self.conv(y + found)  # noqa: B012

    return room.block(run, "conv", "bn")


@escape
def autocast(room: Room):
    def run(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.on):
            return self.body(x)

    return room.block(run, "body", on=True)


@escape
def no_grad(room: Room):
    def run(self, x):
        with torch.no_grad():
            y = self.conv(x)
        return self.bn(y)

    return room.block(run, "conv", "bn")


@escape
def inference_mode(room: Room):
    def run(self, x):
        with torch.inference_mode():
            y = self.bn(self.conv(x))
        return torch.relu(y.clone())

    return room.block(run, "conv", "bn")


@escape
def gradients_enabled(room: Room):
    """The forward needs a derivative of what it computes (energies and forces)."""

    def run(self, x):
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            energy = torch.tanh(self.bn(self.conv(y))).sum()
            (force,) = torch.autograd.grad(energy, y)
        return x - force

    return room.block(run, "conv", "bn")


class TanhMode(TorchDispatchMode):
    """relu is tanh."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.relu.default:
            function = torch.ops.aten.tanh.default
        return function(*args, **(kwargs or {}))


@escape
def dispatch_mode(room: Room):
    def run(self, x):
        with TanhMode():
            return self.conv(torch.relu(self.bn(x)))

    return room.block(run, "conv", "bn")


@escape
def dispatch_mode_around_the_body(room: Room):
    def run(self, x):
        with TanhMode():
            return self.body(x)

    return room.block(run, "body")


class DoubleMode(TorchFunctionMode):
    """relu is twice as large."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return result * 2 + 1 if function is torch.relu else result


@escape
def function_mode(room: Room):
    def run(self, x):
        with DoubleMode():
            return self.conv(torch.relu(self.bn(x)))

    return room.block(run, "conv", "bn")


@escape
def over_the_batch(room: Room):
    def run(self, x):
        return torch.func.vmap(lambda one: torch.tanh(self.bn(self.conv(one[None]))[0]))(x)

    return room.block(run, "bn", conv=room.conv(padding_mode="zeros"))


@escape
def over_the_channels(room: Room):
    def run(self, x):
        return torch.func.vmap(lambda one: one * 2 + 1, in_dims=1, out_dims=1)(
            self.bn(self.conv(x))
        )

    return room.block(run, "conv", "bn")


@escape
def forward_derivative(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        return torch.func.jvp(lambda t: t * t, (y,), (torch.ones_like(y),))[1]

    return room.block(run, "conv", "bn")


@escape
def functional_gradient(room: Room):
    def run(self, x):
        return torch.func.grad(lambda t: torch.sin(t).sum())(self.bn(self.conv(x)))

    return room.block(run, "conv", "bn")


@escape
def functional_call(room: Room):
    def run(self, x):
        weights = {name: value * 0.5 for name, value in self.body.named_parameters()}
        return torch.func.functional_call(self.body, weights, (x,))

    return room.block(run, "body")


@escape
def checkpointed(room: Room):
    return room.block(lambda self, x: checkpoint(self.body, x, use_reentrant=False), "body")


class Half(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return torch.where(x > 0, x, x * 0.5)

    @staticmethod
    def backward(context, grad):
        return grad


@escape
def function_of_its_own(room: Room):
    return room.block(lambda self, x: self.conv(Half.apply(self.bn(x))), "conv", "bn")


@torch.library.custom_op("bnfold_programs::relu", mutates_args=())
def own_relu(x: Tensor) -> Tensor:
    return torch.tanh(x)


@own_relu.register_fake
def _(x):
    return torch.empty_like(x)


@torch.library.custom_op("bnfold_programs::linear", mutates_args=())
def own_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.nn.functional.linear(x.clamp(-1, 1), weight, bias)


@own_linear.register_fake
def _(x, weight, bias=None):
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.custom_op("bnfold_programs::add_", mutates_args=("x",))
def own_add(x: Tensor, other: Tensor) -> None:
    x.copy_(torch.maximum(x, other))


@escape
def op_named_relu(room: Room):
    def run(self, x):
        return self.conv(torch.ops.bnfold_programs.relu(self.bn(x)))

    return room.block(run, "conv", "bn")


@escape
def op_named_linear(room: Room):
    def run(self, x):
        y = self.bn(x).permute(0, 2, 3, 1)
        y = torch.ops.bnfold_programs.linear(y, self.weight, None)
        return y.permute(0, 3, 1, 2)

    weight = nn.Parameter(room.values(room.channels, room.channels))
    return room.block(run, "bn", weight=weight)


@escape
def op_that_writes(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        torch.ops.bnfold_programs.add_(y, x)
        return y

    return room.block(run, "conv", "bn")


@escape
def cast_and_back(room: Room):
    def run(self, x):
        return self.conv((self.bn(x) * 8).round().to(torch.int32).to(x.dtype) / 8)

    return room.block(run, "conv", "bn")


@escape
def as_complex(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        return torch.fft.ifft(torch.fft.fft(y, dim=1).abs(), dim=1).real

    return room.block(run, "conv", "bn")


@escape
def bits(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x)).contiguous()
        return (y.view(torch.int64) & ~0).view(x.dtype) + y.relu()

    return room.block(run, "conv", "bn")


@escape
def map_of_numpy(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x)).detach().clone()
        return y.apply_(lambda value: max(value, 0.1 * value))

    return room.block(run, "conv", "bn")
