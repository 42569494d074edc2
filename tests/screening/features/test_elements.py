"""The shipped element table is matminer's, fills included."""

import numpy as np
import pytest
from matminer.utils.data import MagpieData, PymatgenData
from pymatgen.core import Element

from screening.features.elements import LAST_Z, element_table
from screening.features.schema import PROPERTIES

pytestmark = pytest.mark.filterwarnings("ignore:No Pauling")


def test_properties_are_magpies() -> None:
    table, magpie = element_table(), MagpieData(impute_nan=True)
    for z in range(1, LAST_Z + 1):
        element = Element.from_Z(z)
        assert table.symbols[z] == element.symbol
        expected = [magpie.get_elemental_property(element, name) for name in PROPERTIES]
        np.testing.assert_array_equal(table.properties[:, z], expected)


def test_ionic_properties_are_pymatgens() -> None:
    table, data = element_table(), PymatgenData()
    for z in range(1, LAST_Z + 1):
        element = Element.from_Z(z)
        assert table.electronegativity[z] == pytest.approx(
            data.get_elemental_property(element, "X"), rel=1e-12
        )
        assert table.oxidation_states[z] == tuple(data.get_oxidation_states(element))


def test_filled_properties_are_named() -> None:
    table, raw = element_table(), MagpieData(impute_nan=False)
    for z in range(1, LAST_Z + 1):
        element = Element.from_Z(z)
        missing = {n for n in PROPERTIES if np.isnan(raw.get_elemental_property(element, n))}
        assert missing == set(table.imputed[z]) - {"X"}
    assert table.imputed_elements(np.array([2, 8, 10])) == ("He", "Ne")
    assert table.imputed_elements(np.array([8, 26])) == ()
