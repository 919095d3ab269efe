"""How modules are put together: shared, tied, subclassed, wrapped, called in odd ways."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from tests.property.programs.block import Block, Room, habit
from tests.property.programs.layers import filled

structure = habit("structure")


@structure
def convolution_called_twice(room: Room):
    def run(self, x):
        return self.bn2(self.conv(self.act(self.bn(self.conv(x)))))

    return room.block(run, "conv", "bn", "bn2", "act")


@structure
def norm_called_twice(room: Room):
    def run(self, x):
        return self.bn(self.conv2(torch.relu(self.bn(self.conv(x)))))

    return room.block(run, "conv", "conv2", "bn")


@structure
def body_called_twice(room: Room):
    return room.block(lambda self, x: self.body(torch.tanh(self.body(x))), "body")


@structure
def body_called_by_size(room: Room):
    def run(self, x):
        for _ in range(1 + x.shape[0] % 2):
            x = self.body(x)
        return x

    return room.block(run, "body")


@structure
def two_names_for_one(room: Room):
    block = room.block(lambda self, x: self.bn(self.conv(x)) + self.other(x), "conv", "bn")
    block.other = block.bn
    return block


@structure
def convolutions_tied(room: Room):
    conv, conv2 = (
        room.conv(kernel_size=1, padding=0, groups=1),
        room.conv(kernel_size=1, padding=0, groups=1),
    )
    conv2.weight = conv.weight
    return room.block(
        lambda self, x: self.conv2(torch.relu(self.bn(self.conv(x)))), "bn", conv=conv, conv2=conv2
    )


@structure
def gammas_tied(room: Room):
    one, two = room.bn(affine=True), room.bn(affine=True)
    two.weight, two.bias = one.weight, one.bias
    return room.block(
        lambda self, x: self.two(self.conv2(torch.relu(self.one(self.conv(x))))),
        "conv", "conv2", one=one, two=two,
    )  # fmt: skip


@structure
def statistics_tied(room: Room):
    one, two = room.bn(), room.bn()
    two.running_mean, two.running_var = one.running_mean, one.running_var
    return room.block(lambda self, x: self.two(self.conv(self.one(x))), "conv", one=one, two=two)


@structure
def weight_of_a_view(room: Room):
    conv, conv2 = (
        room.conv(kernel_size=1, padding=0, groups=1),
        room.conv(kernel_size=1, padding=0, groups=1),
    )
    conv2.weight = nn.Parameter(conv.weight.data.transpose(0, 1))
    return room.block(
        lambda self, x: self.conv2(self.bn(self.conv(x))), "bn", conv=conv, conv2=conv2
    )


@structure
def module_dict(room: Room):
    def run(self, x):
        for name in ("conv", "norm", "act"):
            x = self.steps[name](x)
        return x

    steps = nn.ModuleDict({"act": room.act(), "norm": room.bn(), "conv": room.conv()})
    return room.block(run, steps=steps)


@structure
def module_list_by_index(room: Room):
    def run(self, x):
        for index in (0, 1, 0, 2):
            x = self.steps[index](x)
        return x

    return room.block(run, steps=nn.ModuleList([room.conv(), room.bn(), room.bn()]))


@structure
def nested_sequences(room: Room):
    return nn.Sequential(
        nn.Sequential(nn.Sequential(room.conv()), room.bn()), nn.Sequential(room.act(), room.bn())
    )


@structure
def slice_of_a_sequence(room: Room):
    def run(self, x):
        return self.steps[2:](torch.tanh(self.steps[:2](x)))

    return room.block(run, steps=nn.Sequential(room.conv(), room.bn(), room.conv(), room.bn()))


class NormAct(nn.BatchNorm2d):
    """As timm's BatchNormAct2d."""

    def forward(self, x):
        return functional.relu(super().forward(x))


class NormScaled(nn.BatchNorm2d):
    factor = 2.0

    def forward(self, x):
        return super().forward(x) * self.factor


class NormOfItsOwn(nn.BatchNorm2d):
    def forward(self, x):
        x = x - self.running_mean[:, None, None]
        return x / (self.running_var[:, None, None] + self.eps).sqrt() + x.mean()


class NormWithState(nn.BatchNorm2d):
    step = 0

    def forward(self, x):
        self.step += 1
        return super().forward(x) + self.step


@structure
def norm_and_activation(room: Room):
    return room.block(
        lambda self, x: self.bn(self.conv(x)),
        "conv",
        bn=filled(room.random, NormAct(room.channels).double().eval()),
    )


@structure
def norm_and_factor(room: Room):
    return room.block(
        lambda self, x: self.bn(self.conv(x)),
        "conv",
        bn=filled(room.random, NormScaled(room.channels).double().eval()),
    )


@structure
def norm_of_its_own(room: Room):
    return room.block(
        lambda self, x: self.bn(self.conv(x)),
        "conv",
        bn=filled(room.random, NormOfItsOwn(room.channels).double().eval()),
    )


@structure
def norm_with_state(room: Room):
    return room.block(
        lambda self, x: self.bn(self.conv(x)),
        "conv",
        bn=filled(room.random, NormWithState(room.channels).double().eval()),
    )


class OwnConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(functional.relu(x)) + 1


@structure
def convolution_with_more(room: Room):
    conv = OwnConv(room.channels, room.channels, 1, dtype=torch.float64)
    return room.block(lambda self, x: self.bn2(self.conv(self.bn(x))), "bn", "bn2", conv=conv)


@structure
def weight_norm(room: Room):
    return room.block(
        lambda self, x: self.bn(self.conv(x)), "bn", conv=parametrizations.weight_norm(room.conv())
    )


@structure
def spectral_norm(room: Room):
    return room.block(
        lambda self, x: self.bn(self.conv(x)),
        "bn",
        conv=parametrizations.spectral_norm(room.conv()).eval(),
    )


class Squared(nn.Module):
    def forward(self, weight):
        return weight * weight.abs()


@structure
def parametrized(room: Room):
    conv = room.conv()
    parametrize.register_parametrization(conv, "weight", Squared())
    return room.block(lambda self, x: self.bn2(self.conv(self.bn(x))), "bn", "bn2", conv=conv)


@structure
def gamma_parametrized(room: Room):
    norm = room.bn(affine=True)
    parametrize.register_parametrization(norm, "weight", Squared())
    return room.block(lambda self, x: self.bn(self.conv(x)), "conv", bn=norm)


@structure
def affine_of_buffers(room: Room):
    def run(self, x):
        return self.act(self.conv(x) * self.scale + self.shift)

    return room.block(run, "conv", "act", scale=room.values(), shift=room.values())


class Forwarding(nn.Module):
    """Asks the module it wraps for what it lacks."""

    def __init__(self, wrapped):
        super().__init__()
        self.wrapped = wrapped

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("wrapped"), name)

    def forward(self, x):
        return self.wrapped(x) + self.running_mean[:, None, None]


@structure
def attributes_forwarded(room: Room):
    return room.block(lambda self, x: self.bn(self.conv(x)), "conv", bn=Forwarding(room.bn()))


class WithProperty(Block):
    @property
    def norm(self):
        return self._modules["bn"]

    @property
    def kernel(self):
        return self.conv.weight

    def forward(self, x):
        return functional.conv2d(
            self.norm(x), self.kernel, padding=self.conv.padding, groups=self.conv.groups
        )


@structure
def module_by_property(room: Room):
    return WithProperty(None, conv=room.conv(padding_mode="zeros"), bn=room.bn())


class Called(Block):
    def __call__(self, x):
        return torch.relu(super().__call__(x) + 1)


@structure
def call_overridden(room: Room):
    return Called(lambda self, x: self.bn(self.conv(x)), conv=room.conv(), bn=room.bn())


@structure
def forward_called(room: Room):
    return room.block(
        lambda self, x: torch.relu(self.bn.forward(self.conv.forward(x))), "conv", "bn"
    )


@structure
def forward_of_the_class(room: Room):
    return room.block(lambda self, x: nn.BatchNorm2d.forward(self.bn, self.conv(x)), "conv", "bn")


@structure
def other_method(room: Room):
    def run(self, x):
        return self.conv._conv_forward(self.bn(x), self.conv.weight, self.conv.bias)

    return room.block(run, "conv", "bn")


@structure
def functional_norm(room: Room):
    def run(self, x):
        norm = self.bn
        y = self.conv(x)
        return functional.batch_norm(
            y, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.1, norm.eps
        )

    return room.block(run, "conv", "bn")


@structure
def functional_norm_of_swapped(room: Room):
    """The statistics of one with the parameters of another."""

    def run(self, x):
        return functional.batch_norm(
            self.conv(x), self.bn.running_mean, self.bn.running_var, self.bn2.weight, self.bn2.bias
        )

    return room.block(run, "conv", "bn", "bn2")


@structure
def statistics_of_the_batch(room: Room):
    return room.block(
        lambda self, x: self.bn(self.conv(x)), "conv",
        bn=nn.BatchNorm2d(room.channels, track_running_stats=False, dtype=torch.float64).eval(),
    )  # fmt: skip


@structure
def fixed_norm_in_training(room: Room):
    """A submodule that somebody left in training mode, and one that is frozen by hand."""

    def run(self, x):
        self.bn.eval()
        return self.bn(self.conv(x))

    return room.block(run, "conv", "bn")


@structure
def layers_in_a_loop(room: Room):
    def run(self, x):
        found = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.relu(norm(conv(x)))
            found.append(x)
        return sum(found)

    return room.block(
        run,
        convs=nn.ModuleList([room.conv() for _ in range(3)]),
        norms=nn.ModuleList([room.bn() for _ in range(3)]),
    )


@structure
def one_norm_per_branch(room: Room):
    """Domain-specific BatchNorms."""

    def run(self, x):
        return self.norms[x.shape[0] % 2](self.conv(x))

    return room.block(run, "conv", norms=nn.ModuleList([room.bn(), room.bn()]))


@structure
def weights_as_parameters(room: Room):
    def run(self, x):
        return self.bn(functional.conv2d(x, self.weight, self.bias))

    weight = nn.Parameter(room.values(room.channels, room.channels, 1, 1))
    return room.block(run, "bn", weight=weight, bias=nn.Parameter(room.values(room.channels)))


@structure
def weight_of_two_parts(room: Room):
    """As LoRA."""

    def run(self, x):
        weight = self.conv.weight + (self.b @ self.a)[:, :, None, None]
        return self.bn2(functional.conv2d(self.bn(x), weight, self.conv.bias))

    conv = room.conv(kernel_size=1, padding=0, groups=1)
    parts = {
        "a": nn.Parameter(room.values(1, room.channels)),
        "b": nn.Parameter(room.values(room.channels, 1)),
    }
    return room.block(run, "bn", "bn2", conv=conv, **parts)


@structure
def experts(room: Room):
    """Weights mixed by the input, as in CondConv."""

    def run(self, x):
        y = self.bn(x)
        mix = torch.softmax(y.mean((0, 2, 3))[:2], 0)
        weight = mix[0] * self.one.weight + mix[1] * self.two.weight
        return self.bn2(functional.conv2d(y, weight))

    options = {"kernel_size": 1, "padding": 0, "groups": 1, "bias": False}
    return room.block(run, "bn", "bn2", one=room.conv(**options), two=room.conv(**options))


@structure
def scripted(room: Room):
    return room.block(
        lambda self, x: self.bn(self.act(self.conv(x))),
        "conv",
        "bn",
        act=torch.jit.script(nn.ReLU()),
    )


class ClosedNorm(nn.BatchNorm2d):
    """A class that does not want to be changed."""

    def __setattr__(self, name, value):
        if self.__dict__.get("closed") and name != "training":
            raise AttributeError(name)
        super().__setattr__(name, value)


@structure
def refuses_to_be_changed(room: Room):
    norm = filled(room.random, ClosedNorm(room.channels).double().eval())
    norm.__dict__["closed"] = True
    return room.block(lambda self, x: self.bn(self.conv(x)), "conv", bn=norm)


class ClosedConv(nn.Conv2d):
    def __setattr__(self, name, value):
        if self.__dict__.get("closed") and name != "training":
            raise AttributeError(name)
        super().__setattr__(name, value)


@structure
def convolution_refuses(room: Room):
    conv = ClosedConv(room.channels, room.channels, 1, bias=False, dtype=torch.float64)
    conv.__dict__["closed"] = True
    return room.block(lambda self, x: self.bn(self.conv(x)), "bn", conv=conv)
