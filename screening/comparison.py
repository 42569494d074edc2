"""IRNet beside the Random Forest: how far their rankings of a campaign agree, and where not."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from irnet import metrics

TOPS: Final = (10, 20, 100, 1_000)
"""How many of the best are compared, in campaigns of at least twice as many candidates."""

AMONG: Final = 100
"""Places of either ranking among which the largest disagreements are looked for."""

SHOWN: Final = 5
"""Disagreements that are kept."""


@dataclass(frozen=True)
class Overlap:
    """Candidates that two rankings share at the top.

    Attributes:
        top: Places from the first that are compared.
        shared: Candidates that have one of them in both rankings.
        by_chance: How many two unrelated rankings would share on average.
    """

    top: int
    shared: int
    by_chance: float


@dataclass(frozen=True)
class StableCounts:
    """Candidates whose energy above hull is at most the tolerance.

    Attributes:
        within_ev_per_atom: The tolerance.
        irnet: Candidates by IRNet.
        forest: Candidates by the Random Forest.
        both: Candidates by both.
    """

    within_ev_per_atom: float
    irnet: int
    forest: int
    both: int


@dataclass(frozen=True)
class Disagreement:
    """A candidate of which the models think differently.

    Attributes:
        formula: Reduced formula.
        prototype: Name of the prototype.
        rank: Place in the campaign's ranking.
        rf_rank: Place by the Random Forest.
        irnet_ev_per_atom: Energy by IRNet.
        forest_ev_per_atom: Energy by the Random Forest.
    """

    formula: str
    prototype: str
    rank: int
    rf_rank: int
    irnet_ev_per_atom: float
    forest_ev_per_atom: float


@dataclass(frozen=True)
class Comparison:
    """How far a campaign's ranking and that of the Random Forest agree.

    `dataclasses.asdict` makes it JSON.

    Attributes:
        candidates: Candidates that both models placed.
        enthalpy_correlation: Spearman's rank correlation of the formation enthalpies; None where
            it is undefined, as for a single candidate.
        hull_correlation: That of the energies above hull; None without a hull, too.
        overlaps: What the two rankings share at the top.
        stable: How many candidates are stable by each; None without a hull.
        energy: Which energy the disagreements are about: `energy above hull`, or
            `formation enthalpy` without a hull.
        among: Places of either ranking among which disagreements were looked for.
        disagreements: Those of the largest difference in energy, largest first.
    """

    candidates: int
    enthalpy_correlation: float | None
    hull_correlation: float | None
    overlaps: tuple[Overlap, ...]
    stable: StableCounts | None
    energy: str
    among: int
    disagreements: tuple[Disagreement, ...]


def compare_models(ranking: pa.Table, stable_within: float) -> Comparison | None:
    """Compare a campaign's ranking with the Random Forest's.

    Args:
        ranking: The whole ranking. One that a campaign cut to the best is no use: the Random
            Forest's best may be among those that it dropped.
        stable_within: Energy above hull that still counts as stable, eV/atom.

    Returns:
        The comparison, None where the model has no forest or nothing was ranked.
    """
    placed = ranking.filter(ranking["rf_rank"].is_valid())
    if len(placed) == 0:
        return None
    rank, forest_rank = placed["rank"].to_numpy(), placed["rf_rank"].to_numpy()
    enthalpies = _read_pair(placed, "formation_enthalpy_ev_per_atom")
    above_hull = _read_pair(placed, "energy_above_hull_ev_per_atom")
    hull = bool(np.isfinite(above_hull).all(axis=0).any())

    overlaps = []
    for top in TOPS:
        if 2 * top <= len(placed):
            shared = int(((rank <= top) & (forest_rank <= top)).sum())
            overlaps.append(Overlap(top, shared, top**2 / len(placed)))
    return Comparison(
        candidates=len(placed),
        enthalpy_correlation=_correlate(enthalpies),
        hull_correlation=_correlate(above_hull) if hull else None,
        overlaps=tuple(overlaps),
        stable=_count_stable(above_hull, stable_within) if hull else None,
        energy="energy above hull" if hull else "formation enthalpy",
        among=AMONG,
        disagreements=_find_disagreements(placed, above_hull if hull else enthalpies),
    )


def _read_pair(placed: pa.Table, name: str) -> NDArray[np.float64]:
    """Return an energy by IRNet and by the Random Forest, (2, n), NaN for null."""
    pair = [placed[column].to_numpy() for column in (name, f"rf_{name}")]
    return np.array(pair, dtype=np.float64)


def _correlate(pair: NDArray[np.float64]) -> float | None:
    both = pair[:, np.isfinite(pair).all(axis=0)]
    correlation = metrics.spearman(*both) if both.shape[1] > 1 else float("nan")
    return None if isnan(correlation) else round(correlation, 6)


def _count_stable(above_hull: NDArray[np.float64], within: float) -> StableCounts:
    irnet, forest = above_hull <= within
    return StableCounts(within, int(irnet.sum()), int(forest.sum()), int((irnet & forest).sum()))


def _find_disagreements(
    placed: pa.Table, energies: NDArray[np.float64]
) -> tuple[Disagreement, ...]:
    rank, forest_rank = placed["rank"].to_numpy(), placed["rf_rank"].to_numpy()
    difference = np.abs(energies[0] - energies[1])
    rows = np.flatnonzero((np.minimum(rank, forest_rank) <= AMONG) & np.isfinite(difference))
    largest = rows[np.lexsort((rank[rows], -difference[rows]))][:SHOWN]
    return tuple(
        Disagreement(
            formula=placed["formula"][row].as_py(),
            prototype=placed["prototype"][row].as_py(),
            rank=int(rank[row]),
            rf_rank=int(forest_rank[row]),
            irnet_ev_per_atom=float(energies[0, row]),
            forest_ev_per_atom=float(energies[1, row]),
        )
        for row in largest.tolist()
    )
