"""Weights on disk: safetensors files with a JSON header, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import ModelFileError

STORED_PRECISIONS = ("fp32", "bf16", "int8", "int6")
_SCALE = ".scale"
_SHAPE = ".shape"
_INT6_TOP = 31
_INT6_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # of a row's largest weight; beyond it is cut


def write_atomically(path: Path, data: bytes) -> None:
    """Write bytes beside the path, then rename, so that no reader sees half a file.

    Args:
        path: Final path; its folder must exist.
        data: Content.
    """
    with _replacement(path) as temporary:
        temporary.write_bytes(data)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header into one safetensors file, atomically.

    Args:
        path: Final path; its folder must exist.
        tensors: Tensors by name.
        header: JSON content; read back by `read_tensors`.

    Raises:
        ModelFileError: If the file cannot be written, because the disk is full for example.
    """
    content = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with _replacement(path) as temporary:
        try:
            save_file(content, temporary, metadata={"header": json.dumps(header)})
        except SafetensorError as error:
            raise ModelFileError(
                f"{path}: cannot be written ({error}); is the disk full?"
            ) from error


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Args:
        path: The file.
        kind: Required value of the header's "kind".

    Returns:
        Tensors by name and the header.

    Raises:
        ModelFileError: If the file is missing, truncated, or of another kind.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file (expected {kind})")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            header = json.loads(metadata.get("header", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, RecursionError, OSError) as error:
        raise ModelFileError(f"{path}: truncated or not a safetensors file ({error})") from error
    if not isinstance(header, dict) or header.get("kind") != kind:
        found = header.get("kind") if isinstance(header, dict) else None
        raise ModelFileError(f"{path}: holds {found or 'foreign tensors'}, expected {kind}")
    return tensors, header


def read_json(path: Path, kind: str) -> dict[str, Any]:
    """Read a JSON object whose "kind" is the given one.

    Args:
        path: The file.
        kind: Required value of "kind".

    Returns:
        The object.

    Raises:
        ModelFileError: If the file is missing, broken or of another kind.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such file (expected {kind})") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: truncated or not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise ModelFileError(f"{path}: is not the description of {kind}")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, atomically and indented."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compress(state: Mapping[str, Tensor], precision: str) -> dict[str, Tensor]:
    """Lower the precision of weight matrices; vectors stay float32.

    Args:
        state: float32 weights by name; matrices are (outputs, inputs).
        precision: "fp32", "bf16", or, symmetric with one float32 scale per output row stored beside
            the matrix as ``<name>.scale``, "int8" or "int6". Of int6, four numbers go into three
            bytes, the matrix's shape stands beside it as ``<name>.shape``, a row's scale is the one
            of several that costs the least squared error, and a single row (the output layer's)
            stays float32.

    Returns:
        Tensors to store.

    Raises:
        ValueError: If the precision is unknown.
    """
    if precision not in STORED_PRECISIONS:
        raise ValueError(f"precision {precision!r} is none of {', '.join(STORED_PRECISIONS)}")
    stored: dict[str, Tensor] = {}
    for name, value in state.items():
        if value.ndim != 2 or precision == "fp32":
            stored[name] = value
        elif precision == "bf16":
            stored[name] = value.to(torch.bfloat16)
        elif precision == "int6":
            if len(value) == 1:
                stored[name] = value
                continue
            scale = _best_scale(value)
            stored[name] = _pack(_round(value, scale))
            stored[name + _SCALE] = scale
            stored[name + _SHAPE] = torch.tensor(value.shape)
        else:
            scale = value.abs().amax(dim=1).clamp_min(1e-30) / 127.0
            stored[name] = torch.round(value / scale[:, None]).to(torch.int8)
            stored[name + _SCALE] = scale
    return stored


def decompress(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return to float32 what `compress` lowered.

    Args:
        stored: Tensors as read.

    Returns:
        float32 weights by name (integer counters of batch norm stay integers).
    """
    state: dict[str, Tensor] = {}
    for name, value in stored.items():
        if name.endswith((_SCALE, _SHAPE)):
            continue
        if value.dtype == torch.uint8:
            rows, columns = stored[name + _SHAPE].tolist()
            numbers = _unpack(value, rows * columns).reshape(rows, columns)
            state[name] = numbers.float() * stored[name + _SCALE][:, None]
        elif value.dtype == torch.int8:
            state[name] = value.float() * stored[name + _SCALE][:, None]
        else:
            state[name] = value.float() if value.is_floating_point() else value
    return state


def _round(matrix: Tensor, scale: Tensor) -> Tensor:
    """Whole numbers from -31 to 31 that times the rows' scales come near a matrix."""
    return torch.round(matrix / scale[:, None]).clamp_(-_INT6_TOP, _INT6_TOP)


def _best_scale(matrix: Tensor) -> Tensor:
    """The scale of each row, of several, that rounds it with the least squared error."""
    largest = matrix.abs().amax(dim=1).clamp_min(1e-30) / _INT6_TOP
    scales = torch.stack([largest * share for share in _INT6_SHARES])
    errors = [(_round(matrix, s) * s[:, None] - matrix).square().sum(dim=1) for s in scales]
    return scales.gather(0, torch.stack(errors).argmin(dim=0)[None])[0]


def _pack(numbers: Tensor) -> Tensor:
    """Four 6-bit numbers into three bytes, in the order of the flattened matrix."""
    flat = (numbers.flatten() + 32).to(torch.uint8)
    a, b, c, d = torch.nn.functional.pad(flat, (0, -len(flat) % 4)).reshape(-1, 4).T
    joined = [a << 2 | b >> 4, (b & 15) << 4 | c >> 2, (c & 3) << 6 | d]
    return torch.stack(joined, dim=1).flatten()


def _unpack(packed: Tensor, count: int) -> Tensor:
    x, y, z = packed.reshape(-1, 3).T
    parts = [x >> 2, (x & 3) << 4 | y >> 4, (y & 15) << 2 | z >> 6, z & 63]
    return torch.stack(parts, dim=1).flatten()[:count].to(torch.int16) - 32


@contextlib.contextmanager
def _replacement(path: Path) -> Iterator[Path]:
    # one fixed name, so that what a killed run leaves behind is overwritten by the next
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        temporary.chmod(0o644)  # safetensors leaves its files readable by their owner alone
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
