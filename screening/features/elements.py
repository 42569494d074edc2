"""Elemental properties as tensors: the only chemistry that the columns know."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
import torch
from numpy.typing import NDArray

from screening.features.schema import PROPERTIES

LAST_Z = 103
"""Largest atomic number that the tables cover (Lr)."""


@dataclass(frozen=True, eq=False)
class ElementTable:
    """The properties of the elements, indexed by atomic number (row 0 is unused and NaN).

    Attributes:
        symbols: Chemical symbols, length 104; "" at 0.
        properties: Magpie properties in the order of `PROPERTIES`, shape (22, 104), float64.
        electronegativity: Pauling electronegativity as pymatgen has it, shape (104,), float64.
        oxidation_states: Common oxidation states of each element.
        imputed: For each element, the properties that the tables lack and that matminer fills
            with the mean over all elements.
    """

    symbols: tuple[str, ...]
    properties: NDArray[np.float64]
    electronegativity: NDArray[np.float64]
    oxidation_states: tuple[tuple[int, ...], ...]
    imputed: tuple[tuple[str, ...], ...]

    def properties_on(self, device: torch.device) -> torch.Tensor:
        """Return the properties as a float64 tensor of shape (22, 104) on a device."""
        return torch.from_numpy(self.properties).to(device)

    def electronegativity_on(self, device: torch.device) -> torch.Tensor:
        """Return the electronegativities as a float64 tensor of shape (104,) on a device."""
        return torch.from_numpy(self.electronegativity).to(device)

    def imputed_elements(self, numbers: NDArray[np.integer]) -> tuple[str, ...]:
        """Return the symbols among `numbers` that have at least one filled property."""
        return tuple(self.symbols[z] for z in np.unique(numbers) if self.imputed[z])


@cache
def element_table() -> ElementTable:
    """Read the table that ships with the package (source: see the file's own `source`)."""
    text = (files("screening.features") / "element_properties.json").read_text(encoding="utf-8")
    document = json.loads(text)
    if tuple(document["properties"]) != PROPERTIES:
        raise ValueError("element_properties.json does not hold the properties of the schema")
    properties = np.full((len(PROPERTIES), LAST_Z + 1), np.nan)
    electronegativity = np.full(LAST_Z + 1, np.nan)
    symbols = [""] * (LAST_Z + 1)
    states: list[tuple[int, ...]] = [()] * (LAST_Z + 1)
    imputed: list[tuple[str, ...]] = [()] * (LAST_Z + 1)
    for symbol, entry in document["elements"].items():
        z = entry["number"]
        symbols[z] = symbol
        properties[:, z] = entry["properties"]
        electronegativity[z] = entry["X"]
        states[z] = tuple(entry["common_oxidation_states"])
        imputed[z] = tuple(entry["imputed"])
    return ElementTable(
        tuple(symbols), properties, electronegativity, tuple(states), tuple(imputed)
    )
