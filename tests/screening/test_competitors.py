from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Composition, Structure

from irnet.scorer import Scorer
from prototypes import CandidateSpace, Prototype, element_pool, find_doubt, find_prototype
from screening.competitors import (
    BINARY_TYPES,
    TERNARY_TYPES,
    CompetitorTask,
    drop_beaten,
    find_unfinished,
    find_wanted,
    gather_competitors,
    identify_decorations,
    list_tasks,
    plan_competitors,
    score_competitor_range,
    score_decorations,
)
from screening.enumerate import open_spaces
from screening.errors import ScreeningError
from screening.hull import find_mixtures
from screening.phases import Phases, parse_formula
from screening.score import load_scorer, score_candidates
from screening.settings import Competitors

CPU = torch.device("cpu")


def candidate_elements(space: CandidateSpace) -> list[frozenset[int]]:
    """The elements of every candidate, one by one."""
    return [frozenset(row) for row in space.decode(0, space.index_count)[1].tolist()]


def some_tasks(model: Path, folder: Path, precision: str = "fp32") -> tuple[CompetitorTask, ...]:
    from screening.model_library import load_enthalpy_model

    spaces, _ = open_spaces(["cubic_perovskite"], ["A=Li,Ca", "B=Ti,Fe", "X=O,F"])
    plan = plan_competitors(spaces, Competitors.TERNARY)
    return list_tasks(
        plan,
        model=str(model),
        model_hash=load_enthalpy_model(str(model)).content_hash,
        device="cpu",
        precision=precision,
        threads=None,
        folder=folder,
    )


def test_every_type_is_found_once_and_has_its_number_of_elements() -> None:
    for types, roles in ((BINARY_TYPES, 2), (TERNARY_TYPES, 3)):
        found = [find_prototype(each.prototype) for each in types]
        assert all(len(prototype.roles) == roles for prototype in found)
        assert len({prototype.geometry_hash() for prototype in found}) == len(types)
        assert len({each.title for each in types}) == len(types)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.lists(st.sets(st.integers(1, 6), min_size=1, max_size=4), min_size=2, max_size=4),
        min_size=1,
        max_size=2,
    )
)
def test_wanted_are_exactly_the_subsets_of_candidates(pools: list[list[set[int]]]) -> None:
    """Against every candidate, drawn one by one."""
    from itertools import product

    given_pools = tuple(tuple(tuple(sorted(pool)) for pool in space) for space in pools)
    candidates = [
        [frozenset(choice) for choice in product(*space) if len(set(choice)) == len(space)]
        for space in given_pools
    ]
    if not all(candidates):
        return
    held = {each for space in candidates for each in space}
    for size in (2, 3):
        rows = np.array([row for row in product(range(1, 8), repeat=size)], dtype=np.uint8)
        expected = [
            len(set(row)) == size and any(set(row) <= elements for elements in held)
            for row in rows.tolist()
        ]
        assert find_wanted(rows, given_pools).tolist() == expected


@pytest.mark.parametrize("range_size", [10, 100, 16_384])
def test_the_plan_counts_what_is_scored_and_covers_every_index_once(
    range_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("screening.competitors.RANGE", range_size)
    spaces, _ = open_spaces(["cubic_perovskite"], ["Li,Na,Mg,Ti", "X=O,F"])
    plan = plan_competitors(spaces, Competitors.TERNARY)
    held = set(candidate_elements(spaces[0]))
    for space in plan.spaces:
        shards = [shard for part in plan.parts for shard in part]
        own = [shard for shard in shards if shard.prototype == space.prototype.name]
        assert own[0].start == 0
        assert own[-1].stop == space.index_count
        assert all(a.stop == b.start for a, b in pairwise(own))
        wanted = [
            elements
            for elements in candidate_elements(space)
            if any(elements <= each for each in held)
        ]
        assert plan.counts[space.prototype.name] == len(wanted)
    assert plan.total == sum(plan.counts.values())
    assert len(plan.parts) >= plan.total // range_size
    assert len(plan.parts) == 1 or range_size < plan.total
    assert [s.number for part in plan.parts for s in part] == list(range(sum(map(len, plan.parts))))


def test_all_pairs_of_89_elements_are_planned() -> None:
    spaces, _ = open_spaces(["perovskite"], ["all89"])
    plan = plan_competitors(spaces, Competitors.BINARY)
    assert set(plan.counts.values()) == {3916, 7832}
    assert plan.counts["AB_cF8_225_a_b"] == 3916
    assert len(plan.counts) == len(BINARY_TYPES)


def test_orders_and_competing_candidates_decide_what_is_planned() -> None:
    spaces, _ = open_spaces(["spinel", "perovskite"], ["Li,Mg,Al", "X=O"])
    binary = plan_competitors(spaces, Competitors.BINARY)
    ternary = plan_competitors(spaces, Competitors.TERNARY)
    assert set(binary.counts) < set(ternary.counts)
    assert all(len(space.prototype.roles) == 2 for space in binary.spaces)
    alone = plan_competitors(spaces, Competitors.NONE, compete=True)
    assert alone.counts == {space.prototype.name: space.count for space in spaces}
    assert set(plan_competitors(spaces, Competitors.BINARY, compete=True).counts) == {
        *binary.counts,
        *alone.counts,
    }
    assert plan_competitors(spaces, Competitors.NONE).spaces == ()


def test_candidates_of_two_elements_have_no_competitors_of_three() -> None:
    spaces, _ = open_spaces(["B2"], ["Li,Mg,Al"])
    assert (
        plan_competitors(spaces, Competitors.TERNARY).counts
        == plan_competitors(spaces, Competitors.BINARY).counts
    )


def test_a_type_in_the_users_geometry_takes_the_place_of_its_namesake(tmp_path: Path) -> None:
    """The same structure type is recognised in another cell, with other elements and letters."""
    path = tmp_path / "mine.cif"
    rock = Structure.from_spacegroup(
        "Fm-3m", 5.64 * np.eye(3), ["Cl", "Na"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )
    rock.to(str(path))
    spaces, _ = open_spaces([str(path)], ["Li,F"])
    names = set(plan_competitors(spaces, Competitors.BINARY).counts)
    assert "mine" in names
    assert "AB_cF8_225_a_b" not in names
    assert {"B2", "L1_0"} <= set(
        plan_competitors(open_spaces(["L1_0"], ["Li,F"])[0], Competitors.BINARY).counts
    )


@pytest.mark.parametrize(
    ("screened", "replaced"),
    [
        ("AB3C_oP20_62_c_cd_a", "perovskite"),
        ("AB3C_cP5_221_a_c_b", "cubic_perovskite"),
        ("AB2C4_tI14_139_a_e_ce", "K2NiF4"),
    ],
)
def test_another_geometry_of_a_type_takes_its_place(screened: str, replaced: str) -> None:
    spaces, _ = open_spaces([screened], ["Ca,Ti,O"])
    names = set(plan_competitors(spaces, Competitors.TERNARY).counts)
    assert screened in names
    assert replaced not in names
    assert len(names) == len(BINARY_TYPES) + len(TERNARY_TYPES)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(["B2", "AB_cF8_225_a_b", "perovskite", "AB2C_cF16_225_a_c_b"]), st.data())
def test_equal_decorations_have_one_identity_and_others_another(
    name: str, data: st.DataObject
) -> None:
    prototype = find_prototype(name)
    pool = element_pool("Li,Na,K,Mg,O,F")
    space = CandidateSpace(prototype, dict.fromkeys(prototype.roles, pool))
    _, numbers = space.decode(0, space.index_count)
    identities = identify_decorations(prototype, numbers)
    assert len(set(identities.tolist())) == len(numbers)
    assert identities.all()
    permutation = data.draw(st.sampled_from(prototype.role_permutations))
    assert np.array_equal(identify_decorations(prototype, numbers[:, permutation]), identities)


def test_prototypes_of_one_formula_have_different_identities() -> None:
    numbers = np.array([[20, 22, 8]], dtype=np.uint8)
    first, second = find_prototype("perovskite"), find_prototype("cubic_perovskite")
    assert identify_decorations(first, numbers) != identify_decorations(second, numbers)
    moved = replace(first, frac_coords=(first.frac_coords + np.array([0, 0.001, 0])) % 1.0)
    assert identify_decorations(first, numbers) != identify_decorations(moved, numbers)


def test_energies_are_those_of_the_model_column_by_column(tiny_model: Path) -> None:
    from screening.featurize import featurize_candidates, open_featurizer
    from screening.model_library import load_enthalpy_model

    model = load_enthalpy_model(str(tiny_model))
    assert model.forest is not None
    loaded = load_scorer(str(tiny_model), model.content_hash, "cpu", "fp32")
    (space,), _ = open_spaces(["rutile"], ["Li,Ti,O,F"])
    pools = open_spaces(["B2"], ["A=Li,Ti", "B=O,F"])[0][0].pools
    numbers = space.decode(0, space.index_count)[1]
    numbers = numbers[find_wanted(numbers, (pools,))]
    (scored,) = score_decorations([(space.prototype, numbers)], loaded, CPU)
    pairs = {tuple(sorted(row)) for row in scored.numbers.tolist()}
    assert pairs == {(3, 8), (3, 9), (8, 22), (9, 22)}
    assert len(scored.numbers) == 8
    features = featurize_candidates(open_featurizer(space.prototype), scored.numbers, CPU)
    for member, column in zip(model.ensemble.members, scored.energies[:, 1:-1].T, strict=True):
        alone = Scorer((member,), precision="fp32").predict(features)
        np.testing.assert_allclose(column, alone.mean, atol=1e-6)
    np.testing.assert_allclose(scored.energies[:, 0], scored.energies[:, 1:-1].mean(axis=1))
    np.testing.assert_allclose(scored.energies[:, -1], model.forest.predict(features))


def test_the_last_column_of_a_calibrated_model_is_raised_by_its_error(
    calibrated_model: Path,
) -> None:
    """Against the error scale that the same decorations have as candidates."""
    from screening.featurize import featurize_candidates, open_featurizer
    from screening.model_library import load_enthalpy_model

    model = load_enthalpy_model(str(calibrated_model))
    assert model.uncertainty is not None
    loaded = load_scorer(str(calibrated_model), model.content_hash, "cpu", "fp32")
    (space,), _ = open_spaces(["rutile"], ["Li,Ti,O,F"])
    numbers = space.decode(0, space.index_count)[1]
    (scored,) = score_decorations([(space.prototype, numbers)], loaded, CPU)
    assert scored.energies.shape[1] == 1 + len(model.ensemble.members) + 2
    features = featurize_candidates(open_featurizer(space.prototype), numbers, CPU)
    scores = score_candidates(loaded, features)
    np.testing.assert_allclose(scored.energies[:, -2], scores.forest)
    np.testing.assert_allclose(
        scored.energies[:, -1] - scored.energies[:, 0],
        model.uncertainty.noise_std(scores.error_scale),
    )
    assert (scored.energies[:, -1] > scored.energies[:, 0]).all()
    (nothing,) = score_decorations([(space.prototype, numbers[:0])], loaded, CPU)
    assert nothing.energies.shape == (0, scored.energies.shape[1])


def test_prototypes_scored_together_get_what_each_gets_alone(tiny_model: Path) -> None:
    from screening.model_library import load_enthalpy_model

    loaded = load_scorer(
        str(tiny_model), load_enthalpy_model(str(tiny_model)).content_hash, "cpu", "fp32"
    )
    pieces = []
    for name, pool in (("B2", "all89"), ("spinel", "Li,Mg,Al,O"), ("rutile", "all89")):
        (space,), _ = open_spaces([name], [pool])
        pieces.append((space.prototype, space.decode(0, space.index_count)[1]))
    pieces.insert(1, (pieces[0][0], pieces[0][1][:0]))
    together = score_decorations(pieces, loaded, CPU)
    for piece, scored in zip(pieces, together, strict=True):
        (alone,) = score_decorations([piece], loaded, CPU)
        assert np.array_equal(scored.numbers, piece[1])
        assert np.array_equal(scored.energies, alone.energies)


def test_what_cannot_be_featurized_is_named(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from screening.featurize import featurize_candidates as featurize
    from screening.model_library import load_enthalpy_model

    def spoil(*arguments: object) -> torch.Tensor:
        features = featurize(*arguments)  # type: ignore[arg-type]
        features[2, 5] = torch.nan
        return features

    monkeypatch.setattr("screening.competitors.featurize_candidates", spoil)
    loaded = load_scorer(
        str(tiny_model), load_enthalpy_model(str(tiny_model)).content_hash, "cpu", "fp32"
    )
    (space,), _ = open_spaces(["rutile"], ["Li,Ti,O"])
    numbers = space.decode(0, space.index_count)[1]
    (scored,) = score_decorations([(space.prototype, numbers)], loaded, CPU)
    assert len(scored.numbers) == len(scored.energies) == space.count - 1
    ((formula, reason),) = scored.failures
    assert formula == space.formula(space.decode(0, space.index_count)[1][2].tolist())
    assert "feature not finite" in reason


@pytest.fixture
def many_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut plans into many small tasks."""
    monkeypatch.setattr("screening.competitors.RANGE", 20)


@pytest.mark.usefixtures("many_tasks")
def test_killed_work_goes_on_where_it_stopped(tiny_model: Path, tmp_path: Path) -> None:
    tasks = some_tasks(tiny_model, tmp_path)
    receipts = [score_competitor_range(task) for task in tasks[:5]]
    assert find_unfinished(tasks) == tasks[5:]
    part = tmp_path / "competitors" / "00003.arrow"
    part.write_bytes(part.read_bytes()[:-1])
    assert find_unfinished(tasks) == (tasks[3], *tasks[5:])
    assert score_competitor_range(tasks[3]) == receipts[3]
    others = some_tasks(tiny_model, tmp_path, precision="bf16")
    assert find_unfinished(others) == others


@pytest.mark.usefixtures("many_tasks")
def test_parts_are_gathered_once(tiny_model: Path, tmp_path: Path) -> None:
    tasks = some_tasks(tiny_model, tmp_path)
    spaces, _ = open_spaces(["cubic_perovskite"], ["A=Li,Ca", "B=Ti,Fe", "X=O,F"])
    plan = plan_competitors(spaces, Competitors.TERNARY)
    for task in tasks[1:]:
        score_competitor_range(task)
    with pytest.raises(ScreeningError, match=r"00000\.arrow is missing.*run the same command"):
        gather_competitors(plan, tasks)
    score_competitor_range(tasks[0])
    gathered = gather_competitors(plan, tasks)
    assert gathered.decorations == plan.total
    assert gathered.failures == ()
    phases = Phases.load(gathered.path)
    assert len(phases) == gathered.phases <= plan.total
    assert set(phases.labels) <= set(plan.counts)
    assert phases.energies.shape[1] == 4
    assert not list((tmp_path / "competitors").glob("*.arrow"))
    assert find_unfinished(tasks) == ()
    assert gather_competitors(plan, tasks) == gathered
    gathered.path.write_bytes(b"")
    assert find_unfinished(tasks) == tasks


def test_a_phase_is_what_its_formula_says(tiny_model: Path, tmp_path: Path) -> None:
    tasks = some_tasks(tiny_model, tmp_path)
    score_competitor_range(tasks[0])
    phases = Phases.load(tmp_path / "competitors" / "00000.arrow")
    assert len(phases)
    for formula, fractions in zip(phases.formulas, phases.fractions, strict=True):
        composition = Composition(formula).fractional_composition
        expected = [composition[each] for each in sorted(composition, key=lambda e: e.Z)]
        np.testing.assert_allclose(fractions[: len(expected)], expected)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_dropping_beaten_phases_changes_no_mixture(seed: int) -> None:
    """Many phases of few compositions; candidates are phases themselves, which leave them out."""
    random = np.random.default_rng(seed)
    formulas = random.choice(["LiO", "Li2O", "LiTiO2", "LiTi2O4", "TiO2", "TiO", "Ti2O3"], 40)
    energies = random.normal(-0.4, 0.4, (40, 3)).round(1)
    labels = random.choice(["mine", "other", "third"], 40)
    phases = Phases.of(list(formulas), energies, list(labels), np.arange(1, 41, dtype=np.uint64))
    kept = drop_beaten(phases, frozenset({"mine"}))
    assert len(kept) < 40
    own = np.flatnonzero(phases.labels == "mine")
    asked = np.array([[3, 22, 8]] * (len(own) + 1), dtype=np.uint8)
    amounts = np.array(
        [[Composition(f)[e] for e in ("Li", "Ti", "O")] for f in phases.formulas[own]]
        + [[2.0, 3.0, 5.0]]
    )
    identities = np.append(phases.identities[own], np.uint64(0))
    before = find_mixtures(phases, asked, amounts, identities)
    after = find_mixtures(kept, asked, amounts, identities)
    np.testing.assert_allclose(after.energies, before.energies, atol=1e-9)


def test_nothing_is_dropped_from_nothing() -> None:
    assert len(drop_beaten(Phases.of([], np.empty((0, 2))), frozenset())) == 0


def test_a_candidate_does_not_compete_with_itself_but_with_its_other_decorations() -> None:
    prototype: Prototype = find_prototype("cubic_perovskite")
    numbers = np.array([[20, 22, 8], [22, 20, 8]], dtype=np.uint8)
    identities = identify_decorations(prototype, numbers)
    phases = Phases.of_decorations(
        numbers, prototype.amounts, [-3.0, -2.0], prototype.name, identities, ["CaTiO3", "TiCaO3"]
    )
    mixtures = find_mixtures(phases, numbers, prototype.amounts, identities)
    np.testing.assert_allclose(mixtures.energies[:, 0], [-2.0, -3.0])


def test_binary_competitors_of_oxide_perovskites_are_near_those_of_dft(
    data_dir: Path, tmp_path: Path
) -> None:
    """Hull of 20 ABO3 against that of the binaries in `mp_groundstates`: 0.04 eV/atom apart.

    The limits are those of a model with errors of 0.05 to 0.1 eV/atom.
    """
    import pandas as pd

    from screening.model_library import load_enthalpy_model

    spaces, _ = open_spaces(["cubic_perovskite"], ["A=Na,K,Ca,Sr,Ba", "B=Ti,Zr,Nb,Ta", "X=O"])
    plan = plan_competitors(spaces, Competitors.BINARY)
    tasks = list_tasks(
        plan,
        model="default",
        model_hash=load_enthalpy_model("default").content_hash,
        device="cpu",
        precision="fp32",
        threads=None,
        folder=tmp_path,
    )
    for task in tasks:
        score_competitor_range(task)
    phases = Phases.load(gather_competitors(plan, tasks).path)
    (space,) = spaces
    _, numbers = space.decode(0, space.index_count)
    predicted = find_mixtures(phases, numbers, space.prototype.amounts).energies[:, 0]
    table = pd.read_parquet(data_dir / "mp_groundstates.parquet")
    binary = [len(parse_formula(formula)[0]) == 2 for formula in table.formula]
    references = Phases.of(
        table.formula[binary].tolist(), table.formation_energy_per_atom[binary].to_numpy()
    )
    calculated = find_mixtures(references, numbers, space.prototype.amounts).energies[:, 0]
    assert np.abs(predicted - calculated).mean() < 0.08
    assert np.corrcoef(predicted, calculated)[0, 1] > 0.97


def test_competitors_have_geometries_without_doubts() -> None:
    """But for half-Heusler, whose elements are in doubt: a plan fills it in every order."""
    types = {
        each.prototype: find_prototype(each.prototype) for each in BINARY_TYPES + TERNARY_TYPES
    }
    assert [name for name, each in types.items() if find_doubt(each)] == ["ABC_cF12_216_b_c_a"]
    assert "Ag where it has Mg" in (find_doubt(types["ABC_cF12_216_b_c_a"]) or "")
    spaces, _ = open_spaces(["cubic_perovskite"], ["A=Li,Ca", "B=Ti,Fe", "X=O,F"])
    plan = plan_competitors(spaces, Competitors.TERNARY)
    (half_heusler,) = [
        space for space in plan.spaces if space.prototype.name == "ABC_cF12_216_b_c_a"
    ]
    assert len(set(half_heusler.pools)) == 1
