"""Scikit-learn's own tests of its mixture, with this class in its place.

But for those of arrays of other libraries, which this class doesn't compute with, and of what is
called inside.
"""

import numpy as np
import pytest
from sklearn.mixture.tests import test_gaussian_mixture as of_gaussians
from sklearn.mixture.tests import test_mixture as of_mixtures

from jaxgmm.sklearn import GaussianMixture

# There warnings are no errors.
pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("default")]

OF_ITS_INSIDE = {"test_gaussian_mixture_all_init_does_not_estimate_gaussian_parameters"}

for module in (of_gaussians, of_mixtures):
    for name, test in vars(module).items():
        is_wanted = "array_api" not in name and name not in OF_ITS_INSIDE
        if name.startswith("test_") and is_wanted:
            globals()[name] = test


@pytest.fixture(autouse=True)
def _in_its_place(monkeypatch):
    for module in (of_gaussians, of_mixtures):
        monkeypatch.setattr(module, "GaussianMixture", GaussianMixture)


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def global_dtype(request):
    """A dtype of the data, as scikit-learn's tests ask for it."""
    return request.param


@pytest.fixture
def global_random_seed():
    """A seed, as scikit-learn's tests ask for it."""
    return 0
