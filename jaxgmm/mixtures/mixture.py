"""The Gaussian mixture: a pytree of three fields, and what can be asked of it."""

import operator
from dataclasses import dataclass, replace
from html import escape
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from jaxgmm.arrays.conversion import as_float_array, in_common_dtype
from jaxgmm.arrays.host import is_concrete
from jaxgmm.arrays.numerics import einsum
from jaxgmm.arrays.placement import at_index
from jaxgmm.arrays.printing import html_table, some_numbers, text_table
from jaxgmm.arrays.validation import as_query, check_count, check_flag, check_key, check_mixture
from jaxgmm.covariances.storage import Covariance, average, precision, variances
from jaxgmm.covariances.structures import Structure, covariance_type_of, structure_named
from jaxgmm.mixtures import densities, sampling

T = TypeVar("T")

# Components and features of a mixture that are printed, at most.
SHOWN_COMPONENTS, SHOWN = 10, 5


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class GaussianMixture:
    """Σ_k w_k N(x | μ_k, Σ_k), as a pytree.

    The constructor stores what it is given; `GaussianMixture.create` validates. Methods are
    written for one mixture: for a batch of them use `jax.vmap`, or `mixture[b]` to pick one.

    Attributes:
        log_weights: (K,) log of the mixing weights, -inf for a component without weight.
        means: (K, D) in the data's units.
        covariance: `Full`, `Diagonal` or `Spherical`, with leading axis K, or 1 if shared.
    """

    log_weights: Array
    means: Array
    covariance: Covariance

    @classmethod
    def create(
        cls,
        weights: ArrayLike,
        means: ArrayLike,
        covariances: ArrayLike,
        covariance_type: str = "full",
    ) -> "GaussianMixture":
        """A mixture from the parameters that people write down, validated.

        Args:
            weights: (K,) non-negative, summing to 1.
            means: (K, D).
            covariances: variances, not standard deviations: full (K, D, D), tied (D, D),
                diag and VEI (K, D), spherical (K,), tied_diag (D,), tied_spherical ().
            covariance_type: one of these names.

        Raises:
            TypeError: something isn't numeric.
            ValueError: shapes don't agree, weights are no probabilities, a covariance isn't
                symmetric positive definite, or the type is unknown. Values are checked where they
                are known.

        Example:
            >>> import jaxgmm as jg
            >>> mixture = jg.GaussianMixture.create([0.5, 0.5], [[0.0], [2.0]], [1.0, 1.0],
            ...                                     covariance_type="spherical")
            >>> mixture.predict([[-1.0], [3.0]]).tolist()
            [0, 1]
        """
        structure = structure_named(covariance_type)
        weights, means, covariances = in_common_dtype(
            as_float_array("weights", weights),
            as_float_array("means", means),
            as_float_array("covariances", covariances),
        )
        if means.ndim != 2 or 0 in means.shape:
            raise ValueError(f"means must be (K, D), got shape {means.shape}")
        n_components, n_features = means.shape
        if weights.shape != (n_components,):
            raise ValueError(
                f"weights must be ({n_components},), one for each of the means, got shape "
                f"{weights.shape}"
            )
        shape = structure.shape(n_components, n_features)
        if covariances.shape != shape:
            raise ValueError(
                f"covariances must be {shape} for covariance_type={covariance_type!r}, "
                f"{n_components} components and {n_features} features, got shape "
                f"{covariances.shape}"
            )
        if is_concrete(weights, means, covariances):
            with jax.ensure_compile_time_eval():
                _check_values(weights, means, covariances, structure.full_second_moment)
        covariance = structure.store(covariances)
        structure.check(covariance, n_components, n_features)
        return cls(jnp.log(weights), means, covariance)

    def __repr__(self) -> str:
        """Kind and sizes, and where they are known a line for each of the first components."""
        head = f"GaussianMixture({_in_words(self)})"
        cells = _table_of(self)
        return "\n".join([head, *text_table(cells)]) if cells else head

    def _repr_html_(self) -> str:
        """`repr` for notebooks."""
        head = f"GaussianMixture({_in_words(self)})"
        cells = _table_of(self)
        return html_table(head, cells) if cells else f"<p>{escape(head)}</p>"

    def __getitem__(self, index: int) -> "GaussianMixture":
        """One mixture of a batch."""
        return pick(self, self.log_weights.shape[:-1], index)

    @property
    def n_components(self) -> int:
        """K."""
        return self.log_weights.shape[-1]

    @property
    def n_features(self) -> int:
        """D."""
        return self.means.shape[-1]

    @property
    def weights(self) -> Array:
        """(K,) mixing weights."""
        return jnp.exp(self.log_weights)

    @property
    def covariance_type(self) -> str:
        """The covariance type that the storage says; for a single component the untied one."""
        check_mixture(self)
        return covariance_type_of(self.covariance, self.n_components)

    @property
    def covariances(self) -> Array:
        """(K, D, D) covariance matrices, repeated where they are shared."""
        check_mixture(self)
        return self._of_every_component(self.covariance.dense(self.n_features))

    @property
    def precisions(self) -> Array:
        """(K, D, D) inverse covariance matrices, repeated where they are shared."""
        check_mixture(self)
        return self._of_every_component(precision(self.covariance, self.n_features))

    def component_log_prob(self, x: ArrayLike) -> Array:
        """log N(x | μ_k, Σ_k), without the mixing weight: (..., D) -> (..., K), in nats."""
        mixture, x = as_query(self, x)
        return densities.component_log_prob(mixture.covariance, mixture.means, x)

    def log_prob(self, x: ArrayLike) -> Array:
        """log density: (..., D) -> (...), in nats; -inf where it can't be represented."""
        mixture, x = as_query(self, x)
        return densities.log_prob(mixture.log_weights, mixture.covariance, mixture.means, x)

    def log_responsibilities(self, x: ArrayLike) -> Array:
        """log p(component k | x): (..., D) -> (..., K).

        A point so far away that all densities vanish belongs to the component whose density
        vanishes last on the way there.
        """
        mixture, x = as_query(self, x)
        return densities.log_responsibilities(
            mixture.log_weights, mixture.covariance, mixture.means, x
        )

    def responsibilities(self, x: ArrayLike) -> Array:
        """p(component k | x): (..., D) -> (..., K); rows sum to 1.

        Those of a point with NaN or infinity are NaN.
        """
        return jnp.exp(self.log_responsibilities(x))

    def predict(self, x: ArrayLike) -> Array:
        """The most probable component, the lowest of equals: (..., D) -> (...) int.

        It is -1 for a point with NaN or infinity, of which nothing is probable.
        """
        log_responsibilities = self.log_responsibilities(x)
        label = jnp.argmax(log_responsibilities, axis=-1)
        return jnp.where(jnp.any(jnp.isnan(log_responsibilities), axis=-1), -1, label)

    def sample(
        self,
        key: Array,
        n: int,
        return_labels: bool = False,
        *,
        differentiable_weights: bool = False,
    ) -> Any:
        """Independent draws.

        They are differentiable in means and covariances, for a given component of each.

        Args:
            key: a JAX PRNG key.
            n: how many, 0 or more.
            return_labels: whether to return the components drawn, too.
            differentiable_weights: whether draws move with all parameters as their distribution
                does, so that the derivative of an average over them is that of the expectation
                with respect to the weights, too. The draws are the same; derivatives take some
                K·D² operations for each of them.

        Returns:
            (n, D), or with labels ((n, D), (n,) int).

        Raises:
            TypeError: no key.
            ValueError: several keys, a bad count, or a batch.
        """
        check_mixture(self)
        return_labels = check_flag("return_labels", return_labels)
        differentiable_weights = check_flag("differentiable_weights", differentiable_weights)
        parameters = (self.log_weights, self.means, self.covariance)
        given = jax.lax.stop_gradient(parameters) if differentiable_weights else parameters
        x, labels = sampling.draw(given, check_key(key), check_count("n", n, 0))
        if differentiable_weights:
            x = sampling.reparameterized(parameters, x)
        return (x, labels) if return_labels else x

    def mean(self) -> Array:
        """(D,) mean of the whole mixture."""
        check_mixture(self)
        return einsum("k,kd->d", self.weights, self.means)

    def covariance_matrix(self) -> Array:
        """(D, D) covariance of the whole mixture: within plus between the components."""
        between = self.means - self.mean()[None]
        within = average(self.covariance, self.weights, self.n_features)
        return within + einsum("k,ki,kj->ij", self.weights, between, between)

    def _of_every_component(self, matrices: Array) -> Array:
        return jnp.broadcast_to(matrices, (self.n_components, *matrices.shape[1:]))


def structure_of(mixture: GaussianMixture, covariance_type: str | None) -> Structure:
    """The covariance type as which a mixture was estimated; by default what the storage says.

    Raises:
        ValueError: no such type, or the mixture is not of it.
    """
    structure = structure_named(covariance_type or mixture.covariance_type)
    structure.check(mixture.covariance, mixture.n_components, mixture.n_features)
    return structure


def is_finite(mixture: GaussianMixture) -> Array:
    """Whether all parameters are usable; a log-weight may be -inf: () bool."""
    numbers, _ = ravel_pytree(replace(mixture, log_weights=mixture.weights))
    return jnp.all(jnp.isfinite(numbers))


def _in_words(mixture: GaussianMixture) -> str:
    """Kind and sizes of a mixture, or of a batch of them; in a tree of other things, these."""
    sizes = sizes_in_words(mixture)
    if sizes is None:
        fields = ("log_weights", "means", "covariance")
        return ", ".join(f"{name}={getattr(mixture, name)!r}" for name in fields)
    batch_shape = mixture.means.shape[:-2]
    batch = f"batch of {'×'.join(map(str, batch_shape))}, " if batch_shape else ""
    return f"{batch}{sizes}, {mixture.means.dtype}"


def sizes_in_words(mixture: GaussianMixture) -> str | None:
    """Such as "3 full components of 4 features"; None for a tree of other things than arrays."""
    leaves = jax.tree.leaves(mixture)
    if not all(hasattr(leaf, "dtype") for leaf in leaves) or mixture.means.ndim < 2:
        return None
    n_axes = mixture.means.ndim - 2

    def of_one(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape[n_axes:], leaf.dtype)

    kind = covariance_type_of(jax.tree.map(of_one, mixture.covariance), mixture.n_components)
    components = "component" if mixture.n_components == 1 else "components"
    features = "feature" if mixture.n_features == 1 else "features"
    return f"{mixture.n_components} {kind} {components} of {mixture.n_features} {features}"


def _table_of(mixture: GaussianMixture) -> list[list[str]]:
    """A header, and a row for each of the first components of one mixture whose values are known.

    Empty for what isn't one.
    """
    leaves = jax.tree.leaves(mixture)
    known = all(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves)
    if not known or not is_concrete(*leaves) or mixture.means.ndim != 2:
        return []
    with jax.ensure_compile_time_eval():
        squares = variances(mixture.covariance, mixture.n_features)
        numbers = jax.device_get((mixture.weights, mixture.means, squares))
    weights, means, squares = (np.asarray(of, np.float64) for of in numbers)
    deviations = np.broadcast_to(np.sqrt(squares), means.shape)
    rows = [
        [str(k), f"{weights[k]:.4g}", *(some_numbers(of[k], SHOWN) for of in (means, deviations))]
        for k in range(min(SHOWN_COMPONENTS, len(means)))
    ]
    rest = [["…"] * 4] * (len(means) > SHOWN_COMPONENTS)
    return [["", "weight", "mean", "standard deviation"], *rows, *rest]


def pick(batch: T, batch_shape: tuple[int, ...], index: int) -> T:
    """Element `index` of the first batch axis of a pytree.

    Raises:
        TypeError: it is no batch, or the index no integer.
        IndexError: where the index is known, no such element.
    """
    if not batch_shape:
        raise TypeError(f"this {type(batch).__name__} is a single one, not a batch: it has no [b]")
    if is_concrete(index) and not -batch_shape[0] <= operator.index(index) < batch_shape[0]:
        raise IndexError(f"index {index} is out of range for a batch of {batch_shape[0]}")
    return jax.tree.map(lambda leaf: at_index(leaf, index), batch)


def _check_values(weights: Array, means: Array, covariances: Array, matrices: bool) -> None:
    eps = float(jnp.finfo(means.dtype).eps)
    for name, value in (("weights", weights), ("means", means), ("covariances", covariances)):
        if not np.isfinite(value).all():
            raise ValueError(f"{name} must be finite, got {value}")
    total = float(jnp.sum(weights))
    if bool(jnp.any(weights < 0)) or abs(total - 1) > max(1e-6, 10 * weights.size * eps):
        raise ValueError(f"weights must not be negative and must sum to 1, got sum {total:.9g}")
    if not matrices:
        if not bool(jnp.all(covariances > 0)):
            raise ValueError(f"covariances must be positive variances, got {covariances}")
        return
    values = np.asarray(covariances, np.float64).reshape(-1, *covariances.shape[-2:])
    for k, matrix in enumerate(values):
        scale = np.sqrt(np.abs(np.diag(matrix)))
        if np.any(np.abs(matrix - matrix.T) > 100 * eps * np.outer(scale, scale)):
            raise ValueError(f"covariances must be symmetric, number {k} is {matrix.tolist()}")
        try:
            np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError:
            raise ValueError(
                f"covariances must be positive definite, number {k} is not: {matrix.tolist()}"
            ) from None
