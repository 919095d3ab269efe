"""Names of blobs: outputs keep theirs, and Caffe's rules for work in place hold afterwards."""

from __future__ import annotations

import pytest

from tests.frontends.caffe.support import (
    Builder,
    Pair,
    assert_caffe_takes_it,
    check,
    fold,
    kept,
    values,
)


def stages(order: str) -> Builder:
    """conv, bn, scale, relu; 'i' is in place, 'n' has a name of its own."""
    builder = Builder()
    builder.conv(4, name="conv", top="c")
    for kind, letter in zip(("batch_norm", "scale", "relu"), order, strict=True):
        getattr(builder, kind)(name=kind, top="same" if letter == "i" else f"{kind}_out")
    return builder


@pytest.mark.parametrize("order", ["iii", "nii", "nni", "nnn", "ini", "inn", "iin", "nin"])
@pytest.mark.parametrize("tail", [False, True])
def test_the_output_keeps_its_name(order: str, *, tail: bool) -> None:
    builder = stages(order)
    if tail:
        builder.conv(2, name="tail")
    after, _ = check(builder)
    assert after.names == ["conv", "relu", "tail"][: 3 if tail else 2]
    assert_caffe_takes_it(after)


def test_the_convolution_takes_the_last_name() -> None:
    builder = Builder()
    builder.conv(4, name="conv", top="conv_out")
    builder.batch_norm(name="bn", top="bn_out")
    builder.scale(name="scale", top="scale_out")
    after, _ = check(builder)
    assert after.names == ["conv"]
    assert b'top: "scale_out"' in after.text
    assert b"conv_out" not in after.text


def test_values_under_a_name_that_stays_are_what_they_were() -> None:
    """The name of the last layer's output keeps its meaning, also within the network."""
    builder = stages("nnn")
    builder.conv(2, name="tail")
    before = builder.pair()
    after, _ = fold(before)
    inputs = builder.inputs()
    cut = [
        Pair(model.text.split(b'layer {\n  name: "relu"')[0], model.weights)
        for model in (before, after)
    ]
    one, two = (values(model, inputs)["scale_out"] for model in cut)
    assert abs(one - two).max() < 1e-12 * abs(one).max()


def test_a_relu_in_place_behind_a_branch_point_moves_out_of_place() -> None:
    """Pre-activation: with the BatchNorm gone, ReLU would write into what the sum reads."""
    builder = Builder((2, 4, 6, 6))
    builder.conv(4, 3, "pad: 1", name="stem", top="x")
    builder.batch_norm(name="bn", bottom="x", top="b")
    builder.scale(name="scale", top="same", gamma=[1.0, 2.0, 0.5, 1.5], bias=False)
    builder.arrays["bn"][0] *= 0  # no shift, no sign: it goes
    builder.relu(name="relu")
    builder.conv(4, 1, name="branch")
    builder.layer("Eltwise", name="sum", bottom=["x", "branch"])
    after, report = check(builder)
    assert kept(report) == {} or "bn" not in kept(report)
    assert_caffe_takes_it(after)


def test_a_relu_in_place_moves_out_of_place_with_both_layers_gone() -> None:
    builder = Builder((2, 4, 6, 6))
    builder.conv(4, 3, "pad: 1", name="stem", top="x")
    builder.batch_norm(name="bn", bottom="x", top="b")
    builder.arrays["bn"][0] *= 0
    builder.relu(name="relu")
    builder.conv(4, 1, name="branch", bottom="b")
    builder.conv(4, 1, name="other", bottom="x")
    builder.layer("Eltwise", name="sum", bottom=["branch", "other"])
    after, report = check(builder)
    assert kept(report) == {}
    assert_caffe_takes_it(after)
    assert after.names == ["stem", "relu", "branch", "other", "sum"]


def test_readers_of_an_older_version_of_a_name() -> None:
    """y is made from x, then x is overwritten in place, then y is read."""
    builder = Builder((2, 4, 6, 6))
    builder.conv(4, 3, name="conv", top="x")
    builder.batch_norm(name="bn", bottom="x", top="y")
    builder.layer("Dropout", name="drop", bottom="x", top="z")
    builder.layer("ReLU", name="relu", bottom="z", top="z")
    builder.conv(3, 1, name="one", bottom="y")
    builder.conv(3, 1, name="two", bottom="z")
    builder.layer("Eltwise", name="sum", bottom=["one", "two"])
    after, _ = check(builder)
    assert_caffe_takes_it(after)


def test_two_readers_of_a_batch_norm() -> None:
    builder = Builder()
    builder.conv(4, name="conv", top="x")
    builder.batch_norm(name="bn", bottom="x", top="y")
    builder.conv(3, 1, name="one", bottom="y")
    builder.conv(3, 1, name="two", bottom="y")
    after, _ = check(builder)
    assert after.names == ["conv", "one", "two"]
    assert_caffe_takes_it(after)


def test_two_batch_norms_of_one_convolution_that_are_both_outputs() -> None:
    """They differ, so the convolution could be one of them at most; and no BatchNorm can change."""
    builder = Builder()
    builder.conv(4, name="conv", top="x")
    builder.batch_norm(name="bn1", bottom="x", top="y1")
    builder.batch_norm(name="bn2", bottom="x", top="y2")
    after, report = check(builder)
    assert list(kept(report)) == ["bn1", "bn2"]
    assert after == builder.pair()


def test_two_outputs_of_one_convolution_stay_as_scales() -> None:
    builder = Builder()
    builder.conv(4, name="conv", top="x")
    builder.batch_norm(name="bn1", bottom="x", top="y1")
    builder.scale(name="scale1", top="same")
    builder.batch_norm(name="bn2", bottom="x", top="y2")
    builder.scale(name="scale2", top="same")
    after, report = check(builder)
    assert list(kept(report)) == ["scale1", "scale2"]
    assert after.names == ["conv", "scale1", "scale2"]
    assert_caffe_takes_it(after)


def test_an_output_that_another_layer_would_read_keeps_its_layer() -> None:
    """y could be the convolution's top, but then it would be read, and be no output any more."""
    builder = Builder()
    builder.conv(4, name="conv", top="x")
    builder.scale(name="scale", bottom="x", top="y")
    builder.conv(3, 1, name="reader", bottom="x")
    after, report = check(builder)
    assert kept(report) == {"scale": "graph-output"}
    assert after.names == ["conv", "scale", "reader"]
    assert_caffe_takes_it(after)


def test_one_value_with_two_names_outside_keeps_its_layers() -> None:
    """Equal layers: the values would be one, and the names two."""
    builder = Builder()
    builder.conv(4, name="conv", top="x")
    builder.scale(name="one", bottom="x", top="y1")
    blobs, options = builder.arrays["one"], "scale_param { bias_term: true }"
    builder.layer("Scale", options, name="two", bottom="x", top="y2", blobs=blobs)
    after, report = check(builder)
    assert set(kept(report).values()) == {"graph-output"}
    assert after == builder.pair()


def test_an_identity_from_input_to_output_stays() -> None:
    builder = Builder()
    builder.scale(name="scale", gamma=[1.0, 1.0, 1.0], bias=False)
    after, report = check(builder)
    assert kept(report) == {"scale": "graph-output"}
    assert after == builder.pair()


def test_a_batch_norm_at_the_input_goes_and_the_input_keeps_its_name() -> None:
    builder = Builder()
    builder.batch_norm(name="bn", top="normalised")
    builder.conv(4, name="conv")
    after, _ = check(builder)
    assert after.names == ["conv"]
    assert b'bottom: "data"' in after.text


def test_a_batch_norm_in_place_on_the_input() -> None:
    builder = Builder()
    builder.batch_norm(name="bn", top="same")
    builder.conv(4, name="conv")
    assert check(builder)[0].names == ["conv"]


def test_a_value_with_a_loss_weight_is_read() -> None:
    builder = Builder()
    builder.conv(4, name="conv", top="x", extra="loss_weight: 0.5")
    builder.batch_norm(name="bn", top="y")
    after, report = check(builder)
    assert list(kept(report)) == ["bn"]
    assert after == builder.pair()


def test_a_loss_weight_of_0_is_none() -> None:
    builder = Builder()
    builder.conv(4, name="conv", top="x", extra="loss_weight: 0")
    builder.batch_norm(name="bn", top="y")
    assert check(builder)[0].names == ["conv"]


def test_an_unread_output_in_the_middle_is_not_changed() -> None:
    """An auxiliary head that nobody reads."""
    builder = Builder()
    builder.conv(4, name="conv", top="x")
    builder.layer("Split", name="split", bottom="x", top=["main", "aux"])
    builder.batch_norm(name="bn", bottom="main")
    after, report = check(builder)
    assert list(kept(report)) == ["bn"]
    assert after == builder.pair()


def test_silence_reads_but_does_not_see() -> None:
    builder = Builder()
    builder.conv(4, name="conv", top="x")
    builder.batch_norm(name="bn", bottom="x", top="y")
    builder.layer("Silence", name="silence", bottom="x", top=[])
    builder.conv(3, 1, name="tail", bottom="y")
    after, _ = check(builder)
    assert after.names == ["conv", "silence", "tail"]
    assert_caffe_takes_it(after)


def test_names_with_quotes_and_backslashes_survive() -> None:
    builder = Builder()
    builder.conv(4, name="conv", top="x")
    builder.batch_norm(name="bn", top="a'b\\\\c")
    builder.relu(name="relu", bottom="a'b\\\\c", top="out")
    after, _ = check(builder)
    assert after.names == ["conv", "relu"]


def test_unknown_blobs_are_an_error_with_their_place() -> None:
    from bnfold.errors import ModelUnreadableError

    builder = Builder()
    builder.conv(4, name="conv")
    builder.relu(name="relu", bottom="nothing", top="x")
    with pytest.raises(ModelUnreadableError, match=r"line \d+, column 11: the layer relu reads"):
        fold(builder.pair())
