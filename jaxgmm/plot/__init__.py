"""Pictures of mixtures, fits and sweeps, with matplotlib.

What draws one thing into axes returns its artists, as matplotlib's own methods do, and can be drawn
over others; `density`, `pairs` and `criterion` are whole pictures, and return axes or a figure.
Rows of data that are not finite are left out, and of more than 10 000 a random selection is shown.
"""

try:
    import matplotlib as _matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError("jaxgmm.plot needs matplotlib: pip install 'jaxgmm[plot]'") from error

from jaxgmm.plot.curves import criterion as criterion
from jaxgmm.plot.curves import history as history
from jaxgmm.plot.curves import regression as regression
from jaxgmm.plot.pictures import density as density
from jaxgmm.plot.pictures import pairs as pairs
from jaxgmm.plot.pictures import picture as picture
from jaxgmm.plot.pictures import picture_format as picture_format
from jaxgmm.plot.planes import contours as contours
from jaxgmm.plot.planes import ellipses as ellipses
from jaxgmm.plot.planes import heat_map as heat_map
from jaxgmm.plot.planes import responsibilities as responsibilities
