"""The stopping rule, given gains whose sum is known, and the noise that rounding makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DTYPE, array

from jaxgmm.solvers.convergence import Gain, Progress

TOL = 1e-7
# Steps have lengths s, gains s² / 2 that rounding of the length changes.
ROUNDING = 4e-12


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


@pytest.mark.parametrize("rate", [0.5, 0.8, 0.93, 0.97])
@pytest.mark.parametrize("seed", range(5))
def test_rounding_of_the_gains_delays_no_arrival(rate, seed):
    """Fits used to go on until no gain could be seen at all, hundreds of steps later."""
    ratio = rate**2
    gains = 1e-3 * ratio ** np.arange(1500)
    left = ratio * gains / (1 - rate)
    progress = progress_along(array(noisy(gains, seed)), array(ROUNDING))
    first = int(np.argmax(progress.converged()))
    enough = int(np.argmax(left < TOL))
    assert progress.converged()[first]
    assert enough - 3 <= first <= enough + 10 + 2 / (1 - rate)
    assert 0.1 * left[first] <= progress.remaining[first] < TOL


@pytest.mark.parametrize("seed", range(5))
def test_a_saddle_point_behind_the_noise_is_not_a_maximum(seed):
    """The ratio climbs through 1 by less from step to step than rounding changes it."""
    steps = np.arange(250)
    falling, rising = 2e-8 * 0.95**steps, 1e-9 * 1.03**steps
    progress = progress_along(array(noisy(falling + rising, seed)), array(ROUNDING))
    assert not np.any(progress.converged())


def test_what_is_exact_is_judged_from_step_to_step():
    """Without noise nothing waits for means over ten steps."""
    gains = 1e-3 * 1e-3 ** np.arange(12)
    progress = progress_along(array(gains), array(0.0))
    assert int(np.argmax(progress.converged())) <= 8
