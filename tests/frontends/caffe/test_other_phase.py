"""What the TRAIN phase needs as it is stays, and the report names the layer that needs it."""

from __future__ import annotations

import pytest

from tests.frontends.caffe.support import Builder, check, kept

BATCH = "use_global_stats: false"
STORED = "use_global_stats: true"


def blockers(builder: Builder) -> dict[str, str]:
    """Fold the TEST phase; who is to blame for each step that stays."""
    _, report = check(builder, phase="test")
    assert set(kept(report).values()) <= {"other-phase"}
    return {item.name: str(item.blocker) for item in report.items if not item.is_removed}


def in_phase(builder: Builder, phase: str) -> None:
    """Put the last layer into one phase."""
    rule = f"{{\n  include {{ phase: {phase} }}\n"
    builder.parts[-1] = builder.parts[-1].replace("{\n", rule, 1)


def each_phase_its_own(top: str | None, names: tuple[str, str] = ("for_train", "bn")) -> Builder:
    """A convolution, and a BatchNorm for each phase."""
    builder = Builder()
    builder.conv(4, name="conv", top="c")
    train, test = names
    builder.batch_norm(BATCH, name=train, bottom="c", top=top or "c")
    in_phase(builder, "TRAIN")
    builder.batch_norm(STORED, name=test, bottom="c", top=top or "c")
    in_phase(builder, "TEST")
    return builder


@pytest.mark.parametrize("top", [None, "d"])
@pytest.mark.parametrize("names", [("for_train", "bn"), ("bn", "bn")])
def test_a_batch_norm_for_each_phase(top: str | None, names: tuple[str, str]) -> None:
    builder = each_phase_its_own(top, names)
    builder.scale(name="scale", top="same")
    builder.relu(name="relu")
    assert blockers(builder) == {"bn": names[0], "scale": names[0]}


@pytest.mark.parametrize("top", [None, "d"])
def test_a_convolution_that_both_phases_have_does_not_take_the_step_of_one(top: str | None) -> None:
    builder = each_phase_its_own(top)
    builder.conv(3, name="next")
    assert blockers(builder) == {"bn": "for_train"}


def test_what_is_behind_a_common_convolution_folds() -> None:
    builder = each_phase_its_own("d")
    builder.conv(3, name="next")
    builder.batch_norm(name="later", top="same")
    builder.relu(name="relu")
    assert blockers(builder) == {"bn": "for_train"}


def test_a_step_behind_what_a_training_layer_reads_in_place() -> None:
    """The loss sees the convolution; nothing of the TEST phase's memory depends on that."""
    builder = Builder()
    builder.conv(4, name="conv", top="c")
    builder.layer("EuclideanLoss", name="aux", bottom=["c", "c"], top="l")
    in_phase(builder, "TRAIN")
    builder.batch_norm(name="bn", bottom="c", top="c")
    builder.relu(name="relu")
    assert blockers(builder) == {"bn": "aux"}


def test_a_dropout_for_training_in_place_is_no_matter_further_on() -> None:
    builder = Builder()
    builder.conv(4, name="conv")
    builder.batch_norm(name="bn", top="same")
    builder.relu(name="relu")
    builder.layer("Dropout", name="drop", top="same")
    in_phase(builder, "TRAIN")
    builder.conv(3, name="next")
    builder.batch_norm(name="bn2", top="same")
    assert blockers(builder) == {}


def test_a_step_of_the_test_phase_that_training_does_without() -> None:
    """There the ReLU reads the convolution at once, which must be neither scaled nor shifted."""
    builder = Builder()
    builder.conv(4, name="conv", top="c")
    builder.batch_norm(name="bn", top="same")
    in_phase(builder, "TEST")
    builder.relu(name="relu")
    builder.layer("EuclideanLoss", name="loss", bottom=["c", "c"], top="l")
    in_phase(builder, "TRAIN")
    assert blockers(builder) == {"bn": "relu"}


def test_without_layers_for_training_there_is_one_network() -> None:
    builder = Builder()
    builder.conv(4, name="conv", top="c")
    builder.batch_norm(name="bn", top="same")
    in_phase(builder, "TEST")
    builder.relu(name="relu")
    assert blockers(builder) == {}


def test_data_of_each_phase_are_no_matter() -> None:
    builder = Builder()
    rest = 'top: "data" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } }'
    builder.parts[0] = "".join(
        f'layer {{ name: "{phase}" type: "Input" {rest} include {{ phase: {phase} }} }}'
        for phase in ("TRAIN", "TEST")
    )
    builder.batch_norm(name="bn")
    builder.conv(4, name="conv")
    builder.batch_norm(name="bn2", top="same")
    assert blockers(builder) == {}


def test_a_name_that_a_training_layer_reads_is_the_blocker_of_what_would_take_it() -> None:
    """Between two removed steps there is one value, and the loss knows it by the middle name."""
    builder = Builder()
    builder.conv(4, name="conv", top="c")
    builder.batch_norm(name="bn", top="n")
    builder.layer("EuclideanLoss", name="aux", bottom=["n", "n"], top="l")
    in_phase(builder, "TRAIN")
    builder.scale(name="scale", bottom="n", top="s")
    builder.relu(name="relu")
    assert blockers(builder) == {"scale": "aux"}
