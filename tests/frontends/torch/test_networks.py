"""Networks of timm and torchvision with random statistics, in float64: nothing is left.

Those of many like blocks have few of them here; whole ones are folded by benchmarks/coverage.py.
"""

from __future__ import annotations

import pytest

import bnfold
from benchmarks.zoo import create, load_vision
from tests.frontends.torch.support import assert_same, other_inputs, run, run_counted
from tests.shallow import shallow

NETWORKS = [
    "resnet18", "resnet50", "mobilenetv2_100", "efficientnet_b0", "ghostnet_100", "repvgg_a2",
    "mobileone_s1", "resnetv2_18", "resnetv2_50", "densenet121", "convmixer_768_32",
    "shufflenet_v2_x1_0", "regnety_002", "hrnet_w18_small", "dla34", "res2net50_14w_8s",
    "inception_v3", "mixnet_s", "fasterrcnn_resnet50_fpn.backbone",
]  # fmt: skip
IMAGES = {"convmixer_768_32": 49}
"""Smaller than usual: 7 x 7 behind the stem, so that every tap of its 7 x 7 kernels counts."""
PROVEN = {"resnet18", "mobilenetv2_100", "ghostnet_100", "shufflenet_v2_x1_0", "levit_128s"}
"""Folded with the proof, which must let them be; the others are right without it."""


def _folded(name):
    """Fold, and compare on an input that the fold did not see: few runs, these are large."""
    model, x = create(name, batch=1, image=IMAGES.get(name), **shallow(name))
    other = other_inputs(x)
    expected = run(model, other)
    folded, report = bnfold.fold(model, x, verify=name in PROVEN)
    made, batch_norms = run_counted(folded, other)
    assert_same(expected, made, 1e-9)
    assert (batch_norms == 0) == (report.kept == 0)
    return report


@pytest.fixture(autouse=True)
def _few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm has no option for how many blocks a ConvMixer has."""
    whole = load_vision().timm.models.convmixer.ConvMixer
    few = lambda depth, **options: whole(depth=min(depth, 3), **options)  # noqa: E731
    monkeypatch.setattr(load_vision().timm.models.convmixer, "ConvMixer", few)


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_left(name):
    report = _folded(name)
    assert report.total > 0
    assert report.kept == 0, str(report)


def test_levit_loses_what_its_reshapes_allow():
    report = _folded("levit_128s")
    assert report.removed >= report.total - 2, str(report)
