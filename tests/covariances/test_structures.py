"""Every row of the table, and every storage, go through the same checks."""

import jax.numpy as jnp
import numpy as np
import pytest
from conformance import D, K, check_covariance, check_structure
from helpers import array

import jaxgmm as jg
from jaxgmm.covariances.structures import STRUCTURES, SWEPT, structure_named
from jaxgmm.covariances.traced import TracedStructure


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_a_row_of_the_table_holds_what_it_says(covariance_type):
    check_structure(STRUCTURES[covariance_type])


@pytest.mark.parametrize("leading", [1, K])
@pytest.mark.parametrize("storage", [jg.Full, jg.Diagonal, jg.Spherical])
def test_a_storage_answers_as_its_matrices_do(storage, leading):
    random = np.random.default_rng(0)
    shape = {jg.Full: (D, D), jg.Diagonal: (D,), jg.Spherical: ()}[storage]
    scale = random.uniform(0.5, 2, size=(leading, *shape))
    if storage is jg.Full:
        scale = np.tril(scale)
        dense = scale @ np.swapaxes(scale, 1, 2)
    else:
        dense = scale.reshape(leading, -1, 1) ** 2 * np.eye(D)[None]
    check_covariance(storage(array(scale)), dense)


def test_a_sweep_tries_six_types_by_default():
    assert set(SWEPT) < set(STRUCTURES) and len(SWEPT) == 6


def test_rows_are_the_same_in_every_tree():
    """So that a program is compiled once for each of them."""
    assert structure_named("VVV") is structure_named("full")
    assert len({hash(row) for row in STRUCTURES.values()}) == len(STRUCTURES)


def test_a_mixture_of_another_type_has_no_such_coordinates():
    x = array(np.random.default_rng(0).normal(size=(30, 2)))
    full = jg.GaussianMixture.create([1.0], [[0.0, 0.0]], [np.eye(2).tolist()])
    diag = jg.GaussianMixture.create([0.5, 0.5], [[0.0, 0.0]] * 2, [[1.0, 4.0], [2.0, 2.0]], "diag")
    for mixture, name in ((full, "VEI"), (full, "diag"), (diag, "VEI"), (diag, "tied_diag")):
        for function in (
            lambda m, name: jg.unconstrain(m, name),
            lambda m, name: jg.standard_errors(m, x, covariance_type=name),
            lambda m, name: jg.observed_information(m, x, covariance_type=name),
        ):
            with pytest.raises(ValueError, match=name):
                function(mixture, name)


def test_what_is_no_name_is_refused_with_the_names():
    for wrong in (["full"], None, 3, "round"):
        with pytest.raises(ValueError, match="one of full, tied"):
            structure_named(wrong)
    with pytest.raises(ValueError, match="VEI"):
        TracedStructure.of(["full", "VEI"])


def test_components_that_do_not_share_a_shape_are_refused():
    means, equal = jnp.zeros((2, 2)), [[1.0, 4.0], [2.0, 8.0]]
    assert jg.GaussianMixture.create([0.5, 0.5], means, equal, "VEI").n_components == 2
    with pytest.raises(ValueError, match="VEI"):
        jg.GaussianMixture.create([0.5, 0.5], means, [[1.0, 4.0], [2.0, 2.0]], "VEI")
