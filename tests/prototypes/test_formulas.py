import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core.composition import Composition

from prototypes.elements import ATOMIC_NUMBERS, SYMBOLS
from prototypes.formulas import FormulaWriter, reduced_formula
from prototypes.pools import ELEMENTS_89

pytestmark = pytest.mark.filterwarnings("ignore:No Pauling")

amounts_lists = st.lists(st.integers(1, 12), min_size=1, max_size=5)


def pymatgen_formula(numbers: list[int], amounts: list[int]) -> str:
    return Composition(
        {SYMBOLS[z - 1]: n for z, n in zip(numbers, amounts, strict=True)}
    ).reduced_formula


@given(st.data(), amounts_lists)
def test_reduced_formula_is_pymatgens(data: st.DataObject, amounts: list[int]) -> None:
    numbers = data.draw(
        st.lists(st.integers(1, 118), min_size=len(amounts), max_size=len(amounts), unique=True)
    )
    assert reduced_formula(numbers, amounts) == pymatgen_formula(numbers, amounts)


@pytest.mark.parametrize(
    ("symbols", "amounts"),
    [
        ("O", [1]),
        ("H", [7]),
        ("N", [2]),
        ("F", [1]),
        ("Cl", [3]),
        ("Br", [2]),
        ("K O", [1, 1]),
        ("Li O", [2, 2]),
        ("H O", [4, 4]),
        ("Ag O", [1, 1]),
        ("Ca N O", [1, 2, 6]),
        ("O P Ca", [8, 2, 3]),
        ("Na Cl O", [2, 2, 8]),
        ("Mg Al O", [1, 2, 4]),
        ("He H Li", [1, 1, 3]),
        ("He Ne", [2, 2]),
        ("Ca Ti O", [4, 4, 12]),
    ],
)
def test_special_formulas(symbols: str, amounts: list[int]) -> None:
    numbers = [ATOMIC_NUMBERS[symbol] for symbol in symbols.split()]
    assert reduced_formula(numbers, amounts) == pymatgen_formula(numbers, amounts)


def test_an_element_on_two_roles_is_added_up() -> None:
    assert reduced_formula([22, 8, 22], [1, 2, 1]) == "TiO"


@pytest.mark.parametrize(
    "amounts",
    [(1, 1), (2, 2), (1, 2), (4, 4, 12), (1, 2, 4), (2, 2, 4, 8), (1, 1, 1, 1), (6, 2, 4)],
)
def test_many_formulas_at_once_are_pymatgens(amounts: tuple[int, ...]) -> None:
    rng = np.random.default_rng(20190804)
    numbers = np.array(
        [rng.choice(ELEMENTS_89, size=len(amounts), replace=False) for _ in range(1500)],
        dtype=np.uint8,
    )
    written = FormulaWriter(amounts).write(numbers)
    expected = [pymatgen_formula(row, list(amounts)) for row in numbers.tolist()]
    assert written == expected


def test_peroxides_among_many() -> None:
    numbers = np.array([[19, 8], [8, 11], [12, 8]])
    assert FormulaWriter((1, 1)).write(numbers) == ["K2O2", "Na2O2", "MgO"]


def test_no_rows_give_no_formulas() -> None:
    assert FormulaWriter((1, 1)).write(np.empty((0, 2), dtype=np.uint8)) == []
