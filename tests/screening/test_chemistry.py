"""Chemistry columns against pymatgen, published tolerance factors and textbook compounds."""

from __future__ import annotations

import json
from importlib.resources import files
from itertools import product
from math import gcd, log10
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pymatgen.core import Composition, Element, Species

from prototypes import ATOMIC_NUMBERS, SYMBOLS, find_prototype
from screening.chemistry import (
    BARTEL_LIMIT,
    CHEMISTRY_COLUMNS,
    TOXIC,
    describe_chemistry,
    perovskite_roles,
    plausible_states,
    tabulate_chemistry,
    tabulate_compositions,
)

PEROVSKITE = (0, 1, 2)

# A, B, X with t and tau from Table S1 of Bartel et al., Sci. Adv. 5, eaav0693 (2019), as published
# at github.com/CJBartel/perovskite-stability (MIT), rounded to 0.01 there.
BARTEL = """
Ag Br O 1.11 6.43; Ag Cd Br 0.79 5.58; Ag Ca Cl 0.78 6.0; Ag Co F 0.89 3.96; Ag Mn F 0.85 4.16
Ag Nb O 0.93 4.07; Bi Al O 0.94 2.0; Er Al O 0.9 2.3; La Al O 1.01 1.79; Nd Al O 0.98 1.85
Pr Al O 0.94 1.98; Y Al O 0.9 2.26; Cs Ba Br 0.82 4.66; Ba Ce O 0.94 3.62; Ba Li Cl 0.94 4.03
Ba Co O 1.1 4.11; Ba Hf O 1.01 3.51; Ba Mn O 1.1 4.11; Ba Pb O 0.98 3.49; Ba Si O 1.18 5.28
Ba Th O 0.91 3.86; Ba Ti O 1.06 3.75; Ba U O 0.93 3.68; K Be Cl 1.08 5.84; Cs Be F 1.28 4.88
Bi In O 0.83 4.29; K Bi O 1.0 3.65; Cs Cd Br 0.93 3.96; Cs Hg Br 0.91 3.94; Cs Mn Br 0.97 4.13
Cs Ni Br 1.02 4.56; Cs Ca Cl 0.93 3.79; K Ca F 0.9 3.65; Na Ca F 0.83 4.55; Ca Hf O 0.92 3.91
Ca Pb O 0.89 4.12; Ca Ru O 0.96 3.87; Ca Si O 1.08 5.04; Ca Sn O 0.93 3.88; Ca Ti O 0.97 3.88
Ca U O 0.85 4.93; Ca V O 0.98 3.93; Ca Zr O 0.91 3.94; Tl Cd F 0.94 3.48; Cd Ge O 0.99 4.1
Co Ti O 0.81 5.81; Cs Eu Cl 0.88 3.94; Cs Ge Cl 1.03 4.2; Dy Co O 0.87 2.57; K Co F 1.01 3.58
La Co O 0.97 1.64; Sr Co O 1.04 4.08; La Cr O 0.97 1.64; Cs Pb I 0.85 4.3; Cs Sr I 0.85 4.29
Cs Nb O 1.14 3.91; Cs V O 1.2 4.38; K Cu F 1.02 3.6; La Cu O 1.01 1.77; Dy Fe O 0.86 2.89
Gd Fe O 0.87 2.7; Ho Fe O 0.87 2.61; La Fe O 0.95 1.65; K Fe F 1.0 3.53; K Mg F 1.02 3.61
K Ni F 1.04 3.67; Li Mg F 0.78 6.06; Na Mg F 0.94 3.78; Mg Si O 0.9 5.06; Rb Pb F 0.86 4.04
Eu Sc O 0.83 3.94; Gd Sc O 0.83 4.14; Pb Ge O 1.06 4.08; Pb Hf O 0.97 3.63; Hg Ti O 0.9 4.26
Na I O 0.84 4.32; La In O 0.89 2.36; Sr Ir O 0.99 3.76; K Nb O 1.05 3.91; K Ta O 1.05 3.91
Li Nb O 0.8 5.15; La Mn O 0.95 1.65; La Ni O 0.98 1.64; La Sc O 0.91 1.98; La Y O 0.85 3.54
Mg Se O 0.85 4.97; Ni Ti O 0.74 15.66; Sr Mo O 0.98 3.72; Na U O 0.91 3.87; Pb Ti O 1.02 3.78
Pb Te O 0.86 4.6; Pr Lu O 0.81 5.7; Sr Pb O 0.92 3.8; Sr Ru O 0.99 3.77; Y Sc O 0.82 4.68
Sr Sn O 0.96 3.7; Sr V O 1.01 3.87; Sr Zr O 0.95 3.72; Zn Ti O 0.81 5.81; Ba Ni O 1.13 4.46
Ba Zr O 1.0 3.5; Cs Pb Br 0.86 4.1; Ca Mn O 1.0 4.09; Cs Pb Cl 0.87 3.98; Sr Hf O 0.95 3.71
"""

# The first stoichiometric compounds of the measured band gaps (all above zero) of Zhuo et al.,
# J. Phys. Chem. Lett. 9, 1668 (2018), in the order of matminer's "expt_gap".
SEMICONDUCTORS = """
CuBr LuP Cu3SbSe4 ZnO PtSb2 ZnIn2S4 K2Cd3Te4 K4Sn3Ce3S14 Pb6B2CrO12 InSb Sr2Be2B2O7 K2CuNbS4 PrTe2
BAs Ba4Ga4GeSe12 HgSe AgIn5Te8 Rb7Th2P6Se21 TlS CdS Al2Se3 In2GeTe3 BiSeBr K2AuPS4 CsH3Se2O6
CsB3GeO7 PtAs2 SnGa4S7 Si3N4 Cs2ZnGe3Se8 CeO2 KAgAsS2 Mn11Si19 SrTe LaCuOS AlSb Tl2AuPS4
Cs3Sn3F2Cl7 AgI TlBiTe3 CuCl CdSe Cu3SbS4 GaAs As2Te3 SrB6 GaN Cd3As2 WO3 EuYb2Se4 CuN3 CdP4 MnI2
TmAs Cd4GdB3O10 Cd3P2 SmAs RbSbS2 Na5GdMo4O16 Sr2V2Se3O15 UP2S7 TaON RbBr PdSe2 Ba3EuP3O12 SbSeI
KBiSe2 Na2TeSe3 Tl2Te3 CsTbZnTe3 BaB6 La5In3S9O3 PbN6 CaO Na2S Rb2Cd3Te4 SnSe Rb2BaNb2Se11 TaZrN3
Ba3In2P4O16 RbTa3Te2O12 GaTe Ag2SnS3 Ba2GaErTe5 Na3MoO4Cl K2Hg3Sn2S8 CdSb GeSe HfS3 InSb2S4Cl GaS
PtS AgS Cs2P2Se8 Y4GaSbS9 Mg2Sn CsF KSbSe2 Ag3AsSe3 As2Se3 LiGaSe2
"""


def numbers_of(*formulas: str) -> NDArray[np.uint8]:
    return np.array([[ATOMIC_NUMBERS[s] for s in each.split()] for each in formulas], np.uint8)


def table_of(*formulas: str) -> list[dict[str, Any]]:
    compositions = [
        {
            element.Z: int(amount)
            for element, amount in Composition(each).element_composition.items()
        }
        for each in formulas
    ]
    rows: list[dict[str, Any]] = pa.table(tabulate_compositions(compositions)).to_pylist()
    return rows


# ------------------------------------------------------------------------------------- tables


def test_plausible_states_are_pymatgens() -> None:
    states = plausible_states()
    counted = set()
    Composition("NaCl").oxi_state_guesses()  # reads pymatgen's counts of ions in the ICSD
    for ion in Composition.oxi_prob or ():
        counted.add((ion.symbol, ion.oxi_state))
    for symbol, own in states.items():
        element = Element(symbol)
        listed = {*element.common_oxidation_states, *element.icsd_oxidation_states} - {0}
        assert listed <= set(own), symbol
        allowed = listed | set(element.oxidation_states)
        assert all(s in allowed or (symbol, s) in counted for s in own), symbol


@pytest.mark.filterwarnings("ignore:Specified spin")
def test_tolerance_factors_use_pymatgens_shannon_radii() -> None:
    for a, b, x in [("Ba2+", "Zr4+", "O2-"), ("La3+", "Fe3+", "O2-"), ("K+", "Mn2+", "F-")]:
        ions = [Species.from_str(each) for each in (a, b, x)]
        radii = [
            ion.get_shannon_radius(coordination, "High Spin" if b in ("Fe3+", "Mn2+") else "")
            if ion.symbol in ("Fe", "Mn")
            else ion.get_shannon_radius(coordination)
            for ion, coordination in zip(ions, ("XII", "VI", "VI"), strict=True)
        ]
        numbers = numbers_of(" ".join(ion.symbol for ion in ions))
        found = describe_chemistry(numbers, (1, 1, 3), PEROVSKITE)
        expected = (radii[0] + radii[2]) / (2**0.5 * (radii[1] + radii[2]))
        assert found.goldschmidt[0] == pytest.approx(expected, abs=1e-12)


def test_radioactive_elements_are_pymatgens() -> None:
    symbols = [s for s in SYMBOLS[:103] if s != "O"]
    rows = table_of(*(f"{symbol}O" for symbol in symbols))
    for symbol, row in zip(symbols, rows, strict=True):
        radioactive = Element(symbol).is_radioactive
        assert row["radioactive_elements"] == (symbol if radioactive else ""), symbol
    named = table_of("BiFeO3", "ThO2", "TcU2")
    assert [row["radioactive_elements"] for row in named] == ["", "Th", "Tc U"]


# ------------------------------------------------------------------------------ perovskites


def test_tolerance_factors_are_bartels() -> None:
    rows = [row.split() for row in BARTEL.replace("\n", ";").split(";") if row.strip()]
    assert len(rows) == 105
    numbers = numbers_of(*(" ".join(row[:3]) for row in rows))
    found = describe_chemistry(numbers, (1, 1, 3), PEROVSKITE)
    published = np.array([[float(value) for value in row[3:]] for row in rows])
    off = np.abs(found.goldschmidt - published[:, 0]) + np.abs(found.bartel - published[:, 1])
    wrong = [" ".join(row) for row, each in zip(rows, off, strict=True) if not each < 0.0102]
    assert wrong == []


def test_perovskites_are_told_from_others_at_the_published_limit() -> None:
    # Experimental labels of the same table.
    stable = numbers_of("Ca Ti O", "La Al O", "K Mg F", "Cs Pb Br", "Gd Fe O")
    unstable = numbers_of("Co Ti O", "Li Nb O", "K Be Cl", "Ca U O", "Ba Si O")
    assert (describe_chemistry(stable, (1, 1, 3), PEROVSKITE).bartel < BARTEL_LIMIT).all()
    assert (describe_chemistry(unstable, (1, 1, 3), PEROVSKITE).bartel >= BARTEL_LIMIT).all()


def test_tau_is_infinite_where_a_is_not_larger_than_b() -> None:
    found = describe_chemistry(numbers_of("Ti Ca O", "Ca Ti O"), (1, 1, 3), PEROVSKITE)
    assert np.isposinf(found.bartel[0])
    assert np.isfinite(found.bartel[1])
    assert found.goldschmidt[0] < found.goldschmidt[1]


def test_tolerance_factors_need_a_perovskite_of_ions_with_radii() -> None:
    # Intermetallic; antiperovskite; anion on A; Sn2+ has no Shannon radius; Bi4+ is a mixture.
    numbers = numbers_of("La Al Ni", "Br O Li", "O Ti Ca", "Cs Sn I", "Ba Bi O")
    columns = tabulate_chemistry(describe_chemistry(numbers, (1, 1, 3), PEROVSKITE))
    assert columns["goldschmidt_tolerance_factor"].null_count == 5
    assert columns["bartel_tolerance_factor"].null_count == 5
    no_perovskite = describe_chemistry(numbers_of("Ca Ti O"), (1, 1, 3))
    assert np.isnan(no_perovskite.goldschmidt).all()
    assert np.isnan(no_perovskite.bartel).all()


def test_built_in_perovskites_have_their_roles_found() -> None:
    for name in ("perovskite", "cubic_perovskite"):
        prototype = find_prototype(name)
        assert perovskite_roles(prototype) == tuple(map(prototype.roles.index, "ABX"))
    assert perovskite_roles(find_prototype("B2")) is None


# ------------------------------------------------------------------------------------ charges


@pytest.mark.parametrize(
    ("formula", "ions"),
    [
        ("LaAlO3", "La3+ Al3+ O2-"),
        ("NaCl", "Na+ Cl-"),
        ("SrFeO3", "Sr2+ Fe4+ O2-"),
        ("EuTiO3", "Eu2+ Ti4+ O2-"),
        ("CeFeO3", "Ce3+ Fe3+ O2-"),
        ("CsPbI3", "Cs+ Pb2+ I-"),
        ("MgAl2O4", "Mg2+ Al3+ O2-"),
        ("Cs2AgBiBr6", "Cs+ Ag+ Bi3+ Br-"),
        ("CaCO3", "Ca2+ C4+ O2-"),
        ("KH2PO4", "K+ P5+ H+ O2-"),
        ("Fe3O4", "Fe2.67+ O2-"),
        ("BaBiO3", "Ba2+ Bi4+ O2-"),
        ("FeS2", "Fe2+ S-"),
        ("GaAs", "Ga3+ As3-"),
        ("Li3N", "Li+ N3-"),
    ],
)
def test_textbook_assignments(formula: str, ions: str) -> None:
    row = table_of(formula)[0]
    assert row["oxidation_states"] == ions
    assert row["charge_neutral"] is True
    assert row["electronegativity_order"] is True


@pytest.mark.parametrize("formula", ["NaCl2", "BaAlO2F3", "CsPbI", "MgO2", "KSr2F", "FeLa3O"])
def test_salts_that_do_not_balance_are_not_neutral(formula: str) -> None:
    row = table_of(formula)[0]
    assert row["charge_neutral"] is False
    assert row["electronegativity_order"] is False
    assert row["oxidation_states"] is None


@pytest.mark.parametrize(
    "formula", ["NiAl", "TiAl3", "LaNi5", "Mn3GaN", "CsAu", "RhSb", "Nb3Sn", "O2", "Fe", "Cr23C6"]
)
def test_no_verdict_on_intermetallics_and_elements(formula: str) -> None:
    row = table_of(formula)[0]
    assert row["charge_neutral"] is None
    assert row["electronegativity_order"] is None
    assert row["oxidation_states"] is None


def test_an_assignment_against_the_electronegativities_says_so() -> None:
    # Gold is more electronegative (2.54) than the tellurium (2.1) that is negative in AuTeI.
    row = table_of("TeAuI")[0]
    assert row["oxidation_states"] == "Te2- Au3+ I-"
    assert row["charge_neutral"] is True
    assert row["electronegativity_order"] is False


CATIONS = [
    s
    for s, own in plausible_states().items()
    if own and min(own) > 0 and np.isfinite(Element(s).X) and s not in ("Kr", "Xe")
]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(CATIONS), min_size=2, max_size=2, unique=True),
    st.sampled_from(["O", "F", "Cl", "Br", "I", "S", "Se"]),
    st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 4)),
)
def test_neutral_where_pymatgen_finds_a_guess(
    cations: list[str], anion: str, amounts: tuple[int, int, int]
) -> None:
    symbols = [*cations, anion]
    states = {symbol: list(plausible_states()[symbol]) for symbol in symbols}
    states[anion] = [state for state in states[anion] if state < 0]
    divisor = gcd(*amounts)
    # Two formula units: pymatgen gives each atom a state, we let an element have any mean.
    double = Composition({s: 2 * n // divisor for s, n in zip(symbols, amounts, strict=True)})
    guesses = double.oxi_state_guesses(oxi_states_override=states)
    found = describe_chemistry(numbers_of(" ".join(symbols)), amounts)
    neutral = bool(found.assigned[0])
    if guesses:
        assert neutral
    elif neutral:  # only with the anion's positive states
        assert found.charges[0, 2] > 0 or not found.ordered[0]


def weights() -> dict[str, dict[int, int]]:
    text = (files("screening") / "chemistry_tables.json").read_text(encoding="utf-8")
    return {
        symbol: {int(state): weight for state, weight in entry["oxidation_states"].items()}
        for symbol, entry in json.loads(text)["elements"].items()
    }


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(SYMBOLS[:94]), min_size=3, max_size=3, unique=True),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
)
def test_the_commonest_ordered_assignment_is_taken(
    symbols: list[str], amounts: tuple[int, int, int]
) -> None:
    table = weights()
    best, best_score = None, -np.inf
    for states in product(*(table[symbol] for symbol in symbols)):
        if sum(n * s for n, s in zip(amounts, states, strict=True)):
            continue
        positive = [Element(e).X for e, s in zip(symbols, states, strict=True) if s > 0]
        negative = [Element(e).X for e, s in zip(symbols, states, strict=True) if s < 0]
        if not max(positive) < min(negative):
            continue
        score = sum(
            log10(table[e][s] / sum(table[e].values()))
            for e, s in zip(symbols, states, strict=True)
        )
        if score > best_score:
            best, best_score = states, score
    found = describe_chemistry(numbers_of(" ".join(symbols)), amounts)
    if best is not None:
        divisor = gcd(*amounts)
        expected = [n // divisor * s for n, s in zip(amounts, best, strict=True)]
        assert found.ordered[0]
        assert found.charges[0].tolist() == expected or best_score == pytest.approx(
            sum(
                log10(table[e][c // (n // divisor)] / sum(table[e].values()))
                for e, c, n in zip(symbols, found.charges[0].tolist(), amounts, strict=True)
            ),
            abs=0.003,  # scores are compared in thousandths
        )


compositions = st.integers(2, 5).flatmap(
    lambda k: st.tuples(
        st.lists(st.sampled_from(SYMBOLS[:103]), min_size=k, max_size=k, unique=True),
        st.lists(st.integers(1, 4), min_size=k, max_size=k),
    )
)


@settings(max_examples=150, deadline=None)
@given(compositions, st.randoms(use_true_random=False), st.integers(1, 3))
def test_order_of_the_elements_and_formula_units_do_not_matter(
    composition: tuple[list[str], list[int]], random: Any, multiple: int
) -> None:
    symbols, amounts = composition
    places = list(range(len(symbols)))
    random.shuffle(places)
    one = tabulate_chemistry(describe_chemistry(numbers_of(" ".join(symbols)), amounts))
    other = tabulate_chemistry(
        describe_chemistry(
            numbers_of(" ".join(symbols[p] for p in places)),
            [multiple * amounts[p] for p in places],
        )
    )
    equal = len(set(amounts)) == 1
    for name in CHEMISTRY_COLUMNS if equal else CHEMISTRY_COLUMNS[:1] + CHEMISTRY_COLUMNS[2:]:
        assert one[name].to_pylist() == other[name].to_pylist(), name


@settings(max_examples=150, deadline=None)
@given(compositions)
def test_charges_add_up_to_zero_and_lie_within_the_plausible_states(
    composition: tuple[list[str], list[int]],
) -> None:
    symbols, amounts = composition
    found = describe_chemistry(numbers_of(" ".join(symbols)), amounts)
    assert found.charges.sum() == 0
    if not found.assigned[0]:
        assert not found.charges.any()
        return
    values = {"+": [], "-": []}  # type: dict[str, list[float]]
    for symbol, charge, amount in zip(symbols, found.charges[0], found.amounts, strict=True):
        own = [s for s in plausible_states()[symbol] if s * charge > 0]
        assert min(own) <= charge / amount <= max(own)
        values["+" if charge > 0 else "-"].append(Element(symbol).X)
    assert found.ordered[0] == (max(values["+"]) < min(values["-"]))


def test_many_rows_give_what_single_rows_give() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.random((9_000, 103)).argsort(axis=1)[:, :3].astype(np.uint8) + 1
    together = pa.table(tabulate_chemistry(describe_chemistry(numbers, (1, 1, 3), PEROVSKITE)))
    for row in (0, 1, 8_191, 8_192, 8_999):
        alone = describe_chemistry(numbers[row : row + 1], (1, 1, 3), PEROVSKITE)
        assert (
            pa.table(tabulate_chemistry(alone)).to_pylist() == together[row : row + 1].to_pylist()
        )


def test_compositions_come_back_in_their_order() -> None:
    formulas = ["LaAlO3", "NaCl", "Fe3O4", "KCl", "U", "SrTiO3"]
    assert table_of(*formulas) == [table_of(each)[0] for each in formulas]
    assert list(tabulate_compositions([])) == list(CHEMISTRY_COLUMNS)


@pytest.mark.data
def test_known_salts_are_kept(data_dir: Path) -> None:
    """Of known ABX3 with X = O, S, Se or a halogen, 99 % are neutral (benchmarks/chemistry.py)."""
    files_of = sorted(data_dir.glob("mp_icsd*.parquet"))
    formulas = pd.concat([pd.read_parquet(f, columns=["formula"]) for f in files_of]).formula
    anions = ("O3", "S3", "Se3", "F3", "Cl3", "Br3", "I3")
    found = [
        formula
        for formula in formulas.unique()
        if formula.endswith(anions) and sorted(Composition(formula).values()) == [1, 1, 3]
    ]
    assert len(found) > 600
    neutral = np.array([row["charge_neutral"] is True for row in table_of(*found)])
    assert neutral.mean() > 0.98


# ------------------------------------------------------------------------- metals and hazards


@pytest.mark.parametrize(
    ("metal", "formulas"),
    [
        (True, "NiAl TiAl3 LaNi5 Nb3Sn Cu3Au TiN VN FeS NiAs LaB6 NbSe2 Fe Mn3GaN Mg CaAl2 RhSb"),
        (False, "NaCl SrTiO3 LaAlO3 MgO Al2O3 SiO2 GaAs InP ZnS CdTe PbS GaN AlN BN SiC Mg2Si"),
        (False, "CsPbI3 Fe2O3 NiO CuInSe2 CO2 O2 Si TiS2 HfS2 Cu2S Bi2Te3 Cs2AgBiBr6 CaF2 C"),
    ],
)
def test_guesses_of_metals(metal: bool, formulas: str) -> None:
    rows = table_of(*formulas.split())
    wrong = [
        formula
        for formula, row in zip(formulas.split(), rows, strict=True)
        if row["likely_metal"] is not metal
    ]
    assert wrong == []


def test_most_measured_semiconductors_are_no_metals() -> None:
    formulas = SEMICONDUCTORS.split()
    assert len(set(formulas)) == 101
    metals = [row["likely_metal"] for row in table_of(*formulas)]
    assert sum(metals) == 22  # docs/chemistry.md says so


def test_toxic_elements() -> None:
    rows = table_of(*(f"{symbol}O" for symbol in SYMBOLS[:103] if symbol != "O"))
    assert {row["toxic_elements"] for row in rows} - {""} == TOXIC
    named = table_of("PbCdAs2", "LaAlO3", "K2CrO4", "Cr2O3", "CrAl")
    assert [row["toxic_elements"] for row in named] == ["As Cd Pb", "", "Cr", "", ""]
