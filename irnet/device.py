"""Choice of device and of arithmetic precision."""

from __future__ import annotations

import torch

from .errors import DeviceError, nearest

DEVICES = ("auto", "cpu", "cuda")
_PRECISIONS = ("auto", "bf16", "fp32")


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
    """Turn "auto", "bf16" or "fp32" into a dtype for matrix products.

    Args:
        precision: "auto" takes bfloat16 where the device has instructions for it.
        device: Where the products run.

    Returns:
        ``torch.bfloat16`` or ``torch.float32``.

    Raises:
        DeviceError: If the precision is unknown.
    """
    if precision not in _PRECISIONS:
        raise DeviceError(
            f"unknown precision {precision!r}{nearest(precision, _PRECISIONS)} "
            f"({', '.join(_PRECISIONS)})"
        )
    if precision == "fp32":
        return torch.float32
    if precision == "bf16" or has_fast_bf16(device):
        return torch.bfloat16
    return torch.float32


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware (AVX512_BF16, AMX, tensor cores)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(key)) for key in ("avx512_bf16", "amx_bf16", "bf16"))
