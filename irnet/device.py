"""Choice of device and of arithmetic precision."""

from __future__ import annotations

import torch

from .errors import DeviceError, nearest

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "bf16", "fp32")
"""Of matrix products in training."""
SCORING_PRECISIONS = ("auto", "int8", "bf16", "fp32")
"""Of matrix products in prediction."""


def choose_device(name: str) -> torch.device:
    """Turn "auto", "cpu", "cuda" or "cuda:1" into a device that exists here.

    Args:
        name: "auto" takes the GPU where there is one.

    Returns:
        The device.

    Raises:
        DeviceError: If the name is unknown or the machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise DeviceError(f"unknown device {name!r}{nearest(name, DEVICES)} (auto, cpu, cuda)")
    if not torch.cuda.is_available():
        raise DeviceError(
            f"device {name!r} asked for, but torch finds no GPU here; use --device cpu"
        )
    if number and int(number) >= torch.cuda.device_count():
        raise DeviceError(
            f"device {name!r} asked for, but there are {torch.cuda.device_count()} GPUs"
        )
    return torch.device(name)


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Turn "auto", "bf16" or "fp32" into a dtype for the matrix products of training.

    Args:
        precision: "auto" takes bfloat16 where the device has instructions for it.
        device: Where the products run.

    Returns:
        ``torch.bfloat16`` or ``torch.float32``.

    Raises:
        DeviceError: If the precision is unknown.
    """
    _check_precision(precision, PRECISIONS)
    if precision == "fp32":
        return torch.float32
    if precision == "bf16" or has_fast_bf16(device):
        return torch.bfloat16
    return torch.float32


def choose_scoring_precision(precision: str, device: torch.device) -> str:
    """Turn "auto" into the precision of prediction that suits a device, and check the others.

    Args:
        precision: "auto" takes bf16 where the device has instructions for it, else int8 where it
            has those, else fp32.
        device: Where the products run.

    Returns:
        "int8", "bf16" or "fp32".

    Raises:
        DeviceError: If the precision is unknown, or int8 on a device that cannot.
    """
    _check_precision(precision, SCORING_PRECISIONS)
    if precision == "auto":
        if has_fast_bf16(device):
            return "bf16"
        return "int8" if has_fast_int8(device) else "fp32"
    if precision == "int8" and not has_fast_int8(device):
        found = "a GPU" if device.type == "cuda" else "this processor"
        raise DeviceError(
            f"precision 'int8' needs a processor with VNNI instructions, which {found} has not; "
            "use auto, bf16 or fp32"
        )
    return precision


def _check_precision(precision: str, known: tuple[str, ...]) -> None:
    if precision not in known:
        raise DeviceError(
            f"unknown precision {precision!r}{nearest(precision, known)} ({', '.join(known)})"
        )


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware (AVX512_BF16, AMX, tensor cores)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(key)) for key in ("avx512_bf16", "amx_bf16", "bf16"))


def has_fast_int8(device: torch.device) -> bool:
    """Whether the device is a processor that adds products of 8-bit integers exactly (VNNI).

    Older ones add pairs of products in 16 bits, which overflow.
    """
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(key)) for key in ("avx512_vnni", "avx_vnni", "amx_int8"))
