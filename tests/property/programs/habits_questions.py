"""Questions that a program asks about its own modules, and lets the answer count."""

from __future__ import annotations

import torch
from torch import nn

from tests.property.programs.block import Room, habit

asks = habit("questions")


def question(make):
    """A habit whose answer is a number that is added behind conv and bn."""

    def habit_of_it(room: Room):
        def run(self, x):
            return self.act(self.bn(self.conv(x)) + answer(self))

        answer = make(room)
        return room.block(run, "conv", "act", bn=room.bn(affine=True))

    habit_of_it.__name__ = make.__name__
    return asks(habit_of_it)


@question
def is_a_batch_norm(room):
    return lambda self: 1 if isinstance(self.bn, nn.BatchNorm2d) else 2


@question
def exact_class(room):
    return lambda self: 1 if type(self.bn) is nn.BatchNorm2d else 2


@question
def name_of_the_class(room):
    return lambda self: len(self.bn.__class__.__name__)


@question
def has_statistics(room):
    return lambda self: 1 if hasattr(self.bn, "running_mean") else 2


@question
def epsilon(room):
    return lambda self: getattr(self.bn, "eps", 1.0) * 100


@question
def number_of_features(room):
    return lambda self: getattr(self.bn, "num_features", 0)


@question
def dtype_of_the_weight(room):
    return lambda self: 1 if self.bn.weight.dtype == torch.float64 else 2


@question
def bias_of_the_convolution(room):
    return lambda self: 0 if self.conv.bias is None else 1


@question
def value_of_the_bias(room):
    def answer(self):
        bias = self.conv.bias
        return 0 if bias is None else bias.view(1, -1, 1, 1)

    return answer


@question
def number_of_modules(room):
    return lambda self: len(list(self.modules()))


@question
def number_of_norms(room):
    return lambda self: sum(isinstance(m, nn.BatchNorm2d) for m in self.modules())


@question
def number_of_parameters(room):
    return lambda self: sum(p.numel() for p in self.parameters()) / 10


@question
def number_of_buffers(room):
    return lambda self: len(list(self.buffers()))


@question
def sum_of_parameters(room):
    return lambda self: float(sum(p.detach().sum() for p in self.parameters())) / 10


@question
def keys_of_the_state(room):
    return lambda self: len(self.state_dict())


@question
def key_in_the_state(room):
    return lambda self: 1 if "bn.running_var" in self.state_dict() else 2


@question
def sought_by_name(room):
    return lambda self: 1 if dict(self.named_modules())["bn"].training else 3


@question
def sought_by_path(room):
    return lambda self: self.get_submodule("bn").momentum or 0


@question
def parameter_by_path(room):
    return lambda self: self.get_parameter("bn.bias")[:, None, None]


@question
def weight_is_used(room):
    return lambda self: self.conv.weight.mean((1, 2, 3))[:, None, None]


@question
def norm_of_the_weight(room):
    return lambda self: float(self.conv.weight.norm())


@question
def shape_of_the_weight(room):
    return lambda self: self.conv.weight.shape[0]


@question
def weight_in_numpy(room):
    return lambda self: self.conv.weight.detach().numpy().max()


@question
def gamma_used(room):
    return lambda self: self.bn.weight.abs().max()


@question
def statistics_used(room):
    return lambda self: self.bn.running_var.view(1, -1, 1, 1).sqrt()


@question
def channels_of_the_convolution(room):
    return lambda self: self.conv.in_channels


@question
def flag_of_training(room):
    return lambda self: 2 if self.bn.training else 1


@question
def needs_a_gradient(room):
    return lambda self: 1 if self.bn.weight.requires_grad else 2


@question
def text_of_the_module(room):
    return lambda self: len(repr(self)) / 100


@question
def extra_text(room):
    return lambda self: len(self.bn.extra_repr()) / 10


@question
def hooks_of_the_module(room):
    return lambda self: len(self.bn._forward_hooks)


@question
def attributes_of_the_module(room):
    return lambda self: len(vars(self.bn)) / 10


@question
def padding_of_the_convolution(room):
    return lambda self: self.conv.padding[0] + self.conv.kernel_size[0]


@question
def kinds_of_children(room):
    return lambda self: sum(len(type(m).__name__) for m in self.children()) / 10


@question
def names_with_bn(room):
    return lambda self: len([name for name, _ in self.named_parameters() if "bn" in name])


@question
def same_weight(room):
    return lambda self: 1 if self.conv.weight is self._modules["conv"].weight else 2


@asks
def modules_filtered(room: Room):
    """The modules are applied by their kind."""

    def run(self, x):
        for module in [m for m in self.steps if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]:
            x = module(x)
        return torch.sigmoid(x)

    steps = nn.ModuleList([room.conv(), nn.Tanh(), room.bn()])
    return room.block(run, steps=steps)


@asks
def modules_matched(room: Room):
    def run(self, x):
        for module in self.steps:
            match module:
                case nn.Identity():
                    x = x * 2
                case nn.BatchNorm2d(num_features=count):
                    x = module(x) + count
                case _:
                    x = module(x)
        return x

    return room.block(run, steps=nn.Sequential(room.conv(), room.bn(), room.act()))


@asks
def activation_behind_norms(room: Room):
    def run(self, x):
        for module in self.body.children():
            x = module(x)
            if "Norm" in type(module).__name__:
                x = torch.relu(x)
        return x

    body = nn.Sequential(room.conv(), room.bn(), room.conv(), room.bn())
    return room.block(run, body=body)


@asks
def weight_is_scaled(room: Room):
    def run(self, x):
        weight = self.conv.weight * self.conv.weight.detach().abs().amax()
        return self.bn(
            nn.functional.conv2d(x, weight, padding=self.conv.padding, groups=self.conv.groups)
        )

    return room.block(run, "bn", conv=room.conv(padding_mode="zeros"))


@asks
def weight_standardised(room: Room):
    def run(self, x):
        w = self.conv.weight
        weight = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std() + 0.1)
        return self.bn(
            nn.functional.conv2d(x, weight, padding=self.conv.padding, groups=self.conv.groups)
        )

    return room.block(run, "bn", conv=room.conv(padding_mode="zeros"))


@asks
def weight_told(room: Room):
    """The weight is returned beside the result."""

    def run(self, x):
        y = self.bn(self.conv(x))
        self.told = self.conv.weight.detach()
        return y

    block = room.block(run, "conv", "bn", told=None)
    block.tells = True
    return block


@asks
def bias_told_as_numbers(room: Room):
    def run(self, x):
        self.told = [] if self.conv.bias is None else self.conv.bias.tolist()
        return self.bn(self.conv(x))

    block = room.block(run, "conv", "bn", told=None)
    block.tells = True
    return block


@asks
def fallback_for_missing(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        try:
            return y + self.bn.running_mean[:, None, None]
        except AttributeError:
            return y

    return room.block(run, "conv", "bn")


@asks
def penalty_of_gammas(room: Room):
    """As in network slimming."""

    def run(self, x):
        gammas = [
            m.weight.abs().sum()
            for m in self.modules()
            if isinstance(m, nn.BatchNorm2d) and m.affine
        ]
        return self.bn(self.conv(x)) + (sum(gammas) if gammas else 0)

    return room.block(run, "conv", "bn")


# ------------------------------------------------------------------- on other paths alone

ELSEWHERE = {
    "odd": lambda self, x: x.shape[2] % 2 == 1,
    "another batch": lambda self, x: len(x) != 2,
    "high": lambda self, x: x.shape[2] > x.shape[3] + 2,
    "as whole numbers": lambda self, x: int(x.shape[3]) - int(x.shape[2]) > 0,
    "layout": lambda self, x: x.is_contiguous(memory_format=torch.channels_last),
    "every third time": lambda self, x: self.times % 3 == 2,
}
ANSWERS = (
    lambda self: 1 if isinstance(self.bn, nn.BatchNorm2d) else 2,
    lambda self: getattr(self.bn, "num_features", 0) + 1,
    lambda self: 1 if self.conv.bias is None else 2,
    lambda self: 1 + len(list(self.parameters())),
)


@asks
def question_on_another_path(room: Room):
    """Asked where the example does not lead to."""

    def run(self, x):
        y = self.bn(self.conv(x))
        y = y * answer(self) if condition(self, x) else y
        self.times += 1
        return self.act(y)

    condition = ELSEWHERE[room.random.choice([*ELSEWHERE])]
    answer = room.random.choice(ANSWERS)
    return room.block(run, "conv", "bn", "act", times=0)


@asks
def questions_on_two_other_paths(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        for condition, answer in asked:
            y = y + answer(self) if condition(self, x) else y
        return self.act(y)

    conditions = [ELSEWHERE[name] for name in ("odd", "another batch", "high", "layout")]
    asked = list(zip(room.random.sample(conditions, 2), ANSWERS, strict=False))
    return room.block(run, "conv", "bn", "act")
