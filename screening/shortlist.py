"""A diverse shortlist: the best candidates that are no neighbours of each other."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

from screening.composition_distance import pick_diverse, read_compositions

DEFAULT_DISTANCE: Final = 2.0
"""Least element mover's distance between the compounds of a shortlist: two perovskites may differ
in one cation, but then by ten places on the modified Pettifor scale."""

_FIRST_ROWS: Final = 2_048


def pick_shortlist(rows: pa.Table, count: int, min_distance: float = DEFAULT_DISTANCE) -> pa.Table:
    """Pick the best rows whose compositions are at least so far from each other.

    Going down the ranking, a candidate that is nearer to one already picked is passed over: also
    the same composition in another structure, or with its elements on other sites.

    Args:
        rows: Rows of a ranking, best first.
        count: How many to pick.
        min_distance: Least element mover's distance of any two, see
            `screening.composition_distance`.

    Returns:
        At most `count` of the rows, in the ranking's order; fewer where no more are so far apart.
    """
    looked_at = _FIRST_ROWS
    while True:
        best = rows.slice(0, looked_at)
        numbers, amounts = read_compositions(best["formula"].to_pylist())
        picked = pick_diverse(numbers, amounts, np.arange(len(best)), count, min_distance)
        if len(picked) >= count or looked_at >= len(rows):
            return best.take(pa.array(picked))
        looked_at *= 8
