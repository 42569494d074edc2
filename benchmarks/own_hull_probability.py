"""How far probabilities of being stable can be trusted where the model predicts the competitors.

    python benchmarks/own_hull_probability.py --data DIR [--compounds 2000] [--seed 1]
        [--model mp-icsd-irnet17] [--features TABLE...]

Draws hypothetical compounds of two and three elements (`mp_virtual*` with an energy above the hull
of 2018), takes those of `eval_prototypes.parquet` besides, leaves out compositions that the model
was trained on, and asks how probably each lies at most 0.05 eV/atom above the hull. The truth is
its DFT energy against the hull of `mp_groundstates.parquet`; phases of its own composition count on
neither side. The model with its own calibration judges the compounds against that DFT hull, and
against the phases of `screening.competitors` in three ways: with the predicted hull taken as
certain, with errors drawn for every competitor, and as the program does it. Structures are
featurized, or their features taken from tables by id.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from machine import describe_machine
from numpy.typing import NDArray
from own_hull import STABLE_WITHIN, identify_compositions

from irnet.uncertainty import Uncertainty
from prototypes import ELEMENTS_89, CandidateSpace, find_prototype, reduced_formula
from screening.backtest import DRAWS, draw_noise
from screening.competitors import BINARY_TYPES, TERNARY_TYPES, CompetitorType, score_decorations
from screening.dataset import Protocol, TrainingSet, attach_features, read_training_set
from screening.discovery_metrics import (
    count_found,
    order_by,
    precision_at,
    roc_auc,
    score_probabilities,
)
from screening.feature_tables import featurize_structures, join_features, read_features
from screening.hull import find_mixtures
from screening.model_library import ScreeningModel, load_enthalpy_model
from screening.phases import Phases, parse_formula
from screening.score import LoadedModel, Scores, load_scorer, score_candidates
from screening.stability import judge_stability, place_on_hull

CPU = torch.device("cpu")

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Compounds:
    """Compounds of up to three elements.

    Attributes:
        numbers: Atomic numbers, 0 for none, shape (n, 3).
        amounts: Atoms of each, shape (n, 3).
        compositions: A number for each composition, shape (n,).
        energies: DFT formation energies, eV/atom, shape (n,).
        dft_hull: Energies of the DFT hull without their own composition, eV/atom, shape (n,).
        scores: What the model predicts.
    """

    numbers: NDArray[np.uint8]
    amounts: NDArray[np.int64]
    compositions: NDArray[np.uint64]
    energies: FloatArray
    dft_hull: FloatArray
    scores: Scores

    @property
    def stable(self) -> NDArray[np.bool_]:
        """Which of them are stable by DFT energies."""
        return self.energies - self.dft_hull <= STABLE_WITHIN


def read_rows(
    paths: list[Path],
    labelled: set[str] | None,
    model: ScreeningModel,
    count: int | None,
    seed: int,
) -> TrainingSet:
    """Draw compounds of two or three of the 89 elements that the model was not trained on."""
    protocol = Protocol(drop_missing_energies=True, cross_check_tolerance=None)
    rows = read_training_set(paths, protocol)
    pool = set(ELEMENTS_89)
    elements = [parse_formula(formula)[0] for formula in rows.formulas]
    fit = np.array([len(each) in (2, 3) and pool.issuperset(each) for each in elements])
    fit &= ~model.training_formulas.contains(rows.formulas)
    if labelled is not None:
        fit &= np.array([name in labelled for name in rows.ids])
    return rows.select(np.random.default_rng(seed).permutation(np.flatnonzero(fit))[:count])


def find_features(rows: TrainingSet, tables: list[Path]) -> TrainingSet:
    """Featurize compounds, or take their features from tables that hold all of them."""
    assert rows.crystals is not None
    if tables:
        return attach_features(rows, join_features([read_features(path) for path in tables]))
    with tempfile.TemporaryDirectory() as work:
        features = featurize_structures(rows.crystals, Path(work))
    return attach_features(rows, features)


def place_compounds(rows: TrainingSet, references: Phases, loaded: LoadedModel) -> Compounds:
    """Score compounds and find the hull of the references at their compositions."""
    parsed = [parse_formula(formula) for formula in rows.formulas]
    numbers = np.zeros((len(rows), 3), dtype=np.uint8)
    amounts = np.zeros((len(rows), 3), dtype=np.int64)
    for row, (which, many) in enumerate(parsed):
        numbers[row, : len(which)], amounts[row, : len(many)] = which, many
    own = identify_compositions([reduced_formula(*each) for each in parsed])
    assert rows.features is not None
    return Compounds(
        numbers,
        amounts,
        own,
        rows.target,
        find_mixtures(references, numbers, amounts, own).energies[:, 0],
        score_candidates(loaded, torch.from_numpy(rows.features)),
    )


def predict_phases(
    types: tuple[CompetitorType, ...], wanted: dict[int, NDArray[np.bool_]], loaded: LoadedModel
) -> Phases:
    """Score the decorations of some types in the wanted chemical systems."""
    phases = []
    for kind in types:
        prototype = find_prototype(kind.prototype)
        space = CandidateSpace(prototype, dict.fromkeys(prototype.roles, ELEMENTS_89))
        decorations = space.decode(0, space.index_count)[1]
        decorations = decorations[wanted[len(prototype.roles)][tuple(decorations.T)]]
        (scored,) = score_decorations([(prototype, decorations)], loaded, CPU)
        formulas = space.formulas(scored.numbers)
        own = identify_compositions(formulas)
        amounts = prototype.amounts
        phases.append(
            Phases.of_decorations(
                scored.numbers, amounts, scored.energies, kind.title, own, formulas
            )
        )
    return Phases.join(phases)


def judge(compounds: Compounds, phases: Phases, uncertainty: Uncertainty) -> FloatArray:
    """Probabilities as the program computes them."""
    return place_on_hull(
        phases,
        compounds.numbers,
        compounds.amounts,
        compounds.scores,
        uncertainty,
        within=STABLE_WITHIN,
        identities=compounds.compositions,
    ).stability.p_stable


def judge_by_columns(
    compounds: Compounds, phases: Phases, columns: FloatArray, draws: int, uncertainty: Uncertainty
) -> FloatArray:
    """Probabilities where the columns are the mean and all that is known of the hull's error.

    Args:
        compounds: The compounds.
        phases: Their competitors.
        columns: Energies of these: mean and members, each of them `draws` times, in turn.
        draws: How many columns belong to each member.
        uncertainty: Of the model.
    """
    hull = find_mixtures(
        replace(phases, energies=columns),
        compounds.numbers,
        compounds.amounts,
        compounds.compositions,
    ).energies
    scores = compounds.scores
    return judge_stability(
        scores.mean,
        np.tile(scores.members, (1, draws)),
        scores.forest,
        hull,
        error_scale=scores.error_scale,
        uncertainty=uncertainty,
        within=STABLE_WITHIN,
    ).p_stable


def draw_columns(phases: Phases, members: int, uncertainty: Uncertainty, seed: int) -> FloatArray:
    """Energies of predicted phases with errors drawn as the backtest draws them."""
    mean, own = phases.energies[:, :1], phases.energies[:, 1 : 1 + members]
    scale = find_error_scale(phases.energies[:, -1] - mean[:, 0], uncertainty)
    noise = draw_noise(uncertainty, own, scale, members * DRAWS, seed)
    return np.hstack([mean, np.tile(own, (1, DRAWS)) + noise])


def find_error_scale(noise: FloatArray, uncertainty: Uncertainty) -> FloatArray:
    """Return error scales of which `noise` are the standard deviations, shape (n,)."""
    ends = [0.0, *uncertainty.edges, np.inf]
    found = np.full(len(noise), np.nan)
    for scores, low, high in zip(uncertainty.scores, ends[:-1], ends[1:], strict=True):
        scale = noise / scores.std()
        rows = (scale > low) & (scale <= high)
        found[rows] = scale[rows]
    return found


def report(name: str, probability: FloatArray, stable: NDArray[np.bool_]) -> None:
    """Print how good probabilities are."""
    score = score_probabilities(probability, stable)
    found = count_found(stable, order_by(probability))
    print(
        f"  {name:<34}{probability.mean():>8.3f}{score.brier:>8.3f}{score.calibration_error:>8.3f}"
        f"{roc_auc(probability, stable):>8.3f}{precision_at(found, (100,))[100]:>8.2f}",
        flush=True,
    )


def report_reliability(probability: FloatArray, stable: NDArray[np.bool_]) -> None:
    """Print the promised and observed shares of each bin."""
    for each in score_probabilities(probability, stable).bins:
        print(
            f"    {each.low:.1f} to {each.high:.1f}: {each.rows:>5} compounds, promised "
            f"{each.promised:.2f}, observed {each.observed:.2f} "
            f"({each.observed_low:.2f} to {each.observed_high:.2f})"
        )


def main() -> None:
    """Score, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--compounds", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="mp-icsd-irnet17")
    parser.add_argument("--features", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_enthalpy_model(arguments.model)
    uncertainty = model.uncertainty
    if uncertainty is None:
        parser.error(f"{arguments.model} was never calibrated")
    loaded = load_scorer(arguments.model, model.content_hash, "cpu", "auto")

    virtual = sorted(arguments.data.glob("mp_virtual*.parquet"))
    labels = pd.concat([pd.read_parquet(p, columns=["id", "e_above_hull_2018"]) for p in virtual])
    labelled = set(labels.id[labels.e_above_hull_2018.notna()].astype(str))
    rows = {
        "hypothetical compounds": read_rows(
            virtual, labelled, model, arguments.compounds, arguments.seed
        ),
        "B2, L1_0 and perovskites": read_rows(
            [arguments.data / "eval_prototypes.parquet"], None, model, None, arguments.seed
        ),
    }
    table = pd.read_parquet(arguments.data / "mp_groundstates.parquet")
    references = Phases.of(table.formula.tolist(), table.formation_energy_per_atom.to_numpy())
    references = replace(references, identities=identify_compositions(references.formulas.tolist()))
    compounds = {
        name: place_compounds(find_features(each, arguments.features), references, loaded)
        for name, each in rows.items()
    }
    wanted = {size: np.zeros((120,) * size, dtype=bool) for size in (2, 3)}
    for each in compounds.values():
        for size, systems in wanted.items():
            for roles in permutations(range(3), size):
                systems[tuple(each.numbers[:, role] for role in roles)] = True
    binary = predict_phases(BINARY_TYPES, wanted, loaded)
    ternary = Phases.join([binary, predict_phases(TERNARY_TYPES, wanted, loaded)])

    print(describe_machine())
    print(f"model {model.path.name}, stable within {STABLE_WITHIN} eV/atom, seed {arguments.seed}")
    members = len(model.ensemble.members)
    for name, each in compounds.items():
        stable = each.stable
        base = stable.mean() * (1 - stable.mean())
        print(
            f"\n{len(stable):,} {name}, {stable.mean():.1%} stable, Brier score {base:.3f} for all"
        )
        print(f"  {'':<34}{'mean p':>8}{'Brier':>8}{'ECE':>8}{'AUC':>8}{'of 100':>8}")
        report("DFT hull", judge(each, references, uncertainty), stable)
        for order, phases in (("binary", binary), ("ternary", ternary)):
            certain = phases.energies[:, : 1 + members]
            drawn = draw_columns(phases, members, uncertainty, arguments.seed)
            probability = judge(each, phases, uncertainty)
            hulls = find_mixtures(
                replace(phases, energies=phases.energies[:, [0, -1]]),
                each.numbers,
                each.amounts,
                each.compositions,
            ).energies
            before = judge_by_columns(each, phases, certain, 1, uncertainty)
            after = judge_by_columns(each, phases, drawn, DRAWS, uncertainty)
            report(f"{order}, hull certain", before, stable)
            report(f"{order}, errors drawn", after, stable)
            report(f"{order}, error of the hull", probability, stable)
            change = np.square(probability - stable) - np.square(before - stable)
            print(
                f"    Brier score changed by {change.mean():+.4f}, standard error "
                f"{change.std(ddof=1) / np.sqrt(len(change)):.4f}"
            )
            off, noise = hulls[:, 0] - each.dft_hull, hulls[:, 1] - hulls[:, 0]
            print(
                f"    hull minus DFT hull {off.mean():+.3f}, standard deviation {off.std():.3f}; "
                f"that of the error told: {np.sqrt(np.square(noise).mean()):.3f} (median "
                f"{np.median(noise):.3f}); {(np.abs(off) <= noise).mean():.0%} are within it"
            )
            report_reliability(probability, stable)


if __name__ == "__main__":
    main()
