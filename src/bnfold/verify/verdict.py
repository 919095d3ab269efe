"""When does rounding explain a difference?

What a right fold may do
    Its weights are those of the exact fold, each rounded once more, to its dtype: w' = w * (1 + d),
    |d| <= u, the unit roundoff; below the normal numbers of float16 by as much as the smallest of
    these. Nothing else. Run in float64, where the arithmetic itself is exact
    next to u, the folded model F differs from the original A by the sum over all weights of
    d * dF/dlog(w): many small independent terms, so about normal, of a size that depends on the
    network, the layer and the channel. That size is measured, not guessed: F is run again with
    each weight rounded once more at random (`draw`), which makes a difference of just that kind.
    With D_c the RMS of these differences in channel c (over places and draws),

        right:   RMS(F_c - A_c)  is one more draw of the same kind as those that gave D_c
        wrong:   a weight is off by more than its rounding, and the channels behind it by more

How far apart two draws of one kind may be
    Of N comparisons (one per channel) with normal differences, the largest exceeds
    k = sqrt(2 ln(N / p)) times their size with a probability below p. p is 1e-6: one false alarm in
    a million verified models; k is 7 for 10^5 channels. D_c is itself an estimate from few draws.
    Its reserve: a draw spreads evenly over +-u * |w|, rounding to nearest over half a unit in the
    last place, which is u * |w| only just above a power of two; on average draws are 1.36 times
    wider. And a channel whose D_c came out too small by chance is held against its neighbours: D_c
    is at least q times the size of what is stored, q the median of D_c / stored size in the layer
    (and the layers before it, until these are 32 channels). What is stored has the size of
    v + t in units of v: a shift that is large next to the values costs precision there, and that
    is the fold's doing, not a fault. Where a few channels differ far more than the median (values
    that cross a step: sign, round), q is the root of the mean square instead. And q is at least
    1024 units in the last place of float64: what a sum of a million terms costs there. As much of
    v and t themselves is granted on top: that is what comparing stored / s - t with v costs.

In the model's own dtype
    each run adds the rounding of its arithmetic: E_A = RMS(A_own - A) that of the original, and
    E_F = RMS(F_own - F) that of the folded model, whose weights are rounded once more, which D
    knows. E_F may be the larger one: a mean over 10,000 places of a ReLU's output sums numbers of
    one sign, and what a BatchNorm makes of them has both; and there may be two runtimes (ONNX
    against PyTorch). All are independent, so RMS(F_own - A) is allowed to be

        k * sqrt(E_A^2 + E_F^2 + D^2 + (u * RMS(A))^2)

    the last term for outputs that the original happens to hit exactly. Where E_F is large, the
    next limit decides.

How much of that may be the fold's own doing
    D is measured in the folded model, so a fold that stores large numbers which cancel (an input
    with a mean of 1e6 and a deviation of 1) has a large D, which would explain anything. A fold
    is there to be used instead of the original: RMS(F_own - A) may be at most

        DIGITS * sqrt(E_A^2 + (u * RMS(A))^2)     or     ENOUGH * RMS(A)

    where u is that of the dtype which weights are stored in, or if that is not enough, of the
    coarsest which the network computes in; for a model in float64 the other limit is
    ENOUGH_IN_FLOAT64. Beyond that the fold loses digits. E_A is one draw only, so places
    that move far more than others are left out here, and outputs of few numbers are allowed more.

Without float64
    the truth is not known, only how each model moves when its inputs and weights are moved to
    neighbouring numbers, which makes all roundings behind them anew, in every layer: D_A and D_F
    are the RMS of that, R that of the original's sums in another order (the runtime's own
    optimisations). The difference of two runs is that of two such errors:
    k * sqrt(D_A^2 + D_F^2 + R^2 + (u * RMS(A))^2). The noise is that of arithmetic as well as
    weights, and is known from few runs, so only what is more than BEYOND times that far apart is
    proven wrong; what lies between is not proven either way.
    A model in float64 is judged so, too, where the above does not explain a difference: constants
    that cancel cost the original as many digits as the fold, and nothing finer knows them. A fold
    may lose as many there as a shift may cost, ENOUGH_IN_FLOAT64: the solver lets no more go.

Ill-conditioned places
    A division by what comes near 0 makes a number of which rounding may do anything. Where a
    place moves by more than a hundredth of itself, and a hundred times more than others of its
    channel, it is left out, as long as few are.

Integers (an argmax, an index), texts
    flip where two values are nearly tied. If draws flip a share f of n numbers, up to
    f * n + k * sqrt(f * n + 1) may be flipped. If none flips, each is nearly tied with a
    probability of about NEAR_TIES * u, and as many may be flipped as chance allows then.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bnfold.core.affine import FloatArray
from bnfold.core.limits import growth_limit

_FALSE_ALARM = 1e-6
"""Probability that a right fold is called wrong, as far as the model of rounding goes."""
_FLIP = 1e-5
"""The same for numbers that flip though no draw flips any."""
_FEW = 32
"""Channels from which a median is worth something."""
_STEPS = 10.0
"""So many times the median, a mean square shows that a few channels differ far more."""
ARITHMETIC = 1024.0 * 2.0**-53
"""What the arithmetic of a layer in float64 costs, relative to what is stored."""
DIGITS = 8.0
"""So many times the original's own error a fold may have: three bits. Of right folds it is 1.5."""
_FEW_PLACES = 8.0
ENOUGH = 2.0**-14
"""An output that is so near to the truth has kept digits enough."""
ENOUGH_IN_FLOAT64 = 2.0**-53 * growth_limit("float64")
"""The same where all is in float64, and no truth is known: 1.5e-11."""
BEYOND = 4.0
"""So many times what rounding explains is wrong, where rounding is known from few runs only."""
NEAR_TIES = 16.0
"""So many roundings two values may be apart to be nearly tied."""
_WILD, _WILD_ITSELF, _WILD_MOST = 100.0, 0.01, 0.125
"""How far an ill-conditioned place moves, next to the others of its channel and next to its own
value; and the largest share of a channel that may be like that."""
_UNITS = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def unit(dtype: str) -> float:
    """The largest relative error of rounding to a dtype; 0 for what is not rounded."""
    return _UNITS.get(dtype, 0.0)


def least_normal(dtype: str) -> float:
    """The size below which a number of a dtype is rounded as this one is; 0 where it is tiny."""
    return 2.0**-14 if dtype == "float16" else 0.0


def factor(count: int) -> float:
    """k: how many times its usual size the largest of `count` differences may be."""
    return math.sqrt(2.0 * math.log(max(count, 1) / _FALSE_ALARM))


def rms(values: FloatArray) -> float:
    """Root of the mean square; 0 of nothing."""
    if not values.size:
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sqrt(np.mean(np.square(values))))


def typical_noise(ratios: Sequence[FloatArray]) -> float:
    """q: the noise relative to what is stored, of the last layer and those before it as needed."""
    window: list[FloatArray] = []
    for layer in reversed(ratios):
        window.append(layer)
        if sum(part.size for part in window) >= _FEW:
            break
    noise = np.concatenate(window) if window else np.zeros(0)
    noise = noise[np.isfinite(noise)]
    if not noise.size:
        return ARITHMETIC
    middle = median(noise)
    spread = rms(noise)
    return max(ARITHMETIC, spread if spread > _STEPS * middle else middle)


def median(values: FloatArray) -> float:
    """The median of finite numbers, of which there are some. np.median imports numpy.ma: 30 ms."""
    middle = values.size // 2
    if values.size % 2:
        return float(np.partition(values, middle)[middle])
    return float(np.partition(values, (middle - 1, middle))[middle - 1 : middle + 1].mean())


def spread(differences: FloatArray) -> FloatArray:
    """Root of the mean square along the first axis."""
    with np.errstate(over="ignore", invalid="ignore"):
        result: FloatArray = np.sqrt(np.mean(np.square(differences), axis=0))
    return result


def wild(noise: FloatArray, values: FloatArray | None) -> NDArray[np.bool_]:
    """The ill-conditioned places, of (channels, places); without values all that move far more."""
    live = np.where(noise > 0.0, noise, np.nan)
    count = np.sum(noise > 0.0, axis=1, keepdims=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a channel where nothing moves
        usual = np.nanmedian(live, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        is_wild = noise > _WILD * usual
        if values is not None:
            is_wild &= ~(noise <= _WILD_ITSELF * np.abs(values))
    few = np.sum(is_wild, axis=1, keepdims=True) <= _WILD_MOST * count
    result: NDArray[np.bool_] = is_wild & few
    return result


def digits(count: int) -> float:
    """How many times the original's own error, known from so many places, a fold may have."""
    return DIGITS * (1.0 + _FEW_PLACES / max(count, 1))


def allowed_flips(share: float, count: int, k: float, near_tie: float = 0.0) -> float:
    """The share of `count` integers that may differ where draws flip `share`."""
    if not count:
        return 0.0
    if share == 0.0:
        return min(1.0, _by_chance(count * near_tie) / count)
    expected = share * count
    return min(1.0, (expected + k * math.sqrt(expected + 1.0)) / count)


def _by_chance(mean: float) -> int:
    """The largest number of events that are not too improbable to come by chance (Poisson)."""
    if mean > 100.0:
        return math.ceil(mean + factor(1) * math.sqrt(mean))
    number, probability = 0, math.exp(-mean)
    beyond = 1.0 - probability
    while beyond > _FLIP:
        number += 1
        probability *= mean / number
        beyond -= probability
    return number
