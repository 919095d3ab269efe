"""Inputs that the text names, and layers that make the same blob: as UpgradeNetInput has it."""

from __future__ import annotations

import pytest

from bnfold.errors import ModelUnreadableError
from tests.frontends.caffe.support import Builder, assert_caffe_takes_it, check, fold, kept

SHAPE = "shape { dim: 2 dim: 3 dim: 8 dim: 8 }"
INPUT_LAYER = f'layer {{ name: "in" type: "Input" top: "data" input_param {{ {SHAPE} }} }}\n'


def network(head: str) -> Builder:
    """Steps in front of a convolution and behind it."""
    builder = Builder()
    builder.parts[0] = head
    builder.batch_norm(name="bn")
    builder.scale(name="scale")
    builder.conv(4, name="conv")
    builder.batch_norm(name="bn2", top="same")
    builder.relu(name="relu")
    return builder


@pytest.mark.parametrize(
    "head",
    [
        f'input: "data"\n{INPUT_LAYER}',
        f'{INPUT_LAYER}input: "data"\n',
        f'name: "n" input: ["data"]\n{INPUT_LAYER}',
        f'input: "data" input: "data"\n{INPUT_LAYER}',
        f'input: "data" input: "info"\n{INPUT_LAYER}',
        'input: "data"\nlayer { name: "d" type: "DummyData" top: "data"'
        f" dummy_data_param {{ {SHAPE} }} }}\n",
        'input: "data"\nlayer { name: "m" type: "MemoryData" top: "data" top: "label"'
        " memory_data_param { batch_size: 2 channels: 3 height: 8 width: 8 } }\n"
        'layer { name: "hush" type: "Silence" bottom: "label" }\n',
    ],
)
def test_a_bare_input_that_a_layer_makes_is_that_layers_blob(head: str) -> None:
    after, report = check(network(head))
    assert kept(report) == {}
    assert after.names[-2:] == ["conv", "relu"]
    assert head.encode() in after.text
    assert_caffe_takes_it(after)


def test_a_bare_input_that_a_data_layer_of_each_phase_makes() -> None:
    train = INPUT_LAYER.replace('name: "in"', 'name: "train" include { phase: TRAIN }')
    test = INPUT_LAYER.replace('name: "in"', 'name: "test" include { phase: TEST }')
    after, report = check(network(f'input: "data"\n{train}{test}'), phase="test")
    assert kept(report) == {}
    assert after.names == ["train", "test", "conv", "relu"]


def test_a_bare_input_that_a_layer_works_on_in_place_is_an_input() -> None:
    builder = Builder()
    builder.parts[0] = 'input: "data"\n'
    builder.relu(name="relu")
    builder.conv(4, name="conv")
    builder.batch_norm(name="bn")
    after, report = check(builder)
    assert kept(report) == {}
    assert after.names == ["relu", "conv"]


@pytest.mark.parametrize(
    "shape", ["input_dim: 2 input_dim: 3 input_dim: 8 input_dim: 8", f"input_{SHAPE}"]
)
def test_an_input_with_a_shape_that_a_layer_makes_too_is_refused(shape: str) -> None:
    """Caffe makes a layer of it, and two layers of one top are none of its networks."""
    with pytest.raises(ModelUnreadableError, match=r"line 2, column \d+: data is made by a layer"):
        fold(network(f'input: "data" {shape}\n{INPUT_LAYER}').pair())
