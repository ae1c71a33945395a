"""Splits of large components in the place of such as have collapsed.

A likelihood has no bound where a component may shrink onto as many rows as it has features, and
data with heavy tails offer many such places. A component that has got there never leaves, whatever
its start was. So `fit` lets go of it, and halves a component that has rows to spare instead: a
move of split-and-merge EM, in which the rows that are let go are merged with those of others.

Source: Ueda, Nakano, Ghahramani & Hinton 2000.
"""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array

from jaxgmm.arrays.numerics import logsumexp
from jaxgmm.covariances.storage import pick
from jaxgmm.mixtures.mixture import GaussianMixture


def split_instead(mixture: GaussianMixture, collapsed: Array, spare: Array) -> GaussianMixture:
    """The mixture in which large components are split in the place of collapsed ones.

    The two halves of a component have its covariance, half of its weight each, and means one
    standard deviation away from its own, in opposite directions.

    Args:
        mixture: K components.
        collapsed: (K,) bool, which are to be replaced, as far as there are others to be split.
        spare: (K,) bool, which may be split; the heaviest are.
    """
    n_components = mixture.n_components
    number = jnp.arange(n_components)
    heaviest = jnp.argsort(jnp.where(spare, -mixture.weights, 1), stable=True)
    place = jnp.cumsum(collapsed) - 1
    n_split = jnp.minimum(jnp.sum(collapsed), jnp.sum(spare))
    replaced = collapsed & (place < n_split)
    donor = jnp.where(replaced, heaviest[jnp.clip(place, 0, n_components - 1)], number)
    split = jnp.zeros(n_components, bool).at[heaviest].set(number < n_split)

    unit = jnp.full_like(mixture.means, mixture.n_features**-0.5)
    step = mixture.covariance.unwhiten(unit[None])[0]
    sign = jnp.where(replaced, 1, jnp.where(split, -1, 0)).astype(step.dtype)
    means = mixture.means[donor] + sign[:, None] * step[donor]
    log_weights = mixture.log_weights[donor] - jnp.where(replaced | split, math.log(2), 0)
    owned = jax.tree.leaves(mixture.covariance)[0].shape[0] == n_components
    covariance = pick(mixture.covariance, donor) if owned else mixture.covariance
    return replace(
        mixture,
        log_weights=log_weights - logsumexp(log_weights),
        means=means,
        covariance=covariance,
    )
