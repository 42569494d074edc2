"""Crystal prototypes: which compounds can be made by substituting elements, each exactly once.

Importing this package and enumerating candidates needs NumPy only; pymatgen is loaded by what
reads AFLOW entries or files, or builds structures.
"""

from prototypes.candidates import CandidateSpace
from prototypes.elements import ATOMIC_NUMBERS, SYMBOLS
from prototypes.errors import (
    AmbiguousPrototypeError,
    CandidateError,
    ElementPrototypeError,
    PoolError,
    PrototypeError,
    RoleError,
    StructureFileError,
    UnknownPrototypeError,
)
from prototypes.formulas import FormulaWriter, reduced_formula
from prototypes.library import (
    BUILT_IN,
    find_doubt,
    find_names,
    find_prototype,
    list_prototypes,
)
from prototypes.pools import DEFAULT_POOL, ELEMENTS_89, GROUPS, element_pool, parse_role_pools
from prototypes.prototype import Prototype
from prototypes.records import PrototypeRecord
from prototypes.structure_file import parse_role_names, read_prototype
from prototypes.structures import build_structure

__all__ = [
    "ATOMIC_NUMBERS",
    "BUILT_IN",
    "DEFAULT_POOL",
    "ELEMENTS_89",
    "GROUPS",
    "SYMBOLS",
    "AmbiguousPrototypeError",
    "CandidateError",
    "CandidateSpace",
    "ElementPrototypeError",
    "FormulaWriter",
    "PoolError",
    "Prototype",
    "PrototypeError",
    "PrototypeRecord",
    "RoleError",
    "StructureFileError",
    "UnknownPrototypeError",
    "build_structure",
    "element_pool",
    "find_doubt",
    "find_names",
    "find_prototype",
    "list_prototypes",
    "parse_role_names",
    "parse_role_pools",
    "read_prototype",
    "reduced_formula",
]
