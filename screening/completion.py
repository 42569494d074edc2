"""Completion of names in the shell, and the names that options take."""

from __future__ import annotations

from collections.abc import Sequence

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "int8", "bf16", "fp32")
COMPETITORS = ("binary", "ternary", "none")
ORDERS = (
    "p_stable",
    "energy_above_hull",
    "formation_enthalpy",
    "upper_bound",
    "lower_bound",
)
BUILT_IN = ("B2", "L1_0", "perovskite", "cubic_perovskite", "K2NiF4", "double_perovskite")


def complete_from(names: Sequence[str], incomplete: str) -> list[str]:
    """Return the names that begin as what was typed, for shell completion."""
    return [name for name in names if name.casefold().startswith(incomplete.casefold())]


def complete_prototype(incomplete: str) -> list[str]:
    """Complete the name of a built-in prototype."""
    return complete_from(BUILT_IN, incomplete)


def complete_device(incomplete: str) -> list[str]:
    """Complete a device."""
    return complete_from(DEVICES, incomplete)


def complete_precision(incomplete: str) -> list[str]:
    """Complete a precision."""
    return complete_from(PRECISIONS, incomplete)


def complete_competitors(incomplete: str) -> list[str]:
    """Complete a source of competing phases."""
    return complete_from(COMPETITORS, incomplete)


def complete_order(incomplete: str) -> list[str]:
    """Complete an order of the ranking."""
    return complete_from(ORDERS, incomplete)


def complete_model(incomplete: str) -> list[str]:
    """Complete the name of a bundled model."""
    from screening.model_library import list_models

    return complete_from(["default", *(folder.name for folder in list_models())], incomplete)
