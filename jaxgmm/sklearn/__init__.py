"""The mixture as an estimator of scikit-learn."""

try:
    import sklearn as _sklearn  # noqa: F401
except ImportError as error:
    raise ImportError("jaxgmm.sklearn needs scikit-learn: pip install 'jaxgmm[sklearn]'") from error

from jaxgmm.sklearn.estimator import GaussianMixture as GaussianMixture
