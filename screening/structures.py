"""Reading a user's structures: CIF, POSCAR, extended XYZ, Parquet, or a folder of them.

Whatever is read comes back as crystals, and whatever cannot be used comes back as a failure with
its reason: the number of crystals and failures together is the number of structures found.
"""

import os
import re
import shlex
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from prototypes import ATOMIC_NUMBERS, SYMBOLS
from prototypes.cif import check_cif
from screening.crystal import Crystal
from screening.errors import ConfigurationError, InputDataError, suggest, suggest_file
from screening.features.table import Failure
from screening.parquet import read_columns, read_names

if TYPE_CHECKING:
    from pymatgen.core import Structure

SHORTEST_DISTANCE = 0.5
"""Å: two atoms nearer than this overlap. The shortest bond there is, H-H, has 0.74 Å."""

LONGEST_EDGE = 10_000.0
"""Å: no cell is longer; also the most that a fractional coordinate may lie outside of the cell."""

MOST_IMAGES = 1000
"""Images of an atom that may lie within `SHORTEST_DISTANCE`: in an ordinary cell they are 8."""

STRUCTURE_COLUMNS = ("lattice", "species", "frac_coords")

_NUMBERS = ATOMIC_NUMBERS | {"D": 1, "T": 1}
_FORMATS = {"cif": "CIF", "poscar": "POSCAR", "extxyz": "extended XYZ"}
_WORDS_OF_INSIDES = ("array", "could not convert", "invalid literal", "parse coordinates", "unpack")
_POSCAR_NAME = re.compile(r"(POSCAR|CONTCAR)", re.IGNORECASE)


def read_structures(
    paths: Sequence[Path],
    *,
    output: Collection[Path] = (),
    say: Callable[[str], None] = lambda sentence: None,
) -> tuple[list[Crystal], list[Failure]]:
    """Read structure files, structure tables and folders of them.

    A file's id is its name (relative to the folder that was given), with as many parent folders
    before it as tell it from the other files; a file that holds several structures numbers them,
    ``name#0``, ``name#1``; a Parquet row keeps its ``id``.

    Args:
        paths: Files or folders. In a folder every file of a known kind is read, also in
            subfolders, but for hidden ones and for Parquet files that are no structure tables.
        output: Files that will be written; those found in a folder are not read.
        say: Told which Parquet files of folders are no structure tables.

    Returns:
        The crystals, in the order of the files, and what could not be used with its reason.

    Raises:
        ConfigurationError: A structure file is also an output.
        InputDataError: A path does not exist, a folder holds no structure file, a file's kind is
            not known, a Parquet file is not a structure table, a file is given twice, or rows of
            tables share an id.
    """
    written = {os.path.abspath(path) for path in output}
    found: list[tuple[str, Path]] = []
    no_tables: list[Path] = []
    for path in paths:
        found += _expand(path, written, no_tables)
    if no_tables:
        say(
            f"left out {len(no_tables):,} Parquet files without columns "
            f"{', '.join(STRUCTURE_COLUMNS)}, which are no structures (the first: {no_tables[0]})"
        )
    for _, file in found:
        if os.path.abspath(file) in written:
            raise ConfigurationError(f"{file} holds structures and is the output; choose another")
    crystals: list[Crystal] = []
    failures: list[Failure] = []
    for name, file in _name_apart(found):
        if file.suffix.lower() == ".parquet":
            read, failed = read_structure_table(file)
        else:
            read, failed = _read_file(file, name)
        crystals += read
        failures += failed
    counts = Counter([crystal.id for crystal in crystals] + [failure.id for failure in failures])
    for name, count in counts.items():
        if count > 1:
            raise InputDataError(
                f"{count} structures are called {name!r}. Give each table once, with unique ids."
            )
    return crystals, failures


def read_structure_table(path: Path) -> tuple[list[Crystal], list[Failure]]:
    """Read a Parquet table of structures.

    Args:
        path: Parquet file with columns ``id``, ``lattice`` (9 numbers, row by row, Å), ``species``
            (symbols) and ``frac_coords`` (3 numbers a site, site by site); numbers may also be
            lists of three.

    Returns:
        The crystals and the failures, each in the order of the rows.

    Raises:
        InputDataError: The file cannot be read, lacks a column, or has one of another type.
    """
    present = read_names(path)
    for column in ("id", *STRUCTURE_COLUMNS):
        if column not in present:
            raise InputDataError(
                f'{path} has no column "{column}"{suggest(column, present) or "."} A table of '
                f"structures has columns id, {', '.join(STRUCTURE_COLUMNS)}."
            )
    table = read_columns(path, ["id", *STRUCTURE_COLUMNS])
    ids = [str(name) for name in table["id"].to_pylist()]
    if not ids:
        return [], []
    lattices, lattice_starts, bad_lattices = _flatten(table, "lattice", pa.float64(), path)
    coords, coord_starts, bad_coords = _flatten(table, "frac_coords", pa.float64(), path)
    symbols, site_starts, _ = _flatten(table, "species", pa.string(), path)
    uneven = bad_lattices | bad_coords
    encoded = pc.dictionary_encode(symbols)
    known = [str(symbol) for symbol in encoded.dictionary.to_pylist()]
    numbers_of = np.array([_NUMBERS.get(symbol, 0) for symbol in known], dtype=np.int64)
    codes = encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)
    numbers = numbers_of[codes] if len(known) else np.zeros(0, dtype=np.int64)
    lattice_values = lattices.to_numpy(zero_copy_only=False)
    coord_values = coords.to_numpy(zero_copy_only=False)

    crystals: list[Crystal] = []
    failures: list[Failure] = []
    for row, name in enumerate(ids):
        sites = slice(site_starts[row], site_starts[row + 1])
        cell = lattice_values[lattice_starts[row] : lattice_starts[row + 1]]
        positions = coord_values[coord_starts[row] : coord_starts[row + 1]]
        count = sites.stop - sites.start
        if uneven[row]:
            reason = "malformed row: an inner list of lattice or frac_coords has not 3 numbers"
            failures.append(Failure(name, reason))
            continue
        if count == 0 or len(cell) != 9 or len(positions) != 3 * count:
            failures.append(
                Failure(
                    name,
                    f"malformed row: {len(cell)} lattice numbers, {count} species and "
                    f"{len(positions)} coordinates; expected 9, n and 3 n",
                )
            )
            continue
        unknown = np.flatnonzero(numbers[sites] == 0)
        if len(unknown):
            symbol = symbols[int(sites.start + unknown[0])].as_py()
            failures.append(Failure(name, f"unknown element {symbol!r}"))
            continue
        crystal = Crystal(
            name,
            np.array(cell, dtype=np.float64).reshape(3, 3),
            numbers[sites].copy(),
            np.array(positions, dtype=np.float64).reshape(-1, 3),
        )
        defect = find_defect(crystal)
        if defect is None:
            crystals.append(crystal)
        else:
            failures.append(Failure(name, defect))
    return crystals, failures


def find_defect(crystal: Crystal) -> str | None:
    """Why a crystal cannot be used, or None if it can.

    Args:
        crystal: Any crystal.

    Returns:
        A reason where numbers are not finite, the cell is flat, or two atoms (or an atom and its
        own image) are nearer than ``SHORTEST_DISTANCE``.
    """
    if not (np.isfinite(crystal.lattice).all() and np.isfinite(crystal.frac_coords).all()):
        return "lattice or coordinates are not finite numbers"
    edges = np.linalg.norm(crystal.lattice, axis=1)
    if not float(edges.max()) < LONGEST_EDGE:
        return f"the cell has an edge of {float(edges.max()):.3g} Å"
    volume = crystal.volume
    if volume < 1e-3 or volume < 1e-6 * float(edges.prod()):
        return f"the cell is flat (volume {volume:.2g} Å³)"
    if float(np.abs(crystal.frac_coords).max(initial=0.0)) > LONGEST_EDGE:
        return "coordinates lie far outside of the cell"
    heights = 1 / np.linalg.norm(np.linalg.inv(crystal.lattice), axis=0)
    if float(np.prod(1 + 2 * SHORTEST_DISTANCE / heights)) > MOST_IMAGES:
        return "the cell is too thin or too oblique; give a reduced cell"
    pair = _find_overlap(crystal)
    if pair is None:
        return None
    first, second, distance = pair
    symbols = [SYMBOLS[int(crystal.numbers[i]) - 1] for i in (first, second)]
    return (
        f"overlapping atoms: sites {first} ({symbols[0]}) and {second} ({symbols[1]}) are "
        f"{distance:.2f} Å apart"
    )


def convert_structure(structure: "Structure", name: str) -> Crystal:
    """Turn a pymatgen Structure into a crystal.

    Args:
        structure: An ordered structure; oxidation states are forgotten.
        name: The crystal's id.

    Returns:
        The crystal.

    Raises:
        InputDataError: A site is partially occupied or holds something that is no element.
    """
    numbers = []
    for site in structure:
        if not site.is_ordered:
            raise InputDataError(f"partially occupied site {site.species_string!r}")
        symbol = str(getattr(site.specie, "symbol", site.specie))
        if symbol not in _NUMBERS:
            raise InputDataError(f"unknown element {symbol!r}")
        numbers.append(_NUMBERS[symbol])
    return Crystal(
        name,
        np.array(structure.lattice.matrix, dtype=np.float64),
        np.array(numbers, dtype=np.int64),
        np.array(structure.frac_coords, dtype=np.float64),
    )


def _expand(path: Path, written: Collection[str], no_tables: list[Path]) -> list[tuple[str, Path]]:
    """Names and paths of the files that a path stands for; adds to `no_tables` what is none."""
    if path.is_dir():
        found = []
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path)
            hidden = any(part.startswith(".") for part in name.parts)
            if hidden or not file.is_file() or _kind(file) is None:
                continue
            if _kind(file) == "parquet" and not _is_structure_table(file):
                if os.path.abspath(file) not in written:
                    no_tables.append(file)
                continue
            found.append((str(name), file))
        if not found:
            raise InputDataError(
                f"{path} holds no structure file. Known: .cif, POSCAR/CONTCAR/.vasp, "
                ".xyz/.extxyz, .parquet with columns "
                f"id, {', '.join(STRUCTURE_COLUMNS)}."
            )
        return found
    if not path.exists():
        raise InputDataError(f"{path} does not exist{suggest_file(path)}")
    if _kind(path) is None:
        raise InputDataError(
            f"{path}: this kind of file is not known. Known: .cif, POSCAR/CONTCAR/.vasp, "
            ".xyz/.extxyz, .parquet."
        )
    return [(path.name, path)]


def _is_structure_table(path: Path) -> bool:
    return set(STRUCTURE_COLUMNS) <= set(read_names(path))


def _name_apart(files: Sequence[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Put parent folders before the names that several files share."""
    places = [os.path.abspath(file) for _, file in files]
    for place, count in Counter(places).items():
        if count > 1:
            raise InputDataError(f"{place} is given {count} times. Give each file once.")
    names = [name for name, _ in files]
    while shared := {name for name, count in Counter(names).items() if count > 1}:
        for row, name in enumerate(names):
            if name in shared:
                parts = Path(places[row]).parts
                names[row] = str(Path(*parts[-len(Path(name).parts) - 1 :]))
    return list(zip(names, (file for _, file in files), strict=True))


def _kind(path: Path) -> str | None:
    suffix = path.suffix.lower()
    kinds = {
        ".cif": "cif", ".vasp": "poscar", ".poscar": "poscar", ".xyz": "extxyz",
        ".extxyz": "extxyz", ".parquet": "parquet",
    }  # fmt: skip
    if suffix in kinds:
        return kinds[suffix]
    return "poscar" if _POSCAR_NAME.search(path.name) else None


def _read_file(path: Path, name: str) -> tuple[list[Crystal], list[Failure]]:
    readers = {"cif": _read_cif, "poscar": _read_poscar, "extxyz": _read_extxyz}
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        found = readers[str(_kind(path))](text)
    except Exception as error:  # parsers of foreign files raise nearly anything
        return [], [Failure(name, f"unreadable: {_explain(error, str(_kind(path)))}")]
    if not found:
        return [], [Failure(name, "unreadable: no structure in the file")]
    crystals: list[Crystal] = []
    failures: list[Failure] = []
    for index, item in enumerate(found):
        label = name if len(found) == 1 else f"{name}#{index}"
        try:
            crystal = (
                convert_structure(item, label)
                if not isinstance(item, _Frame)
                else (item.crystal(label))
            )
        except InputDataError as error:
            failures.append(Failure(label, _first_line(error)))
            continue
        defect = find_defect(crystal)
        if defect is None:
            crystals.append(crystal)
        else:
            failures.append(Failure(label, defect))
    return crystals, failures


def _read_cif(text: str) -> list[Any]:
    from pymatgen.io.cif import CifParser

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_cif(text)
        parser = CifParser.from_str(text)
        return list(parser.parse_structures(primitive=False, on_error="raise"))


def _read_poscar(text: str) -> list[Any]:
    from pymatgen.io.vasp import Poscar

    lines = text.splitlines()
    announced = sum(_read_count(word) for line in lines[5:7] for word in line.split())
    if announced > len(lines):
        raise ValueError(f"it announces {announced:,} atoms in {len(lines):,} lines")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        poscar = Poscar.from_str(text)
    if any("fake" in str(item.message).lower() for item in caught):
        raise ValueError("the POSCAR names no elements (VASP 4 format); add a line of symbols")
    return [poscar.structure]


def _read_count(word: str) -> int:
    """The number that a word of a POSCAR's fifth or sixth line is, 0 for a symbol."""
    try:
        return abs(int(word))
    except ValueError:
        return 0


@dataclass(frozen=True)
class _Frame:
    """One frame of an extended XYZ file."""

    lattice: NDArray[np.float64]
    symbols: tuple[str, ...]
    positions: NDArray[np.float64]

    def crystal(self, name: str) -> Crystal:
        for symbol in self.symbols:
            if symbol not in _NUMBERS:
                raise InputDataError(f"unknown element {symbol!r}")
        if not (np.isfinite(self.lattice).all() and abs(np.linalg.det(self.lattice)) > 0):
            raise InputDataError("the lattice is flat or no finite numbers")
        return Crystal(
            name,
            self.lattice,
            np.array([_NUMBERS[symbol] for symbol in self.symbols], dtype=np.int64),
            np.linalg.solve(self.lattice.T, self.positions.T).T.astype(np.float64),
        )


def _read_extxyz(text: str) -> list[Any]:
    lines = text.splitlines()
    frames: list[_Frame] = []
    at = 0
    while at < len(lines) and (lines[at].strip() or frames):
        if not lines[at].strip():
            at += 1
            continue
        count = int(lines[at])
        header = _read_xyz_comment(lines[at + 1])
        atoms = [line.split() for line in lines[at + 2 : at + 2 + count]]
        if count < 1 or len(atoms) != count:
            raise ValueError(f"line {at + 1} announces {count} atoms, {len(atoms)} follow")
        if "lattice" not in header:
            raise ValueError('no Lattice="..." in the comment line: a molecule, not a crystal')
        lattice = np.array(header["lattice"].split(), dtype=np.float64).reshape(3, 3)
        species, position = _xyz_columns(header.get("properties", "species:S:1:pos:R:3"))
        positions = np.array(
            [fields[position : position + 3] for fields in atoms], dtype=np.float64
        )
        if positions.shape != (count, 3):
            raise ValueError(f"line {at + 1}: atoms without three coordinates")
        frames.append(_Frame(lattice, tuple(fields[species] for fields in atoms), positions))
        at += 2 + count
    return frames


def _read_xyz_comment(line: str) -> dict[str, str]:
    pairs = (token.partition("=") for token in shlex.split(line))
    return {key.lower(): value for key, equals, value in pairs if equals}


def _xyz_columns(properties: str) -> tuple[int, int]:
    fields = properties.split(":")
    starts: dict[str, int] = {}
    column = 0
    for name, width in zip(fields[0::3], fields[2::3], strict=True):
        starts[name.lower()] = column
        column += int(width)
    if "species" not in starts or "pos" not in starts:
        raise ValueError(f"Properties={properties} names no species or no pos")
    return starts["species"], starts["pos"]


def _explain(error: Exception, kind: str) -> str:
    """The parser's own words, or a plain sentence where they are about its insides."""
    text = " ".join(str(error).split()) if kind == "cif" else _first_line(error)
    text = (text or type(error).__name__)[:300].rstrip(".!")
    if isinstance(error, IndexError) or any(words in text for words in _WORDS_OF_INSIDES):
        return f"it ends early or is no {_FORMATS[kind]}"
    return text


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def _flatten(
    table: pa.Table, name: str, kind: pa.DataType, path: Path
) -> tuple[pa.Array, NDArray[np.int64], NDArray[np.bool_]]:
    """Values of a column of lists, where each row's begin, and rows with inner lists not of 3."""
    column = table[name]
    try:
        merged = column.combine_chunks()
        if isinstance(merged, pa.ChunkedArray):
            merged = merged.chunk(0)
        starts = _list_starts(merged)
        values = pc.list_flatten(merged)
        uneven = np.zeros(len(merged), dtype=np.bool_)
        if pa.types.is_floating(kind) and _is_list(values.type):
            inner = _list_starts(values)
            wrong = np.concatenate([[0], np.cumsum(np.diff(inner) != 3)])
            uneven = wrong[starts[1:]] > wrong[starts[:-1]]
            starts, values = inner[starts], pc.list_flatten(values)
        return values.cast(kind), starts, uneven
    except pa.ArrowException as error:
        wanted = "numbers" if pa.types.is_floating(kind) else "symbols"
        raise InputDataError(
            f'{path}: column "{name}" must hold lists of {wanted}; it is of type {column.type}.'
        ) from error


def _list_starts(lists: pa.Array) -> NDArray[np.int64]:
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _find_overlap(crystal: Crystal) -> tuple[int, int, float] | None:
    wrapped = crystal.frac_coords - np.floor(crystal.frac_coords)
    # Distance between opposite faces of the cell, then the layer in which images can matter.
    heights = 1 / np.linalg.norm(np.linalg.inv(crystal.lattice), axis=0)
    margin = SHORTEST_DISTANCE / heights
    owners = np.arange(len(wrapped))
    points = wrapped
    for axis in range(3):
        copies, names = [points], [owners]
        for shift in range(1, int(np.ceil(margin[axis])) + 1):
            low = points[:, axis] + shift <= 1 + margin[axis]
            high = points[:, axis] - shift >= -margin[axis]
            for mask, step in ((low, shift), (high, -shift)):
                moved = points[mask].copy()
                moved[:, axis] += step
                copies.append(moved)
                names.append(owners[mask])
        points, owners = np.concatenate(copies), np.concatenate(names)
    positions = points @ crystal.lattice
    near = cKDTree(positions).query_pairs(SHORTEST_DISTANCE, output_type="ndarray")
    if not len(near):
        return None
    distances = np.linalg.norm(positions[near[:, 0]] - positions[near[:, 1]], axis=1)
    closest = int(np.argmin(distances))
    first, second = sorted(int(owners[i]) for i in near[closest])
    return first, second, float(distances[closest])
