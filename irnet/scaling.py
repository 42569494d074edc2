"""Scaling of features and target: part of a trained member, never of its caller."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scaling:
    """Affine scaling of inputs, with clipping, and of the target.

    Attributes:
        mean: Mean of each feature over the training rows, (features,), float64.
        std: Standard deviation of each feature, (features,); 1 for a constant feature.
        clip: Bound of a scaled feature in standard deviations, or None.
        target_mean: Mean of the target, in its unit.
        target_std: Standard deviation of the target, in its unit.
    """

    mean: FloatArray
    std: FloatArray
    clip: float | None
    target_mean: float
    target_std: float

    @classmethod
    def fit(
        cls,
        features: NDArray[np.float32],
        target: FloatArray,
        *,
        scale_inputs: bool,
        clip: float | None,
        scale_target: bool,
    ) -> Scaling:
        """Fit the scaling on training rows.

        Args:
            features: (n, features).
            target: (n,), in the target's unit.
            scale_inputs: False leaves features as they are.
            clip: Bound in standard deviations, or None.
            scale_target: False leaves the target as it is.

        Returns:
            The scaling; a feature or target without spread gets deviation 1.
        """
        width = features.shape[1]
        mean, std = np.zeros(width), np.ones(width)
        if scale_inputs:
            mean = features.mean(axis=0, dtype=np.float64)
            std = features.std(axis=0, dtype=np.float64)
            # float32 input: a spread of rounding size is no spread
            std[std <= 1e-6 * np.maximum(np.abs(mean), 1e-30)] = 1.0
        target_mean = float(target.mean()) if scale_target else 0.0
        target_std = float(target.std()) if scale_target else 1.0
        return cls(mean, std, clip, target_mean, target_std if target_std > 0 else 1.0)

    def check(self, features: int) -> None:
        """Check numbers that were read from a file.

        Args:
            features: How many features there should be.

        Raises:
            ValueError: A shape is another, or a number is not finite or cannot be divided by.
        """
        for name, array in (("mean", self.mean), ("std", self.std)):
            if array.shape != (features,) or array.dtype != np.float64:
                raise ValueError(
                    f"scaling.{name} is {array.dtype} of shape {array.shape}, expected float64 of "
                    f"({features},)"
                )
        numbers = (self.target_mean, self.target_std, 0.0 if self.clip is None else self.clip)
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all()):
            raise ValueError("scaling holds values that are not finite")
        if not (np.isfinite(numbers).all() and self.std.all() and self.target_std):
            raise ValueError("clip or target scaling is not finite, or a deviation is 0")

    def inputs(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Scale and clip features (n, features) to what the network reads, float32."""
        scaled = (features - self.mean) / self.std
        if self.clip is not None:
            np.clip(scaled, -self.clip, self.clip, out=scaled)
        return scaled.astype(np.float32)

    def target(self, values: FloatArray) -> NDArray[np.float32]:
        """Scale targets (n,) to what the network predicts."""
        return ((values - self.target_mean) / self.target_std).astype(np.float32)
