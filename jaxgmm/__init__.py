from jaxgmm.loop import em as em
from jaxgmm.mixture import GaussianMixture as GaussianMixture
