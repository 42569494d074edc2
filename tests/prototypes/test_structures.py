from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pymatgen.core.composition import Composition
from pymatgen.core.structure_prediction.volume_predictor import DLSVolumePredictor

from prototypes.elements import ATOMIC_NUMBERS
from prototypes.errors import CandidateError
from prototypes.library import find_prototype
from prototypes.pools import ELEMENTS_89
from prototypes.structures import build_structure

KINDS = {
    "B2": "B2",
    "L1_0": "L1_0",
    "perovskite": "perov_Pnma",
    "cubic_perovskite": "perov_cubic",
}


def numbers_of(*symbols: str) -> list[int]:
    return [ATOMIC_NUMBERS[symbol] for symbol in symbols]


@pytest.mark.parametrize(
    ("name", "symbols", "length"),
    [
        ("cubic_perovskite", ("Sr", "Ti", "O"), 3.905),
        ("B2", ("Cs", "Cl"), 4.12),
        ("L1_0", ("Cu", "Au"), 2.80),
    ],
)
def test_typical_volume_comes_near_measured_lattice_constants(
    name: str, symbols: tuple[str, ...], length: float
) -> None:
    structure = build_structure(find_prototype(name), numbers_of(*symbols))
    assert structure.lattice.a == pytest.approx(length, rel=0.05)


def test_the_shape_stays_the_prototypes() -> None:
    prototype = find_prototype("perovskite")
    structure = build_structure(prototype, numbers_of("Ca", "Ti", "O"))
    assert structure.composition.reduced_formula == "CaTiO3"
    ratios = structure.lattice.matrix / prototype.lattice.clip(min=1e-12)
    np.testing.assert_allclose(np.diag(ratios), ratios[0, 0])
    np.testing.assert_allclose(structure.frac_coords, prototype.frac_coords)


def test_volumes_on_request() -> None:
    prototype = find_prototype("B2")
    numbers = numbers_of("Ni", "Al")
    dls = build_structure(prototype, numbers, volume="dls")
    predictor = DLSVolumePredictor(min_scaling=None, max_scaling=None)
    assert dls.volume == pytest.approx(predictor.predict(dls), rel=1e-6)
    additive = build_structure(prototype, numbers, volume="additive").volume
    typical = build_structure(prototype, numbers).volume
    assert typical == pytest.approx((dls.volume * additive) ** 0.5)
    assert build_structure(prototype, numbers, volume=12.5).volume == pytest.approx(25.0)
    own = build_structure(prototype, numbers, volume="prototype").volume
    assert own == pytest.approx(np.linalg.det(prototype.lattice))


@pytest.mark.parametrize("number", ELEMENTS_89)
def test_every_element_gets_a_finite_volume_without_warnings(number: int) -> None:
    other = 13 if number != 13 else 28
    volume = build_structure(find_prototype("B2"), (number, other)).volume / 2
    assert 2.0 < volume < 60.0


@pytest.mark.parametrize("numbers", [(8,), (8, 8, 8), (8, 84), (0, 8), (8, 300)])
def test_wrong_elements_are_refused(numbers: tuple[int, ...]) -> None:
    with pytest.raises(CandidateError, match="roles A, B"):
        build_structure(find_prototype("B2"), numbers)


@pytest.mark.parametrize("volume", ["DLS", -1.0, float("nan"), float("inf")])
def test_wrong_volumes_are_refused(volume: str | float) -> None:
    with pytest.raises(CandidateError, match="as a volume"):
        build_structure(find_prototype("B2"), numbers_of("Ni", "Al"), volume)


@pytest.mark.data
@pytest.mark.parametrize(("name", "limit"), [(name, 0.13) for name in KINDS])
def test_typical_volume_against_relaxed_compounds(data_dir: Path, name: str, limit: float) -> None:
    """Median error against DFT, in the prototype's ideal shape: within 13 %."""
    table = pd.read_parquet(data_dir / "eval_prototypes.parquet")
    prototype = find_prototype(name)
    errors = []
    for row in table[table.kind == KINDS[name]].head(60).itertuples():
        amounts = Composition(row.formula).get_el_amt_dict()
        if len(amounts) != len(prototype.roles):
            continue
        numbers = [ATOMIC_NUMBERS[symbol] for symbol in sorted(amounts, key=amounts.__getitem__)]
        volume = build_structure(prototype, numbers).volume / len(prototype.site_roles)
        known = abs(np.linalg.det(np.array(row.lattice).reshape(3, 3))) / row.nsites
        errors.append(abs(np.log(volume / known)))
    assert len(errors) >= 10
    assert np.median(errors) < limit


def test_k2nif4_has_the_proportions_of_the_known_crystals_of_its_type(data_dir: Path) -> None:
    """Typical volume within 13 % and c/a within 1 % of DFT, in the median over 58 compounds."""
    prototype = find_prototype("K2NiF4")
    errors, ratios = [], []
    for part in sorted(data_dir.glob("mp_icsd*.parquet")):
        table = pd.read_parquet(part, columns=["formula", "proto", "nsites", "volume", "ca"])
        for row in table[table.proto == "AB2C4_14_139_a_e_ce"].itertuples():
            amounts = Composition(row.formula).get_el_amt_dict()
            on_role = {2.0: "A", 1.0: "B", 4.0: "X"}
            symbols = {on_role[amount]: symbol for symbol, amount in amounts.items()}
            numbers = [ATOMIC_NUMBERS[symbols[role]] for role in prototype.roles]
            volume = build_structure(prototype, numbers).volume / len(prototype.site_roles)
            errors.append(abs(np.log(volume / (row.volume / row.nsites))))
            ratios.append(row.ca)
    assert len(errors) == 58
    assert np.median(errors) < 0.13
    assert np.median(ratios) == pytest.approx(13.076 / 4.006, rel=0.01)
