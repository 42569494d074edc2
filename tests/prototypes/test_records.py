from prototypes.records import normalise_name, role_formula


def test_names_compare_without_capitals_spaces_and_signs() -> None:
    assert normalise_name("L1_0") == normalise_name("l10")
    assert normalise_name("(Cubic) Perovskite") == normalise_name("cubic_perovskite")
    assert normalise_name("A3'") != normalise_name("A3")


def test_role_formula_leaves_out_ones() -> None:
    assert role_formula({"A": 2, "B": 1, "X": 6}) == "A2BX6"
