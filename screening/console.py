"""The console on which tables are drawn."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment

from screening.printing import make_printable


class PrintableConsole(Console):
    """A console that draws printable signs only; colours and the like are its own."""

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render; see the class."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(make_printable(segment.text), segment.style)
