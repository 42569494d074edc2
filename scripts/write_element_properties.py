"""Write screening/features/element_properties.json from the tables that matminer ships.

The numbers are the Magpie elemental properties (Ward et al., npj Comput. Mater. 2, 16028, 2016)
with matminer's imputation of missing ones, and pymatgen's electronegativities and common
oxidation states as matminer's IonProperty reads them.
"""

import json
import warnings
from pathlib import Path

import numpy as np
from matminer.utils.data import MagpieData, PymatgenData
from pymatgen.core import Element

from screening.features.schema import PROPERTIES

LAST_Z = 103


def main() -> None:
    """Collect the tables for Z = 1 to 103 and write them."""
    warnings.simplefilter("ignore")
    filled, raw, ions = MagpieData(impute_nan=True), MagpieData(impute_nan=False), PymatgenData()
    elements = {}
    for z in range(1, LAST_Z + 1):
        element = Element.from_Z(z)
        missing = [
            name for name in PROPERTIES if np.isnan(raw.get_elemental_property(element, name))
        ]
        if not element.X or np.isnan(element.X):
            missing.append("X")
        elements[element.symbol] = {
            "number": z,
            "properties": [float(filled.get_elemental_property(element, p)) for p in PROPERTIES],
            "X": float(ions.get_elemental_property(element, "X")),
            "common_oxidation_states": [int(s) for s in ions.get_oxidation_states(element)],
            "imputed": missing,
        }
    document = {
        "source": "Magpie elemental properties (Ward et al. 2016) as shipped and imputed by "
        "matminer 0.10.1; X and common oxidation states from pymatgen 2026.10.24",
        "properties": list(PROPERTIES),
        "elements": elements,
    }
    path = Path(__file__).parents[1] / "screening" / "features" / "element_properties.json"
    path.write_text(
        json.dumps(document, indent=None, separators=(",", ":")).replace('},"', '},\n"') + "\n"
    )
    print(f"wrote {path.name}: {len(elements)} elements")


if __name__ == "__main__":
    main()
