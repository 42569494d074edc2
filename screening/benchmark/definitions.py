"""Which trials make up each table and figure, at three budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from screening.benchmark.trial import Trial, Value
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

    def trials(self, budget: str) -> tuple[Trial, ...]:
        """Its trials, in the order in which they are run.

        Args:
            budget: One of `BUDGETS`.

        Returns:
            Trials, of each series first those of the first seed.

        Raises:
            ConfigurationError: There is no such budget.
        """
        known = next((each for each in BUDGETS if each == budget), None)
        if known is None:
            raise ConfigurationError(
                f"unknown budget {budget!r}{suggest(budget, BUDGETS)} "
                f"Budgets: {', '.join(BUDGETS)}."
            )
        return tuple(sorted(self.define(known), key=lambda trial: trial.seed))


def find_benchmark(name: str) -> Benchmark:
    """Return a benchmark by name.

    Raises:
        ConfigurationError: There is none of this name.
    """
    if name not in BENCHMARKS:
        raise ConfigurationError(
            f'no benchmark "{name}"{suggest(name, BENCHMARKS)} Benchmarks: {", ".join(BENCHMARKS)}.'
        )
    return BENCHMARKS[name]


@dataclass(frozen=True)
class Size:
    """How much is spent on networks of one recipe.

    Attributes:
        train_rows: Rows to train on, None for all.
        epochs: Passes over them, None for the recipe's.
        seeds: How often, with different seeds.
        watched_rows: Held-out rows that learning curves are of.
    """

    train_rows: int | None
    epochs: int | None
    seeds: int
    watched_rows: int | None = 0


def _describe(size: Size, full: str) -> str:
    """Say what is smaller than in the paper; empty for nothing."""
    parts = []
    if size.train_rows is not None:
        parts.append(f"at most {size.train_rows:,} training rows")
    if size.epochs is not None:
        parts.append(f"{size.epochs} epochs instead of {full}")
    return ", ".join(parts)


_FULL_EPOCHS: Final[Mapping[str, str]] = {
    "default": "80",
    "paper": "training until 200 of them bring nothing",
    "brnet": "training until 200 of them bring nothing",
    "ibrnet": "training until 60 of them bring nothing",
}


def _networks(
    benchmark: str,
    series: str,
    model: str,
    data: str,
    size: Size,
    recipe: str = "default",
    changes: Mapping[str, Value] | None = None,
    **fields: object,
) -> list[Trial]:
    """Trials of one network, one per seed."""
    changed = dict(changes or {})
    if size.epochs is not None:
        changed["epochs"] = size.epochs
    trial = Trial(
        benchmark=benchmark,
        series=series,
        kind="network",
        model=model,
        data=data,
        recipe=recipe,
        changes=tuple(changed.items()),
        train_rows=size.train_rows,
        watched_rows=size.watched_rows,
        shortened=_describe(size, _FULL_EPOCHS[recipe]),
    )
    trial = replace(trial, **fields)  # type: ignore[arg-type]
    return [replace(trial, seed=seed) for seed in range(size.seeds)]


PLAIN_17: Final[Mapping[str, tuple[str, str]]] = {
    "plain-17-norm-after": ("plain-17, batch norm after", "{width}ABx{count}"),
    "plain-17-no-norm": ("plain-17, no batch norm", "{width}Ax{count}"),
    "plain-17-dropout": ("plain-17, dropout", "{width}BAx{count}D"),
}
"""Variants of the 17-layer plain network in the paper's Figure 2: series, and label and block."""

DROPOUT_BLOCKS: Final = 4
"""The paper tried dropout after the first four stacks (section 4.1.1)."""

_WIDTHS_17: Final = ((1024, 4), (512, 3), (256, 3), (128, 3), (64, 2), (32, 1))


def write_plain_17(pattern: str) -> str:
    """The architecture string of a variant of the 17-layer plain network.

    Args:
        pattern: A block, with ``{width}`` and ``{count}``; with a ``D`` only of the first four.
    """
    blocks = [
        (pattern if place < DROPOUT_BLOCKS else pattern.removesuffix("D")).format(
            width=width, count=count
        )
        for place, (width, count) in enumerate(_WIDTHS_17)
    ]
    return "-".join([*blocks, "1"])


NETWORKS: Final = tuple(
    f"{kind}-{depth}" for kind in ("plain", "srnet", "irnet") for depth in (17, 24, 48)
)
"""The paper's networks."""


def _table_2(budget: Budget) -> tuple[Trial, ...]:
    sizes = {
        "tiny": {"default": Size(200, 2, 1, 50), "paper": Size(200, 1, 1, 50)},
        "cpu": {"default": Size(12_000, 25, 3, 2_000), "paper": Size(12_000, 8, 2, 2_000)},
        "full": {"default": Size(None, None, 3, None), "paper": Size(None, None, 1, None)},
    }[budget]
    models = {name: (name, "") for name in NETWORKS} | {
        series: (write_plain_17(pattern), label) for series, (label, pattern) in PLAIN_17.items()
    }
    if budget == "tiny":
        models = {name: models[name] for name in ("plain-17", "irnet-17", "plain-17-dropout")}
    return tuple(
        trial
        for recipe in ("default", "paper")
        for data in ("oqmd-sc", "icsd")
        for series, (model, label) in models.items()
        for trial in _networks(
            "table-2", f"{data}-{recipe}-{series}", model, data, sizes[recipe], recipe, label=label
        )
    )


BENCHMARKS: Final[Mapping[str, Benchmark]] = {
    each.name: each
    for each in (
        Benchmark(
            "table-2",
            "Depth and shortcuts of networks, under a good recipe and under the paper's",
            "Table 2 and Figures 2 to 4",
            _table_2,
        ),
    )
}
"""Every benchmark by name."""
