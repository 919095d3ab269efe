"""Which layers take part, and whose arrays they are."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.errors import ModelUnreadableError, UsageError
from tests.frontends.caffe.support import Builder, Pair, assert_equal, check, fold, kept

TRAIN_DATA = 'layer { name: "source" type: "Data" top: "data" include { phase: TRAIN } }\n'


def trained(*, with_data: bool = True) -> Builder:
    """conv, bn, scale, relu, conv in both phases; data, a dropout and a loss for training."""
    builder = Builder()
    builder.parts[0] = TRAIN_DATA if with_data else builder.parts[0]
    builder.conv(4, name="conv")
    builder.batch_norm(name="bn")
    builder.scale(name="scale", top="same")
    builder.relu(name="relu")
    builder.conv(2, name="head")
    loss = 'layer { name: "loss" type: "EuclideanLoss" bottom: "head" bottom: "label" top: "loss"'
    builder.parts.append(loss + " include { phase: TRAIN } }\n")
    return builder


# ------------------------------------------------------------------- phases


def test_a_file_for_training_is_refused_unless_asked_for() -> None:
    with pytest.raises(UsageError, match=r"training only.*--phase test"):
        fold(trained().pair())


def test_an_unknown_phase_is_refused() -> None:
    with pytest.raises(UsageError, match="phase='train'"):
        fold(trained().pair(), phase="train")


def test_the_test_phase_of_a_file_for_training() -> None:
    builder = trained()
    after, report = check(builder, phase="test")
    assert after.names == ["source", "conv", "relu", "head", "loss"]
    assert TRAIN_DATA.encode() in after.text
    assert any("data is made by no layer of the TEST phase" in note for note in report.notes)


def test_layers_for_use_only_are_no_reason_to_refuse() -> None:
    builder = Builder()
    builder.conv(4)
    builder.batch_norm()
    builder.layer("Softmax", "include { phase: TEST }")
    assert check(builder)[0].types() == ["Convolution", "Softmax"]


def test_what_a_training_layer_reads_stays_what_it_is() -> None:
    """The auxiliary loss sees the convolution's output, in front of the BatchNorm."""
    builder = Builder()
    builder.conv(4, name="conv")
    builder.batch_norm(name="bn")
    builder.parts.append(
        'layer { name: "aux" type: "EuclideanLoss" bottom: "conv" top: "l" include {phase: TRAIN}}'
    )
    after, report = check(builder, phase="test")
    assert list(kept(report)) == ["bn"]
    assert after == builder.pair()


def test_what_a_training_layer_reads_is_the_version_of_its_place() -> None:
    """Behind the BatchNorm that works in place, the name means its output."""
    builder = Builder()
    builder.conv(4, name="conv")
    builder.batch_norm(name="bn", top="same")
    builder.parts.append(
        'layer { name: "aux" type: "EuclideanLoss" bottom: "conv" top: "l" include {phase: TRAIN}}'
    )
    builder.relu(name="relu", top="r")
    builder.batch_norm(name="bn2", top="same")
    builder.conv(3, name="tail")
    after, report = check(builder, phase="test")
    assert kept(report) == {}
    assert after.names == ["conv", "aux", "relu", "tail"]
    assert len(after.stored()["conv"]) == 2


def test_two_layers_of_one_name_in_two_phases() -> None:
    """The arrays are loaded into both, so they stay."""
    builder = Builder()
    builder.conv(4, name="conv")
    builder.batch_norm(name="bn")
    text = builder.parts[1]
    builder.parts[1] = text.replace("{\n", "{\n  include { phase: TEST }\n", 1)
    builder.parts.insert(1, text.replace("{\n", "{\n  include { phase: TRAIN }\n", 1))
    after, report = check(builder, phase="test")
    assert list(kept(report)) == ["bn"]
    assert after == builder.pair()


@pytest.mark.parametrize(
    ("rules", "is_in"),
    [
        ("", True),
        ("include { phase: TEST }", True),
        ("include { phase: 1 }", True),
        ("include { phase: TRAIN } include { phase: TEST }", True),
        ("include { }", True),
        ("exclude { phase: TRAIN }", True),
        ("exclude { phase: TEST }", False),
        ("exclude { }", False),
        ("include { phase: TRAIN }", False),
        ("include { min_level: 1 }", False),
        ("include { min_level: 0 max_level: 0 }", True),
        ("include { max_level: -1 }", False),
        ("exclude { min_level: 1 }", True),
        ("include { stage: 'deploy' }", False),
        ("include { not_stage: 'deploy' }", True),
        ("exclude { not_stage: 'deploy' }", False),
        ("include { phase: TEST stage: 'a' }", False),
    ],
)
def test_rules(rules: str, *, is_in: bool) -> None:
    """As Net::StateMeetsRule: a BatchNorm that is not in the network is not in the report."""
    builder = Builder()
    builder.conv(4, name="conv")
    builder.batch_norm(name="bn", top="same")
    builder.parts[-1] = builder.parts[-1].replace("{\n", f"{{\n  {rules}\n", 1)
    _, report = fold(builder.pair(), phase="test")
    assert report.total == is_in


def test_levels_and_stages_of_the_file_count() -> None:
    builder = Builder()
    builder.parts[0] += 'state { level: 2 stage: "deploy" }\n'
    builder.conv(4, name="conv")
    builder.batch_norm(name="bn", top="same")
    rule = "include { min_level: 1 stage: 'deploy' not_stage: 'other' }"
    builder.parts[-1] = builder.parts[-1].replace("{\n", f"{{\n  {rule}\n", 1)
    _, report = fold(builder.pair())
    assert report.removed == 1


# ------------------------------------------------------------------- weights by name


def test_weights_of_another_network_are_refused() -> None:
    builder = Builder()
    builder.conv(4, name="conv")
    builder.batch_norm(name="bn")
    builder.arrays = {f"other_{name}": blobs for name, blobs in builder.arrays.items()}
    with pytest.raises(ModelUnreadableError, match="none of its 2 layers"):
        fold(builder.pair())


def test_stored_layers_that_the_network_lacks_are_kept() -> None:
    builder = Builder()
    builder.conv(4, name="conv")
    builder.batch_norm(name="bn")
    builder.arrays["extra"] = [np.arange(3.0)]
    after, _ = check(builder)
    assert list(after.stored()) == ["conv", "extra"]


def test_only_the_name_counts() -> None:
    """The order and the types in the file do not."""
    builder = Builder()
    builder.conv(4, name="conv")
    builder.batch_norm(name="bn")
    builder.scale(name="scale")
    builder.arrays = dict(reversed(builder.arrays.items()))
    after, _ = check(builder)
    assert list(after.stored()) == ["conv"]


def test_of_two_layers_of_one_name_the_first_has_the_weights() -> None:
    builder = Builder()
    builder.conv(3, 1, name="conv", top="a")
    builder.layer(
        "Convolution",
        "convolution_param { num_output: 3 kernel_size: 1 bias_term: false }",
        name="conv",
        bottom="a",
        top="b",
        channels=3,
    )
    builder.batch_norm(name="bn", bottom="b")
    before = builder.pair()
    after, report = fold(before)
    assert list(kept(report)) == ["bn"]
    assert after == before


# ------------------------------------------------------------------- param { name }


def siamese(*, same_statistics: bool, bias: bool = False) -> Builder:
    """Two branches with one weight, each with a BatchNorm of its own."""
    builder = Builder()
    names = 'param { name: "w" }' + (' param { name: "b" }' if bias else "")
    for branch in ("left", "right"):
        builder.layer("Split", name=f"split_{branch}", bottom="data", top=branch)
        builder.conv(4, name=f"conv_{branch}", extra=names, bias=bias)
        builder.batch_norm(name=f"bn_{branch}", top="same")
        builder.relu(name=f"relu_{branch}")
    builder.arrays["conv_right"] = builder.arrays["conv_left"]
    if same_statistics:
        builder.arrays["bn_right"] = builder.arrays["bn_left"]
    builder.layer("Concat", name="join", bottom=["conv_left", "conv_right"], channels=8)
    return builder


def test_one_weight_for_two_statistics_stays() -> None:
    after, report = check(siamese(same_statistics=False))
    assert len(kept(report)) >= 1
    left, right = after.stored()["conv_left"], after.stored()["conv_right"]
    assert all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("bias", [False, True])
def test_one_weight_with_equal_statistics_folds(*, bias: bool) -> None:
    """Both copies in the file change alike: Caffe ends with the one that it loads last."""
    after, report = check(siamese(same_statistics=True, bias=bias))
    assert kept(report) == {}
    assert "BatchNorm" not in after.types()
    left, right = after.stored()["conv_left"], after.stored()["conv_right"]
    assert len(left) == 2
    assert all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def test_copies_that_differ_are_not_trusted() -> None:
    builder = siamese(same_statistics=True)
    builder.arrays["conv_right"] = [blob * 2 for blob in builder.arrays["conv_right"]]
    before = builder.pair()
    after, report = fold(before)
    assert set(kept(report)) == {"bn_left", "bn_right"}
    assert after == before


def test_a_weight_that_a_training_layer_shares_stays() -> None:
    builder = Builder()
    builder.conv(4, name="conv", extra='param { name: "w" }')
    builder.batch_norm(name="bn", top="same")
    twin = (
        builder.parts[1].replace('"conv"', '"twin"').replace("{\n", "{\n include{phase:TRAIN}", 1)
    )
    builder.parts.append(twin)
    builder.arrays["twin"] = builder.arrays["conv"]
    after, report = check(builder, phase="test")
    assert list(kept(report)) == ["bn"]
    assert after == builder.pair()


def test_a_weight_that_is_a_bias_elsewhere_stays() -> None:
    builder = Builder((2, 3, 8, 8))
    builder.conv(4, 1, name="conv", extra='param { name: "a" } param { name: "b" }', bias=True)
    builder.layer("Bias", 'param { name: "b" }', name="bias", blobs=[builder.arrays["conv"][1]])
    builder.batch_norm(name="bn")
    before = builder.pair()
    after, report = fold(before)
    assert "bn" in kept(report)
    assert_equal(before, after, builder.inputs())


def test_a_name_that_is_used_once_is_harmless() -> None:
    builder = Builder()
    builder.conv(4, name="conv", extra='param { name: "w" lr_mult: 1 }')
    builder.batch_norm(name="bn")
    after, _ = check(builder)
    assert after.names == ["conv"]
    assert after.text.count(b'"w"') == 1


def test_a_shared_scale_is_not_edited() -> None:
    """Both may go, but neither can take anything up."""
    builder = Builder()
    for branch in ("left", "right"):
        builder.layer("Sigmoid", name=f"in_{branch}", bottom="data")
        builder.batch_norm(name=f"bn_{branch}")
        builder.scale(name=f"scale_{branch}")
        builder.parts[-1] = builder.parts[-1].replace("{\n", '{\n  param { name: "gamma" }\n', 1)
        builder.layer("Sigmoid", name=f"out_{branch}")
    builder.arrays["scale_right"][0] = builder.arrays["scale_left"][0]
    after, report = check(builder)
    assert after == builder.pair()
    assert len(kept(report)) == 4


def test_a_shared_weight_with_a_use_that_is_unknown_stays() -> None:
    builder = siamese(same_statistics=True)
    model = builder.pair()
    text = model.text.decode().replace(
        'name: "conv_right"\n  type: "Convolution"', 'name: "conv_right"\n  type: "Strange"'
    )
    strange = Pair(text.encode(), model.weights)
    after, report = fold(strange)
    assert "bn_left" in kept(report)
    assert after.stored()["conv_right"][0].tolist() == model.stored()["conv_right"][0].tolist()
    assert after.stored()["conv_left"][0].tolist() == model.stored()["conv_left"][0].tolist()


# ------------------------------------------------------------------- a name for two layers


@pytest.mark.parametrize("kind", ["ReLU", "Pooling", "Softmax"])
def test_a_removed_layer_takes_its_arrays_along_whoever_has_its_name(kind: str) -> None:
    """Caffe loads nothing into a layer without arrays, and stops at arrays that are left."""
    options = "pooling_param { kernel_size: 2 stride: 2 }" if kind == "Pooling" else ""
    builder = Builder()
    builder.conv(4, name="conv")
    builder.batch_norm(name="twice")
    builder.layer(kind, options, name="twice")
    after, report = fold(builder.pair())
    assert report.removed == 1
    assert after.names == ["conv", "twice"]
    assert list(after.stored()) == ["conv"]


def test_a_layer_stays_whose_arrays_may_be_meant_for_another_one() -> None:
    builder = Builder()
    builder.conv(4, name="conv")
    builder.batch_norm(name="twice")
    arrays = builder.arrays["twice"]
    builder.scale(name="twice", top="same")
    builder.arrays["twice"] = arrays
    before = builder.pair()
    after, report = fold(before)
    assert report.removed == 0 and after == before
    assert "another layer has its name" in str(report.items[0].outcome)
