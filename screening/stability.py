"""Fifth stage: from the hull of the competitors to the probability of being stable.

The energy above hull is the formation enthalpy less the energy of the lowest mixture of competing
phases. Each member of the ensemble has its own: where the competitors are predicted too, they move
with the member, and errors that candidate and competitors share cancel. What the members do not
show of the error, the calibration does: noise is added until the energy of a candidate with fixed
competitors scatters as much as calibration compounds did around their predictions, and until the
hull of predicted competitors scatters as much as these do together.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from screening.hull import Mixtures, find_mixtures, write_decompositions

if TYPE_CHECKING:
    from irnet.uncertainty import Uncertainty
    from screening.phases import Phases
    from screening.score import Scores

LEAST_NOISE: Final = 0.5
"""Share of any noise that is added at least, however far the members spread."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Stability:
    """What is predicted of the stability of candidates.

    Attributes:
        energy_above_hull: Of the ensemble's mean, (m,), eV/atom; negative below the hull of the
            competitors.
        std: Standard deviation of the energy above hull, (m,), eV/atom: members and calibrated
            noise of candidate and hull; members alone if the model was never calibrated, NaN with
            a single one.
        p_stable: Probability that the energy above hull is at most the tolerance, (m,); NaN if
            the model was never calibrated.
        forest_energy_above_hull: Of the Random Forest, (m,), eV/atom; NaN without a forest.
    """

    energy_above_hull: FloatArray
    std: FloatArray
    p_stable: FloatArray
    forest_energy_above_hull: FloatArray

    def select(self, rows: NDArray[np.int64]) -> Stability:
        """The stability of some candidates, rows of shape (r,)."""
        return Stability(*(getattr(self, field.name)[rows] for field in fields(self)))


def judge_stability(
    mean: FloatArray,
    members: FloatArray,
    forest: FloatArray,
    hull: FloatArray,
    *,
    error_scale: FloatArray | None,
    uncertainty: Uncertainty | None,
    within: float,
    hull_noise: FloatArray | None = None,
) -> Stability:
    """Compare candidates with the lowest mixtures of their competitors.

    Args:
        mean: Formation enthalpies of the ensemble, (m,), eV/atom.
        members: Those of its members, (m, members).
        forest: Those of the Random Forest, (m,); NaN without one.
        hull: Energies of the lowest mixtures, eV/atom: (m, 1) of competitors with given energies,
            or (m, 1 + members) or (m, 1 + members + 1) of competitors that the ensemble's mean,
            its members and the forest predicted, in this order.
        error_scale: Mean absolute errors to expect of `mean`, (m,), from `uncertainty`; None if
            the model was never calibrated.
        uncertainty: What calibration knows of the model's errors.
        within: Energy above hull that still counts as stable, eV/atom.
        hull_noise: Standard deviations of the error of predicted hulls, (m,), eV/atom; None where
            they have none, or where the members' hulls show all of it.

    Returns:
        Energies above hull and probabilities.

    Raises:
        ValueError: The columns of the hull fit neither case.
    """
    count = members.shape[1]
    predicted = hull.shape[1] > 1
    if hull.shape[1] not in (1, 1 + count, 2 + count):
        raise ValueError(
            f"hull has {hull.shape[1]} columns, expected 1, {1 + count} or {2 + count}"
        )
    of_members = members - (hull[:, 1 : 1 + count] if predicted else hull[:, :1])
    if not predicted:
        of_forest = forest - hull[:, 0]
    elif hull.shape[1] == 2 + count:
        of_forest = forest - hull[:, -1]
    else:
        of_forest = np.full(len(mean), np.nan)
    above = mean - hull[:, 0]
    if uncertainty is None or error_scale is None:
        spread = of_members.std(axis=1, ddof=1) if count > 1 else np.full(len(mean), np.nan)
        return Stability(above, spread, np.full(len(mean), np.nan), of_forest)

    noise = uncertainty.noise_std(error_scale)
    added = _find_unshown(noise, members)
    if predicted and hull_noise is not None:
        added = np.hypot(added, _find_unshown(hull_noise, hull[:, 1 : 1 + count]))
    p_stable = np.zeros(len(mean))
    for member in range(count):
        p_stable += uncertainty.probability_at_most(
            within - of_members[:, member], error_scale, added / noise
        )
    std = np.sqrt(of_members.var(axis=1) + added**2)
    return Stability(above, std, p_stable / count, of_forest)


def _find_unshown(noise: FloatArray, members: FloatArray) -> FloatArray:
    """Return what must be added to members (m, n) for a standard deviation of `noise`, (m,)."""
    missing = noise**2 - members.var(axis=1)
    return np.asarray(np.sqrt(np.maximum(missing, (LEAST_NOISE * noise) ** 2)))


@dataclass(frozen=True, eq=False)
class Placement:
    """Candidates beside their competitors.

    Attributes:
        stability: Energies above hull and probabilities of m candidates; NaN for those that could
            not be scored.
        mixtures: Lowest mixture of competing phases of each, (m,).
        phases: The competing phases.
        numbers: Atomic numbers of the candidates, 0 for none, (m, k).
        amounts: Atoms of each, (k,) or (m, k).
    """

    stability: Stability
    mixtures: Mixtures
    phases: Phases
    numbers: NDArray[np.integer]
    amounts: NDArray[np.integer]

    @property
    def references(self) -> NDArray[np.int64]:
        """Competing phases in the chemical system of each candidate, (m,)."""
        return self.mixtures.references

    def write_decompositions(self) -> list[str]:
        """Write the lowest mixture of each candidate."""
        return write_decompositions(self.phases, self.mixtures, self.numbers, self.amounts)

    def select(self, rows: NDArray[np.int64]) -> Placement:
        """The placement of some candidates, rows of shape (r,)."""
        return replace(
            self,
            stability=self.stability.select(rows),
            mixtures=self.mixtures.select(rows),
            numbers=self.numbers[rows],
            amounts=self.amounts[rows] if self.amounts.ndim == 2 else self.amounts,
        )


def place_on_hull(
    phases: Phases,
    numbers: NDArray[np.integer],
    amounts: ArrayLike,
    scores: Scores,
    uncertainty: Uncertainty | None,
    *,
    within: float,
    identities: NDArray[np.uint64] | None = None,
) -> Placement:
    """Find what candidates compete with and how stable they are beside it.

    Args:
        phases: The competing phases: given, with one energy column, or predicted by the model of
            `scores`, with those of `screening.competitors.ScoredCompetitors`.
        numbers: Atomic numbers, 0 for none, shape (m, k).
        amounts: Atoms of each, shape (k,) or (m, k).
        scores: What the model predicts of the candidates, m rows; NaN for failures.
        uncertainty: What calibration knows of the model's errors; None if it never was calibrated.
        within: Energy above hull that still counts as stable, eV/atom.
        identities: Of the candidates, shape (m,): a candidate does not compete with the phase of
            its own identity. None if no candidate is among the phases.
    """
    mixtures = find_mixtures(phases, numbers, amounts, identities)
    scored = np.flatnonzero(np.isfinite(scores.mean))
    hull = mixtures.energies[scored]
    hull_noise = None
    if uncertainty is not None and hull.shape[1] > 1:
        hull, raised = hull[:, :-1], hull[:, -1]
        hull_noise = np.maximum(raised - hull[:, 0], 0.0)
    judged = judge_stability(
        scores.mean[scored],
        scores.members[scored],
        scores.forest[scored],
        hull,
        error_scale=None if uncertainty is None else scores.error_scale[scored],
        uncertainty=uncertainty,
        within=within,
        hull_noise=hull_noise,
    )

    def among(values: FloatArray) -> FloatArray:
        placed = np.full(len(scores.mean), np.nan)
        placed[scored] = values
        return placed

    return Placement(
        Stability(
            among(judged.energy_above_hull),
            among(judged.std),
            among(judged.p_stable),
            among(judged.forest_energy_above_hull),
        ),
        mixtures,
        phases,
        numbers,
        np.asarray(amounts),
    )
