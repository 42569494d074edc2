"""Trained members and the ensemble of them, with everything needed to predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .architecture import Architecture
from .errors import (
    DataError,
    EmptyEnsembleError,
    IRNetError,
    ModelFileError,
    check_feature_names,
)
from .network import Network, network_of
from .scaling import Scaling
from .scorer import Scorer
from .storage import (
    compress,
    decompress,
    file_sha256,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)

_MEMBER = "an irnet member"
_ENSEMBLE = "an irnet ensemble"
_FORMAT = 1
_CHOICE_FORMAT = 2  # of members with what readers of format 1 would leave unread


@dataclass(frozen=True, eq=False)
class Member:
    """One trained network with the scaling and the feature names that belong to it.

    Attributes:
        architecture: Its layers.
        feature_names: Columns that it was trained on, in order.
        scaling: Scaling of its inputs and target.
        state: float32 weights by name.
        record: How it was trained: seed, recipe, history per epoch, rows, data hash, time.
        classes: Names of the classes of a classification; empty for a regression.
    """

    architecture: Architecture
    feature_names: tuple[str, ...]
    scaling: Scaling
    state: Mapping[str, Tensor] = field(repr=False)
    record: Mapping[str, Any] = field(repr=False)
    classes: tuple[str, ...] = ()

    @property
    def network(self) -> Network:
        """The network in evaluation mode: scaled inputs to scaled targets, or to logits."""
        outputs = max(1, len(self.classes))
        return network_of(self.architecture, len(self.feature_names), self.state, outputs)

    def save(self, path: Path | str, precision: str = "fp32") -> None:
        """Write the member into one safetensors file, atomically.

        Args:
            path: The file; its folder must exist.
            precision: Of the weight matrices: "fp32", "bf16", "int8" or "int6", see
                `irnet.storage.compress`.
        """
        scaling = self.scaling
        plain = self.architecture.activation == "relu" and not self.classes
        tensors = compress(self.state, precision)
        tensors["scaling.mean"] = torch.from_numpy(scaling.mean.copy())
        tensors["scaling.std"] = torch.from_numpy(scaling.std.copy())
        header = {
            "kind": _MEMBER,
            "format": _FORMAT if plain else _CHOICE_FORMAT,
            "architecture": str(self.architecture),
            "activation": self.architecture.activation,
            "classes": list(self.classes),
            "feature_names": list(self.feature_names),
            "clip": scaling.clip,
            "target_mean": scaling.target_mean,
            "target_std": scaling.target_std,
            "precision": precision,
            "record": dict(self.record),
        }
        write_tensors(Path(path), tensors, header)

    @classmethod
    def load(cls, path: Path | str) -> Member:
        """Read a member; weights of any stored precision come back as float32.

        Args:
            path: The file that `save` wrote.

        Returns:
            The member.

        Raises:
            ModelFileError: If the file is missing, truncated, or not a member.
        """
        path = Path(path)
        tensors, header = read_tensors(path, _MEMBER)
        try:
            if header["format"] not in (_FORMAT, _CHOICE_FORMAT):
                raise ModelFileError(
                    f"{path}: written in format {header['format']}, this version reads {_FORMAT} "
                    f"and {_CHOICE_FORMAT}"
                )
            scaling = Scaling(
                mean=tensors.pop("scaling.mean").numpy(),
                std=tensors.pop("scaling.std").numpy(),
                clip=None if header["clip"] is None else float(header["clip"]),
                target_mean=float(header["target_mean"]),
                target_std=float(header["target_std"]),
            )
            member = cls(
                # files of before there was a choice say neither
                architecture=Architecture.parse(
                    str(header["architecture"]), str(header.get("activation", "relu"))
                ),
                feature_names=tuple(map(str, header["feature_names"])),
                scaling=scaling,
                state=decompress(tensors),
                record=dict(header["record"]),
                classes=tuple(map(str, header.get("classes", ()))),
            )
            member._check()
        except (IndexError, KeyError, OverflowError, TypeError, RuntimeError, ValueError) as error:
            raise ModelFileError(f"{path}: weights or header do not fit ({error})") from error
        return member

    def _check(self) -> None:
        """Raise an error where weights and scaling do not make a network that predicts."""
        self.scaling.check(len(self.feature_names))
        for name, weights in self.network.state_dict().items():
            if not bool(torch.isfinite(weights).all()):
                raise ValueError(f"{name} holds values that are not finite")


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Members that predict together.

    Attributes:
        members: At least one, all trained on the same feature names.
        card: Facts of the training: target and its unit, data hash, recipe, seeds, metrics.
    """

    members: tuple[Member, ...]
    card: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Check that the members belong together.

        Raises:
            EmptyEnsembleError: Without members.
            FeatureMismatchError: If members were trained on different columns.
            DataError: If they predict different classes.
        """
        if not self.members:
            raise EmptyEnsembleError("an ensemble needs at least one member; train one first")
        for number, member in enumerate(self.members[1:], start=1):
            check_feature_names(self.feature_names, member.feature_names, f"member {number}")
            if member.classes != self.classes:
                raise DataError(
                    f"member {number} predicts {_describe(member.classes)}, but member 0 "
                    f"{_describe(self.classes)}; an ensemble's members predict the same"
                )

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Columns that the members were trained on, in order."""
        return self.members[0].feature_names

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of a classification; empty for a regression."""
        return self.members[0].classes

    def check_features(self, names: Sequence[str]) -> None:
        """Compare a table's columns with the ensemble's own.

        Args:
            names: Columns of the data, in order.

        Raises:
            FeatureMismatchError: Names the missing, unknown or moved columns.
        """
        check_feature_names(self.feature_names, names, "the ensemble")

    def scorer(self, device: str = "cpu", precision: str = "auto") -> Scorer:
        """Prepare the ensemble for prediction: batch norm folded, weights on the device.

        Args:
            device: "auto", "cpu", "cuda" or "cuda:<n>".
            precision: "int8", "bf16", "fp32", or "auto": bf16 where the device has it in hardware,
                else int8 where it has that, see `irnet.scorer.Scorer`.

        Returns:
            A scorer; build it once and keep it.
        """
        return Scorer(self.members, device=device, precision=precision)

    def save(self, path: Path | str, precision: str = "fp32") -> None:
        """Write ``ensemble.json`` and one ``member-<i>.safetensors`` per member.

        Args:
            path: A folder; made if it does not exist.
            precision: "fp32", "bf16" or "int8" for the weight matrices.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        entries = []
        for number, member in enumerate(self.members):
            file = folder / f"member-{number}.safetensors"
            member.save(file, precision)
            scaling = member.scaling
            entries.append(
                {
                    "file": file.name,
                    "sha256": file_sha256(file),
                    "architecture": str(member.architecture),
                    "clip": scaling.clip,
                    "target_mean": scaling.target_mean,
                    "target_std": scaling.target_std,
                    **member.record,
                }
            )
        content = {
            "kind": _ENSEMBLE,
            "format": _FORMAT,
            "precision": precision,
            "card": dict(self.card),
            "feature_names": list(self.feature_names),
            "members": entries,
        }
        write_json(folder / "ensemble.json", content)

    @classmethod
    def load(cls, path: Path | str) -> Ensemble:
        """Read an ensemble and check every file against its recorded hash.

        Args:
            path: The folder that `save` wrote.

        Returns:
            The ensemble.

        Raises:
            ModelFileError: Names the file that is missing, truncated or not its own.
        """
        folder = Path(path)
        content = read_json(folder / "ensemble.json", _ENSEMBLE)
        members = []
        try:
            if content["format"] != _FORMAT:
                raise ModelFileError(
                    f"{folder / 'ensemble.json'}: format {content['format']}, "
                    f"this version reads {_FORMAT}"
                )
            for entry in content["members"]:
                if Path(entry["file"]).name != entry["file"]:
                    raise ModelFileError(
                        f"{folder / 'ensemble.json'}: names {entry['file']!r}, which is no file of "
                        "this folder; copy the folder again"
                    )
                file = folder / entry["file"]
                if file.is_file() and file_sha256(file) != entry["sha256"]:
                    raise ModelFileError(
                        f"{file}: differs from what ensemble.json records "
                        "(truncated, or of another ensemble); copy the folder again"
                    )
                members.append(Member.load(file))
            return cls(tuple(members), dict(content["card"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(
                f"{folder / 'ensemble.json'}: lacks or garbles {error}; copy the folder again"
            ) from error
        except ModelFileError:
            raise
        except IRNetError as error:
            raise ModelFileError(f"{folder}: members do not belong together: {error}") from error


def _describe(classes: Sequence[str]) -> str:
    return f"the classes {', '.join(classes)}" if classes else "numbers"
