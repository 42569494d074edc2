"""The grammar of --require, its errors, and what it keeps of a table."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from screening.columns import RANKING, Column
from screening.errors import ConfigurationError
from screening.requirements import apply_requirements, parse_requirement

COLUMNS = (
    Column("charge_neutral", "bool", "", "", nullable=True),
    Column("likely_metal", "bool", "", ""),
    Column("known", "bool", "", ""),
    Column("bartel_tolerance_factor", "double", "", "", nullable=True),
    Column("p_stable", "double", "", ""),
    Column("references_in_system", "int64", "", ""),
    Column("energy_above_hull_ev_per_atom", "double", "eV/atom", ""),
    Column("toxic_elements", "string", "", ""),
    Column("imputed_elements", "string", "", "", nullable=True),
    Column("prototype", "string", "", ""),
    Column("site_*", "string", "", "", nullable=True),
)

TABLE = pa.table(
    {
        "charge_neutral": pa.array([True, False, None, None]),
        "likely_metal": [False, False, True, True],
        "known": [True, False, False, True],
        "bartel_tolerance_factor": pa.array([3.88, 5.81, float("inf"), None]),
        "p_stable": [0.9, 0.5, 0.1, 0.7],
        "references_in_system": [3, 0, 12, 3],
        "energy_above_hull_ev_per_atom": [-0.01, 0.02, 0.3, 0.0],
        "toxic_elements": ["", "Pb", "Cd Pb", "As"],
        "imputed_elements": pa.array([None, "He", "He,Ne", None]),
        "prototype": ["B2", "B2", "L1_0", "L1_0"],
        "site_C": pa.array(["Fe", "Co", None, "Fe"]),
    }
)


def kept(text: str) -> list[int]:
    keep = parse_requirement(text, COLUMNS).test(TABLE).keep
    return [row for row, each in enumerate(keep.tolist()) if each]


@pytest.mark.parametrize(
    ("text", "rows", "canonical"),
    [
        ("charge_neutral", [0, 2, 3], "charge_neutral"),
        ("charge-neutral", [0, 2, 3], "charge_neutral"),
        ("charge_neutral!", [0], "charge_neutral!"),
        ("not charge_neutral", [1, 2, 3], "not charge_neutral"),
        ("not charge_neutral !", [1], "not charge_neutral!"),
        ("not likely_metal", [0, 1], "not likely_metal"),
        ("known = no", [1, 2], "not known"),
        ("known != no", [0, 3], "known"),
        ("known=TRUE", [0, 3], "known"),
        ("bartel_tolerance_factor < 4.18", [0, 3], "bartel_tolerance_factor < 4.18"),
        ("bartel_tolerance_factor<4.18!", [0], "bartel_tolerance_factor < 4.18!"),
        ("p_stable >= 0.5", [0, 1, 3], "p_stable >= 0.5"),
        ("P_stable > .5", [0, 3], "p_stable > 0.5"),
        ("references_in_system = 3", [0, 3], "references_in_system = 3"),
        ("references-in-system != 3", [1, 2], "references_in_system != 3"),
        ("energy-above-hull-ev-per-atom <= -1e-2", [0], "energy_above_hull_ev_per_atom <= -0.01"),
        ("toxic_elements = none", [0], "toxic_elements = none"),
        ("toxic_elements = any", [1, 2, 3], "toxic_elements != none"),
        ("toxic_elements != any", [0], "toxic_elements = none"),
        ("toxic_elements == Pb,Cd", [2], "toxic_elements = Cd Pb"),
        ("toxic_elements lacks Pb", [0, 3], "toxic_elements lacks Pb"),
        ("toxic_elements lacks As Cd", [0, 1], "toxic_elements lacks As Cd"),
        ("toxic_elements has Pb", [1, 2], "toxic_elements has Pb"),
        ("toxic_elements has Pb Cd", [2], "toxic_elements has Cd Pb"),
        ("imputed_elements = none", [0, 3], "imputed_elements = none"),
        ("imputed_elements has Ne", [2], "imputed_elements has Ne"),
        ("prototype = B2", [0, 1], "prototype = B2"),
        ("prototype != B2", [2, 3], "prototype != B2"),
        ("site_C = Fe", [0, 2, 3], "site_C = Fe"),
        ("site_C = Fe!", [0, 3], "site_C = Fe!"),
    ],
)
def test_grammar(text: str, rows: list[int], canonical: str) -> None:
    assert kept(text) == rows
    requirement = parse_requirement(text, COLUMNS)
    assert requirement.text == canonical
    assert parse_requirement(canonical, COLUMNS) == requirement


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("charge_neutrel", 'there is no column charge_neutrel; did you mean "charge_neutral"'),
        ("energy_above_hull <= 0.1", 'did you mean "energy_above_hull_ev_per_atom"'),
        ("zzz = 3", "there are charge_neutral, likely_metal"),
        ("p_stable", "p_stable is a number, not a flag; compare it"),
        ("not toxic_elements", "toxic_elements is a list of elements, not a flag"),
        ("likely_metal < 3", "likely_metal is yes or no, which < cannot compare; use =, !="),
        ("p_stable has Pb", "p_stable is a number, which has cannot compare"),
        ("prototype > B2", "prototype is a name, which > cannot compare"),
        ("toxic_elements >= Pb", "use =, !=, has, lacks"),
        ("known = perhaps", 'write yes or no instead of "perhaps"'),
        ("p_stable >= high", '"high" is not a number'),
        ("energy_above_hull_ev_per_atom < nan", "takes one in eV/atom"),
        ("p_stable < inf", '"inf" is not a number'),
        ("toxic_elements lacks lead", 'unknown element "lead"'),
        ("toxic_elements lacks pb", 'unknown element "pb"; did you mean "Pb"'),
        ("toxic_elements =", "names no elements"),
        ("prototype =", "does not say what to compare with"),
        ("not", "there is no column not"),
        ("", "cannot be read; write a flag"),
        ("p_stable is high", "cannot be read"),
        ("p_stable => 0.5", "write >= instead of =>"),
        ("p_stable =< 0.5", "write <= instead of =<"),
    ],
)
def test_errors_say_what_would_be_right(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match="--require") as error:
        parse_requirement(text, COLUMNS)
    assert message in str(error.value)


def test_outcome_counts_removed_and_not_applicable() -> None:
    kept_anyway = parse_requirement("charge_neutral", COLUMNS).test(TABLE)
    assert (kept_anyway.removed, kept_anyway.not_applicable) == (1, 2)
    demanded = parse_requirement("charge_neutral!", COLUMNS).test(TABLE)
    assert (demanded.removed, demanded.not_applicable) == (3, 2)
    listed = parse_requirement("imputed_elements = none", COLUMNS).test(TABLE)
    assert (listed.removed, listed.not_applicable) == (2, 0)


def test_requirements_in_turn_count_each_row_once() -> None:
    texts = ["not likely_metal", "charge_neutral", "known"]
    keep, outcomes = apply_requirements([parse_requirement(t, COLUMNS) for t in texts], TABLE)
    assert keep.tolist() == [True, False, False, False]
    assert [each.removed for each in outcomes] == [2, 1, 0]
    assert [each.not_applicable for each in outcomes] == [0, 0, 0]
    keep, outcomes = apply_requirements([], TABLE)
    assert keep.all() and outcomes == ()


def test_chunked_dictionary_and_empty_tables() -> None:
    twice = pa.concat_tables([TABLE, TABLE])
    coded = twice.set_column(
        twice.schema.get_field_index("toxic_elements"),
        "toxic_elements",
        twice["toxic_elements"].dictionary_encode(),
    )
    requirement = parse_requirement("toxic_elements lacks Pb", COLUMNS)
    assert requirement.test(coded).keep.tolist() == [True, False, False, True] * 2
    assert requirement.test(TABLE.slice(0, 0)).keep.tolist() == []


def test_missing_column_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="there is no column p_stable at this stage"):
        parse_requirement("p_stable > 0", COLUMNS).test(TABLE.drop_columns(["p_stable"]))
    with pytest.raises(ConfigurationError, match="there is no column site_Q at this stage"):
        apply_requirements([parse_requirement("site_Q = O")], TABLE)


def test_every_column_of_the_ranking_can_be_required() -> None:
    for column in RANKING.columns:
        if column.name.endswith("*"):
            continue
        text = {"bool": "", "string": " = none", "double": " > 1", "int64": " > 1"}[column.dtype]
        assert parse_requirement(column.name + text).column == column.name


@given(
    st.sampled_from(["<", "<=", ">", ">=", "=", "!="]),
    st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-5, 15)),
)
def test_numbers_compare_as_in_pandas(operator: str, value: float) -> None:
    requirement = parse_requirement(f"references_in_system {operator} {value!r}", COLUMNS)
    assert parse_requirement(requirement.text, COLUMNS) == requirement
    column = TABLE["references_in_system"].to_pandas()
    expected = pd.eval(
        f"column {operator.replace('=', '==') if operator == '=' else operator} value",
        local_dict={"column": column, "value": float(value)},
    )
    assert requirement.test(TABLE).keep.tolist() == expected.tolist()


def test_names_of_lists_are_columns_of_the_ranking() -> None:
    from screening.requirements import ELEMENT_LISTS

    assert {column.name for column in RANKING.columns} >= ELEMENT_LISTS
