"""Layers that go once others are gone: see `core/fold_again.py`."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.frontends.caffe import fold as folding
from tests.frontends.caffe.support import Builder, check

TINY = 1e-7
ROWS = {
    "two": [[0.7, 1.1, TINY], [0.6, 1.2, 0.9]],
    "three": [[TINY, 0.9, 1.2], [TINY, 1.2, TINY], [0.6, 1.2, 0.9]],
    "one": [[0.6, 1.2, 0.9]],
}
SUMS = {"sum": "", "coefficients": "eltwise_param { coeff: 0.5 coeff: 2.0 COEFFS }"}


def branches(rows: list[list[float]], options: str) -> Builder:
    """A channel of the sum is hardly there; what one of its operands adds to it, neither."""
    builder = Builder((2, 3, 6, 6), seed=4)
    tops = [builder.conv(3, 1, "stride: 1", bottom="data", name="plain")]
    for place, gammas in enumerate(rows):
        builder.layer("TanH", bottom="data", name=f"apart{place}", top=f"apart{place}")
        builder.conv(3, 1, name=f"conv{place}", bottom=f"apart{place}", top=f"conv{place}")
        builder.batch_norm(var=[0.9, 0.8, 1.1], bottom=f"conv{place}", top="same")
        tops.append(builder.scale(gamma=gammas, bottom=f"conv{place}", top="same"))
    more = "coeff: 1.5 " * (len(tops) - 2)
    builder.layer("Eltwise", options.replace("COEFFS ", more), bottom=tops, name="sum", top="sum")
    builder.batch_norm(var=[0.9, 0.8, 1.1], bottom="sum", top="normed")
    builder.scale(gamma=[0.9, 1.2, TINY], top="same")
    builder.relu()
    builder.conv(2, 1, name="out", top="out")
    return builder


@pytest.mark.parametrize("merge", ["auto", "never"])
@pytest.mark.parametrize("options", SUMS.values(), ids=SUMS)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_a_second_fold_changes_nothing(rows, options, merge):
    after, report = check(branches(rows, options), merge=merge)
    assert len({item.name for item in report.items}) == len(report.items)
    scales = after.types().count("Scale") + after.types().count("BatchNorm")
    assert report.kept == scales


def test_rounds_until_nothing_goes(monkeypatch):
    rounds = []
    decide = folding._decide
    monkeypatch.setattr(folding, "_decide", lambda *given: rounds.append(1) or decide(*given))
    after, report = check(branches(ROWS["two"], ""), merge="never")
    assert len(rounds) > 2  # of two folds
    gone = [item for item in report.items if item.is_removed]
    names = {item.name for item in gone}
    assert gone
    assert all(names.isdisjoint(item.outcome.into) for item in gone)
    assert np.isin([name for item in gone for name in item.outcome.into], after.names).all()
