"""How far rows lie from the training rows of a model, measured to a small sample of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import DataError, ModelFileError
from .storage import read_tensors, write_tensors

_KIND = "an irnet training reference"
FORMAT = 1
"""Of the files of references and of uncertainties."""
_STORED = {
    "mean": np.float32,
    "inverse_std": np.float32,
    "projection": np.float32,
    "points": np.float16,
    "column": np.int16,
    "threshold": np.float32,
    "value": np.float32,
    "edges": np.float64,
    "scores": np.float32,
    "score_counts": np.int64,
}
"""Types in which files hold the arrays of references and of uncertainties."""
_CLIP = 6.0
_BLOCK_ROWS = 4096

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TrainingReference:
    """The training rows, condensed to what distances are measured to.

    Features are standardised, clipped at 6 deviations, and projected on their principal components,
    each scaled to unit variance. A row's distance is that to the nearest representative, in units
    of the median distance of training rows that are not representatives themselves: 1 is an
    ordinary training row, 3 lies three times as far out.

    Attributes:
        mean: Mean of each feature, (features,), float32.
        inverse_std: One over its deviation, (features,), float32; 1 for a constant feature.
        projection: Standardised features to components, (features, components), float32.
        points: The representatives, (points, components), float32 with values of float16.
        unit: The median distance that is called 1.
    """

    mean: NDArray[np.float32] = field(repr=False)
    inverse_std: NDArray[np.float32] = field(repr=False)
    projection: NDArray[np.float32] = field(repr=False)
    points: NDArray[np.float32] = field(repr=False)
    unit: float

    @classmethod
    def fit(
        cls,
        features: NDArray[np.floating],
        *,
        size: int = 6144,
        components: int = 64,
        seed: int = 0,
    ) -> TrainingReference:
        """Condense training rows.

        Args:
            features: (n, features), unscaled.
            size: Most representatives, drawn from the rows at random without repetition.
            components: Most principal components; those without variance are left out.
            seed: Of the draw.

        Returns:
            The reference.

        Raises:
            DataError: If a value is not finite, rows are fewer than two, or all are equal.
        """
        x = np.asarray(features)
        if x.ndim != 2 or len(x) < 2:
            raise DataError(f"features have shape {x.shape}; a reference needs 2 rows or more")
        if size < 1 or components < 1:
            raise DataError(f"size is {size} and components {components}; both must be at least 1")
        check_finite(x)
        mean = x.mean(axis=0, dtype=np.float64)
        std = x.std(axis=0, dtype=np.float64)
        std[std <= 1e-6 * np.maximum(np.abs(mean), 1e-30)] = 1.0
        covariance = np.zeros((x.shape[1], x.shape[1]))
        centre = np.zeros(x.shape[1])
        for start in range(0, len(x), _BLOCK_ROWS):
            z = np.clip((x[start : start + _BLOCK_ROWS] - mean) / std, -_CLIP, _CLIP)
            centre += z.sum(axis=0) / len(x)
            covariance += z.T @ z / len(x)
        variance, vectors = np.linalg.eigh(covariance - np.outer(centre, centre))
        variance, vectors = variance[::-1][:components], vectors[:, ::-1][:, :components]
        kept = variance > 1e-6 * variance[0]
        if variance[0] <= 0 or not kept.any():
            raise DataError("all training rows are equal; there is no distance to measure")
        vectors = vectors[:, kept]
        peaks = np.abs(vectors).argmax(axis=0)
        vectors = vectors * np.sign(vectors[peaks, np.arange(vectors.shape[1])])
        order = np.random.default_rng(seed).permutation(len(x))
        bare = cls(
            mean.astype(np.float32),
            (1.0 / std).astype(np.float32),
            # in rows, as a file holds it: products of another layout differ in the last bit
            np.ascontiguousarray(vectors / np.sqrt(variance[kept]), dtype=np.float32),
            np.zeros((1, vectors.shape[1]), dtype=np.float32),
            1.0,
        )
        chosen = np.sort(order[:size])
        points = bare.coordinates(x[chosen]).astype(np.float16).astype(np.float32)
        reference = cls(bare.mean, bare.inverse_std, bare.projection, points, 1.0)
        others = np.sort(order[size : size + 4096])
        if len(others):
            distances = reference.distance(x[others])
        else:
            coordinates = torch.from_numpy(points)
            mutual = torch.cdist(coordinates, coordinates).fill_diagonal_(torch.inf)
            distances = mutual.min(dim=1).values.double().numpy()
        positive = distances[distances > 0]
        unit = float(np.median(positive)) if len(positive) else 1.0
        return cls(bare.mean, bare.inverse_std, bare.projection, points, unit)

    def save(self, path: Path | str) -> None:
        """Write the reference alone into one safetensors file, atomically.

        Args:
            path: The file; its folder must exist.

        Raises:
            ModelFileError: If it cannot be written.
        """
        header = {"kind": _KIND, "format": FORMAT, "unit": self.unit}
        write_arrays(Path(path), self.arrays(), header)

    @classmethod
    def load(cls, path: Path | str) -> TrainingReference:
        """Read what `save` wrote.

        Args:
            path: The file.

        Returns:
            The same reference.

        Raises:
            ModelFileError: If the file is missing, truncated, damaged, of a newer format or of
                another kind.
        """
        path = Path(path)
        arrays, header = read_arrays(path, _KIND)
        try:
            return cls.from_arrays(arrays, header)
        except (IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise ModelFileError(f"{path}: arrays or header do not fit ({error})") from error

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Its arrays by name, as files hold them."""
        return {
            "mean": self.mean,
            "inverse_std": self.inverse_std,
            "projection": self.projection,
            "points": self.points.astype(np.float16),
        }

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], header: Mapping[str, Any]
    ) -> TrainingReference:
        """A reference of arrays that `arrays` gave, checked; raises ValueError or KeyError."""
        points = arrays["points"].astype(np.float32)
        features, components = arrays["projection"].shape
        expected = {
            "mean": (features,),
            "inverse_std": (features,),
            "points": (max(len(points), 1), components),
        }
        check_arrays(arrays, expected)
        unit = float(header["unit"])
        if not 0 < unit < np.inf:
            raise ValueError(f"unit is {unit}")
        return cls(arrays["mean"], arrays["inverse_std"], arrays["projection"], points, unit)

    def coordinates(self, features: Tensor | NDArray[np.floating]) -> NDArray[np.float32]:
        """Principal components of rows.

        Args:
            features: (n, features), unscaled.

        Returns:
            (n, components), of unit variance over the training rows.

        Raises:
            DataError: If the number of features is another or a value is not finite.
        """
        return self._measure(features)[0]

    def distance(self, features: Tensor | NDArray[np.floating]) -> FloatArray:
        """Distance of rows to the training data.

        A row's distance does not depend on the other rows.

        Args:
            features: (n, features), unscaled.

        Returns:
            (n,), float64, 1 for an ordinary training row, without unit.

        Raises:
            DataError: If the number of features is another or a value is not finite.
        """
        return self._measure(features, nearest=True)[1]

    @torch.inference_mode()
    def _measure(
        self, features: Tensor | NDArray[np.floating], nearest: bool = False
    ) -> tuple[NDArray[np.float32], FloatArray]:
        # NumPy's reversed views have strides that torch cannot take
        x = (
            features
            if isinstance(features, Tensor)
            else torch.as_tensor(np.ascontiguousarray(features))
        )
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise DataError(
                f"features have shape {tuple(x.shape)}, expected (rows, {len(self.mean)})"
            )
        device = x.device
        mean, inverse_std, projection, points = (
            torch.from_numpy(a).to(device)
            for a in (self.mean, self.inverse_std, self.projection, self.points)
        )
        half_norms = (points * points).sum(dim=1) / 2
        coordinates = torch.empty((len(x), projection.shape[1]), device=device)
        distances = torch.empty(len(x), dtype=torch.float64, device=device)
        for start in range(0, len(x), _BLOCK_ROWS):
            block = x[start : start + _BLOCK_ROWS]
            rows = len(block)
            if not bool(torch.isfinite(block).all()):
                check_finite(block.cpu().numpy(), start)
            z = ((block.float().contiguous() - mean) * inverse_std).clamp_(-_CLIP, _CLIP)
            # blocks of one shape and layout, so that a row's sums are the same in any company
            z = torch.nn.functional.pad(z, (0, 0, 0, _BLOCK_ROWS - rows)) @ projection
            coordinates[start : start + rows] = z[:rows]
            if nearest:
                closest = torch.addmm(half_norms, z, points.T, alpha=-1.0).argmin(dim=1)
                gap = (z - points[closest]).double()
                distances[start : start + rows] = gap.square().sum(dim=1).sqrt()[:rows]
        return coordinates.cpu().numpy(), distances.cpu().numpy() / self.unit


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], header: Mapping[str, Any]) -> None:
    """Write arrays and a header into one safetensors file, atomically."""
    write_tensors(path, {name: torch.from_numpy(a) for name, a in arrays.items()}, header)


def read_arrays(path: Path, kind: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what `write_arrays` wrote; raises ModelFileError where the file is not its own."""
    tensors, header = read_tensors(path, kind)
    if header.get("format") != FORMAT:
        raise ModelFileError(
            f"{path}: written in format {header.get('format')}, this version reads {FORMAT}"
        )
    try:
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    except TypeError as error:
        raise ModelFileError(f"{path}: holds a type of numbers not read here ({error})") from error
    for name, array in arrays.items():
        if name in _STORED and array.dtype != _STORED[name]:
            raise ModelFileError(
                f"{path}: {name} is {array.dtype}, expected {np.dtype(_STORED[name])}"
            )
    return arrays, header


def check_arrays(arrays: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError where an array has another shape or values that are not finite."""
    for name, array in arrays.items():
        # a threshold is infinite where a complete tree repeats a leaf
        bad = np.isnan(array) if name == "threshold" else ~np.isfinite(array)
        if bad.any():
            raise ValueError(f"{name} holds values that are not finite")
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}, expected {shape}")


def check_finite(x: NDArray[np.floating], first: int = 0) -> None:
    """Raise DataError, naming row and column, where a value of (n, features) is not finite."""
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise DataError(
            f"features row {first + row}, column {column} is {x[row, column]}; "
            "remove or repair the row"
        )
