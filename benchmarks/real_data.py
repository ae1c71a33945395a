"""Real data sets that come with jaxgmm and with scikit-learn."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer, load_iris, load_wine

import jaxgmm as jg


def data_sets() -> dict[str, np.ndarray]:
    """(N, D) float64 each."""
    geyser = Path(jg.__file__).parent / "datasets" / "old_faithful.csv"
    return {
        "Old Faithful": np.loadtxt(geyser, delimiter=",", skiprows=1),
        "iris": load_iris().data,
        "wine, 4 features": load_wine().data[:, :4],
        "breast cancer, 5 features": load_breast_cancer().data[:, :5],
    }
