import builtins
from pathlib import Path

import pytest

from prototypes import errors
from prototypes.errors import PrototypeError, nearest_file, nearest_hint

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, PrototypeError) and kind is not PrototypeError
]


@pytest.mark.parametrize("kind", KINDS)
def test_each_error_is_a_builtin_one_too(kind: type[PrototypeError]) -> None:
    others = [base for base in kind.__mro__ if base.__module__ == "builtins"]
    assert {base.__name__ for base in others} & (set(dir(builtins)) - {"Exception", "object"})
    assert any(base.__name__ in ("ValueError", "LookupError") for base in others)


def test_hint_names_the_nearest_without_regard_to_capitals() -> None:
    assert nearest_hint("perovskit", ["B2", "Perovskite"]) == '; did you mean "Perovskite"?'
    assert nearest_hint("xyzzy", ["B2", "Perovskite"]) == ""
    assert nearest_hint("mea", ["mse", "mae"]) == '; did you mean "mae"?'


def test_a_missing_file_names_the_nearest_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine.cif").touch()
    assert nearest_file(tmp_path / "min.cif") == '; did you mean "mine.cif"?'
    assert nearest_file(tmp_path / "none" / "mine.cif") == ""
