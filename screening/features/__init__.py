"""The 271 columns of a crystal (Ward et al. 2016, 2017), three ways to the same numbers.

`crystals` featurizes any crystal with one Voro++ tessellation, `prototype` substitutes elements
into a geometry that was tessellated once, and `reference` is matminer, against which both are
tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from screening.crystal import Crystal
    from screening.features.table import FeatureTable

Engine = Literal["fast", "matminer"]


def featurize_crystals(crystals: Sequence[Crystal], engine: Engine = "fast") -> FeatureTable:
    """Compute the 271 columns of crystals.

    Args:
        crystals: Any ordered crystals.
        engine: "fast" (Voro++ and array arithmetic) or "matminer" (the reference).

    Returns:
        One row of columns or one failure for each crystal.
    """
    if engine == "fast":
        from screening.features.crystals import featurize_crystals_fast

        return featurize_crystals_fast(crystals)
    if engine == "matminer":
        from screening.features.reference import featurize_crystals_matminer

        return featurize_crystals_matminer(crystals)
    raise ValueError(f"unknown engine {engine!r}; choose one of {', '.join(get_args(Engine))}")
