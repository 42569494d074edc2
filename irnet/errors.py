"""Every error that irnet raises on purpose, under one base class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class IRNetError(Exception):
    """Base class of the errors of this package."""


class ArchitectureError(IRNetError, ValueError):
    """An architecture string cannot be read."""


class RecipeError(IRNetError, ValueError):
    """A training recipe is unknown or has an impossible value."""


class DataError(IRNetError, ValueError):
    """Training or prediction data have a wrong shape or hold values that are not finite."""


class DeviceError(IRNetError, RuntimeError):
    """A device or a precision was asked for that does not exist, or not on this machine."""


class FeatureMismatchError(IRNetError, ValueError):
    """Data columns differ from the columns that a model was trained on."""


class ModelFileError(IRNetError, OSError):
    """A model file is missing, truncated, or not what its name promises."""


class CheckpointError(IRNetError, RuntimeError):
    """A checkpoint folder belongs to another training."""


class TrainingDivergedError(IRNetError, ArithmeticError):
    """The loss became infinite or NaN."""


class EmptyEnsembleError(IRNetError, ValueError):
    """An ensemble without members cannot be made."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return a clause such as ``; did you mean "irnet-17"?``, or an empty string."""
    found = get_close_matches(word, list(choices), cutoff=0.5)
    found.sort(key=lambda name: sorted(name) != sorted(word))  # two letters in the wrong order
    return f'; did you mean "{found[0]}"?' if found else ""


def check_feature_names(
    expected: Sequence[str], given: Sequence[str], model: str = "the model"
) -> None:
    """Compare column names with those that a model was trained on, in order.

    Args:
        expected: Names that the model owns.
        given: Names of the data's columns.
        model: How the message calls the model.

    Raises:
        FeatureMismatchError: If names are missing, unknown, doubled or in another order.
    """
    if tuple(expected) == tuple(given):
        return
    missing = [name for name in expected if name not in set(given)]
    unknown = [name for name in given if name not in set(expected)]
    doubled = sorted({name for name in given if list(given).count(name) > 1})
    parts = []
    if missing:
        parts.append(f"missing {_listing(missing)}")
    if unknown:
        parts.append(f"not known to it {_listing(unknown)}")
    if doubled:
        parts.append(f"given twice {_listing(doubled)}")
    if not parts:
        moved = [
            f"{name!r} is column {list(given).index(name)}, expected at {place}"
            for place, name in enumerate(expected)
            if given[place] != name
        ]
        parts.append(f"order differs: {_listing(moved, quote=False)}")
    raise FeatureMismatchError(
        f"{model} expects {len(expected)} features, got {len(given)} ({'; '.join(parts)}); "
        "featurize with the same schema, or train a model on these columns"
    )


def _listing(names: Sequence[str], quote: bool = True, most: int = 5) -> str:
    shown = ", ".join(f'"{name}"' if quote else name for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
