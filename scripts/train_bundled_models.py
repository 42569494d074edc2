"""Train, cross-validate and calibrate the model that comes with the program.

    python scripts/train_bundled_models.py WORK [--data FOLDER] [--stage STAGE ...]

Every stage continues where it was interrupted, and is skipped when it is done:

    tables      features of all structures, and which rows the stages may train on
    base        4 networks and a forest, on all data without the formulas of the evaluation set, a
                tenth of the ICSD-flagged formulas, and 6 % of the chemical systems of the others
    folds       the evaluation set in 5 parts by chemical system; for each part, the base networks
                trained on, for some epochs, with the other parts among their data
    calibrate   errors and intervals from what each fold's networks say of compounds that neither
                they nor the base saw
    final       the base networks trained on in the same way with every row there is
    bundle      both made small; the final one's card tells the errors of base and folds, and its
                training table the structure types of its compounds
"""

from __future__ import annotations

import argparse
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from write_training_tables import read_types, write_training_table

from irnet import Ensemble, fit_forest, train_ensemble
from irnet.forest import ForestParameters
from irnet.metrics import bootstrap, mae
from irnet.recipe import RECIPES
from irnet.reference import TrainingReference
from screening.calibration import (
    CALIBRATED_LIMIT,
    CalibrationRows,
    fit_intervals,
    judge_intervals,
    number_systems,
)
from screening.commands_training import read_sources
from screening.compression import bundle_model
from screening.dataset import (
    Protocol,
    TrainingSet,
    attach_features,
    read_training_set,
    split_by_formula,
)
from screening.evaluation import (
    EvaluationSet,
    Geometry,
    evaluate_model,
    featurize_ideal,
    group_rows,
    predict_all,
    read_evaluation_set,
    score_predictions,
)
from screening.feature_tables import featurize_structures, read_features, write_features
from screening.features.schema import FEATURES
from screening.model_card import (
    DataFileEntry,
    Evaluation,
    Reliability,
    Score,
    Source,
    write_card,
)
from screening.model_library import REFERENCE_NAME, UNCERTAINTY_NAME, load_model, model_files
from screening.reliability import measure_reliability
from screening.training import (
    HELD_OUT_NAME,
    Reporter,
    TrainingRequest,
    save_rows,
    train_model,
)

STAGES = ("tables", "base", "folds", "calibrate", "final", "bundle")
MEMBERS = 4
SEED = 0
HELD_OUT = 0.1
KEPT_SYSTEMS = 0.06
FOLDS = 5
TREES_PER_FOLD = 20
EVALUATION_WEIGHT = 6.0
BASE = RECIPES["default"].with_changes(epochs=60, learning_rate=5e-4, validation_fraction=0.03)
CONTINUED = BASE.with_changes(epochs=6, learning_rate=3e-4, validation_fraction=0.02)
FOREST = {
    "n_estimators": 100,
    "min_samples_split": 5,
    "max_features": 0.33,
    "max_depth": 25,
}  # chosen by `screening train` on the paper's grid, on the ICSD-flagged rows
ROLES = ("train", "held_out", "kept", "beside_kept", "beside_held_out", "evaluated")
NODES = 1_050_000
LICENCE = "CC-BY 4.0"
LIMIT = (
    "Errors on hypothetical compounds are known for B2, L1_0, Pnma and cubic perovskites, and for "
    "a random part of those in the Materials Project; other prototypes are unmeasured."
)
TARGET = "formation_energy_per_atom"
WEIGHTED = Protocol(weights="weight")


def read_rows(paths: list[Path], features: Path) -> TrainingSet:
    """Read structures with energies and join their features, computed once into a table."""
    data = read_training_set(paths, Protocol())
    if not features.exists():
        assert data.crystals is not None
        parts = features.with_suffix(".parts")
        write_features(featurize_structures(data.crystals, parts), features)
    return attach_features(data, read_features(features))


def assign_roles(known: TrainingSet, other: TrainingSet, evaluated: set[str]) -> NDArray[np.str_]:
    """Say of every row, known crystals first, which stages may train on it.

    Args:
        known: ICSD-flagged crystals, n rows.
        other: The others, m rows.
        evaluated: Reduced formulas of the evaluation set.

    Returns:
        One of `ROLES` per row, shape (n + m,).
    """
    formulas = np.array([*known.formulas, *other.formulas])
    flagged = np.arange(len(formulas)) < len(known)
    roles = np.full(len(formulas), "train", dtype="<U16")
    free = ~np.isin(formulas, list(evaluated))
    roles[~free] = "evaluated"
    rows = np.flatnonzero(flagged & free)
    held = rows[split_by_formula(formulas[rows].tolist(), HELD_OUT, SEED)[1]]
    roles[free & np.isin(formulas, formulas[held])] = "beside_held_out"
    roles[held] = "held_out"
    rows = np.flatnonzero(~flagged & (roles == "train"))
    systems = np.array(["-".join(sorted(re.findall("[A-Z][a-z]?", f))) for f in formulas[rows]])
    names = np.unique(systems)
    drawn = np.random.default_rng(7).permutation(names)[: int(len(names) * KEPT_SYSTEMS)]
    kept = rows[np.isin(systems, drawn)]
    roles[(roles == "train") & np.isin(formulas, formulas[kept])] = "beside_kept"
    roles[kept] = "kept"
    return roles


def write_tables(data: Path, work: Path) -> None:
    """Write one feature table with formulas and energies per role, and the evaluation set's."""
    folder = work / "tables"
    if (folder / "evaluation.parquet").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    known = read_rows(sorted(data.glob("mp_icsd*.parquet")), work / "known_features.parquet")
    other = read_rows(sorted(data.glob("mp_virtual*.parquet")), work / "other_features.parquet")
    compounds = read_evaluation_set(data / "eval_prototypes.parquet")
    roles = assign_roles(known, other, {crystal.formula for crystal in compounds.crystals})
    assert known.features is not None
    assert other.features is not None
    values = np.concatenate([known.features, other.features])
    labels = pd.DataFrame(
        {
            "id": [*known.ids, *other.ids],
            "formula": [*known.formulas, *other.formulas],
            TARGET: np.concatenate([known.target, other.target]),
        }
    )
    for role in ROLES:
        rows = np.flatnonzero(roles == role)
        table = labels.iloc[rows].assign(weight=1.0)
        write_table(folder / f"{role}.parquet", table, values[rows])
        print(f"{role}: {len(rows):,} rows")
    relaxed, ideal = featurize_evaluation(compounds)
    labels = pd.DataFrame(
        {
            "id": [crystal.id for crystal in compounds.crystals],
            "formula": [crystal.formula for crystal in compounds.crystals],
            TARGET: compounds.target,
            "weight": EVALUATION_WEIGHT,
        }
    )
    both = pd.concat([labels.assign(id=labels["id"] + suffix) for suffix in (" relaxed", " ideal")])
    write_table(folder / "evaluation.parquet", both, np.concatenate([relaxed, ideal]))


def write_table(path: Path, labels: pd.DataFrame, values: NDArray[np.float32]) -> None:
    """Write labels beside the 271 features, shape (n, 271)."""
    columns = pd.DataFrame(values.astype(np.float32), columns=list(FEATURES))
    table = pd.concat([labels.reset_index(drop=True), columns], axis=1)
    table.to_parquet(path, compression="zstd")


def featurize_evaluation(
    compounds: EvaluationSet,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features of the evaluation set on its relaxed and on its ideal cells, (n, 271) each."""
    from screening.features import featurize_crystals

    assert compounds.kinds is not None
    relaxed = featurize_crystals(list(compounds.crystals), engine="fast").values
    ideal = featurize_ideal(compounds.crystals, compounds.kinds)
    return relaxed.astype(np.float32), ideal.astype(np.float32)


def read_table(work: Path, *names: str) -> TrainingSet:
    """Read tables that `write_tables` wrote, one after the other."""
    return read_training_set([work / "tables" / f"{name}.parquet" for name in names], WEIGHTED)


def train_base(work: Path, sources: tuple[Source, ...]) -> None:
    """Train the base model and keep the rows that it is measured on beside it."""
    train_model(
        TrainingRequest(
            data=(work / "tables" / "train.parquet",),
            out=work / "base",
            protocol=Protocol(),
            recipe=BASE,
            members=MEMBERS,
            seed=SEED,
            holdout=0.0,
            forest_parameters=FOREST,
            jobs=os.cpu_count() or 1,
            sources=sources,
        ),
        reporter=Reporter(say=print, trained=tell),
    )
    save_rows(read_table(work, "held_out"), work / "base" / HELD_OUT_NAME)


def tell(done: int, total: int, note: str) -> None:
    """Print how far a training is."""
    print(f"{done} of {total} epochs, {note}", flush=True)


def number_folds(formulas: tuple[str, ...]) -> NDArray[np.int64]:
    """Divide compounds into folds by chemical system, shape (n,)."""
    systems = number_systems(formulas)
    order = np.random.default_rng(SEED).permutation(systems.max() + 1)
    return np.asarray(order[systems] % FOLDS)


def predict_folds(work: Path) -> None:
    """Train on per fold, and predict what neither the fold's networks nor the base's saw.

    A row of the evaluation set is predicted by the fold without its chemical system, a row kept
    out of the base by one of the folds.
    """
    path = work / "folds" / "predictions.npz"
    if path.exists():
        return
    train = read_table(work, "train")
    evaluation, others = read_table(work, "evaluation"), read_table(work, "held_out", "kept")
    fold = number_folds(evaluation.formulas)
    turn = np.arange(len(others)) % FOLDS
    base = Ensemble.load(work / "base" / "ensemble")
    rows = len(evaluation) + len(others)
    networks, forest_means = np.full((MEMBERS, rows), np.nan), np.full(rows, np.nan)
    distances = np.full(rows, np.nan)
    for number in range(FOLDS):
        added = evaluation.select(np.flatnonzero(fold != number))
        features = np.concatenate([features_of(train), features_of(added)])
        target = np.concatenate([train.target, added.target])
        ensemble = train_on(base, train, added, work / "folds" / str(number))
        forest = fit_forest(
            features,
            target,
            FEATURES,
            seed=SEED,
            n_jobs=os.cpu_count() or 1,
            search=False,
            parameters=ForestParameters(**{**FOREST, "n_estimators": TREES_PER_FOLD}),
        )
        reference = TrainingReference.fit(features, seed=SEED)
        unseen = np.concatenate([fold == number, turn == number])
        asked = np.concatenate([features_of(evaluation), features_of(others)])[unseen]
        predicted = predict_all(ensemble, forest, asked)
        networks[:, unseen] = predicted["irnet_member"]
        forest_means[unseen] = predicted["random_forest"]
        distances[unseen] = reference.distance(asked)
        print(f"fold {number}: {unseen.sum():,} rows predicted", flush=True)
    np.savez(path, networks=networks, forest=forest_means, distance=distances, fold=fold)


def train_on(base: Ensemble, train: TrainingSet, added: TrainingSet, folder: Path) -> Ensemble:
    """Train the base's networks on, side by side, with rows added to its own."""
    import torch

    formulas = np.array([*train.formulas, *added.formulas], dtype=object)
    assert train.weights is not None
    assert added.weights is not None
    torch.set_num_threads(1)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return train_ensemble(
            np.concatenate([features_of(train), features_of(added)]),
            np.concatenate([train.target, added.target]),
            FEATURES,
            recipe=CONTINUED,
            members=MEMBERS,
            seed=SEED,
            checkpoint_dir=folder,
            groups=np.unique(formulas, return_inverse=True)[1],
            weights=np.concatenate([train.weights, added.weights]),
            init_from=base,
            map=lambda function, tasks: list(pool.map(function, tasks)),
            target_name=TARGET,
        )


def read_predictions(work: Path) -> tuple[CalibrationRows, NDArray[np.str_]]:
    """What the folds predicted of compounds that they were not trained on.

    Returns:
        The rows, and of each the part it belongs to: the relaxed or ideal cells of the evaluation
        set, held_out (ICSD-flagged) or kept (not flagged).
    """
    names = ("evaluation", "held_out", "kept")
    evaluation, held, kept = (read_table(work, name) for name in names)
    stored = np.load(work / "folds" / "predictions.npz", allow_pickle=False)
    half = len(evaluation) // 2
    parts = np.repeat(["relaxed", "ideal", "held_out", "kept"], [half, half, len(held), len(kept)])
    rows = CalibrationRows(
        np.concatenate([features_of(part) for part in (evaluation, held, kept)]),
        np.concatenate([evaluation.target, held.target, kept.target]),
        {
            "irnet": stored["networks"].mean(axis=0),
            "irnet_member": stored["networks"],
            "random_forest": stored["forest"],
        },
        number_systems((*evaluation.formulas, *held.formulas, *kept.formulas)),
        stored["distance"],
    )
    return rows, parts


def features_of(data: TrainingSet) -> NDArray[np.float32]:
    """The features of rows that have them, (n, 271)."""
    assert data.features is not None
    return data.features


def calibrate(work: Path, data: Path) -> None:
    """Put the errors of base and folds, and intervals fitted to them, into the base's folder."""
    base = load_model(work / "base")
    if base.card.calibration is not None:
        return
    compounds = read_evaluation_set(data / "eval_prototypes.parquet")
    rows, parts = read_predictions(work)
    once = rows.select(np.flatnonzero(parts != "relaxed"))  # the ideal cells stand for both
    labels = np.where(parts == "ideal", "evaluation set", parts)[parts != "relaxed"]
    uncertainty, calibration = fit_intervals(
        once,
        TrainingReference.load(work / "base" / REFERENCE_NAME),
        measured_on=(
            "compounds that the predicting networks were not trained on: "
            + ", ".join(f"{count:,} {name}" for name, count in Counter(labels.tolist()).items())
        ),
        parts=labels,
        seed=SEED,
    )
    uncertainty.save(work / "base" / UNCERTAINTY_NAME)
    held = read_table(work, "held_out")
    predicted = predict_all(base.ensemble, base.forest, features_of(held))
    evaluation = evaluate_model(base, compounds)
    write_card(
        base.card.model_copy(
            update={
                "held_out": tuple(score_predictions(predicted, held.target, group="held_out")),
                "evaluation": evaluation,
                "cross_validation": cross_validate(work, compounds, evaluation.data),
                "calibration": calibration,
                "limits": tuple(
                    CALIBRATED_LIMIT if "not a calibrated" in limit else limit
                    for limit in base.card.limits
                ),
            }
        ),
        work / "base",
    )


def cross_validate(work: Path, compounds: EvaluationSet, file: DataFileEntry) -> Evaluation:
    """Errors and intervals on the evaluation set, each compound by the fold that never saw it."""
    rows, parts = read_predictions(work)
    reference = TrainingReference.load(work / "base" / REFERENCE_NAME)
    scores: list[Score] = []
    reliabilities: list[Reliability] = []
    geometries: tuple[Geometry, ...] = ("relaxed", "ideal")
    for geometry in geometries:
        others = np.isin(parts, ("held_out", "kept"))
        taken = rows.select(np.flatnonzero((parts == geometry) | others))
        intervals = judge_intervals(taken, reference, seed=SEED)
        for group, scheme, of_group in group_rows(compounds):
            scores += score_predictions(
                {name: values[..., of_group] for name, values in taken.predictions.items()},
                compounds.target[of_group],
                group=group,
                scheme=scheme,
                geometry=geometry,
            )
            reliabilities.append(
                measure_reliability(
                    intervals.select(of_group),
                    compounds.target[of_group],
                    group=group,
                    scheme=scheme,
                    geometry=geometry,
                )
            )
    return Evaluation(
        data=file, scores=tuple(scores), formulas_seen=0, reliabilities=tuple(reliabilities)
    )


def train_final(work: Path, sources: tuple[Source, ...]) -> None:
    """Train the base's networks on with every row, and a forest of its own."""
    train_model(
        TrainingRequest(
            data=tuple(work / "tables" / f"{name}.parquet" for name in (*ROLES, "evaluation")),
            out=work / "final",
            protocol=WEIGHTED,
            recipe=CONTINUED,
            members=MEMBERS,
            seed=SEED,
            holdout=0.0,
            forest_parameters=FOREST,
            jobs=os.cpu_count() or 1,
            init_from=str(work / "base"),
            sources=sources,
        ),
        reporter=Reporter(say=print, trained=tell),
    )


def bundle(work: Path, data: Path) -> None:
    """Make base and final small, and let the final one's card tell what was measured on twins."""
    small = work / "small"
    bundle_model(work / "base", small / "base", nodes=NODES, weights="int6", overwrite=True)
    base = load_model(small / "base")
    evaluation = evaluate_model(base, read_evaluation_set(data / "eval_prototypes.parquet"))
    unmeasured = evaluation.model_copy(update={"reliabilities": ()})  # intervals are not the base's
    write_card(base.card.model_copy(update={"evaluation": unmeasured}), small / "base")
    final = small / "mp-all-irnet17"
    card = bundle_model(
        work / "final", final, nodes=NODES, weights="int6", twin=small / "base", overwrite=True
    )
    rows, parts = read_predictions(work)
    held = np.flatnonzero(parts == "held_out")
    networks = {name: p[..., held] for name, p in rows.predictions.items() if "irnet" in name}
    scores = score_predictions(networks, rows.target[held], group="held_out")
    forest = tuple(score for score in card.held_out if score.predictor == "random_forest")
    card = card.model_copy(
        update={
            "held_out": (*scores, *forest),
            "licence": LICENCE,
            "limits": (LIMIT, *card.limits[1:]),
            "description": (
                f"{card.description} The networks were trained for {BASE.epochs} epochs without "
                f"the evaluation set and some held-out rows, then for {CONTINUED.epochs} epochs on "
                "everything."
            ),
            "measured_on_twin": (
                f"twins: on held-out rows and under cross-validation, {FOLDS} ensembles trained on "
                "like this one without the compounds in question; on the evaluation set, and of "
                "the Random Forest, the model that this one began as, which saw none of its "
                "formulas"
            ),
        }
    )
    write_card(card, final)
    write_training_table(final, data, read_types(work / "types.parquet", data), everything=True)
    print(f"{final}: {sum(path.stat().st_size for path in model_files(final)) / 1e6:.1f} MB")


def pool_l1_0(work: Path, data: Path) -> None:
    """Print the error on all L1_0 compounds that some fold predicted without knowing them."""
    rows, parts = read_predictions(work)
    ids = [*read_table(work, "evaluation").ids, *read_table(work, "held_out", "kept").ids]
    known = pd.concat(
        pd.read_parquet(path, columns=["id", "kind"])
        for path in (*data.glob("mp_icsd*.parquet"), *data.glob("mp_virtual*.parquet"))
    )
    compounds = pd.read_parquet(data / "eval_prototypes.parquet", columns=["id", "kind"])
    names = set(pd.concat([known, compounds]).query("kind == 'L1_0'")["id"].astype(str))
    chosen = [
        row
        for row, name in enumerate(ids)
        if name.removesuffix(" ideal") in names and parts[row] != "relaxed"
    ]
    of_set = sum(parts[row] == "ideal" for row in chosen)
    for name in ("irnet", "random_forest"):
        errors = np.abs(rows.predictions[name] - rows.target)[chosen]
        interval = bootstrap(mae, errors, np.zeros_like(errors))
        print(
            f"L1_0, {of_set} of the evaluation set and {len(chosen) - of_set} others held out: "
            f"{name} {errors.mean():.3f} ({interval.low:.3f}-{interval.high:.3f}) eV/atom"
        )


def main() -> None:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    default = os.environ.get("SCREENING_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--sources", type=Path, help="TOML with [[source]] entries for the cards")
    parser.add_argument("--stage", action="append", choices=STAGES)
    arguments = parser.parse_args()
    work, data = arguments.work, arguments.data
    sources = read_sources(arguments.sources) if arguments.sources else ()
    for stage in arguments.stage or STAGES:
        print(f"stage {stage}", flush=True)
        if stage == "tables":
            write_tables(data, work)
        elif stage == "base":
            train_base(work, sources)
        elif stage == "folds":
            predict_folds(work)
        elif stage == "calibrate":
            calibrate(work, data)
            pool_l1_0(work, data)
        elif stage == "final":
            train_final(work, sources)
        else:
            bundle(work, data)


if __name__ == "__main__":
    main()
