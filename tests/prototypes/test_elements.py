import math

import numpy as np
import pytest
from pymatgen.core import Element
from pymatgen.core.composition import Composition

from prototypes.elements import (
    SYMBOLS,
    atomic_number,
    atomic_volumes,
    electronegativities,
    formula_ranks,
)
from prototypes.errors import PoolError
from prototypes.pools import ELEMENTS_89


def test_symbols_are_those_of_the_periodic_table() -> None:
    assert list(SYMBOLS) == [Element.from_Z(z).symbol for z in range(1, 119)]


@pytest.mark.filterwarnings("ignore:No Pauling")
def test_electronegativities_are_those_of_pymatgen() -> None:
    expected = [float(Element.from_Z(z).X) for z in range(1, 119)]
    np.testing.assert_array_equal(electronegativities()[1:], expected)
    assert math.isnan(electronegativities()[2])


@pytest.mark.filterwarnings("ignore:No Pauling")
def test_ranks_order_elements_as_pymatgen_does() -> None:
    everything = Composition(dict.fromkeys(SYMBOLS, 1.0))
    ours = sorted(range(1, 119), key=lambda z: formula_ranks()[z])
    assert " ".join(f"{SYMBOLS[z - 1]}1" for z in ours) == everything.formula


def test_every_screened_element_has_a_volume() -> None:
    volumes = atomic_volumes()[list(ELEMENTS_89)]
    assert np.all((volumes > 5) & (volumes < 60))


@pytest.mark.parametrize(("symbol", "nearest"), [("fe", "Fe"), ("NA", "Na"), ("Sii", "Si")])
def test_an_unknown_symbol_names_the_nearest(symbol: str, nearest: str) -> None:
    with pytest.raises(PoolError, match=f'unknown element "{symbol}"; did you mean "{nearest}"'):
        atomic_number(symbol)
