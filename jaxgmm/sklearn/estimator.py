"""The Gaussian mixture as an estimator of scikit-learn, of which it is a kind."""

import warnings
from typing import Any, ClassVar, NoReturn, Self

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.mixture
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import _check_sample_weight, validate_data

from jaxgmm.arrays.budgets import budget
from jaxgmm.arrays.padding import padded_rows
from jaxgmm.covariances.storage import Covariance, Diagonal, Full, variances
from jaxgmm.covariances.structures import STRUCTURES, Structure
from jaxgmm.covariances.traced import AnyStructure, TracedStructure
from jaxgmm.files.interchange import SKLEARN_TYPES
from jaxgmm.fits.criteria import free_parameters
from jaxgmm.mixtures.densities import component_log_prob
from jaxgmm.mixtures.mixture import GaussianMixture as Mixture
from jaxgmm.sklearn.climb import Climb, Start, climb
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

    def _responsibilities(
        self, X: np.ndarray, weights: np.ndarray, labels: np.ndarray | None, random_state: Any
    ) -> np.ndarray:
        """Of the first M-step, as scikit-learn draws them: (N, K)."""
        n_rows, n_components = len(X), self.n_components
        shares = np.zeros((n_rows, n_components), X.dtype)
        if self.init_params == "kmeans":
            clusters = KMeans(n_components, n_init=1, random_state=random_state)
            of_rows = clusters.fit(X, sample_weight=weights).labels_
            shares[np.arange(n_rows), of_rows] = 1
        elif self.init_params == "random":
            shares[:] = random_state.uniform(size=shares.shape)
            shares /= shares.sum(axis=1, keepdims=True)
        elif self.init_params == "random_from_data":
            present = np.flatnonzero(weights)
            drawn = random_state.choice(len(present), size=n_components, replace=False)
            shares[present[drawn], np.arange(n_components)] = 1
        else:
            _, drawn = kmeans_plusplus(
                X, n_components, sample_weight=weights, random_state=random_state
            )
            shares[drawn, np.arange(n_components)] = 1
        if labels is not None:
            known = labels >= 0
            told = np.eye(n_components, dtype=X.dtype)[labels[known]]
            # Of each component the part that has most rows of its label.
            _, part = linear_sum_assignment(-told.T @ (weights[:, None] * shares)[known])
            shares = shares[:, part]
            shares[known] = told
        return shares

    def _climb(
        self,
        X: np.ndarray,
        weights: np.ndarray,
        labels: np.ndarray | None,
        goes_on: bool,
        random_state: Any,
        max_iter: int,
    ) -> Climb:
        """A fit from one start, with NumPy's arrays."""
        max_iter = min(max_iter, MOST_STEPS)
        if goes_on:
            start = Start(None, self.weights_, self.means_, self.covariances_)
        else:
            start = self._start(X, weights, labels, random_state)
        before = self.lower_bound_ if goes_on else -np.inf
        n_components, dtype = self.n_components, X.dtype
        given = any(part is not None for part in start[1:])
        structure, size = self._program(X, as_data=not given)
        n_rows = rows_of_program(X)
        prior = None if labels is None else prior_of(labels, n_components, dtype)
        start = Start(with_zeros(start.responsibilities, n_rows, size), *start[1:])
        start = jax.tree.map(lambda part: np.asarray(part, dtype), start)
        reg_covar, tol, before = (
            np.asarray(of, dtype) for of in (self.reg_covar, self.tol, before)
        )
        with jax.enable_x64(dtype == np.float64):
            found = climb(
                with_zeros(X, n_rows),
                with_zeros(weights, n_rows),
                with_zeros(prior, n_rows, size),
                start,
                np.arange(size) < n_components,
                reg_covar,
                tol,
                np.asarray(max_iter),
                before,
                structure,
                capacity=1 << max(0, max_iter - 1).bit_length(),
            )
            found = jax.tree.map(np.asarray, found)
        covariances = found.covariances
        if isinstance(structure, TracedStructure):
            covariances = self._of_type(covariances)
        if not STRUCTURES[self.covariance_type].shared:
            covariances = covariances[:n_components]
        found = found._replace(
            weights=found.weights[:n_components],
            means=found.means[:n_components],
            covariances=covariances,
        )
        if not found.finite and labels is not None and np.any(found.weights == 0):
            raise ValueError("y holds labels of components without weight; see weights_init")
        lost = not found.finite
        if self.reg_covar == 0 and not lost:
            lost = has_collapsed(STRUCTURES[self.covariance_type], covariances, X[weights > 0])
        return self._failed(covariances) if lost else found

    def _failed(self, covariances: np.ndarray) -> NoReturn:
        """Raises scikit-learn's ValueError about covariances that aren't positive definite."""
        self._precision_factors(np.zeros_like(covariances))
        raise AssertionError

    def _program(self, X: np.ndarray, as_data: bool) -> tuple[AnyStructure, int]:
        """The covariance type and the number of components that a fit is compiled for.

        Small data are fitted by programs for several of them.

        Args:
            X: (N, D).
            as_data: whether the type may be data.
        """
        structure = STRUCTURES[self.covariance_type]
        size = 1 << (self.n_components - 1).bit_length()
        numbers = rows_of_program(X) * size * X.shape[1] ** 2
        if not as_data or structure.coupled or numbers > budget().padded_pass:
            return structure, self.n_components
        if numbers > budget().common_pass:
            return structure, size
        of_one = TracedStructure.of([structure.name])
        return jax.tree.map(lambda flag: flag[0], of_one), size

    def _start(
        self, X: np.ndarray, weights: np.ndarray, labels: np.ndarray | None, random_state: Any
    ) -> Start:
        """A start, of which nothing is drawn if all of it is given."""
        covariances = None
        if self.precisions_init is not None:
            precisions = np.asarray(self.precisions_init)
            matrices = self.covariance_type in ("full", "tied")
            covariances = np.linalg.inv(precisions) if matrices else 1 / precisions
        given = (self.weights_init, self.means_init, covariances)
        if all(part is not None for part in given):
            return Start(None, *given)
        return Start(self._responsibilities(X, weights, labels, random_state), *given)

    def _of_type(self, matrices: np.ndarray) -> np.ndarray:
        """Covariances (K, D, D) as they are written down for the type."""
        structure = STRUCTURES[self.covariance_type]
        found = matrices
        if structure.diagonal:
            found = np.diagonal(matrices, axis1=1, axis2=2)
        if structure.isotropic:
            found = found[:, 0]
        return found[0] if structure.shared else found

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
        """log N(x | μ_k, Σ_k): (N, K); of few numbers by a program for several types and sizes."""
        structure = STRUCTURES[self.covariance_type]
        X, means, factors = (
            np.asarray(array) for array in (X, self.means_, self.precisions_cholesky_)
        )
        dtype = np.result_type(means, X) if X.dtype.kind == "f" else means.dtype
        n_components, n_features = means.shape
        if structure.diagonal:
            of_each = factors[:, None] if factors.ndim == 1 and not structure.shared else factors
            factors = np.broadcast_to(of_each, means.shape)
        n_rows, size = rows_of_program(X), n_components
        if X.size <= budget().small:
            size = 1 << (n_components - 1).bit_length()
        if structure.diagonal and n_rows * size * n_features**2 <= budget().padded_pass:
            factors = factors[:, :, None] * np.eye(n_features)[None]
        with jax.enable_x64(dtype == np.float64):
            if factors.ndim < 3 and structure.diagonal:
                more = np.ones((size - n_components, n_features))
                scales = np.concatenate([1 / factors, more])
                covariance: Covariance = Diagonal(jnp.asarray(scales, dtype))
            else:
                covariance = full_of(factors.reshape(-1, n_features, n_features), size, dtype)
            found = component_log_prob(
                covariance,
                with_zeros(means.astype(dtype, copy=False), size),
                with_zeros(X.astype(dtype, copy=False), n_rows),
            )
        return np.array(found)[: len(X), :n_components]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.array_api_support = False
        return tags

    def _n_parameters(self) -> int:
        """The number of free parameters."""
        return free_parameters(self.n_components, self.means_.shape[1], self.covariance_type)


def full_of(factors: np.ndarray, size: int, dtype: Any) -> Full:
    """Full covariances Σ⁻¹ = U Uᵀ of factors U (K or 1, D, D), and so many in all that are I."""
    inverse = np.swapaxes(factors, 1, 2).astype(dtype)
    if len(inverse) > 1 and size > len(inverse):
        more = np.broadcast_to(np.eye(inverse.shape[1], dtype=dtype), (size, *inverse.shape[1:]))
        inverse = np.concatenate([inverse, more[len(inverse) :]])
    return Full(jnp.asarray(np.linalg.inv(inverse)), jnp.asarray(inverse))


def rows_of_program(X: np.ndarray) -> int:
    """The number of rows that a program for X (N, D) is compiled for."""
    return padded_rows(len(X)) if X.size <= budget().small else len(X)


def with_zeros(array: np.ndarray | None, *lengths: int) -> np.ndarray | None:
    """An array whose first axes have been filled up to some lengths by zeros."""
    if array is None or array.shape[: len(lengths)] == lengths:
        return array
    missing = [length - had for length, had in zip(lengths, array.shape, strict=False)]
    return np.pad(array, [(0, count) for count in missing] + [(0, 0)] * (array.ndim - len(missing)))


def prior_of(labels: np.ndarray, n_components: int, dtype: Any) -> np.ndarray:
    """What labels (N,) say as a `log_prior`: (N, K)."""
    other = labels[:, None] != np.arange(n_components)[None]
    return np.where((labels >= 0)[:, None] & other, -np.inf, 0).astype(dtype)


def has_collapsed(structure: Structure, covariances: np.ndarray, X: np.ndarray) -> bool:
    """Whether some covariance has no variance left, or is singular to rounding.

    Args:
        structure: the covariance type.
        covariances: as they are written down.
        X: (N, D) rows.
    """
    # To the smallest numbers there are Cholesky factors raise what is zero.
    eps, least = np.finfo(X.dtype).eps, 2**20 * np.finfo(X.dtype).tiny
    of_data = X.var(axis=0, dtype=np.float64)
    of_data[of_data == 0] = 1
    if structure.isotropic:
        of_data = of_data.mean()
    if not structure.full_second_moment:
        return bool(np.any(covariances <= least * of_data))
    variances = np.diagonal(covariances, axis1=-2, axis2=-1)
    if np.any(variances <= least * of_data):
        return True
    deviations = np.sqrt(variances)
    correlations = covariances / (deviations[..., :, None] * deviations[..., None, :])
    return bool(np.linalg.eigvalsh(correlations).min() <= 2 * X.shape[1] * eps)
