"""Names and order of the 271 columns.

The names are matminer's own labels. The composition columns are those of Ward et al., npj
Comput. Mater. 2, 16028 (2016); the structure columns those of Ward et al., Phys. Rev. B 96,
024104 (2017), less the two ranges that matminer adds to the paper's 126.
"""

from __future__ import annotations

PROPERTIES: tuple[str, ...] = (
    "Number",
    "MendeleevNumber",
    "AtomicWeight",
    "MeltingT",
    "Column",
    "Row",
    "CovalentRadius",
    "Electronegativity",
    "NsValence",
    "NpValence",
    "NdValence",
    "NfValence",
    "NValence",
    "NsUnfilled",
    "NpUnfilled",
    "NdUnfilled",
    "NfUnfilled",
    "NUnfilled",
    "GSvolume_pa",
    "GSbandgap",
    "GSmagmom",
    "SpaceGroupNumber",
)
"""The 22 elemental properties of the Magpie data (Ward 2016, supplementary table)."""

NORMS: tuple[int, ...] = (0, 2, 3, 5, 7, 10)
COMPOSITION_STATISTICS: tuple[str, ...] = (
    "minimum",
    "maximum",
    "range",
    "mean",
    "avg_dev",
    "mode",
)
SITE_STATISTICS: tuple[str, ...] = ("minimum", "maximum", "range", "mean", "avg_dev")
ORBITALS: tuple[str, ...] = ("s", "p", "d", "f")
SHELLS: tuple[int, ...] = (1, 2, 3)

COMPOSITION_FEATURES: tuple[str, ...] = (
    *(f"{p}-norm" for p in NORMS),
    *(f"MagpieData {stat} {p}" for p in PROPERTIES for stat in COMPOSITION_STATISTICS),
    *(f"frac {orbital} valence electrons" for orbital in ORBITALS),
    "compound possible",
    "max ionic char",
    "avg ionic char",
)
"""The 145 columns that depend on the composition alone."""

GEOMETRY_FEATURES: tuple[str, ...] = (
    "minimum CN_VoronoiNN",
    "maximum CN_VoronoiNN",
    "mean CN_VoronoiNN",
    "avg_dev CN_VoronoiNN",
    "mean absolute deviation in relative bond length",
    "max relative bond length",
    "min relative bond length",
    "minimum neighbor distance variation",
    "maximum neighbor distance variation",
    "mean neighbor distance variation",
    "avg_dev neighbor distance variation",
    "mean absolute deviation in relative cell size",
    *(f"mean ordering parameter shell {shell}" for shell in SHELLS),
    "max packing efficiency",
)
"""The 16 columns that a prototype fixes once its roles hold different elements."""

DIFFERENCE_FEATURES: tuple[str, ...] = tuple(
    f"{stat} local difference in {p}" for p in PROPERTIES for stat in SITE_STATISTICS
)
"""The 110 statistics of the property differences between a site and its neighbours."""

STRUCTURE_FEATURES: tuple[str, ...] = GEOMETRY_FEATURES + DIFFERENCE_FEATURES
"""The 126 columns from the Voronoi tessellation."""

FEATURES: tuple[str, ...] = COMPOSITION_FEATURES + STRUCTURE_FEATURES
"""All 271 columns, in the order in which every table and model of this project holds them."""

UNUSED_MATMINER_FEATURES: tuple[str, ...] = (
    "range CN_VoronoiNN",
    "range neighbor distance variation",
)
"""What matminer computes beyond the paper: each is maximum minus minimum of kept columns."""
