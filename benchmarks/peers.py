"""The libraries that are timed, behind the same methods.

An adapter is made of a `Problem`; `run(n)` makes n iterations from its start and says how many it
made; `parameters()` are those of the last run, weights, means and covariances in scikit-learn's
shapes. All but NumPy is imported where it is used, when an adapter is made: no interpreter has to
have everything, and no run waits for an import.
"""

from typing import ClassVar, NamedTuple

import numpy as np
from machine import threads

PRODUCT_SIZE = 2048


class Unsupported(Exception):
    """A library can't do what is asked; the message says what."""


class Problem(NamedTuple):
    """Data and a start, all of one dtype: x (N, D), weights (K,), means (K, D), covariances in
    scikit-learn's shapes."""

    x: np.ndarray
    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    covariance_type: str

    @property
    def precisions(self) -> np.ndarray:
        """Inverse covariances, in the same shapes."""
        wide = self.covariances.astype(np.float64)
        if self.covariance_type in ("diag", "spherical"):
            return (1 / wide).astype(self.x.dtype)
        inverse = np.linalg.inv(wide)
        return ((inverse + np.swapaxes(inverse, -1, -2)) / 2).astype(self.x.dtype)


def require(problem: Problem, covariance_types: tuple[str, ...], dtypes=None) -> None:
    """Raises `Unsupported` unless the type is one of those named, and the dtype if any are."""
    if problem.covariance_type not in covariance_types:
        raise Unsupported(
            f"no {problem.covariance_type} covariances that could be given as a start"
        )
    if dtypes is not None and problem.x.dtype.name not in dtypes:
        raise Unsupported(f"no {problem.x.dtype.name}")


class Jaxgmm:
    """This library."""

    distributions: ClassVar = ("jaxgmm", "jax", "jaxlib", "numpy")

    def __init__(self, problem: Problem):
        import jax
        import jax.numpy as jnp

        import jaxgmm

        jax.config.update("jax_enable_x64", problem.x.dtype == np.float64)
        self.start = jaxgmm.GaussianMixture.create(
            problem.weights, problem.means, problem.covariances, problem.covariance_type
        )
        self.x = jnp.asarray(problem.x)
        self.covariance_type = problem.covariance_type

    def run(self, n_iter: int) -> int:
        import jax

        import jaxgmm

        result = jaxgmm.em(
            self.start,
            self.x,
            covariance_type=self.covariance_type,
            max_iter=n_iter,
            tol=0,
            reg_covar=0,
            history=False,
        )
        self.mixture = jax.block_until_ready(result).mixture
        return int(result.n_iter)

    def parameters(self):
        covariances = np.asarray(self.mixture.covariances)
        diagonals = np.einsum("kdd->kd", covariances)
        in_shape = {
            "full": covariances,
            "tied": covariances[0],
            "diag": diagonals,
            "spherical": diagonals[:, 0],
        }
        return self.mixture.weights, self.mixture.means, in_shape[self.covariance_type]


class JaxgmmSpread(Jaxgmm):
    """This library, with rows spread over a device of the CPU for each core."""

    def __init__(self, problem: Problem):
        import jax
        from jax.sharding import NamedSharding, PartitionSpec

        n_devices = threads()
        if len(problem.x) % n_devices:
            raise Unsupported(f"rows that {n_devices} devices can't share")
        jax.config.update("jax_num_cpu_devices", n_devices)
        super().__init__(problem)
        mesh = jax.make_mesh((n_devices,), ("rows",))
        self.x = jax.device_put(problem.x, NamedSharding(mesh, PartitionSpec("rows")))


class ScikitLearn:
    """sklearn.mixture.GaussianMixture."""

    distributions: ClassVar = ("scikit-learn", "numpy", "scipy")

    def __init__(self, problem: Problem):
        from sklearn.mixture import GaussianMixture

        self.x = problem.x
        self.options = {
            "n_components": len(problem.means),
            "covariance_type": problem.covariance_type,
            "weights_init": problem.weights,
            "means_init": problem.means,
            "precisions_init": problem.precisions,
            "tol": 0.0,
            "reg_covar": 0.0,
        }
        self.build = GaussianMixture

    def run(self, n_iter: int) -> int:
        self.model = self.build(max_iter=n_iter, **self.options).fit(self.x)
        return self.model.n_iter_

    def parameters(self):
        return self.model.weights_, self.model.means_, self.model.covariances_


class Gmmx:
    """gmmx.EMFitter."""

    distributions: ClassVar = ("gmmx", "jax", "jaxlib", "numpy")

    def __init__(self, problem: Problem):
        require(problem, ("full", "diag"), ("float32",))
        import jax.numpy as jnp
        from gmmx import GaussianMixtureModelJax

        self.start = GaussianMixtureModelJax.from_squeezed(
            means=jnp.asarray(problem.means),
            covariances=jnp.asarray(problem.covariances),
            weights=jnp.asarray(problem.weights),
            covariance_type=problem.covariance_type,
        )
        self.x = jnp.asarray(problem.x)

    def run(self, n_iter: int) -> int:
        import jax
        from gmmx import EMFitter

        fitter = EMFitter(max_iter=n_iter, tol=0.0, reg_covar=0.0)
        result = jax.block_until_ready(fitter.fit(self.x, self.start))
        self.mixture = result.gmm
        return int(result.n_iter)

    def parameters(self):
        mixture = self.mixture
        return mixture.weights_numpy, mixture.means_numpy, mixture.covariances.values_numpy


class OneDal:
    """daal4py.em_gmm: oneDAL's EM on the CPU."""

    distributions: ClassVar = ("daal4py", "daal", "tbb", "scikit-learn", "numpy")

    def __init__(self, problem: Problem):
        require(problem, ("full", "diag"))
        from daal4py import em_gmm

        self.build = em_gmm
        self.x = problem.x
        self.diagonal = problem.covariance_type == "diag"
        # For each component a table; of a diagonal, with one row.
        covariances = list(problem.covariances[:, None] if self.diagonal else problem.covariances)
        self.start = (problem.weights[None], problem.means, covariances)
        self.options = {
            "nComponents": len(problem.means),
            "fptype": "float" if problem.x.dtype == np.float32 else "double",
            "covarianceStorage": "diagonal" if self.diagonal else "full",
            "accuracyThreshold": 0.0,
            "regularizationFactor": 0.0,
        }

    def run(self, n_iter: int) -> int:
        algorithm = self.build(maxIterations=n_iter, **self.options)
        self.result = algorithm.compute(self.x, *self.start)
        return int(np.squeeze(self.result.nIterations))

    def parameters(self):
        covariances = np.stack(self.result.covariances)
        if self.diagonal:
            covariances = covariances[:, 0]
        return np.ravel(self.result.weights), self.result.means, covariances


class Pomegranate:
    """pomegranate.gmm.GeneralMixtureModel of Normals, on the CPU."""

    distributions: ClassVar = ("pomegranate", "torch", "numpy")

    def __init__(self, problem: Problem):
        require(problem, ("full", "diag"))
        import torch
        from pomegranate.distributions import Normal
        from pomegranate.gmm import GeneralMixtureModel

        self.build, self.build_component = GeneralMixtureModel, Normal
        torch.set_default_dtype(getattr(torch, problem.x.dtype.name))
        self.problem = problem
        self.x = torch.from_numpy(problem.x)

    def run(self, n_iter: int) -> int:
        import torch

        # Fitting overwrites the start, so that every run needs a new one.
        _, weights, means, covariances, covariance_type = self.problem
        normals = [
            self.build_component(
                torch.tensor(mean), torch.tensor(covariance), covariance_type=covariance_type
            )
            for mean, covariance in zip(means, covariances, strict=True)
        ]
        self.model = self.build(
            normals, priors=torch.tensor(weights), max_iter=n_iter, tol=-float("inf")
        )
        self.model.fit(self.x)
        return n_iter

    def parameters(self):
        normals = self.model.distributions
        means = np.stack([np.asarray(normal.means) for normal in normals])
        return self.model.priors, means, np.stack([np.asarray(normal.covs) for normal in normals])


class TorchLoop:
    """A textbook EM in torch, in full float32: Cholesky factors, a component after the other."""

    distributions: ClassVar = ("torch", "numpy")

    def __init__(self, problem: Problem):
        require(problem, ("full", "diag"), ("float32",))
        import torch

        torch.backends.cuda.matmul.allow_tf32 = False
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.diagonal = problem.covariance_type == "diag"
        self.x, *self.start = (torch.tensor(of, device=device) for of in problem[:4])

    def run(self, n_iter: int) -> int:
        import torch

        x, (weights, means, covariances) = self.x, self.start
        identity = torch.eye(x.shape[1], device=x.device)
        for _ in range(n_iter):
            if self.diagonal:
                precisions = 1 / covariances
                squares = x.square() @ precisions.T - 2 * x @ (means * precisions).T
                squares = squares + (means.square() * precisions).sum(1)
                log_volumes = precisions.log().sum(1) / 2
            else:
                inverses = torch.linalg.inv(torch.linalg.cholesky(covariances))
                pairs = zip(means, inverses, strict=True)
                squares = torch.stack([((x - m) @ f.T).square().sum(1) for m, f in pairs], 1)
                log_volumes = torch.diagonal(inverses, dim1=1, dim2=2).log().sum(1)
            responsibilities = torch.softmax(weights.log() + log_volumes - squares / 2, 1)
            count = responsibilities.sum(0)
            weights, means = count / len(x), responsibilities.T @ x / count[:, None]
            if self.diagonal:
                covariances = responsibilities.T @ x.square() / count[:, None] - means.square()
            else:
                pairs = zip(responsibilities.T, means, strict=True)
                second = [(r[:, None] * (x - m)).T @ (x - m) for r, m in pairs]
                covariances = torch.stack(second) / count[:, None, None] + 1e-9 * identity
        self.result = [of.cpu().numpy() for of in (weights, means, covariances)]
        return n_iter

    def parameters(self):
        return self.result


class GmmGpu:
    """gmm_gpu.GMM on the CPU."""

    distributions: ClassVar = ("gmm-gpu", "torch", "numpy")

    def __init__(self, problem: Problem):
        require(problem, ("full",))
        import torch
        from gmm_gpu.gmm import GMM

        self.build = GMM
        torch.set_default_dtype(getattr(torch, problem.x.dtype.name))
        self.x = torch.from_numpy(problem.x)[None]
        fields = (problem.weights, problem.means, problem.precisions)
        self.start = [torch.from_numpy(field)[None] for field in fields]

    def run(self, n_iter: int) -> int:
        import torch

        # Fitting overwrites the start.
        weights, means, precisions = (field.clone() for field in self.start)
        self.model = self.build(
            means.shape[1],
            max_iter=n_iter,
            device="cpu",
            tol=0.0,
            reg_covar=0.0,
            weights_init=weights,
            means_init=means,
            precisions_init=precisions,
            dtype=self.x.dtype,
        )
        # It runs k-means even where a start is given, and then doesn't use it.
        self.model._init_clusters = lambda x: torch.zeros(x.shape[:2], dtype=torch.long)
        self.model.fit(self.x)
        stopped = int(self.model.convergence_iters[0])
        return n_iter if stopped < 0 else stopped

    def parameters(self):
        weights, means = torch_rows(self.model._pi), torch_rows(self.model.means)
        return weights, means, torch_rows(self.model.covs)


def torch_rows(tensors) -> np.ndarray:
    """Tensors of a batch of one, stacked."""
    return np.stack([np.asarray(tensor[0]) for tensor in tensors])


class MatrixProduct:
    """No mixture: square matrix products, JAX's, in the problem's dtype at full precision."""

    distributions: ClassVar = ("jax",)

    def __init__(self, problem: Problem):
        import jax

        dtype = problem.x.dtype
        jax.config.update("jax_enable_x64", dtype == np.float64)
        numbers = np.random.default_rng(0).standard_normal((2, PRODUCT_SIZE, PRODUCT_SIZE))
        self.factors = jax.device_put(list(numbers.astype(dtype)))
        self.product = jax.jit(lambda a, b: jax.numpy.matmul(a, b, precision="highest"))

    def run(self, n_iter: int) -> int:
        for _ in range(n_iter):
            self.product(*self.factors).block_until_ready()
        return n_iter

    def parameters(self):
        return ()


LIBRARIES = {
    "jaxgmm": Jaxgmm,
    "jaxgmm, spread": JaxgmmSpread,
    "scikit-learn": ScikitLearn,
    "gmmx": Gmmx,
    "oneDAL": OneDal,
    "pomegranate": Pomegranate,
    "gmm-gpu": GmmGpu,
    "matrix product": MatrixProduct,
}
