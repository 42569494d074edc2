from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import spearmanr

from screening.comparison import Comparison, Overlap, StableCounts, compare_models


def make_ranking(count: int, *, hull: bool = True, seed: int = 0) -> pa.Table:
    """A ranking by energies above hull on a grid, so that some are equal."""
    random = np.random.default_rng(seed)
    mean = np.sort(np.round(random.normal(0.2, 0.3, count), 2))
    forest = np.round(mean + random.normal(0.0, 0.2, count), 2)
    enthalpy = np.round(random.normal(-1.0, 1.0, count), 2)
    places = np.empty(count, dtype=np.int64)
    places[np.argsort(forest, kind="stable")] = np.arange(1, count + 1)
    nothing = pa.nulls(count, pa.float64())
    return pa.table(
        {
            "rank": np.arange(1, count + 1),
            "rf_rank": places,
            "formula": [f"A{number}" for number in range(count)],
            "prototype": ["B2"] * count,
            "formation_enthalpy_ev_per_atom": enthalpy,
            "rf_formation_enthalpy_ev_per_atom": np.round(enthalpy * 0.8 + forest, 2),
            "energy_above_hull_ev_per_atom": mean if hull else nothing,
            "rf_energy_above_hull_ev_per_atom": forest if hull else nothing,
        }
    )


def compare(ranking: pa.Table) -> Comparison:
    comparison = compare_models(ranking, 0.05)
    assert comparison is not None
    return comparison


def test_correlations_are_those_of_scipy() -> None:
    ranking = make_ranking(500)
    comparison = compare(ranking)
    for name, found in (
        ("formation_enthalpy_ev_per_atom", comparison.enthalpy_correlation),
        ("energy_above_hull_ev_per_atom", comparison.hull_correlation),
    ):
        theirs = spearmanr(ranking[name].to_numpy(), ranking[f"rf_{name}"].to_numpy()).statistic
        assert found == pytest.approx(theirs, abs=1e-6)
        assert found != 1.0


def test_overlaps_are_those_of_sets() -> None:
    ranking = make_ranking(500)
    frame = ranking.to_pandas()
    expected = []
    for top in (10, 20, 100):  # a thousand would be everything
        ours = set(frame.nsmallest(top, "rank")["formula"])
        theirs = set(frame.nsmallest(top, "rf_rank")["formula"])
        expected.append(Overlap(top, len(ours & theirs), top * top / 500))
    assert compare(ranking).overlaps == tuple(expected)
    assert 0 < expected[0].shared < 10


@pytest.mark.parametrize(("count", "tops"), [(19, []), (20, [10]), (2_000, [10, 20, 100, 1_000])])
def test_a_top_is_compared_in_campaigns_of_twice_its_size(count: int, tops: list[int]) -> None:
    assert [overlap.top for overlap in compare(make_ranking(count)).overlaps] == tops


def test_stable_is_at_most_the_tolerance() -> None:
    ranking = make_ranking(4).to_pydict() | {
        "energy_above_hull_ev_per_atom": [-0.1, 0.05, 0.05, 0.2],
        "rf_energy_above_hull_ev_per_atom": [0.0, 0.06, 0.05, -0.2],
    }
    comparison = compare_models(pa.table(ranking), 0.05)
    assert comparison is not None
    assert comparison.stable == StableCounts(0.05, irnet=3, forest=3, both=2)


def test_disagreements_are_the_largest_among_the_best_of_either() -> None:
    ranking = make_ranking(1_000, seed=1)
    frame = ranking.to_pandas()
    frame["difference"] = (
        frame["energy_above_hull_ev_per_atom"] - frame["rf_energy_above_hull_ev_per_atom"]
    ).abs()
    best = frame[(frame["rank"] <= 100) | (frame["rf_rank"] <= 100)]
    largest = best.sort_values(["difference", "rank"], ascending=[False, True])[:5]
    found = compare(ranking).disagreements
    assert [each.formula for each in found] == largest["formula"].to_list()
    assert [each.rank for each in found] == largest["rank"].to_list()
    assert [each.rf_rank for each in found] == largest["rf_rank"].to_list()
    assert [each.irnet_ev_per_atom for each in found] == pytest.approx(
        largest["energy_above_hull_ev_per_atom"].to_list()
    )
    assert max(frame["difference"]) > max(best["difference"])


def test_without_a_hull_enthalpies_are_compared() -> None:
    ranking = make_ranking(100, hull=False)
    comparison = compare(ranking)
    assert comparison.hull_correlation is None
    assert comparison.stable is None
    assert comparison.energy == "formation enthalpy"
    assert comparison.enthalpy_correlation is not None
    worst = comparison.disagreements[0]
    difference = np.abs(
        ranking["formation_enthalpy_ev_per_atom"].to_numpy()
        - ranking["rf_formation_enthalpy_ev_per_atom"].to_numpy()
    )
    assert abs(worst.irnet_ev_per_atom - worst.forest_ev_per_atom) == pytest.approx(
        difference.max()
    )


def test_without_a_forest_there_is_no_comparison() -> None:
    ranking = make_ranking(5)
    nothing = pa.nulls(5, pa.int64())
    without = ranking.set_column(ranking.column_names.index("rf_rank"), "rf_rank", nothing)
    assert compare_models(without, 0.05) is None
    assert compare_models(ranking.slice(0, 0), 0.05) is None


@pytest.mark.parametrize("energies", [[0.1], [0.1, 0.1]])
def test_a_correlation_that_is_undefined_is_none(energies: list[float]) -> None:
    columns: dict[str, Any] = make_ranking(len(energies)).to_pydict()
    for name in columns:
        if name.endswith("ev_per_atom"):
            columns[name] = energies
    comparison = compare(pa.table(columns))
    assert comparison.enthalpy_correlation is None
    assert comparison.hull_correlation is None
    assert json.loads(json.dumps(asdict(comparison)))["stable"]["both"] == 0
