r"""The Frank-Wolfe gap of a real model, as an interval.

The iterate is ``W = c + D``: the original weights and the links so far. Over a ball of radius tau around c the gap is

    g = max_V <G, W - V> = <G, D> + tau |G|*        |.|* the dual norm of the ball

of the full gradient G, which nobody has: there are minibatches, and products with low-rank matrices. So half of the batches
find a unit vertex V^ by subspace iteration (`sketch`), and the other half measures it, cross-fitted (`intervals`):

    lower    mean of <G_b, D - tau V^> over batches that V^ has not seen, less a Student quantile:  <G, D - tau V^> <= g
    point    that mean
    upper    |G|* <= |G_1|* + <G - G_1, V*>, G_1 the mean over the first half, V* the true unit vertex. The first term has an
             upper bound from the same iteration (Dixon 1983), the second is a mean of one number a batch, with about the spread
             of <G_b, V^>.

Sources: Jaggi 2013 for the gap; Dixon 1983 for the norm; the interval is derived in this project.
"""

from fwlora.gap.measure import check as check
from fwlora.gap.measure import measure as measure
from fwlora.gap.report import GapReport as GapReport
from fwlora.gap.report import SiteGap as SiteGap
