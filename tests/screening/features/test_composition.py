"""Composition columns against matminer, on any composition that hypothesis thinks of."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matminer.featurizers.composition import (
    ElementProperty,
    IonProperty,
    Stoichiometry,
    ValenceOrbital,
)
from pymatgen.core import Composition, Element

from screening.crystal import Crystal
from screening.features.composition import NeutralityTable, neutral_possible
from screening.features.crystals import composition_columns
from screening.features.elements import element_table
from screening.features.schema import COMPOSITION_FEATURES

FEATURIZERS = (
    Stoichiometry(),
    ElementProperty.from_preset("magpie"),
    ValenceOrbital(props=["frac"]),
    IonProperty(fast=True),
)

pytestmark = pytest.mark.filterwarnings("ignore:No Pauling")
compositions = st.dictionaries(st.integers(1, 94), st.integers(1, 12), min_size=1, max_size=6)


def crystal(amounts: dict[int, int]) -> Crystal:
    numbers = np.repeat(list(amounts), list(amounts.values()))
    return Crystal("x", np.eye(3), numbers, np.zeros((len(numbers), 3)))


@settings(max_examples=60, deadline=None)
@given(compositions)
def test_columns_equal_matminers(amounts: dict[int, int]) -> None:
    reference = Composition({Element.from_Z(z): n for z, n in amounts.items()})
    expected = [value for f in FEATURIZERS for value in f.featurize(reference)]
    (values,) = composition_columns([crystal(amounts)])
    np.testing.assert_allclose(values, np.array(expected, dtype=float), rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(compositions, min_size=2, max_size=8))
def test_a_row_does_not_depend_on_its_batch(batch: list[dict[int, int]]) -> None:
    together = composition_columns([crystal(amounts) for amounts in batch])
    alone = np.concatenate([composition_columns([crystal(amounts)]) for amounts in batch])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(
    "amounts", [(1, 1), (1, 1, 3), (4, 4, 12), (2, 1, 1, 6), (4, 8, 24, 48), (1, 2, 3, 4, 5)]
)
def test_tabulated_neutrality_is_the_enumerated_one(amounts: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.integers(1, 95, size=(300, len(amounts)))
    tabulated = NeutralityTable(amounts)(torch.from_numpy(numbers)).numpy()
    states = element_table().oxidation_states
    for row, found in zip(numbers, tabulated, strict=True):
        enumerated = any(
            np.dot(combination, amounts) == 0
            for combination in itertools.product(*(states[z] for z in row))
        )
        assert found == enumerated == neutral_possible(row, amounts)
    assert 0 < tabulated.mean() < 1


def test_labels_match_the_columns() -> None:
    (values,) = composition_columns([crystal({11: 1, 17: 1})])
    row = dict(zip(COMPOSITION_FEATURES, values, strict=True))
    assert row["0-norm"] == 2
    assert row["MagpieData mean Number"] == 14
    assert row["MagpieData mode Number"] == 11
    assert row["compound possible"] == 1
