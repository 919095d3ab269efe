"""The prototxt that comes out: what goes, goes whole; all else is there byte for byte."""

from __future__ import annotations

import difflib

import numpy as np
import pytest

from bnfold.errors import ModelUnreadableError
from tests.frontends.caffe.support import Builder, Pair, check, fold

CONV = """layer {
  name: "conv"
  type: "Convolution"
  bottom: "data"
  top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 bias_term: false }
}
"""
BN = """layer {
  name: "bn"
  type: "BatchNorm"
  bottom: "conv"
  top: "conv"
}
"""
RELU = 'layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }\n'


def folded(text: str) -> str:
    """Fold a text with the layers conv and bn."""
    builder = Builder()
    builder.conv(4, name="conv")
    builder.batch_norm(name="bn", top="same")
    after, report = fold(Pair(text.encode("utf-8", "surrogateescape"), builder.pair().weights))
    assert report.removed == 1
    return after.text.decode("utf-8", "surrogateescape")


HEAD = 'input: "data"\ninput_shape { dim: 1 dim: 3 dim: 8 dim: 8 }\n'


def changed(before: str, after: str) -> tuple[list[str], list[str]]:
    """The lines that went, and those that came."""
    lines = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    gone = [line[2:] for line in lines if line.startswith("- ")]
    return gone, [line[2:] for line in lines if line.startswith("+ ")]


def test_nothing_else_changes() -> None:
    text = f'# a network\nname: "n"  # its name\n{HEAD}\n\n{CONV}\n{BN}\n{RELU}# the end'
    gone, come = changed(text, folded(text))
    assert come == ["  convolution_param { num_output: 4 kernel_size: 3 bias_term: true }"]
    assert set(gone) == {*BN.splitlines(), "", CONV.splitlines()[5]}


def test_one_blank_line_stays_where_two_would_meet() -> None:
    assert folded(f"{HEAD}{CONV}\n{BN}\n{RELU}").endswith(f"}}\n\n{RELU}")
    assert folded(f"{HEAD}{CONV}\n{BN}{RELU}").endswith(f"}}\n\n{RELU}")
    assert folded(f"{HEAD}{CONV}{BN}\n{RELU}").endswith(f"}}\n\n{RELU}")
    assert folded(f"{HEAD}{CONV}{BN}{RELU}").endswith(f"}}\n{RELU}")


@pytest.mark.parametrize(
    ("comment", "stays"),
    [
        ("# bn\n", False),
        ("# layer bn: BatchNorm\n", False),
        ("# ------ bn ------\n", False),
        ("# The BatchNorm layer bn\n", True),
        ("# normalise\n# (layer bn)\n", True),
        ("# bn\n# bn\n", True),
        ("#\n# bn\n#\n", True),
        ("# Copyright (c) 2018 bn authors\n", True),
        ("# Licensed to bn\n# under the MIT licence.\n", True),
        ("# from here on: conv, bn, relu\n", True),
        ("  # 'bn':\r\n", False),
        ("# stage 2\n", True),
        ("# bn1\n", True),
        ("# conv/bn\n", True),
        ("# about bn\n\n", True),
    ],
)
def test_a_comment_right_above_goes_if_it_only_names_the_layer(
    comment: str, *, stays: bool
) -> None:
    text = folded(f"{HEAD}{CONV}{comment}{BN}{RELU}")
    assert (comment.strip().splitlines()[0].strip() in text) == stays


def test_a_notice_at_the_top_of_the_file_stays() -> None:
    """Although it has the layer's name in it, as a word."""
    notice = "# Copyright (c) 2018 Somebody.\n# Trained on the data of ImageNet.\n# Keep this.\n"
    layer = 'layer { name: "data" type: "BatchNorm" bottom: "in" top: "data" }\n'
    builder = Builder()
    builder.parts[0] = f"{notice}{layer}" + HEAD.replace('"data"', '"in"')
    builder.arrays["data"] = [np.ones(3), np.ones(3), np.ones(1)]
    builder.channels["in"] = 3
    builder.conv(4, name="conv", bottom="data")
    after, report = fold(builder.pair())
    assert report.removed == 1
    assert after.text.decode().startswith(notice + 'input: "in"')


def test_a_comment_that_begins_behind_a_layer_and_goes_on_stays() -> None:
    block = "# a note about all of this\n   # that has two lines\n"
    text = folded(f"{HEAD}{CONV}{BN.rstrip()}  {block}{RELU}")
    assert text.endswith(f"}}\n{block}{RELU}")


def test_a_comment_behind_goes() -> None:
    text = folded(f"{HEAD}{CONV}{BN.rstrip()}  # the end of it\n# about relu\n{RELU}")
    assert "the end of it" not in text
    assert "# about relu\n" in text


def test_layers_on_one_line() -> None:
    one_line = " ".join(BN.split())
    text = folded(f"{HEAD}{' '.join(CONV.split())} {one_line} {RELU}")
    assert text.endswith(f"bias_term: true }} }} {RELU}")


def test_separators_go_with_the_layer() -> None:
    text = folded(f"{HEAD}{CONV.rstrip()};\n{BN.rstrip()},\n{RELU.rstrip()};\n")
    assert text.endswith(f"}};\n{RELU.rstrip()};\n")


@pytest.mark.parametrize(
    "spelling",
    [
        BN.replace("layer {", "layer: {"),
        BN.replace("{", "<").replace("}", ">"),
        BN.replace('"', "'"),
        BN.replace('"bn"', '"b" "n"'),
        BN.replace("\n  bottom", "\n  # a comment { \n  bottom"),
        BN.replace("top:", "strange_param { a: [1, 2] b < > } [my.ext]: 5 top:"),
        BN.replace('bottom: "conv"', 'bottom: ["conv"]'),
    ],
)
def test_spellings(spelling: str) -> None:
    text = folded(f"{HEAD}{CONV}{spelling}{RELU}")
    assert text.endswith(f"bias_term: true }}\n}}\n{RELU}")


def test_lines_that_end_as_on_windows() -> None:
    text = f"{HEAD}{CONV}{BN}{RELU}".replace("\n", "\r\n")
    after = folded(text)
    assert after.count("\n") == after.count("\r\n")


def test_new_names_are_quoted_like_the_old_ones() -> None:
    builder = Builder()
    builder.conv(4, name="conv")
    builder.batch_norm(name="bn", top="normal")
    builder.relu(name="relu")
    builder.parts[1] = builder.parts[1].replace('"', "'")
    after, _ = check(builder)
    assert b"top: 'normal'" in after.text


def test_a_bias_and_its_param_follow_the_layout() -> None:
    text = HEAD + CONV.replace(
        "  convolution_param { num_output: 4 kernel_size: 3 bias_term: false }\n",
        "  param {\n    lr_mult: 0.1\n  }\n  convolution_param {\n    num_output: 4\n"
        "    kernel_size: 3\n    bias_term: false\n  }\n",
    )
    gone, come = changed(text + BN, folded(text + BN))
    assert come == ["  param { lr_mult: 0.1 decay_mult: 0 }", "    bias_term: true"]
    assert set(gone) == {"    bias_term: false", *BN.splitlines()}


def test_a_scale_gets_its_bias_on_a_line_of_its_own() -> None:
    builder = Builder()
    builder.layer("Sigmoid", name="in")
    builder.batch_norm(name="bn")
    builder.scale(name="scale", bias=False)
    builder.layer("Sigmoid", name="out")
    builder.parts[3] = builder.parts[3].replace(
        "  scale_param {   }", "  scale_param {\n    axis: 1\n  }"
    )
    after, _ = check(builder)
    assert b"  scale_param {\n    bias_term: true\n    axis: 1\n  }" in after.text


def test_text_that_is_no_utf8_survives() -> None:
    text = f"# \udce9\udcff\n{HEAD}{CONV}{BN}{RELU}"
    assert folded(text).startswith("# \udce9\udcff\n")


def test_layers_of_v1() -> None:
    text = f"{HEAD}{CONV}{BN}{RELU}".replace("layer {", "layers {")
    text = text.replace('"Convolution"', "CONVOLUTION").replace('"ReLU"', "RELU")
    after = folded(text)
    assert "BatchNorm" not in after
    assert "type: CONVOLUTION" in after


def test_layers_in_a_list_are_refused() -> None:
    builder = Builder()
    builder.conv(4, name="conv")
    text = f'{HEAD}layer: [ {{ name: "a" type: "ReLU" bottom: "data" top: "a" }} ]'
    with pytest.raises(ModelUnreadableError, match="line 3, column 1: layer should be"):
        fold(Pair(text.encode(), builder.pair().weights))


@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        ("num_output: 4 kernel_size: 'x'", "line 8, column"),
        ("num_output: four kernel_size: 3", "line 8, column"),
        ("num_output: 4.5 kernel_size: 3", "num_output should be a whole number"),
        ("num_output: 99999999999999999999999999 kernel_size: 3", "num_output"),
        ("num_output: 4 kernel_size: 3 bias_term: maybe", "bias_term should be true or false"),
    ],
)
def test_options_that_are_no_numbers_are_an_error_with_their_place(wrong: str, place: str) -> None:
    text = HEAD + CONV.replace("num_output: 4 kernel_size: 3 bias_term: false", wrong) + BN
    with pytest.raises(ModelUnreadableError, match=place):
        folded(text)


@pytest.mark.parametrize("number", ["0x4", "04", "4"])
def test_whole_numbers(number: str) -> None:
    text = f"{HEAD}{CONV}{BN}".replace("num_output: 4", f"num_output: {number}")
    assert f"num_output: {number}" in folded(text)
