import pytest

from prototypes.roles import assign_roles, role_letters


@pytest.mark.parametrize(
    ("symbols", "expected"),
    [
        (["O", "Ca", "Ti"], {"A": "Ca", "B": "Ti", "X": "O"}),
        (["Cu", "Au"], {"A": "Cu", "B": "Au"}),
        (["S", "Zn"], {"A": "Zn", "X": "S"}),
        (["Cl", "F", "Pb"], {"A": "Pb", "B": "Cl", "X": "F"}),
        (["Si", "Ti", "C"], {"A": "Ti", "B": "Si", "C": "C"}),
    ],
)
def test_the_anion_is_x_and_the_rest_follow_electronegativity(
    symbols: list[str], expected: dict[str, str]
) -> None:
    assert list(assign_roles(symbols).items()) == list(expected.items())


def test_role_letters_leave_x_out_and_never_repeat() -> None:
    letters = role_letters(60)
    assert len(set(letters)) == 60
    assert not any(letter.startswith("X") for letter in letters)
