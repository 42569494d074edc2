"""What a CIF must not ask for: pymatgen's parser would work on it for minutes or for ever."""

from typing import Any

MOST_SIGNS = 5_000_000
"""Characters of a file."""

LONGEST_LINE = 2048
"""Characters of a line: the CIF 1.1 specification allows no more (IUCr, paragraph 16)."""

MOST_IMAGES = 10_000
"""Atoms of the cell before those that coincide are merged, which takes the square of their number
in time: sites listed times symmetry operations."""

_OPERATIONS = (
    "_symmetry_equiv_pos_as_xyz",
    "_symmetry_equiv_pos_as_xyz_",
    "_space_group_symop_operation_xyz",
    "_space_group_symop_operation_xyz_",
)
_MOST_OPERATIONS = 192


def check_cif(text: str) -> None:
    """Refuse a CIF that would take very long to read.

    Args:
        text: The file's content.

    Raises:
        ValueError: It is too large, has too long lines, or describes too many atoms.
    """
    if len(text) > MOST_SIGNS:
        raise ValueError(f"it has {len(text):,} characters, more than the {MOST_SIGNS:,} read here")
    longest = max(map(len, text.splitlines()), default=0)
    if longest > LONGEST_LINE:
        raise ValueError(
            f"it has a line of {longest:,} characters, and a CIF's have at most {LONGEST_LINE:,}"
        )
    from pymatgen.io.cif import CifFile

    for block in CifFile.from_str(text).data.values():
        images = _count_images(block.data)
        if images > MOST_IMAGES:
            raise ValueError(
                f"it describes {images:,} atoms (sites times symmetry operations), more than the "
                f"{MOST_IMAGES:,} read here"
            )


def _count_images(data: dict[str, Any]) -> int:
    """Return how many atoms the sites of a block make at most, given its symmetry."""
    sites = max(
        (
            len(values)
            for key, values in data.items()
            if key.lower().startswith("_atom_site_") and isinstance(values, list)
        ),
        default=0,
    )
    listed = [data[key] for key in _OPERATIONS if key in data]
    if listed:
        return sites * max(len(each) if isinstance(each, list) else 1 for each in listed)
    groups = [
        "".join(str(value).split()).strip("'\"").upper()
        for key, value in data.items()
        if key.lower().startswith(("_symmetry_", "_space_group_"))
    ]
    plain = all(group in ("P1", "1", "?", ".", "TRICLINIC") for group in groups)
    return sites * (1 if plain else _MOST_OPERATIONS)
