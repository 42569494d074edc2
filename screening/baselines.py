"""Fitting baselines to data files, measuring them on held-out rows, and predicting with them.

Rows, features and the split by formula are those of a training (`screening.training`) on the same
files with the same seed, so that the errors can be laid beside each other. What was asked for is
written into the folder first; kinds that are finished are kept, so that the same call continues a
killed one or adds kinds, and another call is refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from screening.columns import BASELINE_PREDICTIONS, written_atomically
from screening.crystal import Crystal
from screening.dataset import (
    Protocol,
    TrainingSet,
    attach_features,
    read_training_set,
    refuse_second_features,
    split_by_formula,
)
from screening.errors import (
    ConfigurationError,
    InputDataError,
    ModelError,
    OutputError,
    suggest_file,
)
from screening.feature_tables import (
    ParallelMap,
    ProgressCall,
    featurize_structures,
    read_features,
)
from screening.features import Engine
from screening.features.schema import FEATURES
from screening.features.table import Failure
from screening.model_card import BASELINES_NAME, CARD_NAME, hash_file
from screening.model_library import ENTHALPY_UNIT, list_models
from screening.prediction_columns import DECIMALS
from screening.printing import count_things
from screening.training import clear_folder, writing_to

if TYPE_CHECKING:
    from irnet.baselines import Baseline

REQUEST_NAME: Final = BASELINES_NAME
WORK_NAME: Final = "work"
SUFFIX: Final = ".safetensors"
PREDICTION: Final = "prediction_"
"""Beginning of the columns of predictions; the baseline's name follows."""

HELD_OUT: Final = "held_out"
SUBSET: Final = "subset"
"""What is added to a baseline's card: its `HeldOutError`, and which rows it was fitted on."""

SearchPlace = Callable[[], AbstractContextManager[int]]
"""Enters a backend of joblib and gives how many fits may run at a time."""


@dataclass(frozen=True)
class BaselineRequest:
    """Which baselines to fit to what.

    Attributes:
        data: Parquet files of structures or of features.
        out: Folder to write.
        kinds: Keys of `irnet.baselines.BASELINES`.
        protocol: Which rows take part.
        rows: Most rows to fit, whole formulas drawn at random; all if None.
        search: Whether the grids are searched; otherwise each kind's defaults are fitted.
        seed: Of the split, of the drawn formulas and of the fits.
        holdout: Share of the formulas held out for the errors; 0 fits everything.
        unit: Unit of the target.
        features: Feature table to join by id instead of featurizing, or None.
        engine: Which featurizer.
        jobs: Fits at a time on this machine.
    """

    data: tuple[Path, ...]
    out: Path
    kinds: tuple[str, ...]
    protocol: Protocol
    rows: int | None = None
    search: bool = True
    seed: int = 0
    holdout: float = 0.1
    unit: str = ENTHALPY_UNIT
    features: Path | None = None
    engine: Engine = "fast"
    jobs: int = 1


@dataclass(frozen=True)
class HeldOutError:
    """Errors on rows whose formulas were not fitted, in the target's unit.

    Attributes:
        rows: How many.
        mae: Mean absolute error.
        mae_low: Lower end of its 95 % bootstrap interval.
        mae_high: Upper end.
        rmse: Root of the mean squared error.
        p90: 90th percentile of the absolute error.
        bias: Mean of predicted minus true.
    """

    rows: int
    mae: float
    mae_low: float
    mae_high: float
    rmse: float
    p90: float
    bias: float


def fit_baselines(
    request: BaselineRequest,
    *,
    run: ParallelMap | None = None,
    search_place: SearchPlace | None = None,
    say: Callable[[str], None] = lambda sentence: None,
    progress: ProgressCall | None = None,
    overwrite: bool = False,
) -> tuple[Baseline, ...]:
    """Fit baselines, or take up those that the same request finished before.

    Args:
        request: What to fit.
        run: How to run the chunks of featurizing; in this process if None.
        search_place: Where the grids are searched; on this machine if None.
        say: Told each stage.
        progress: Called with (sites featurized, sites in all, a note).
        overwrite: Whether to remove the baselines in the folder and begin anew, once the data are
            read and found usable.

    Returns:
        The baselines in the order of the kinds; `card` has `HELD_OUT` (a `HeldOutError` as a
        mapping, None without held-out rows) and `SUBSET` (a sentence, None for all rows).

    Raises:
        InputDataError: The data cannot be used.
        ModelError: A baseline in the folder is damaged.
        ConfigurationError: There is no such kind, too few rows are asked for, or the folder belongs
            to another request or to something else.
        OutputError: The folder cannot be written.
        irnet.errors.IRNetError: A kind cannot be fitted to these rows.
    """
    from irnet.baselines import find_baseline

    if request.protocol.classes:
        raise ConfigurationError("baselines learn numbers, not classes")
    for kind in request.kinds:
        find_baseline(kind)
    data = read_training_set(request.data, request.protocol)
    split_by_formula(data.formulas, request.holdout, request.seed)
    refuse_second_features(data, request.features)
    if request.features is not None:
        data = attach_features(data, read_features(request.features))
    if overwrite:
        clear_folder(request.out, _owned())
    _claim_folder(request, data)
    if data.features is None:
        assert data.crystals is not None
        work = request.out / WORK_NAME
        features = featurize_structures(
            data.crystals, work, engine=request.engine, run=run, progress=progress
        )
        data = attach_features(data, features)
    dropped = "".join(f"; {count:,} left out: {why}" for why, count in data.dropped.items())
    say(f"{count_things(len(data), 'row')} of data{dropped}")
    train_rows, held_rows = split_by_formula(data.formulas, request.holdout, request.seed)
    held = data.select(held_rows)
    train, subset = draw_formulas(data.select(train_rows), request.rows, request.seed)
    say(f"fitting {count_things(len(train), 'row')}, {len(held):,} held out")
    if subset is not None:
        say(subset)
    place: AbstractContextManager[int] = nullcontext(request.jobs)
    if search_place and not all(_file_of(kind, request.out).exists() for kind in request.kinds):
        place = search_place()
    with place as n_jobs:
        fitted = tuple(
            _fit(kind, request, train, held, subset, n_jobs, say) for kind in request.kinds
        )
    shutil.rmtree(request.out / WORK_NAME, ignore_errors=True)
    return fitted


def draw_formulas(data: TrainingSet, rows: int | None, seed: int) -> tuple[TrainingSet, str | None]:
    """Draw whole formulas at random until the next would be one too many.

    Of two numbers of rows with one seed, the smaller subset is part of the larger.

    Args:
        data: Rows.
        rows: Most rows to keep; all if None.
        seed: Which formulas.

    Returns:
        The rows that are kept, in their order, and a sentence that names the subset; None where
        nothing was left out.

    Raises:
        ConfigurationError: Not even one formula would be kept.
    """
    if rows is None or rows >= len(data):
        return data, None
    groups = data.formula_groups()
    order = np.random.default_rng([seed, 1]).permutation(int(groups.max()) + 1)
    sizes = np.bincount(groups)[order]
    kept = int((np.cumsum(sizes) <= rows).sum())
    if kept == 0:
        raise ConfigurationError(f"--rows {rows} has no room for one formula; give more")
    chosen = np.flatnonzero(np.isin(groups, order[:kept]))
    sentence = (
        f"fitted on {len(chosen):,} of {len(data):,} rows: those of {kept:,} formulas drawn at "
        f"random with seed {seed}"
    )
    return data.select(chosen, "not in the drawn subset"), sentence


def load_baselines(folder: Path) -> tuple[Baseline, ...]:
    """Read every baseline of a folder.

    Args:
        folder: A folder that `fit_baselines` wrote.

    Returns:
        The baselines, in the order of `irnet.baselines.BASELINES`.

    Raises:
        ModelError: There is none, or the features are others than this program's.
        irnet.errors.ModelFileError: A file is damaged.
    """
    from irnet.baselines import BASELINES, Baseline

    paths = [_file_of(name, folder) for name in BASELINES]
    found = tuple(Baseline.load(path) for path in paths if path.is_file())
    if not found:
        bundled = folder.name if folder.name in {each.name for each in list_models()} else None
        if (folder / CARD_NAME).is_file() or (bundled and not folder.exists()):
            raise ModelError(
                f"{folder} is a model, no folder of baselines; predict with it: "
                f"screening predict FILES --model {folder} --out OUT.parquet"
            )
        hint = "" if folder.exists() else suggest_file(folder)
        raise ModelError(
            f"{folder} holds no baselines{hint or ';'} fit some with: screening baselines fit DATA "
            f"--kind ridge --out {folder}"
        )
    for baseline in found:
        baseline.check_features(FEATURES)
    return found


def predict_structures(
    baselines: Sequence[Baseline],
    crystals: Sequence[Crystal],
    work: Path,
    *,
    engine: Engine = "fast",
    run: ParallelMap | None = None,
    progress: ProgressCall | None = None,
) -> tuple[pa.Table, tuple[Failure, ...]]:
    """Predict structures by each baseline.

    Args:
        baselines: At least one.
        crystals: Structures with distinct ids.
        work: Folder for features on the way.
        engine: Which featurizer.
        run: How to run the chunks of featurizing; in this process if None.
        progress: Called with (sites featurized, sites in all, a note).

    Returns:
        A table of `screening.columns.BASELINE_PREDICTIONS` in the order of the crystals, and the
        structures that could not be featurized.

    Raises:
        InputDataError: No structure could be featurized.
    """
    features = featurize_structures(crystals, work, engine=engine, run=run, progress=progress)
    if not features.ids:
        reasons = "; ".join(f"{each.id}: {each.reason}" for each in features.failures[:3])
        raise InputDataError(f"no structure can be used. {reasons}. Correct or replace the files.")
    formulas = {crystal.id: crystal.formula for crystal in crystals}
    values = features.values.astype(np.float32)
    columns = {
        "id": pa.array(features.ids, pa.string()),
        "formula": pa.array([formulas[name] for name in features.ids], pa.string()),
    }
    for each in baselines:
        columns[PREDICTION + each.name] = pa.array(each.predict(values).round(DECIMALS))
    return pa.table(BASELINE_PREDICTIONS.sort(columns)), features.failures


def tabulate_errors(baselines: Sequence[Baseline]) -> list[list[str]]:
    """Held-out errors as rows of text.

    Args:
        baselines: As `fit_baselines` returns them.

    Returns:
        The header, then a row for each.
    """
    rows = [["predictor", "n", "MAE", "95 % interval", "RMSE", "p90", "bias", "fitted", "time"]]
    for baseline in baselines:
        card = baseline.card
        error = card[HELD_OUT]
        measured = [""] * 6
        if error is not None:
            measured = [
                f"{error['rows']:,}",
                f"{error['mae']:.4f}",
                f"{error['mae_low']:.4f}–{error['mae_high']:.4f}",
                f"{error['rmse']:.4f}",
                f"{error['p90']:.4f}",
                f"{error['bias']:+.4f}",
            ]
        part = "*" if card[SUBSET] else ""
        rows.append(
            [baseline.title, *measured, f"{card['rows']:,}{part}", f"{card['seconds']:,.0f} s"]
        )
    return rows


def describe_fit(baseline: Baseline) -> str:
    """Say in a sentence which parameters a baseline has, and whether its fit converged."""
    card = baseline.card
    parameters = ", ".join(f"{key} {value}" for key, value in card["parameters"].items())
    tried = len(card["search"])
    how = f"the best of {tried}" if tried > 1 else "no search"
    ending = "" if card["converged"] else "; the fit did not converge"
    return f"{baseline.title}: {parameters or 'no parameters'} ({how}){ending}"


def _fit(
    kind: str,
    request: BaselineRequest,
    train: TrainingSet,
    held: TrainingSet,
    subset: str | None,
    n_jobs: int,
    say: Callable[[str], None],
) -> Baseline:
    from irnet.baselines import Baseline, fit_baseline

    path = _file_of(kind, request.out)
    if path.exists():
        found = Baseline.load(path)
        if not {HELD_OUT, SUBSET} <= set(found.card):
            raise ModelError(f"{path} was not fitted here; remove it, or give --overwrite")
        say(f"{found.title}: already fitted")
        return found
    assert train.features is not None
    assert held.features is not None
    say(f"fitting {kind}")
    fitted = fit_baseline(
        kind,
        train.features,
        train.target,
        FEATURES,
        search=request.search,
        seed=request.seed,
        n_jobs=n_jobs,
        groups=train.formula_groups(),
        target_name=request.protocol.target,
        target_unit=request.unit,
    )
    error = None
    if len(held):
        error = asdict(_measure(fitted.predict(held.features), held.target))
    baseline = replace(fitted, card={**fitted.card, HELD_OUT: error, SUBSET: subset})
    with writing_to(request.out):
        baseline.save(path)
    say(describe_fit(baseline))
    return baseline


def _file_of(kind: str, folder: Path) -> Path:
    return folder / f"{kind}{SUFFIX}"


def _measure(predicted: NDArray[np.float64], target: NDArray[np.float64]) -> HeldOutError:
    from irnet import metrics

    interval = metrics.bootstrap(metrics.mae, predicted, target)
    return HeldOutError(
        rows=len(target),
        mae=interval.value,
        mae_low=interval.low,
        mae_high=interval.high,
        rmse=metrics.rmse(predicted, target),
        p90=metrics.error_quantile(predicted, target, 0.9),
        bias=metrics.bias(predicted, target),
    )


def _owned() -> frozenset[str]:
    from irnet.baselines import BASELINES

    return frozenset({REQUEST_NAME, WORK_NAME, *(name + SUFFIX for name in BASELINES)})


def _claim_folder(request: BaselineRequest, data: TrainingSet) -> None:
    """Make the folder this request's own.

    Raises:
        ConfigurationError: It holds baselines of another request, or something else.
        OutputError: It cannot be written.
    """
    wanted: dict[str, Any] = {
        "data": data.content_hash(),
        "target": request.protocol.target,
        "unit": request.unit,
        "features": hash_file(request.features) if request.features else request.engine,
        "seed": request.seed,
        "held-out share": request.holdout,
        "rows to fit": "all" if request.rows is None else request.rows,
        "search": request.search,
    }
    path = request.out / REQUEST_NAME
    try:
        request.out.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if any(not entry.name.startswith(".") for entry in request.out.iterdir()):
                raise ConfigurationError(
                    f"{request.out} is not empty and holds no baselines. Choose another --out."
                )
            with written_atomically(path) as temporary:
                files = {"files": [asdict(source) for source in data.sources]}
                temporary.write_text(json.dumps(wanted | files, indent=1) + "\n", encoding="utf-8")
            return
        begun = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is damaged. Give --overwrite to begin anew.") from error
    except OSError as error:
        raise OutputError.from_os_error(error, request.out) from error
    if not isinstance(begun, dict):
        raise ConfigurationError(f"{path} is damaged. Give --overwrite to begin anew.")
    for key, value in wanted.items():
        if begun.get(key) != value:
            raise ConfigurationError(
                f"{request.out} holds other baselines: their {key} is {begun.get(key)!r}, not "
                f"{value!r}. Choose another --out, or give --overwrite to begin anew."
            )
