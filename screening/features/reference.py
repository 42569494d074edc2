"""The same 271 columns as matminer computes them: the reference for the two fast ways."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from screening.crystal import Crystal
from screening.features.crystals import check_elements
from screening.features.elements import element_table
from screening.features.schema import FEATURES, UNUSED_MATMINER_FEATURES
from screening.features.table import Failure, FeatureTable, FeaturizationError
from screening.features.tessellation import silence_voro, tessellate

_SEARCH_RADIUS = 12.5  # Å, a little less than the 13 Å in which matminer looks for neighbours


@cache
def _featurizers() -> tuple[tuple[Any, ...], tuple[Any, ...], list[int]]:
    """Return matminer's composition and structure featurizers, and where our columns are."""
    from matminer.featurizers.composition import (
        ElementProperty,
        IonProperty,
        Stoichiometry,
        ValenceOrbital,
    )
    from matminer.featurizers.structure import (
        ChemicalOrdering,
        MaximumPackingEfficiency,
        SiteStatsFingerprint,
        StructuralHeterogeneity,
    )

    composition = (
        Stoichiometry(),
        ElementProperty.from_preset("magpie"),
        ValenceOrbital(props=["frac"]),
        IonProperty(fast=True),
    )
    structure = (
        SiteStatsFingerprint.from_preset("CoordinationNumber_ward-prb-2017"),
        StructuralHeterogeneity(),
        ChemicalOrdering(),
        MaximumPackingEfficiency(),
        SiteStatsFingerprint.from_preset("LocalPropertyDifference_ward-prb-2017"),
    )
    labels = [label for f in (*composition, *structure) for label in f.feature_labels()]
    if set(labels) != set(FEATURES) | set(UNUSED_MATMINER_FEATURES):
        raise FeaturizationError(
            "this version of matminer computes other columns than the 271 of this project; "
            "install the version that constraints.txt pins"
        )
    return composition, structure, [labels.index(name) for name in FEATURES]


def featurize_crystals_matminer(crystals: Sequence[Crystal]) -> FeatureTable:
    """Compute the 271 columns with matminer.

    Sites are wrapped into the unit cell and strongly skewed cells are reduced (LLL) first: without
    this matminer finds no neighbours or takes hours. Neither changes the crystal. Crystals so
    dilute that Voronoi neighbours lie beyond matminer's search radius of 13 Å, such as mp-1096688
    (Ba2LiTl, 505 Å^3 per atom), are shrunk uniformly, which changes no column: matminer would
    otherwise return columns of truncated cells without a word.

    Args:
        crystals: Any ordered crystals.

    Returns:
        matminer's columns; what it raises becomes a failure with its message.
    """
    composition, structure, columns = _featurizers()
    ids, rows, imputed, failures = [], [], [], []
    for crystal in crystals:
        try:
            check_elements(crystal)
            pmg = crystal.to_structure()
            with silence_voro():
                farthest = float(tessellate(crystal).distance.max())
            if farthest > _SEARCH_RADIUS:
                pmg.scale_lattice(pmg.volume * (_SEARCH_RADIUS / farthest) ** 3)
            if max(abs(np.cos(np.radians(pmg.lattice.angles)))) > 0.51:
                pmg = pmg.get_reduced_structure("LLL")
            for site in pmg:
                site.to_unit_cell(in_place=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values = [v for f in composition for v in f.featurize(pmg.composition)]
                values += [v for f in structure for v in f.featurize(pmg)]
        except FeaturizationError as error:
            failures.append(Failure(crystal.id, str(error)))
            continue
        except Exception as error:  # whatever matminer and its libraries raise is the reason
            reason = f"matminer: {type(error).__name__}: {error}"
            failures.append(Failure(crystal.id, reason))
            continue
        ids.append(crystal.id)
        rows.append(np.asarray(values, dtype=np.float64)[columns])
        imputed.append(element_table().imputed_elements(crystal.numbers))
    stacked = np.stack(rows) if rows else np.empty((0, len(FEATURES)))
    return FeatureTable(ids, stacked, imputed, failures)
