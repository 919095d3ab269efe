"""y = scale * x + shift, from the statistics of a BatchNorm."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.core.affine import Affine, deviation_of

MEAN, VAR, EPS = [0.5, -2.0, 3.0], [4.0, 0.25, 1e-3], 0.1
GAMMA, BETA = [1.5, -0.7, 0.0], [0.2, -0.4, 1.1]
X = np.array([[0.3, -1.2, 7.0], [2.0, 0.1, -3.0]])


def batch_norm(x, gamma, beta):
    return gamma * (x - MEAN) / np.sqrt(np.add(VAR, EPS)) + beta


@pytest.mark.parametrize("gamma", [None, GAMMA])
@pytest.mark.parametrize("beta", [None, BETA])
def test_it_computes_what_the_batch_norm_does(gamma, beta):
    affine = Affine.from_batchnorm(MEAN, VAR, EPS, gamma, beta)
    expected = batch_norm(X, 1.0 if gamma is None else gamma, 0.0 if beta is None else beta)
    np.testing.assert_allclose(affine.scale * X + affine.shift, expected, rtol=1e-14)
    assert affine.is_finite


@pytest.mark.parametrize(
    ("mean", "var"),
    [([np.nan, 0], [1, 1]), ([0, 0], [1, np.nan]), ([0, np.inf], [1, 1]), ([0, 0], [1, -0.2])],
)
def test_unusable_statistics_are_seen(mean, var):
    assert not Affine.from_batchnorm(mean, var, 0.1).is_finite


@pytest.mark.parametrize("var", [0.0, -0.1])
def test_a_variance_that_eps_does_not_save(var):
    eps = -var
    assert not Affine.from_batchnorm([1.0], [var], eps).is_finite


def test_a_variance_of_zero_is_saved_by_eps():
    affine = Affine.from_batchnorm([1.0], [0.0], 0.25)
    assert affine.scale.tolist() == [2.0]
    assert affine.shift.tolist() == [-2.0]


def test_half_precision_statistics_are_computed_in_double():
    var = np.array([1e-3, 2.0], dtype=np.float16)
    affine = Affine.from_batchnorm(np.zeros(2, np.float16), var, 1e-5)
    np.testing.assert_array_equal(affine.scale, 1 / np.sqrt(var.astype(np.float64) + 1e-5))
    assert affine.scale.dtype == np.float64


def test_one_after_the_other():
    first = Affine(np.array([2.0, -1.0]), np.array([0.5, 3.0]))
    second = Affine(np.array([-3.0, 0.25]), np.array([1.0, -2.0]))
    both = first.then(second)
    x = np.array([0.7, -1.3])
    inner = first.scale * x + first.shift
    np.testing.assert_allclose(both.scale * x + both.shift, second.scale * inner + second.shift)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_number_of_either_kind_is_enough(bad):
    fine, not_fine = np.array([1.0, 2.0]), np.array([1.0, bad])
    assert Affine(fine, fine).is_finite
    assert not Affine(not_fine, fine).is_finite
    assert not Affine(fine, not_fine).is_finite


def test_a_batch_norm_of_the_same_statistics_gets_its_gamma_and_beta_back():
    affine = Affine.from_batchnorm(MEAN, VAR, EPS, GAMMA, BETA)
    gamma, beta = affine.as_batchnorm(np.array(MEAN), deviation_of(VAR, EPS))
    np.testing.assert_allclose(gamma, GAMMA, rtol=1e-14)
    np.testing.assert_allclose(beta, BETA, rtol=1e-14)
