"""Write docs/columns.md from the registry of table columns, screening/columns.py."""

from __future__ import annotations

from pathlib import Path

from screening.columns import column_reference

PAGE = Path(__file__).resolve().parent.parent / "docs" / "columns.md"


def main() -> None:
    """Write the page."""
    PAGE.write_text(column_reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
