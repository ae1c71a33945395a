"""The stopping rule, given gains whose sum is known, and the noise that rounding makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DTYPE, array, assert_close, by_dtype

from jaxgmm.solvers.convergence import Gain, Progress

pytestmark = pytest.mark.quick

TOL = 1e-7
# Steps have lengths s, gains s² / 2 that rounding of the length changes.
ROUNDING = 4e-12


UPDATE = jax.jit(Progress.update)


@jax.jit
def progress_along(gains, rounding):
    """Progress after each of some gains of one component: leaves lead with their number."""
    none = jnp.zeros(1, DTYPE)

    def update(progress, gain):
        of_each = jnp.stack([none, gain[None]])
        noise = jnp.stack([none, rounding[None]])
        progress = progress.update(Gain(of_each, noise), array(TOL))
        return progress, progress

    return jax.lax.scan(update, Progress.begin(none), gains)[1]


def noisy(gains, seed):
    """Gains of steps whose lengths are rounded, by less than `ROUNDING` may be."""
    moved = np.sqrt(ROUNDING / 10) * np.random.default_rng(seed).normal(size=gains.size)
    return (np.sqrt(2 * gains) + moved) ** 2 / 2


def test_gains_that_rounding_may_make_together_are_an_arrival():
    """Though one component is still seen to gain; but nobody arrives by noise near the tolerance.

    Its gains wobble, so that their ratio never says that they fall.
    """
    none, ended = jnp.zeros(2, DTYPE), []
    for loudest in (ROUNDING, TOL / 2, 100 * TOL):
        progress = Progress.begin(none)
        rounding = jnp.stack([none, array([1e-15, loudest])])
        for number in range(60):
            gain = 1e-6 * 0.5**number * (1 + 0.2 * (-1) ** number)
            progress = progress.update(Gain(jnp.stack([none, array([gain, 0.0])]), rounding), TOL)
            if progress.converged():
                break
        ended.append(gain)
    assert ROUNDING / 4 <= ended[0] <= ROUNDING
    assert max(ended[1:]) <= 1e-15


@pytest.mark.parametrize("seed", range(5))
def test_a_saddle_point_behind_the_noise_is_not_a_maximum(seed):
    """The ratio climbs through 1 by less from step to step than rounding changes it."""
    steps = np.arange(250)
    falling, rising = 2e-8 * 0.95**steps, 1e-9 * 1.03**steps
    progress = progress_along(array(noisy(falling + rising, seed)), array(ROUNDING))
    assert not np.any(progress.converged())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ratio", [0.8, 0.98, 0.995])
def test_noise_does_not_keep_a_fit_from_arriving(ratio, seed):
    """Gains that fall evenly are believed about as soon as without noise.

    The ratio of two of them in a row is wrong by more than it is below 1.
    """
    n_steps = round(12 / (1 - ratio))
    gains = 1e-7 * ratio ** np.arange(n_steps)
    wobbly = noisy(gains, seed)
    ratios = wobbly[1:] / wobbly[:-1]
    arrived = []
    for of, rounding in ((gains, 0.0), (wobbly, ROUNDING)):
        progress = progress_along(array(of), array(rounding))
        assert np.any(progress.converged())
        arrived.append(int(np.argmax(progress.converged())))
    if ratio > 0.99:
        assert np.std(ratios[arrived[0] - 20 : arrived[0]]) > 1 - ratio
    remaining = wobbly[arrived[1]] * ratio / (1 - np.sqrt(ratio))
    assert remaining < 2 * TOL
    assert arrived[1] <= arrived[0] + 10 + 2 / (1 - np.sqrt(ratio))


@pytest.mark.parametrize("seed", range(5))
def test_the_average_ratio_of_noisy_gains_is_theirs(seed):
    """The mean of ratios of what is wrong by a twentieth is larger by a four-hundredth."""
    gains = 3e-10 * 0.999 ** np.arange(600)
    progress = progress_along(array(noisy(gains, seed)), array(ROUNDING))
    assert 0.998 < np.median(progress.ratio[300:]) < 0.9998


@pytest.mark.parametrize("seed", range(5))
def test_a_component_that_comes_and_goes_does_not_lift_the_ratio(seed):
    """Its gains are noise about as large as it may be: seen where they are larger than before."""
    noise = np.random.default_rng(seed).exponential(ROUNDING, size=300)
    none, progress = jnp.zeros(2, DTYPE), Progress.begin(jnp.zeros(2, DTYPE))
    rounding = array(np.array([[0, 0], [1e-20, 2 * ROUNDING]]))
    ratios = []
    for number, of_noise in enumerate(noise):
        of_each = jnp.stack([none, array([100 * ROUNDING * 0.99**number, of_noise])])
        progress = UPDATE(progress, Gain(of_each, rounding), array(TOL))
        ratios.append(float(progress.ratio))
    assert 0.986 < np.median(ratios[200:]) < 0.993


@pytest.mark.parametrize("loud", [(np.inf, 1.0), (0.0, np.nan)])
def test_a_step_of_which_nothing_is_known_is_forgotten(loud):
    """Infinite noise in the first, or a gain that is no number."""
    of_form, factor = loud
    none, progress = jnp.zeros(1, DTYPE), Progress.begin(jnp.zeros(1, DTYPE))
    for number in range(20):
        gain = 1e-3 * 0.3**number * (factor if number == 0 else 1)
        of_each = jnp.stack([none, array([gain])])
        noise = array(of_form if number == 0 else 0.0)
        progress = UPDATE(progress, Gain(of_each, jnp.zeros((2, 1), DTYPE), noise), array(TOL))
    assert progress.converged()
    assert_close(progress.ratio, 0.3, rtol=by_dtype(1e-4, 1e-9))


def test_what_is_exact_is_judged_from_step_to_step():
    """Without noise nothing waits for means over ten steps."""
    gains = 1e-3 * 1e-3 ** np.arange(12)
    progress = progress_along(array(gains), array(0.0))
    assert int(np.argmax(progress.converged())) <= 8
