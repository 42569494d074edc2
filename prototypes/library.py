"""The prototypes that come with the program, and the search by name."""

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from prototypes.errors import (
    AmbiguousPrototypeError,
    StructureFileError,
    UnknownPrototypeError,
    nearest_file,
    nearest_hint,
)
from prototypes.prototype import Prototype
from prototypes.records import PrototypeRecord, normalise_name

_LONGEST_NAME = 4096

BUILT_IN: tuple[str, ...] = (
    "B2",
    "L1_0",
    "perovskite",
    "cubic_perovskite",
    "K2NiF4",
    "double_perovskite",
)
"""Names of the built-in prototypes, each a file in ``data/``."""


def find_prototype(name_or_path: str | Path, roles: Mapping[str, str] | None = None) -> Prototype:
    """Find a prototype by name, or read one from a CIF.

    Built-in names come first, then AFLOW labels, Strukturbericht symbols and mineral names of the
    AFLOW entries that pymatgen ships. Capitals, spaces and underscores do not matter. What ends
    in ``.cif``, or is no name but an existing file, is read as a CIF. The geometry of some AFLOW
    entries is doubtful: see ``find_doubt``.

    Args:
        name_or_path: For instance "B2", "AB_cF8_225_a_b", "C1_b", "spinel" or "mine.cif".
        roles: For a file alone: see ``read_prototype``.

    Returns:
        The prototype.

    Raises:
        UnknownPrototypeError: If nothing has this name; names the nearest.
        AmbiguousPrototypeError: If several entries have this name; lists them.
        ElementPrototypeError: If the prototype is an element.
        StructureFileError: If the file cannot be used.
        RoleError: If roles do not fit the file.
    """
    name = str(name_or_path).strip()
    if len(name) > _LONGEST_NAME:
        raise UnknownPrototypeError(
            f'"{name[:40]}…" is no prototype: a name or path has at most {_LONGEST_NAME:,} '
            "characters"
        )
    path = Path(name)
    with suppress(RuntimeError):  # there is no such user
        path = path.expanduser()
    if path.suffix.lower() == ".cif":
        from prototypes.structure_file import read_prototype

        return read_prototype(path, roles)
    key = normalise_name(name)
    for built_in in BUILT_IN:
        if key in _built_in_keys(built_in):
            return load_built_in(built_in)
    from prototypes import aflow

    entries = aflow.matching_entries(name)
    if not entries:
        from prototypes.structure_file import is_file, read_prototype

        if is_file(path):
            return read_prototype(path, roles)
        if len(path.parts) > 1:
            raise StructureFileError(
                f"there is no file {path}{nearest_file(path) or ';'} check the path"
            )
        raise UnknownPrototypeError(
            f'unknown prototype "{name}"{nearest_hint(name, _all_names()) or ";"} '
            "`screening prototypes` lists them all, and a CIF can be given by its path"
        )
    compounds = [entry for entry in entries if not entry.is_element]
    if len(compounds) > 1:
        choices = "".join(f"\n  {entry.title}" for entry in compounds)
        raise AmbiguousPrototypeError(
            f'"{name}" names {len(compounds)} prototypes; choose one of:{choices}'
        )
    return (compounds or entries)[0].prototype()


def find_names(name: str) -> tuple[str, ...]:
    """Return the names of the prototypes that a name stands for, without their geometry.

    Args:
        name: As for ``find_prototype``, but for files.

    Returns:
        One name, several where the name is ambiguous, or none.

    Example:
        >>> find_names("rock salt"), find_names("cscl")
        (('AB_cF8_225_a_b',), ('B2',))
    """
    key = normalise_name(name)
    for built_in in BUILT_IN:
        if key in _built_in_keys(built_in):
            return (built_in,)
    from prototypes import aflow

    return tuple(entry.name for entry in aflow.matching_entries(name) if not entry.is_element)


def list_prototypes(aflow: bool = True) -> list[PrototypeRecord]:
    """List the prototypes that have a name.

    Args:
        aflow: Whether to list the AFLOW entries too.

    Returns:
        The built-in ones, then the AFLOW entries by label. Those of a single element are listed
        too, marked by ``is_element``.
    """
    records = [_built_in_record(name) for name in BUILT_IN]
    if aflow:
        from prototypes.aflow import entries

        records += [entry.record() for entry in entries()]
    return records


def find_doubt(prototype: Prototype) -> str | None:
    """Say what is doubtful about the geometry of a prototype.

    Args:
        prototype: Any prototype.

    Returns:
        What is wrong with it, for an AFLOW entry whose geometry is not that of its reference
        compound; None for the others, whose geometry is right or could not be compared, for the
        built-in ones and for the user's own.

    Example:
        >>> find_doubt(find_prototype("Brookite"))
        'its a axis is 3.45 Å long instead of 5.46 Å (shortest Ti-O 1.55 Å, known 1.87 Å, mp-1840)'
    """
    from prototypes import aflow

    return next(
        (
            entry.doubt
            for entry in aflow.entries()
            if (entry.name, entry.label) == (prototype.name, prototype.aflow_label)
        ),
        None,
    )


@cache
def load_built_in(name: str) -> Prototype:
    """Read a built-in prototype from its data file.

    Args:
        name: One of ``BUILT_IN``.

    Returns:
        The prototype, exact and with the roles that its file declares.
    """
    data = _built_in_data(name)
    return Prototype.from_sites(
        name,
        data["lattice"],
        [site["frac_coords"] for site in data["sites"]],
        [site["role"] for site in data["sites"]],
        data["reference"],
        source=data["source"],
        exact=True,
        aflow_label=data["aflow_label"],
        strukturbericht=data["strukturbericht"],
        mineral=data["mineral"],
    )


@cache
def _built_in_data(name: str) -> dict[str, Any]:
    text = files("prototypes").joinpath("data", f"{name}.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


def _built_in_keys(name: str) -> set[str]:
    data = _built_in_data(name)
    names = [name, *data["aliases"], data["strukturbericht"], data["mineral"]]
    return {normalise_name(known) for known in names if known}


def _built_in_record(name: str) -> PrototypeRecord:
    data = _built_in_data(name)
    prototype = load_built_in(name)
    return PrototypeRecord(
        name=name,
        formula=prototype.formula,
        roles=tuple(data["reference"].items()),
        aflow_label=data["aflow_label"],
        strukturbericht=data["strukturbericht"],
        mineral=data["mineral"],
        source=data["source"],
        exact=True,
        sites=len(data["sites"]),
        is_element=False,
        doubt=None,
    )


def _all_names() -> list[str]:
    from prototypes import aflow

    built_in = [known for name in BUILT_IN for known in (name, *_built_in_data(name)["aliases"])]
    return built_in + [known for entry in aflow.entries() for known in entry.names]
