"""Which trials make up each table and figure, at three budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from screening.benchmark.data import ABOVE_HULL, DENSITY, ELEMENTS, PROTOTYPES, VOLUME
from screening.benchmark.trial import Trial, Value
from screening.dataset import DEFAULT_TARGET
from screening.errors import ConfigurationError, suggest

Budget = Literal["tiny", "cpu", "full"]

BUDGETS: Final[tuple[Budget, ...]] = ("tiny", "cpu", "full")
"""tiny ends in seconds and only shows that it runs; cpu is what two cores can in about two hours;
full is as the paper, for a GPU."""


@dataclass(frozen=True)
class Benchmark:
    """A table or figure.

    Attributes:
        name: As it is asked for.
        title: What is compared.
        paper: Which part of the paper it repeats; empty where it goes beyond.
        define: Its trials at a budget. They may belong to another benchmark: then that one's
            results are read, and made where they are missing.
    """

    name: str
    title: str
    paper: str
    define: Callable[[Budget], tuple[Trial, ...]]

    def trials(self, budget: Budget) -> tuple[Trial, ...]:
        """Its trials in the order in which they are run: first those of the first seed.

        Args:
            budget: How much is spent.
        """
        return tuple(sorted(self.define(budget), key=lambda trial: trial.seed))


def find_budget(name: str) -> Budget:
    """Return a budget by name.

    Raises:
        ConfigurationError: There is none of this name.
    """
    for budget in BUDGETS:
        if budget == name:
            return budget
    raise ConfigurationError(
        f'no budget "{name}"{suggest(name, BUDGETS) or ";"} there are: {", ".join(BUDGETS)}'
    )


def find_benchmarks(name: str) -> tuple[Benchmark, ...]:
    """Return the benchmark of a name, or every one for "all".

    Raises:
        ConfigurationError: There is none of this name.
    """
    if name == "all":
        return tuple(BENCHMARKS.values())
    if name not in BENCHMARKS:
        names = (*BENCHMARKS, "all")
        raise ConfigurationError(
            f'no benchmark "{name}"{suggest(name, names)} Benchmarks: {", ".join(names)}.'
        )
    return (BENCHMARKS[name],)


@dataclass(frozen=True)
class Size:
    """How much is spent on one model.

    Attributes:
        train_rows: Rows to train on, None for all.
        epochs: Of a network, None for the recipe's.
        seeds: How often it is fitted, with different seeds.
        watched_rows: Held-out rows that a network's learning curve is of, None for all.
        search: Whether a baseline's grid is searched.
    """

    train_rows: int | None
    epochs: int | None = None
    seeds: int = 1
    watched_rows: int | None = 0
    search: bool = True


NETWORKS: Final = tuple(
    f"{kind}-{depth}" for kind in ("plain", "srnet", "irnet") for depth in (17, 24, 48)
)
"""The paper's networks (Table 1)."""

BASELINES: Final = (
    "linear_regression",
    "lasso",
    "ridge",
    "elastic_net",
    "sgd",
    "decision_tree",
    "adaboost",
    "k_neighbors",
    "svr",
    "bagging",
    "random_forest",
    "gradient_boosting",
    "kernel_ridge",
)
"""The paper's regressors, and the two that it lacks."""

SLOW_BASELINES: Final = ("svr", "adaboost", "kernel_ridge")
"""Regressors that take hours, or too much memory, on all rows: `MOST_ROWS` of them then."""

MOST_ROWS: Final = 20_000

COMPARED: Final = ("random_forest", "gradient_boosting", "kernel_ridge")
"""Baselines that stand beside IRNet beyond the tables: the paper's best, and those it lacks."""

KERNEL_ROWS: Final = 40_000
"""Most rows of the kernel in these: its matrix of all of them does not fit into most machines."""

PROPERTIES: Final = (
    ("oqmd-c", DEFAULT_TARGET),
    ("mp-c", DEFAULT_TARGET),
    ("mp-c", VOLUME),
    ("mp-c", DENSITY),
    ("mp-c", ABOVE_HULL),
)
"""What is learnt from composition alone (the paper's Table 4): data set and target."""

VARIANTS: Final[Mapping[str, tuple[str, str]]] = {
    "plain-17-norm-after": ("plain-17, batch norm after", "{width}ABx{count}"),
    "plain-17-no-norm": ("plain-17, no batch norm", "{width}Ax{count}"),
    "plain-17-dropout": ("plain-17, dropout", "{width}BAx{count}D"),
}
"""Other 17-layer plain networks (the paper's Figure 2): series, label, pattern of a block."""

DROPOUT_BLOCKS: Final = 4
"""Dropout was tried after the first four stacks (section 4.1.1)."""

RECIPE_STEPS: Final[tuple[tuple[str, str, Mapping[str, Value]], ...]] = (
    ("paper", "the paper's recipe", {}),
    ("inputs", "+ scaled inputs", {"scale_inputs": True, "clip_sigma": 6.0}),
    ("target", "+ scaled target", {"scale_target": True}),
    ("clip", "+ gradient clipped", {"gradient_clip": 1.0}),
    (
        "adamw",
        "+ AdamW at 5e-4",
        {"optimizer": "adamw", "learning_rate": 5e-4, "weight_decay": 1e-2},
    ),
    ("one-cycle", "+ one cycle", {"schedule": "one-cycle", "patience": 40}),
    ("batch", "+ batches of 512", {"batch_size": 512}),
    ("precision", "+ bfloat16: the default recipe", {"precision": "auto"}),
)
"""From recipe ``paper`` to ``default``, each step on top of those before: series, label, fields."""

BATCH_SIZES: Final = ((2_000, 64), (5_000, 128), (20_000, 256))
"""Batches for fewer rows than the first number, so that small sets still make steps enough."""

_EPOCHS: Final[Mapping[str, str]] = {
    "default": "80",
    "paper": "up to 5,000 with a patience of 200",
    "brnet": "up to 3,000 with a patience of 200",
    "ibrnet": "up to 3,000 with a patience of 60",
}
_WIDTHS_17: Final = ((1024, 4), (512, 3), (256, 3), (128, 3), (64, 2), (32, 1))


def write_plain_17(pattern: str) -> str:
    """The architecture string of a variant of the 17-layer plain network.

    Args:
        pattern: A block, with ``{width}`` and ``{count}``; a ``D`` at its end is only for the first
            `DROPOUT_BLOCKS`.
    """
    patterns = [
        pattern if place < DROPOUT_BLOCKS else pattern.removesuffix("D")
        for place in range(len(_WIDTHS_17))
    ]
    blocks = [
        each.format(width=width, count=count)
        for each, (width, count) in zip(patterns, _WIDTHS_17, strict=True)
    ]
    return "-".join([*blocks, "1"])


def _fit_network(
    trial: Trial, size: Size, recipe: str = "default", changes: Mapping[str, Value] | None = None
) -> list[Trial]:
    """Trials of a network, one per seed, of a trial that says the rest."""
    changed = dict(changes or {})
    smaller = _describe_rows(size)
    if size.epochs is not None:
        usual = changed.get("epochs", _EPOCHS[recipe])
        smaller.append(f"{size.epochs} epochs instead of {usual}")
        changed["epochs"] = size.epochs
    return [
        replace(
            trial,
            kind="network",
            recipe=recipe,
            changes=tuple(changed.items()),
            train_rows=size.train_rows,
            watched_rows=size.watched_rows,
            seed=seed,
            shortened=", ".join(smaller),
        )
        for seed in range(size.seeds)
    ]


def _fit_baseline(trial: Trial, size: Size) -> list[Trial]:
    """Trials of a baseline, one per seed, of a trial that says the rest."""
    smaller = _describe_rows(size)
    if not size.search:
        smaller.append("no grid search")
    return [
        replace(
            trial,
            kind="baseline",
            train_rows=size.train_rows,
            search=size.search,
            seed=seed,
            shortened=", ".join(smaller),
        )
        for seed in range(size.seeds)
    ]


def _bound(model: str, size: Size) -> Size:
    """A size that the model can be fitted at."""
    too_many = size.train_rows is None or size.train_rows > KERNEL_ROWS
    return replace(size, train_rows=KERNEL_ROWS) if model == "kernel_ridge" and too_many else size


def _describe_rows(size: Size) -> list[str]:
    return [] if size.train_rows is None else [f"at most {size.train_rows:,} training rows"]


def _describe_trial(benchmark: str, series: str, model: str, data: str, **fields: Any) -> Trial:
    return Trial(benchmark, series, "network", model, data, **fields)


def _table_2(budget: Budget) -> tuple[Trial, ...]:
    sizes = {
        "tiny": {"default": Size(200, 2, 1, 50), "paper": Size(200, 1, 1, 50)},
        "cpu": {"default": Size(8_000, 25, 3, 2_000), "paper": Size(8_000, 16, 1, 2_000)},
        "full": {"default": Size(None, None, 3, None), "paper": Size(None, None, 1, None)},
    }[budget]
    models = {name: (name, "") for name in NETWORKS} | {
        series: (write_plain_17(pattern), label) for series, (label, pattern) in VARIANTS.items()
    }
    if budget == "tiny":
        models = {name: models[name] for name in ("plain-17", "irnet-17", "plain-17-dropout")}
    return tuple(
        trial
        for recipe, size in sizes.items()
        for data in ("oqmd-sc", "icsd")
        for series, (model, label) in models.items()
        for trial in _fit_network(
            _describe_trial("table-2", f"{data}-{recipe}-{series}", model, data, label=label),
            size,
            recipe,
        )
    )


def _table_3(budget: Budget) -> tuple[Trial, ...]:
    size = {"tiny": Size(200, search=False), "cpu": Size(8_000), "full": Size(None)}[budget]
    slow = replace(size, train_rows=MOST_ROWS) if size.train_rows is None else size
    models = ("ridge", "random_forest") if budget == "tiny" else BASELINES
    return tuple(
        trial
        for model in models
        for trial in _fit_baseline(
            _describe_trial("table-3", model, model, "oqmd-sc"),
            slow if model in SLOW_BASELINES else size,
        )
    )


def _table_4(budget: Budget) -> tuple[Trial, ...]:
    networks = {"tiny": Size(200, 1), "cpu": Size(8_000, 25), "full": Size(None, None, 3)}
    baselines = {
        "tiny": Size(200, search=False),
        "cpu": Size(8_000, search=False),
        "full": Size(None),
    }
    size = baselines[budget]
    slow = replace(size, train_rows=size.train_rows or MOST_ROWS)
    tiny = budget == "tiny"
    trials: list[Trial] = []
    for data, target in PROPERTIES[:1] + PROPERTIES[-1:] if tiny else PROPERTIES:
        for model in ("irnet-17",) if tiny else ("plain-17", "irnet-17", "irnet-48"):
            series = f"{data}-{target}-{model}"
            trial = _describe_trial("table-4", series, model, data, target=target)
            trials += _fit_network(trial, networks[budget])
        for model in ("ridge",) if tiny else BASELINES:
            series = f"{data}-{target}-{model}"
            trial = _describe_trial("table-4", series, model, data, target=target)
            trials += _fit_baseline(trial, slow if model in SLOW_BASELINES else size)
    return tuple(trials)


def _table_5(budget: Budget) -> tuple[Trial, ...]:
    sizes = {
        "tiny": {"default": Size(200, 1), "paper": Size(200, 1)},
        "cpu": {"default": Size(None, 20, 2), "paper": Size(None, 6)},
        "full": {"default": Size(None, None, 3), "paper": Size(None, None, 3)},
    }[budget]
    baseline = {
        "tiny": Size(200, search=False),
        "cpu": Size(None, search=False),
        "full": Size(None),
    }[budget]
    deep = ("plain-17", "irnet-48") if budget != "tiny" else ()
    trials: list[Trial] = []
    for recipe, models in (("default", ("irnet-17", *deep)), ("paper", ("irnet-17",))):
        for model in models:
            series = f"{recipe}-{model}"
            trial = _describe_trial("table-5", series, model, "icsd", tests=("eval",))
            trials += _fit_network(trial, sizes[recipe], recipe)
    for model in COMPARED if budget != "tiny" else ("random_forest",):
        trial = _describe_trial("table-5", model, model, "icsd", tests=("eval",))
        trials += _fit_baseline(trial, _bound(model, baseline))
    return tuple(trials)


def _figure_5(budget: Budget) -> tuple[Trial, ...]:
    models = ("irnet-17", "irnet-48", *COMPARED)
    return tuple(
        trial
        for trial in (*_table_2(budget), *_table_3(budget))
        if trial.model in models and trial.data == "oqmd-sc" and trial.recipe in ("", "default")
    )


def _training_size(budget: Budget) -> tuple[Trial, ...]:
    every: Mapping[Budget, Mapping[int | None, int | None]] = {
        "tiny": {100: 1, 200: 1},
        "cpu": {1_000: 60, 3_000: 40, 10_000: 30, 30_000: 15, None: 10},
        "full": dict.fromkeys((1_000, 3_000, 10_000, 30_000, None)),
    }
    epochs = every[budget]
    seeds = {"tiny": 1, "cpu": 2, "full": 3}[budget]
    trials: list[Trial] = []
    for rows, passes in epochs.items():
        word = "all" if rows is None else str(rows)
        batch = next((size for most, size in BATCH_SIZES if rows and rows < most), None)
        trial = _describe_trial("training-size", f"irnet-17-{word}", "irnet-17", "oqmd-sc")
        changes: dict[str, Value] = {} if batch is None else {"batch_size": batch}
        trials += _fit_network(trial, Size(rows, passes, seeds), "default", changes)
        for model in COMPARED:
            size = Size(rows, search=budget == "full")
            if _bound(model, size) == size:
                trial = _describe_trial("training-size", f"{model}-{word}", model, "oqmd-sc")
                trials += _fit_baseline(trial, size)
    return tuple(trials)


def _leave_out(benchmark: str, kind: str, values: Sequence[str], budget: Budget) -> list[Trial]:
    """Trials that leave out one thing each, and the same with an ordinary split."""
    network = {"tiny": Size(200, 1), "cpu": Size(12_000, 15), "full": Size(None, None, 3)}
    baseline = {
        "tiny": Size(200, search=False),
        "cpu": Size(12_000, search=False),
        "full": Size(None, search=False),
    }
    test = f"{kind}s"
    places: list[tuple[str, str, tuple[str, ...]]] = [("ordinary", "formulas", (test,))]
    places += [(value, f"{kind}:{value}", ()) for value in values]
    trials: list[Trial] = []
    for word, holdout, tests in places:
        for model in ("irnet-17",) if budget == "tiny" else ("irnet-17", *COMPARED):
            trial = _describe_trial(
                benchmark, f"{word}-{model}", model, "oqmd-sc", holdout=holdout, tests=tests
            )
            if model in COMPARED:
                trials += _fit_baseline(trial, _bound(model, baseline[budget]))
            else:
                trials += _fit_network(trial, network[budget])
    return trials


def _leave_prototype_out(budget: Budget) -> tuple[Trial, ...]:
    values = PROTOTYPES[:1] if budget == "tiny" else PROTOTYPES
    return tuple(_leave_out("leave-prototype-out", "prototype", values, budget))


def _leave_element_out(budget: Budget) -> tuple[Trial, ...]:
    values = ELEMENTS[:1] if budget == "tiny" else ELEMENTS
    return tuple(_leave_out("leave-element-out", "element", values, budget))


def _known_only(budget: Budget) -> tuple[Trial, ...]:
    network = {"tiny": Size(200, 1), "cpu": Size(None, 12, 2), "full": Size(None, None, 3)}
    baseline = {
        "tiny": Size(200, search=False),
        "cpu": Size(None, search=False),
        "full": Size(None),
    }
    trials: list[Trial] = []
    for data in ("icsd", "oqmd-sc"):
        for model in ("irnet-17",) if budget == "tiny" else ("irnet-17", *COMPARED):
            if _bound(model, baseline[budget]) != baseline[budget]:
                continue  # the comparison is of all rows
            trial = _describe_trial(
                "known-only", f"{data}-{model}", model, data, tests=("known", "virtual", "eval")
            )
            fit = _fit_baseline if model in COMPARED else _fit_network
            trials += fit(trial, (baseline if model in COMPARED else network)[budget])
    return tuple(trials)


def _recipes(budget: Budget) -> tuple[Trial, ...]:
    size = {
        "tiny": Size(200, 1, 1, None),
        "cpu": Size(8_000, 20, 2, None),
        "full": Size(None, None, 3, None),
    }[budget]
    trials: list[Trial] = []
    changes: dict[str, Value] = {}
    for series, label, fields in RECIPE_STEPS:
        changes |= fields
        # the last step's bound on the epochs is that of the default recipe
        last = {"epochs": 80} if "schedule" in changes else {}
        if budget == "tiny" and series not in ("paper", "precision"):
            continue
        trial = _describe_trial(
            "recipes", series, "irnet-17", "oqmd-sc", label=label, tests=("batch-statistics",)
        )
        trials += _fit_network(trial, size, "paper", {**changes, **last})
    for recipe in ("brnet", "ibrnet") if budget != "tiny" else ():
        trial = _describe_trial("recipes", recipe, "brnet", "oqmd-sc", label=_TITLES[recipe])
        # in few epochs the rate would never fall
        own: dict[str, Value] = {"decay_epochs": 3} if (recipe, budget) == ("ibrnet", "cpu") else {}
        trials += _fit_network(trial, size, recipe, own)
    return tuple(trials)


def _patience(budget: Budget) -> tuple[Trial, ...]:
    sizes = {"tiny": Size(200, 1, 1, 50), "cpu": Size(1_000, None, 1, 1_000)}
    size = sizes.get(budget, Size(1_000, None, 3, None))
    trials: list[Trial] = []
    for recipe in ("paper", "default"):
        changes: dict[str, Value] = {"batch_size": BATCH_SIZES[0][1]} if recipe == "default" else {}
        for model in ("irnet-17",) if budget == "tiny" else ("plain-17", "srnet-17", "irnet-17"):
            trial = _describe_trial("patience", f"{recipe}-{model}", model, "oqmd-sc")
            trials += _fit_network(trial, size, recipe, changes)
    return tuple(trials)


_TITLES: Final[Mapping[str, str]] = {"brnet": "BRNet", "ibrnet": "BRNet, iBRNet's schedule"}

BENCHMARKS: Final[Mapping[str, Benchmark]] = {
    each.name: each
    for each in (
        Benchmark(
            "table-2",
            "Depth and shortcuts of networks, under a good recipe and under the paper's",
            "Table 2 and Figures 2 to 4",
            _table_2,
        ),
        Benchmark("table-3", "Traditional regressors", "Table 3", _table_3),
        Benchmark("table-4", "Properties from composition alone", "Table 4", _table_4),
        Benchmark(
            "table-5",
            "Hypothetical compounds of a combinatorial search, from known crystals",
            "Table 5",
            _table_5,
        ),
        Benchmark("figure-5", "Distribution of the error", "Figure 5", _figure_5),
        Benchmark("training-size", "Error by number of training rows", "", _training_size),
        Benchmark("leave-prototype-out", "Prototypes never seen", "", _leave_prototype_out),
        Benchmark("leave-element-out", "Elements never seen", "", _leave_element_out),
        Benchmark("known-only", "Learning from known crystals or from everything", "", _known_only),
        Benchmark(
            "recipes", "From the paper's recipe to ours, and the quirks of its code", "", _recipes
        ),
        Benchmark(
            "patience",
            "Both recipes on few rows, each until it ends by itself",
            "",
            _patience,
        ),
    )
}
"""Every benchmark by name."""
