"""What several tests share: tolerances by dtype, comparisons, data and starts."""

import jax.numpy as jnp
import numpy as np
import oracle

import jaxgmm as jg
from jaxgmm.arrays import budgets
from jaxgmm.covariances.structures import SWEPT

DTYPE = jnp.dtype(jnp.result_type(float))
EPS = float(jnp.finfo(DTYPE).eps)
DOUBLE = jnp.float64 == DTYPE


def by_dtype(float32: float, float64: float) -> float:
    """The number that goes with the running dtype."""
    return float64 if DOUBLE else float32


COVARIANCE_TYPES = list(SWEPT)

# Most fits in these tests have one shape, so that few programs are compiled.
N, D, K = 90, 2, 3
LABELS = np.repeat(np.arange(K), (20, 30, 40))

# A tolerance that leaves nothing but rounding, so that fits can be compared.
TIGHT = by_dtype(1e-10, 1e-14)


def array(x):
    """In the running dtype."""
    return jnp.asarray(np.asarray(x), DTYPE)


def double(x) -> np.ndarray:
    """In NumPy's float64."""
    return np.asarray(x, np.float64)


def assert_close(actual, expected, rtol=None, atol=0.0):
    """Equal within a tolerance; by default a few hundred roundings, relative to the largest."""
    actual, expected = double(actual), double(expected)
    if rtol is None:
        rtol, atol = 0, 300 * EPS * max(1.0, np.max(np.abs(expected), initial=0))
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def distance(actual, expected) -> float:
    """How far apart two mixtures are, in units that no shift or scale of the data changes.

    The largest of: differences of weights; of means, in standard deviations of the expected
    component; of covariances, whitened by the expected one.
    """
    if isinstance(actual, jg.GaussianMixture):
        actual = oracle.dense(actual)
    if isinstance(expected, jg.GaussianMixture):
        expected = oracle.dense(expected)
    parts = [np.abs(actual.weights - expected.weights).max()]
    for k in range(len(expected.weights)):
        whiten = np.linalg.inv(np.linalg.cholesky(expected.covariances[k]))
        ratio = whiten @ actual.covariances[k] @ whiten.T
        parts.append(np.abs(whiten @ (actual.means[k] - expected.means[k])).max())
        parts.append(np.abs(ratio - np.eye(len(ratio))).max())
    return float(np.max(parts))


def assert_same_mixture(actual, expected, tolerance=None):
    """Equal up to a `distance`."""
    tolerance = by_dtype(2e-3, 1e-7) if tolerance is None else tolerance
    assert distance(actual, expected) <= tolerance


def blobs(n_features: int = D, seed: int = 0, width: float = 1.0) -> np.ndarray:
    """90 rows in three clusters of unequal sizes and shapes, in the order of LABELS: (N, D)."""
    random = np.random.default_rng(seed)
    centers = np.array([[0.0, 0.0], [5.0, 1.0], [12.0, -6.0]])[:, :n_features]
    shapes = np.array(
        [[[1.0, 0.0], [0.4, 0.7]], [[0.8, 0.0], [-0.5, 1.1]], [[1.3, 0.0], [0.2, 0.6]]]
    )
    noise = random.normal(size=(N, n_features))
    rows = np.einsum("nij,nj->ni", shapes[LABELS][:, :n_features, :n_features], noise)
    return double(array(centers[LABELS] + width * rows))


def cloud(seed: int = 0) -> np.ndarray:
    """90 rows of a single cloud, in which components overlap entirely: (N, D)."""
    return double(array(np.random.default_rng(seed).normal(size=(N, D))))


def mixture_from(reference: oracle.Mixture, covariance_type: str) -> jg.GaussianMixture:
    """The library's mixture of a dense one that already has this type's form."""
    c = (reference.covariances + np.swapaxes(reference.covariances, 1, 2)) / 2
    variances = {
        "full": lambda: c,
        "tied": lambda: c[0],
        "diag": lambda: np.einsum("kii->ki", c),
        "spherical": lambda: c[:, 0, 0],
        "tied_diag": lambda: np.diag(c[0]),
        "tied_spherical": lambda: c[0, 0, 0],
    }[covariance_type]()
    weights = reference.weights / reference.weights.sum()
    return jg.GaussianMixture.create(
        array(weights), array(reference.means), array(variances), covariance_type
    )


def start_from_labels(x, covariance_type: str, blur: float = 0.2) -> jg.GaussianMixture:
    """One M-step of the true partition of `blobs`, blurred by random responsibilities."""
    noise = np.random.default_rng(1).dirichlet(np.ones(K), size=N)
    shares = (1 - blur) * np.eye(K)[LABELS] + blur * noise
    return start_from_shares(x, shares, covariance_type)


def start_at_random(x, covariance_type: str, seed: int = 0) -> jg.GaussianMixture:
    """One M-step of random responsibilities."""
    shares = np.random.default_rng(seed).dirichlet(np.full(K, 0.5), size=len(x))
    return start_from_shares(x, shares, covariance_type)


def start_from_shares(x, shares, covariance_type: str) -> jg.GaussianMixture:
    """One M-step of given responsibilities."""
    x = double(x)
    origin = np.tile(x.mean(axis=0), (shares.shape[1], 1))
    statistics = oracle.accumulate(x, shares, np.ones(len(x)), origin)
    return mixture_from(oracle.m_step(statistics, covariance_type), covariance_type)


def padded(x, weights=None, n_rows: int = N):
    """x with rows of NaN behind it, and the weights (0 for those) that make them vanish."""
    x = double(x)
    weights = np.ones(len(x)) if weights is None else double(weights)
    missing = n_rows - len(x)
    rows = np.concatenate([x, np.full((missing, x.shape[1]), np.nan)])
    return array(rows), array(np.concatenate([weights, np.zeros(missing)]))


def em(start, x, weights=None, **options) -> jg.FitResult:
    """`jg.em` in the running dtype, always with weights, so that equal shapes share one program."""
    weights = np.ones(len(x)) if weights is None else weights
    return jg.em(start, array(x), weights=array(weights), **options)


def assert_refused(capsys, message):
    """The command line says it on one line of stderr."""
    err = capsys.readouterr().err
    assert err.startswith("jaxgmm: error: ")
    assert err.count("\n") == 1
    assert message in err


def set_budget(patch, **sizes):
    """Other sizes than those that were tuned, on every platform."""
    for platform in ("CPU", "ACCELERATOR"):
        patch.setattr(budgets, platform, getattr(budgets, platform)._replace(**sizes))


class Tensor:
    """Of another library, on the host: it exports DLPack, and nothing else."""

    def __init__(self, values):
        self.values = values

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()
