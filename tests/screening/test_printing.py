from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from screening.console import PrintableConsole
from screening.printing import echo, make_printable


@given(st.text(st.characters()))
def test_what_is_printed_is_printable_and_can_be_encoded(text: str) -> None:
    printed = make_printable(text)
    printed.encode("utf-8")
    assert all(sign.isprintable() or sign in "\n\t" for sign in printed)
    assert make_printable(printed) == printed


@given(st.text(st.characters(exclude_characters="\n\t")))
def test_json_stays_json(text: str) -> None:
    assert json.loads(make_printable(json.dumps(text, ensure_ascii=False))) == text


@pytest.mark.parametrize("text", ["CaTiO3", "é × Å³ – σ", "two\nlines\tand a tab"])
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert make_printable(text) == text


def test_echo_writes_to_both_streams(capsys: pytest.CaptureFixture[str]) -> None:
    echo("a\x1b[2J")
    echo("b\u202e", err=True)
    assert capsys.readouterr() == ("a\\u001b[2J\n", "b\\u202e\n")


def test_a_drawn_table_has_the_colours_of_its_console_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    console = PrintableConsole(force_terminal=True, width=60, color_system="standard", markup=False)
    table = Table(title="\x1b[2Jtitle")
    table.add_column("\x1b]0;x\x07", style="red")
    table.add_row("[bold]\x1b[5mcell")
    with console.capture() as capture:
        console.print(table)
    drawn = capture.get()
    assert "\x1b[31m" in drawn
    assert "\x1b[2J" not in drawn
    assert "\x1b]0" not in drawn
    assert "\x1b[5m" not in drawn
    assert "[bold]" in drawn
