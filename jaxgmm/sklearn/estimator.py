"""The Gaussian mixture as an estimator of scikit-learn, of which it is a kind."""

import warnings
from typing import Any, ClassVar, NoReturn, Self

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.mixture
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import _check_sample_weight, validate_data

from jaxgmm.covariances.storage import variances
from jaxgmm.covariances.structures import STRUCTURES
from jaxgmm.files.interchange import SKLEARN_TYPES
from jaxgmm.fits.criteria import free_parameters
from jaxgmm.mixtures.mixture import GaussianMixture as Mixture
from jaxgmm.sklearn.climb import Climb, Start
from jaxgmm.sklearn.padded import climb_from, has_collapsed, log_densities
from jaxgmm.sklearn.starts import prior_of, start_of
from jaxgmm.steps.em_step import e_step, m_step
from jaxgmm.steps.statistics import SufficientStatistics

# Rates of `partial_fit`: (t + 2) to this power, for part number t from 0.
FORGETTING = -0.7
# Steps of which the log-likelihoods are recorded, and so the most there are.
MOST_STEPS = 2**20


class GaussianMixture(sklearn.mixture.GaussianMixture):
    """The Gaussian mixture of scikit-learn, fitted and asked by compiled programs.

    Arguments, attributes, methods, starts, stopping rule, warnings and errors are those of
    `sklearn.mixture.GaussianMixture`; a fit from the same random state is the same but for
    rounding. Rows in float64 are computed with in float64, whatever JAX's default is, others of
    float32 in float32. Only NumPy arrays are kept, so that it can be pickled. What `verbose` prints
    of a start comes when it has been climbed from.

    Args:
        n_components: K.
        covariance_type: one of scikit-learn's, or any other of the library's; what `covariances_`
            looks like is said at `jaxgmm.GaussianMixture.create`.
        tol, reg_covar, max_iter, n_init, init_params, weights_init, means_init, precisions_init,
            random_state, warm_start, verbose, verbose_interval: see scikit-learn.
        use_labels: whether y are labels 0 to K - 1 of the components that rows belong to, or -1 for
            rows of which that isn't known; else y is ignored.

    Example:
        >>> import numpy as np
        >>> from jaxgmm.sklearn import GaussianMixture
        >>> x = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
        >>> GaussianMixture(n_components=2, random_state=0).fit(x).predict([[0, 0], [12, 3]])
        array([1, 0])
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **sklearn.mixture.GaussianMixture._parameter_constraints,
        "covariance_type": [StrOptions(set(STRUCTURES))],
        "use_labels": ["boolean"],
    }

    # Statistics of the parts of data that have been learned; None after a fit.
    _parts: Any = None
    lower_bound_: float

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weights_init: ArrayLike | None = None,
        means_init: ArrayLike | None = None,
        precisions_init: ArrayLike | None = None,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
        use_labels: bool = False,
    ):
        super().__init__(
            n_components=n_components,
            covariance_type=covariance_type,
            tol=tol,
            reg_covar=reg_covar,
            max_iter=max_iter,
            n_init=n_init,
            init_params=init_params,
            weights_init=weights_init,
            means_init=means_init,
            precisions_init=precisions_init,
            random_state=random_state,
            warm_start=warm_start,
            verbose=verbose,
            verbose_interval=verbose_interval,
        )
        self.use_labels = use_labels

    def fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Fits the mixture, see scikit-learn.

        Args:
            X: (N, D), N at least 2 and K.
            y: (N,) int labels where `use_labels` asks for them; ignored otherwise.
            sample_weight: (N,) not negative; a weight of 2 is a row that is there twice.
        """
        self._validate_params()
        X, weights, labels = self._checked(X, y, sample_weight)
        self._check_start(X, weights)
        goes_on = self.warm_start and hasattr(self, "converged_")
        if goes_on:
            self._check_fitted()
        before = self.lower_bound_ if goes_on else -np.inf
        random_state = check_random_state(self.random_state)
        best: Climb | None = None
        for number in range(1 if goes_on else self.n_init):
            self._print_verbose_msg_init_beg(number)
            found = self._climb(X, weights, labels, goes_on, random_state, self.max_iter)
            bounds = found.lower_bounds[: found.n_iter]
            if self.max_iter == 0:
                best = found
                continue
            for i, change in enumerate(np.diff(bounds, prepend=before)):
                self._print_verbose_msg_iter_end(i + 1, change)
            self._print_verbose_msg_init_end(bounds[-1], abs(found.change) < self.tol)
            if best is None or bounds[-1] > best.lower_bounds[best.n_iter - 1]:
                best = found
        assert best is not None
        converged = bool(abs(best.change) < self.tol)
        if not converged and self.max_iter > 0:
            warnings.warn(
                "Best performing initialization did not converge. Try different init parameters, "
                "or increase max_iter, tol, or check for degenerate data.",
                ConvergenceWarning,
                stacklevel=2,
            )
        self._set_parameters_of(best.weights, best.means, best.covariances)
        self._parts, self.converged_ = None, converged
        self.n_iter_ = int(best.n_iter)
        self.lower_bounds_ = best.lower_bounds[: self.n_iter_].tolist()
        self.lower_bound_ = self.lower_bounds_[-1] if self.lower_bounds_ else -np.inf
        return self

    def fit_predict(
        self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None
    ) -> np.ndarray:
        """Fits the mixture, and gives the component of each row: (N,) int."""
        return self.fit(X, y, sample_weight).predict(X)

    def partial_fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """A step of EM with some of the rows, for data that come in parts.

        Statistics of the part get a share of (t + 2)^-0.7 in an average with those of the parts
        before, where t is `n_iter_`, or after a `fit` with those that the mixture stands for. Where
        nothing has been fitted, the first part says where to begin, as in `fit`.

        Args:
            X, y, sample_weight: see `fit`.

        Source: Cappé & Moulines 2009.
        """
        self._validate_params()
        is_first = not hasattr(self, "means_")
        X, weights, labels = self._checked(X, y, sample_weight, is_part=not is_first)
        if is_first:
            self._check_start(X, weights)
            random_state = check_random_state(self.random_state)
            first = self._climb(X, weights, labels, False, random_state, max_iter=0)
            self._set_parameters_of(first.weights, first.means, first.covariances)
            self.n_iter_, self.lower_bounds_ = 0, []
        self._check_fitted()
        structure = STRUCTURES[self.covariance_type]
        with jax.enable_x64(X.dtype == np.float64):
            mixture = self._mixture()
            prior = None if labels is None else prior_of(labels, self.n_components, X.dtype)
            of_type = {"covariance_type": self.covariance_type}
            statistics = e_step(mixture, X, weights, log_prior=prior, **of_type)
            log_likelihood = float(statistics.log_likelihood) / weights.sum()
            statistics = float(1 / weights.sum()) * statistics
            if not is_first:
                rate = (self.n_iter_ + 2) ** FORGETTING
                before = self._statistics().about(statistics.origin)
                statistics = (1 - rate) * before + rate * statistics
            added = jnp.full(X.shape[1], self.reg_covar, X.dtype)
            new = m_step(statistics, **of_type, previous=mixture, regularization=added)
            covariances = structure.variances(new.covariance, new.n_features)
            found = jax.device_get((new.weights, new.means, covariances))
            statistics = jax.device_get(statistics)
        self._set_parameters_of(*found)
        self._parts = statistics
        self.converged_, self.n_iter_ = False, self.n_iter_ + 1
        self.lower_bound_ = log_likelihood
        self.lower_bounds_ = [*self.lower_bounds_, log_likelihood]
        return self

    def _statistics(self) -> SufficientStatistics:
        """Of the parts of data so far, or those that the mixture stands for; per unit of weight."""
        if self._parts is not None:
            return jax.tree.map(jnp.asarray, self._parts)
        mixture, structure = self._mixture(), STRUCTURES[self.covariance_type]
        n_features, weights = mixture.n_features, mixture.weights
        if structure.full_second_moment:
            spread = mixture.covariances - self.reg_covar * jnp.eye(n_features)[None]
            second = weights[:, None, None] * spread
        else:
            squares = variances(mixture.covariance, n_features) - self.reg_covar
            second = weights[:, None] * jnp.broadcast_to(squares, mixture.means.shape)
        nothing = jnp.zeros_like(mixture.means)
        return SufficientStatistics(nothing[0, 0], weights, nothing, second, mixture.means)

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Random rows and their components, see scikit-learn: (n_samples, D), (n_samples,) int."""
        if self.covariance_type in SKLEARN_TYPES or not hasattr(self, "means_"):
            return super().sample(n_samples)
        alike = sklearn.mixture.GaussianMixture(
            self.n_components, covariance_type="diag", random_state=self.random_state
        )
        alike.weights_, alike.means_ = self.weights_, self.means_
        alike.covariances_ = np.broadcast_to(self.covariances_, self.means_.shape)
        alike.precisions_cholesky_ = 1 / np.sqrt(alike.covariances_)
        return alike.sample(n_samples)

    def _checked(
        self, X: Any, y: Any, sample_weight: Any, is_part: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Rows, weights and labels, known to be good; a part of the data may be a single row."""
        X = validate_data(
            self,
            X,
            dtype=[np.float64, np.float32],
            ensure_min_samples=1 if is_part else 2,
            reset=not is_part,
        )
        weights = _check_sample_weight(sample_weight, X, dtype=X.dtype, ensure_non_negative=True)
        if not self.use_labels or y is None:
            return X, weights, None
        labels = np.asarray(y)
        if labels.shape != X.shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(
                f"y must hold {len(X)} integers, got shape {labels.shape} of {labels.dtype}"
            )
        if labels.min() < -1 or labels.max() >= self.n_components:
            raise ValueError(
                f"y must hold labels from 0 to {self.n_components - 1}, or -1 for rows of which "
                f"nothing is known, got {labels.min()} to {labels.max()}"
            )
        return X, weights, labels

    def _check_start(self, X: np.ndarray, weights: np.ndarray) -> None:
        """ValueError where there are too few rows, or what is given for the start is wrong."""
        n_rows = np.count_nonzero(weights)
        if n_rows < self.n_components:
            raise ValueError(
                f"Expected n_samples >= n_components but got n_components = {self.n_components}, "
                f"n_samples = {n_rows}"
            )
        self._check_parameters(X)

    def _check_fitted(self) -> None:
        """ValueError where a mixture of other parameters has been fitted."""
        shape = STRUCTURES[self.covariance_type].shape(self.n_components, self.means_.shape[1])
        if len(self.means_) != self.n_components or np.shape(self.covariances_) != shape:
            raise ValueError(
                f"the mixture that has been fitted has {len(self.means_)} components and "
                f"covariances of shape {np.shape(self.covariances_)}, not {self.n_components} of "
                f"type {self.covariance_type}; fit a clone of this estimator"
            )

    def _check_parameters(self, X: np.ndarray, xp: Any = np) -> None:
        """What is given for the start, checked."""
        if self.covariance_type not in SKLEARN_TYPES and self.precisions_init is not None:
            raise ValueError(
                f"precisions_init is for covariance types {', '.join(SKLEARN_TYPES)}, not "
                f"{self.covariance_type}"
            )
        super()._check_parameters(X, xp=xp)

    def _climb(
        self,
        X: np.ndarray,
        weights: np.ndarray,
        labels: np.ndarray | None,
        goes_on: bool,
        random_state: Any,
        max_iter: int,
    ) -> Climb:
        """A fit from one start."""
        structure, n_components = STRUCTURES[self.covariance_type], self.n_components
        if goes_on:
            start, before = (
                Start(None, self.weights_, self.means_, self.covariances_),
                self.lower_bound_,
            )
        else:
            given = (self.weights_init, self.means_init, self._covariances_init())
            data = (n_components, X, weights, labels, random_state)
            start, before = start_of(given, self.init_params, *data), -np.inf
        prior = None if labels is None else prior_of(labels, n_components, X.dtype)
        numbers = (self.reg_covar, self.tol, before)
        steps = min(max_iter, MOST_STEPS)
        found = climb_from(start, X, weights, prior, structure, n_components, numbers, steps)
        if not found.finite and labels is not None and np.any(found.weights == 0):
            raise ValueError("y holds labels of components without weight; see weights_init")
        lost = not found.finite
        if self.reg_covar == 0 and not lost:
            lost = has_collapsed(structure, found.covariances, X[weights > 0])
        return self._failed(found.covariances) if lost else found

    def _covariances_init(self) -> np.ndarray | None:
        """Inverses of the precisions that are given, or None."""
        if self.precisions_init is None:
            return None
        precisions = np.asarray(self.precisions_init)
        matrices = self.covariance_type in ("full", "tied")
        return np.linalg.inv(precisions) if matrices else 1 / precisions

    def _failed(self, covariances: np.ndarray) -> NoReturn:
        """Raises scikit-learn's ValueError about covariances that aren't positive definite."""
        self._precision_factors(np.zeros_like(covariances))
        raise AssertionError

    def _precision_factors(self, covariances: np.ndarray) -> np.ndarray:
        """`precisions_cholesky_`, or scikit-learn's ValueError if they aren't positive definite."""
        name = self.covariance_type if self.covariance_type in ("full", "tied") else "diag"
        return _compute_precision_cholesky(covariances, name)

    def _set_parameters_of(
        self, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray
    ) -> None:
        """The attributes of a fitted mixture."""
        factors = self._precision_factors(covariances)
        self._set_parameters((weights / weights.sum(), np.asarray(means), covariances, factors))

    def _mixture(self) -> Mixture:
        """The mixture that has been fitted; to be called in the precision that it has."""
        structure = STRUCTURES[self.covariance_type]
        with np.errstate(divide="ignore"):
            log_weights = np.log(self.weights_)
        covariance = structure.store(jnp.asarray(self.covariances_))
        return Mixture(jnp.asarray(log_weights), jnp.asarray(self.means_), covariance)

    def _estimate_log_prob(self, X: np.ndarray, xp: Any = None) -> np.ndarray:
        """log N(x | μ_k, Σ_k): (N, K)."""
        X, means, factors = map(np.asarray, (X, self.means_, self.precisions_cholesky_))
        dtype = np.result_type(means, X) if X.dtype.kind == "f" else means.dtype
        structure = STRUCTURES[self.covariance_type]
        return log_densities(X.astype(dtype, copy=False), means, factors, structure)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.array_api_support = False
        return tags

    def _n_parameters(self) -> int:
        """The number of free parameters."""
        return free_parameters(self.n_components, self.means_.shape[1], self.covariance_type)
