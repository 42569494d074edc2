"""What a featurizer returns: rows of columns, and rows of reasons why there are none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from screening.errors import InputDataError


class FeaturizationError(InputDataError):
    """A structure has no meaningful columns: overlapping atoms, no volume, unknown elements."""


@dataclass(frozen=True)
class Failure:
    """A structure that could not be used, and why."""

    id: str
    reason: str


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """The 271 columns of some crystals.

    Attributes:
        ids: Names of the crystals that have columns, in the order given.
        values: The columns in the order of `schema.FEATURES`, shape (len(ids), 271), float64.
        imputed: For each row, the elements whose tabulated properties had to be filled with a
            mean, as matminer does silently.
        failures: The other crystals, with reasons. Rows in = rows out + failures.
    """

    ids: list[str]
    values: NDArray[np.float64]
    imputed: list[tuple[str, ...]]
    failures: list[Failure]
