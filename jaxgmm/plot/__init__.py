"""Pictures of mixtures and sweeps, with matplotlib."""

try:
    import matplotlib as _matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError("jaxgmm.plot needs matplotlib: pip install 'jaxgmm[plot]'") from error

from jaxgmm.plot.curves import criterion as criterion
from jaxgmm.plot.drawing import ellipses as ellipses
from jaxgmm.plot.pictures import density as density
from jaxgmm.plot.pictures import pairs as pairs
from jaxgmm.plot.pictures import picture as picture
from jaxgmm.plot.pictures import picture_format as picture_format
