"""The published figures that benchmarks are read beside.

All from D. Jha et al., "IRNet: A General Purpose Deep Residual Regression Framework for Materials
Discovery", KDD 2019 (https://doi.org/10.1145/3292500.3330703): Tables 2 to 5 and Figure 5. They are
mean absolute errors on a random tenth of each data set, of one run each: the paper states neither
seeds nor spread. Its data sets are other than ours, so that the figures stand beside ours for
orientation; what may be compared is the order within a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

CITATION: Final = "Jha et al., KDD 2019, https://doi.org/10.1145/3292500.3330703"

ENTHALPY_UNIT: Final = "eV/atom"
"""Of Tables 2, 3 and 5 and Figure 5."""

ROWS: Final[Mapping[str, int]] = {
    "OQMD-SC": 435_582,
    "OQMD-C": 341_443,
    "MP-C": 83_989,
    "OQMD-SC-ICSD": 32_111,
}
"""Rows of the paper's data sets (section 4, Datasets); one row in ten is for testing."""

KINDS: Final = ("plain", "srnet", "irnet")
"""Networks in the order of Table 2's columns, by the names of `irnet.ARCHITECTURES`."""

DEPTHS: Final = (17, 24, 48)
"""Layers, the rows of Table 2."""

TABLE_2: Final[Mapping[tuple[str, int], float]] = {
    ("plain", 17): 0.0653,
    ("srnet", 17): 0.0551,
    ("irnet", 17): 0.0411,
    ("plain", 24): 0.0719,
    ("srnet", 24): 0.0546,
    ("irnet", 24): 0.0403,
    ("plain", 48): 0.1085,
    ("srnet", 48): 0.0471,
    ("irnet", 48): 0.0382,
}
"""Error by kind of network and layers, on OQMD-SC."""

TABLE_3: Final[Mapping[str, float]] = {
    "adaboost": 0.479,
    "elastic_net": 0.384,
    "linear_regression": 0.261,
    "ridge": 0.261,
    "svr": 0.243,
    "k_neighbors": 0.154,
    "decision_tree": 0.104,
    "bagging": 0.078,
    "random_forest": 0.072,
}
"""Error by regressor, by the names of `irnet.baselines.BASELINES`, on OQMD-SC."""


@dataclass(frozen=True)
class PropertyErrors:
    """A row of Table 4: errors of one property learnt from 145 columns of composition.

    Attributes:
        data: The paper's data set.
        title: The property, as the paper writes it.
        unit: Of the errors; empty where the paper gives none that can be true. Its caption says
            eV/atom for all rows, densities and volumes among them.
        best_baseline: Of ten traditional regressors.
        plain_17: Plain network of 17 layers.
        irnet_17: IRNet of 17 layers.
        irnet_48: IRNet of 48 layers; None where the paper prints a dash.
    """

    data: str
    title: str
    unit: str
    best_baseline: float
    plain_17: float
    irnet_17: float
    irnet_48: float | None


TABLE_4: Final[Mapping[str, PropertyErrors]] = {
    name: PropertyErrors(*row)
    for name, row in {
        "oqmd_formation_enthalpy": (
            *("OQMD-C", "Formation Enthalpy", ENTHALPY_UNIT),
            *(0.077, 0.072, 0.054, 0.048),
        ),
        "oqmd_band_gap": ("OQMD-C", "Bandgap", "eV", 0.047, 0.052, 0.051, 0.047),
        "oqmd_energy": (
            *("OQMD-C", "Energy_per_atom", ENTHALPY_UNIT),
            *(0.1139, 0.0939, 0.0696, None),
        ),
        "oqmd_volume": ("OQMD-C", "Volume_pa", "", 0.473, 0.483, 0.415, 0.394),
        "mp_band_gap": ("MP-C", "Bandgap", "eV", 0.4788, 0.396, 0.363, 0.364),
        "mp_density": ("MP-C", "Density", "", 0.5052, 0.401, 0.348, 0.386),
        "mp_energy_above_hull": (
            *("MP-C", "Energy_above_hull", ENTHALPY_UNIT),
            *(0.1184, 0.098, 0.091, 0.0944),
        ),
        "mp_energy": ("MP-C", "Energy_per_atom", ENTHALPY_UNIT, 0.2999, 0.175, 0.143, None),
        "mp_magnetization": ("MP-C", "Total_magnetization", "", 3.232, 3.0897, 3.005, None),
        "mp_volume": ("MP-C", "Volume", "", 225.671, 219.439, 215.037, None),
    }.items()
}
"""Table 4 from top to bottom. The plain network's volume per atom is printed "0.0.483", read as
0.483. The best baseline's energy per atom of OQMD-C is printed bold though it is the largest."""


@dataclass(frozen=True)
class SearchErrors:
    """A row of Table 5: errors on hypothetical compounds of one crystal structure.

    Attributes:
        title: The structure, as the paper writes it.
        random_forest: Random Forest trained on OQMD-SC-ICSD.
        irnet_17: IRNet of 17 layers trained on the same.
    """

    title: str
    random_forest: float
    irnet_17: float


TABLE_5: Final[Mapping[str, SearchErrors]] = {
    "B2": SearchErrors("B2", 0.5114, 0.4780),
    "L1_0": SearchErrors("L1_0", 0.4793, 0.4419),
    "perov_Pnma": SearchErrors("Perovskite", 0.6166, 0.3693),
}
"""Table 5 by the kinds of the evaluation set; its perovskite is the orthorhombic one."""

FIGURE_5: Final[Mapping[str, float]] = {"irnet-48": 0.081, "random_forest": 0.158}
"""90th percentile of the absolute error on OQMD-SC (caption of Figure 5)."""
