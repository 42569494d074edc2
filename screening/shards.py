"""The table of a shard: one row for each candidate, scored or failed.

Its columns cost between nothing and more than the prediction itself, so they are made as they are
asked for, and only for the candidates that are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from screening.chemistry import (
    CHEMISTRY_COLUMNS,
    describe_chemistry,
    perovskite_roles,
    tabulate_chemistry,
)
from screening.columns import (
    DECOMPOSITION,
    FAILED_CANDIDATES,
    FORMULA,
    IMPUTED,
    KNOWN,
    KNOWN_DETAILS,
    SHARD,
    UNSEEN,
)
from screening.enumerate import Candidates, Shard, enumerate_candidates
from screening.features.elements import element_table
from screening.known import KnownCompounds, tabulate_known, tabulate_nearest
from screening.prediction_columns import (
    tabulate_decompositions,
    tabulate_scores,
    tabulate_stability,
)

if TYPE_CHECKING:
    from prototypes import CandidateSpace
    from screening.model_library import ScreeningModel
    from screening.score import Scores
    from screening.stability import Placement

SITE: Final = "site_"
"""How the columns of the elements on the roles begin."""

FIRST_SITES: Final = ("site_A", "site_B", "site_X")
"""Roles that every table has a column for."""

LOST_BLOCK: Final = 65_536
"""Rows of one table of the candidates of a lost shard."""

_NEAREST: Final = ("nearest_known_formula", "nearest_known_distance")

_DEAR: Final = MappingProxyType(
    {
        **dict.fromkeys(CHEMISTRY_COLUMNS, "chemistry"),
        **dict.fromkeys((column.name for column in (KNOWN, *KNOWN_DETAILS)), "known"),
        **dict.fromkeys(_NEAREST, "nearest"),
        DECOMPOSITION.name: "decomposition",
        **dict.fromkeys((FORMULA.name, UNSEEN.name, IMPUTED.name, *FIRST_SITES), "names"),
    }
)
"""What makes the columns that are not cheap."""

Columns = dict[str, pa.Array]


Measure = Callable[[str], AbstractContextManager[None]]
"""Measures the time of a stage, by its name in `screening.manifest.STAGES`."""


def measure_nothing(stage: str) -> AbstractContextManager[None]:
    """Measure nothing."""
    return nullcontext()


@dataclass(frozen=True, eq=False)
class ScoredCandidates:
    """Candidates of a shard and all that their columns are made of.

    Attributes:
        space: Space that they belong to.
        candidates: The m candidates.
        scores: Their scores; NaN for those that failed.
        reasons: Why they failed, None for those that did not, shape (m,).
        placement: Where they stand beside their competitors; None if no hull was computed.
        model: The model that scored them, which knows its training data.
        known: The known compounds.
    """

    space: CandidateSpace
    candidates: Candidates
    scores: Scores
    reasons: NDArray[np.object_]
    placement: Placement | None
    model: ScreeningModel
    known: KnownCompounds

    def __len__(self) -> int:
        return len(self.candidates)

    def select(self, rows: NDArray[np.int64]) -> ScoredCandidates:
        """Return the candidates in these rows, shape (r,)."""
        return replace(
            self,
            candidates=Candidates(self.candidates.indices[rows], self.candidates.numbers[rows]),
            scores=self.scores.select(rows),
            reasons=self.reasons[rows],
            placement=None if self.placement is None else self.placement.select(rows),
        )

    def tabulate(
        self,
        names: Collection[str] | None = None,
        *,
        made: pa.Table | None = None,
        measure: Measure = measure_nothing,
    ) -> pa.Table:
        """Make columns of the table `screening.columns.SHARD`.

        Args:
            names: Columns that are needed; others may come along. None makes all.
            made: Columns that were made before, m rows.
            measure: Measures the time of a stage.

        Returns:
            These columns and those made before, in the registry's order, m rows; those of the
            predictions are always among them.
        """
        needed = set(_DEAR.values()) if names is None else {_find_source(name) for name in names}
        columns: dict[str, Any] = {}
        if made is not None:
            columns = dict(zip(made.column_names, made.columns, strict=True))
        there = {_find_source(name) for name in columns}
        for source, stage, make in (
            ("chemistry", "chemistry", self._describe_chemistry),
            ("known", "known", self._find_known),
            ("nearest", "known", self._find_nearest),
            ("decomposition", "hull", self._write_decompositions),
            ("names", "write", self._name),
            ("predictions", "write", self._tabulate_predictions),
        ):
            if source in (needed | {"predictions"}) - there:
                with measure(stage):
                    columns |= make()
        return pa.table(SHARD.sort(columns))

    def _describe_chemistry(self) -> Columns:
        return tabulate_chemistry_of(self.space, self.candidates)

    def _find_known(self) -> Columns:
        formulas = self.space.formulas(self.candidates.numbers)
        return tabulate_known(self.known, formulas, self.space.prototype)

    def _find_nearest(self) -> Columns:
        amounts = self.space.prototype.amounts
        return tabulate_nearest(self.known, self.candidates.numbers, amounts)

    def _write_decompositions(self) -> Columns:
        return {DECOMPOSITION.name: tabulate_decompositions(self.placement, len(self))}

    def _name(self) -> Columns:
        return {
            **name_candidates(self.space, self.candidates),
            **_name_doubtful(self.candidates.numbers, self.model),
        }

    def _tabulate_predictions(self) -> Columns:
        members = enumerate(self.scores.members.T, start=1)
        return {
            "prototype": pa.array([self.space.prototype.name] * len(self), pa.string()),
            "candidate": pa.array(self.candidates.indices),
            **tabulate_scores(self.scores),
            **tabulate_stability(self.placement, len(self)),
            **{f"member_{number}_ev_per_atom": _narrow(member) for number, member in members},
            "error_scale_ev_per_atom": _narrow(self.scores.error_scale),
            "reason": pa.array(self.reasons, pa.string()),
        }


def _find_source(name: str) -> str:
    return "names" if name.startswith(SITE) else _DEAR.get(name, "predictions")


def tabulate_chemistry_of(space: CandidateSpace, candidates: Candidates) -> Columns:
    """Return the columns of what chemistry's rules say of candidates, by name."""
    chemistry = describe_chemistry(
        candidates.numbers, space.prototype.amounts, perovskite_roles(space.prototype)
    )
    return tabulate_chemistry(chemistry)


def name_candidates(space: CandidateSpace, candidates: Candidates) -> Columns:
    """Return the columns that say which candidates they are: prototype, index, formula, sites."""
    rows = len(candidates)
    symbols = np.array(element_table().symbols, dtype=object)
    on_role = {
        f"{SITE}{role}": pa.array(symbols[candidates.numbers[:, place]], pa.string())
        for place, role in enumerate(space.prototype.roles)
    }
    for site in FIRST_SITES:
        on_role.setdefault(site, pa.nulls(rows, pa.string()))
    return {
        "prototype": pa.array([space.prototype.name] * rows, pa.string()),
        "candidate": pa.array(candidates.indices),
        "formula": pa.array(space.formulas(candidates.numbers), pa.string()),
        **on_role,
    }


def tabulate_lost(space: CandidateSpace, shard: Shard, reason: str) -> Iterator[pa.Table]:
    """Yield the candidates of a shard that was given up, a bounded number at a time.

    Args:
        space: The space of the shard's prototype.
        shard: The shard.
        reason: Why it was given up.

    Yields:
        Tables of the kind `screening.columns.FAILED_CANDIDATES`, with all distinct candidates of
        the shard: nobody tested them against conditions.
    """
    for start in range(shard.start, shard.stop, LOST_BLOCK):
        stop = min(start + LOST_BLOCK, shard.stop)
        candidates = enumerate_candidates(space, start, stop)
        columns: dict[str, Any] = name_candidates(space, candidates)
        columns["reason"] = pa.array([reason] * len(candidates), pa.string())
        yield pa.table(FAILED_CANDIDATES.sort(columns))


def _name_doubtful(numbers: NDArray[np.uint8], model: ScreeningModel) -> Columns:
    """Name the elements that the model never saw, and those with filled-in properties."""
    table = element_table()
    symbols = np.array(table.symbols, dtype=object)
    trained_on = frozenset(model.training_elements)
    unseen = np.array([bool(symbol) and symbol not in trained_on for symbol in table.symbols])
    imputed = np.array([bool(properties) for properties in table.imputed])
    return {
        "unseen_elements": _name_elements(numbers, unseen, symbols, " ", none=""),
        "imputed_elements": _name_elements(numbers, imputed, symbols, ",", none=None),
    }


def _name_elements(
    numbers: NDArray[np.uint8],
    chosen: NDArray[np.bool_],
    symbols: NDArray[np.object_],
    separator: str,
    none: str | None,
) -> pa.Array:
    """Name the elements of each row that are among the chosen ones, in the order of the roles."""
    named: list[str | None] = [none] * len(numbers)
    hits = chosen[numbers]
    for row in np.flatnonzero(hits.any(axis=1)).tolist():
        named[row] = separator.join(symbols[numbers[row][hits[row]]])
    return pa.array(named, pa.string())


def _narrow(values: NDArray[np.float64]) -> pa.Array:
    return pa.array(values, pa.float32(), from_pandas=True)
