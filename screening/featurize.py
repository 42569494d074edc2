"""Second stage: the features of candidates, by substitution on a geometry tessellated once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from screening.features.schema import FEATURES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prototypes import Prototype
    from screening.features.prototype import PrototypeFeaturizer


def open_featurizer(prototype: Prototype) -> PrototypeFeaturizer:
    """Tessellate a prototype's cell and return its featurizer."""
    from screening.features.geometry import measure_geometry
    from screening.features.prototype import PrototypeFeaturizer

    return PrototypeFeaturizer(
        measure_geometry(prototype.lattice, prototype.frac_coords, prototype.site_roles)
    )


def featurize_candidates(
    featurizer: PrototypeFeaturizer, numbers: NDArray[np.uint8], device: torch.device
) -> torch.Tensor:
    """Compute the features of candidates.

    Args:
        featurizer: Featurizer of the candidates' prototype.
        numbers: Atomic number on each role, shape (m, roles).
        device: Where to compute, and where the result stays.

    Returns:
        Features in the order of `screening.features.schema.FEATURES`, shape (m, 271), float32.
    """
    features = featurizer(torch.from_numpy(numbers).to(device), device=device, dtype=torch.float32)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return features


def find_failures(features: torch.Tensor) -> dict[int, str]:
    """Return the reason for each row that has a feature which is not a finite number.

    Args:
        features: Features, shape (m, 271).

    Returns:
        Row number to reason, naming the first such feature; empty if all rows are fine.
    """
    broken = ~torch.isfinite(features)
    reasons = {}
    for row in broken.any(dim=1).nonzero().flatten().tolist():
        columns = broken[row].nonzero().flatten().tolist()
        more = f" and {len(columns) - 1} more" if len(columns) > 1 else ""
        reasons[row] = f"feature not finite: {FEATURES[columns[0]]}{more}"
    return reasons
