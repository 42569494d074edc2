import subprocess
import sys
from pathlib import Path

import pytest

import irnet

ROOT = Path(__file__).parents[2]


def test_every_public_name_is_there() -> None:
    for name in irnet.__all__:
        assert getattr(irnet, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = irnet.nothing


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {statement}; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in found.stdout.split()}


def test_import_is_light() -> None:
    loaded = loaded_after("import irnet; irnet.RECIPES; irnet.Architecture; irnet.IRNetError")
    assert not loaded & {"torch", "numpy", "sklearn", "safetensors"}


def test_needs_only_four_packages() -> None:
    others = ["pandas", "pyarrow", "pymatgen", "matminer", "dask", "typer", "pydantic", "rich"]
    hidden = f"sys.modules.update(dict.fromkeys({others!r}))"
    every = "; ".join(f"irnet.{name}" for name in irnet.__all__)
    assert {"torch", "sklearn"} <= loaded_after(f"{hidden}; import irnet; {every}")
