"""No wrong result, ever: random networks over all roles are folded and compared."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bnfold.core.plan import make_plan
from bnfold.core.reasons import Reason
from tests.core.interpreter import apply_plan, assert_fold_is_exact
from tests.property.strategies import networks

MODES = ("auto", "always", "never")
STEADY = settings(
    derandomize=True,
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@STEADY
@given(networks(), st.sampled_from(MODES))
def test_a_random_network_computes_the_same_after_the_fold(network, mode):
    assert_fold_is_exact(network, clip=mode)


@STEADY
@given(networks(zero_gamma=False, along_height=False), st.sampled_from(MODES))
def test_a_fold_of_a_fold_removes_nothing_more(network, mode):
    """With a step along the height between branches another one may go in a second fold, rarely:
    the steps are tried one after the other, and the first one that goes may cost a sum its law."""
    plan = assert_fold_is_exact(network, clip=mode)
    folded = apply_plan(network, plan)
    again = make_plan(folded.graph, clip=mode)
    recentred = {number for number, why in plan.kept.items() if why.reason is Reason.SCALE_RANGE}
    assert set(again.removed) <= recentred
