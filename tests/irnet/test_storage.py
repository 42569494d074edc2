import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file

from irnet import ModelFileError, storage
from irnet.storage import (
    compress,
    decompress,
    read_json,
    read_tensors,
    write_atomically,
    write_json,
    write_tensors,
)


@given(st.integers(1, 9), st.integers(1, 9), st.floats(1e-6, 1e6), st.integers(0, 99))
def test_int8_is_within_half_a_step_of_each_row(
    rows: int, columns: int, size: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * size
    stored = compress({"w": weight, "b": weight[:, 0]}, "int8")
    assert stored["w"].dtype == torch.int8
    back = decompress(stored)
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert ((back["w"] - weight).abs() <= 0.5001 * step).all()
    assert torch.equal(back["b"], weight[:, 0])
    assert set(back) == {"w", "b"}


@given(st.integers(2, 9), st.integers(1, 9), st.floats(1e-6, 1e6), st.integers(0, 99))
def test_int6_takes_six_bits_and_errs_less_than_rounding_to_the_largest(
    rows: int, columns: int, size: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * size
    weight[0, 0] *= 20
    stored = compress({"w": weight, "last": weight[:1], "b": weight[:, 0]}, "int6")
    assert stored["w"].dtype == torch.uint8
    assert len(stored["w"]) == 3 * -(-weight.numel() // 4)
    back = decompress(stored)
    assert back["w"].shape == weight.shape
    assert torch.equal(back["last"], weight[:1])
    assert torch.equal(back["b"], weight[:, 0])
    assert set(back) == {"w", "last", "b"}
    step = weight.abs().amax(dim=1, keepdim=True) / 31
    plain = torch.round(weight / step) * step
    error, plain_error = ((x - weight).square().sum(dim=1) for x in (back["w"], plain))
    assert (error <= plain_error * 1.0001 + 1e-12 * size**2).all()


def test_int6_keeps_every_number_in_its_place() -> None:
    numbers = torch.arange(-31, 32).repeat(2, 1).float()
    assert torch.allclose(decompress(compress({"w": numbers}, "int6"))["w"], numbers)


def test_bf16_and_fp32() -> None:
    weight = torch.randn(4, 5)
    assert torch.equal(decompress(compress({"w": weight}, "fp32"))["w"], weight)
    half = decompress(compress({"w": weight}, "bf16"))["w"]
    assert torch.equal(half, weight.bfloat16().float())


def test_zero_rows_and_counters_survive() -> None:
    state = {"w": torch.zeros(2, 3), "n": torch.tensor(7)}
    back = decompress(compress(state, "int8"))
    assert torch.equal(back["w"], state["w"])
    assert back["n"] == 7
    assert back["n"].dtype == torch.int64


def test_unknown_precision() -> None:
    with pytest.raises(ValueError, match="int4"):
        compress({}, "int4")


def test_tensors_and_header_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.arange(6)[::2]}, {"kind": "this", "é": [1, None]})
    tensors, header = read_tensors(path, "this")
    assert torch.equal(tensors["x"], torch.tensor([0, 2, 4]))
    assert header == {"kind": "this", "é": [1, None]}
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_truncated_files_are_named(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.arange(30)}, {"kind": "this"})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelFileError, match=r"a\.safetensors: truncated"):
        read_tensors(path, "this")


def test_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ModelFileError, match="holds foreign tensors, expected this"):
        read_tensors(path, "this")
    write_tensors(path, {}, {"kind": "that"})
    with pytest.raises(ModelFileError, match="holds that, expected this"):
        read_tensors(path, "this")
    with pytest.raises(ModelFileError, match="no such file"):
        read_tensors(tmp_path / "b.safetensors", "this")


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"kind": "this", "n": 1})
    assert read_json(path, "this")["n"] == 1
    with pytest.raises(ModelFileError, match="not the description of that"):
        read_json(path, "that")
    path.write_text('{"kind": ')
    with pytest.raises(ModelFileError, match=r"a\.json: truncated"):
        read_json(path, "this")
    path.write_text(json.dumps([1]))
    with pytest.raises(ModelFileError):
        read_json(path, "this")
    with pytest.raises(ModelFileError, match="no such file"):
        read_json(tmp_path / "b.json", "this")


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(storage, "save_file", fail)
    with pytest.raises(ModelFileError, match=r"a\.safetensors: cannot be written .*No space"):
        write_tensors(tmp_path / "a.safetensors", {}, {})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_tensors(path, {"x": torch.zeros(1)}, {"kind": object()})
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1
