from __future__ import annotations

import numpy as np
import torch

from prototypes import find_prototype
from screening.crystal import Crystal
from screening.features import featurize_crystals
from screening.features.schema import FEATURES
from screening.featurize import featurize_candidates, find_failures, open_featurizer


def test_a_candidate_has_the_features_of_its_crystal() -> None:
    prototype = find_prototype("perovskite")
    numbers = np.array([[20, 22, 8], [8, 22, 20]], dtype=np.uint8)
    features = featurize_candidates(open_featurizer(prototype), numbers, torch.device("cpu"))
    for row, decoration in zip(features.numpy(), numbers, strict=True):
        on_sites = decoration[list(prototype.site_roles)].astype(np.int64)
        crystal = Crystal("x", prototype.lattice, on_sites, prototype.frac_coords)
        expected = featurize_crystals([crystal]).values[0]
        np.testing.assert_allclose(row, expected, rtol=2e-6, atol=1e-6)


def test_rows_that_are_not_finite_are_named() -> None:
    features = torch.zeros(4, len(FEATURES))
    features[1, 3] = torch.nan
    features[3, 5] = torch.inf
    features[3, 6] = torch.nan
    assert find_failures(features) == {
        1: f"feature not finite: {FEATURES[3]}",
        3: f"feature not finite: {FEATURES[5]} and 1 more",
    }
    assert find_failures(features[:1]) == {}
