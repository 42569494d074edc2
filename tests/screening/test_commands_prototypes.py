from __future__ import annotations

from collections.abc import Callable

from typer.testing import Result


def test_doubtful_prototypes_are_marked_in_the_list(screening: Callable[..., Result]) -> None:
    lines = screening("prototypes").stdout.splitlines()
    assert lines[0].split() == [
        "name", "formula", "sites", "Strukturbericht", "mineral", "geometry",
    ]  # fmt: skip
    doubtful = {line.split()[0] for line in lines if line.endswith("  doubtful")}
    assert {"A2B_tI12_141_e_a", "ABC_cP12_198_a_a_a", "AB_tP4_131_c_e"} <= doubtful
    assert not {"B2", "A2BC4_cF56_227_d_a_e", "A2B_tP6_136_f_a"} & doubtful


def test_a_misspelt_word_gets_the_nearest_name(screening: Callable[..., Result]) -> None:
    misspelt = screening("prototypes", "spinell")
    assert misspelt.exit_code == 2
    assert 'did you mean "Spinel"? list all with' in misspelt.stderr


def test_what_is_doubtful_is_described(screening: Callable[..., Result]) -> None:
    described = screening("prototypes", "Ullmanite").stdout
    assert (
        "  doubtful: Sb has the coordinate 0.875 instead of 0.628 "
        "(shortest Ni-Sb 1.03 Å, known 2.54 Å, mp-3679); to be safe, give a CIF" in described
    )
    assert "doubtful" not in screening("prototypes", "spinel").stdout
