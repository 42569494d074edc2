from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from lxml import html

from screening.page import (
    SORTING,
    build_code,
    build_details,
    build_document,
    build_facts,
    build_figure,
    build_list,
    build_paragraph,
    build_table,
    build_title,
)

Browser = Callable[[Path], tuple[str, list[str]]]

EVIL = '</td><script>alert("x")</script> & Co'


def test_every_piece_escapes_what_it_is_given() -> None:
    parts = [
        build_title(EVIL),
        build_paragraph(EVIL),
        build_table([[EVIL, "n"], [EVIL, "1"]], EVIL, words=(EVIL,)),
        build_details(EVIL, ""),
        build_figure("<svg></svg>", EVIL),
        build_facts({EVIL: EVIL}),
        build_list([EVIL]),
        build_code(EVIL),
    ]
    page = html.fromstring(build_document(EVIL, parts))
    assert not page.xpath("//script")
    texts = [text for text in page.xpath("//text()") if text.strip() and "color" not in text]
    assert [text for text in texts if text != EVIL] == ["n", "1"]
    assert page.xpath("//figure/div/@aria-label") == [EVIL]


def test_columns_without_content_are_left_out() -> None:
    rows = [["a", "b", "c"], ["1", "", "x"], ["", "", "y"]]
    table = html.fromstring(build_table(rows, "t", words=("c",), faint={2}))
    assert [cell.text for cell in table.xpath("//th")] == ["a", "c"]
    assert table.xpath("//tr[@class='faint']/td/text()") == ["y"]
    assert table.xpath("//*[@class='words']/text()") == ["c", "x", "y"]
    assert build_facts({"a": "1", "b": ""}) == "<dl><dt>a</dt><dd>1</dd></dl>"


def test_a_page_runs_its_own_script_only(tmp_path: Path, browse: Browser) -> None:
    said = "document.body.append('mine');"
    other = "<p onclick=\"x()\"><script>document.body.append('other')</script></p>"
    path = tmp_path / "page.html"
    for script, expected in ((said, True), ("", False)):
        path.write_text(build_document("t", [other], script=script))
        dom, console = browse(path)
        body = re.sub(r"<script>.*?</script>", "", dom)
        assert ("mine" in body) == expected
        assert "other" not in body
        assert "Content Security Policy" in " ".join(console)


@pytest.mark.parametrize(
    ("clicked", "clicks", "expected"),
    [
        (0, 1, ["1,200", "<9", "30", "4", ""]),
        (1, 1, ["4", "<9", "30", "1,200", ""]),
        (1, 2, ["1,200", "30", "<9", "4", ""]),
    ],
)
def test_a_click_on_a_header_sorts(
    tmp_path: Path, browse: Browser, clicked: int, clicks: int, expected: list[str]
) -> None:
    numbers = ["30", "", "1,200", "4", "<9"]
    names = ["c 1", "z", "a 2", "d", "b 3"]
    table = build_table(
        [["name", "number"], *map(list, zip(names, numbers, strict=True))],
        "t",
        words=("name",),
        sortable=True,
    )
    click = f'document.querySelectorAll("th button")[{clicked}].click();'
    path = tmp_path / "page.html"
    path.write_text(build_document("t", [table], script=SORTING + click * clicks))
    dom, console = browse(path)
    assert console == []
    page = html.fromstring(dom)
    found = ["".join(cell.itertext()) for cell in page.xpath("//tbody/tr/td[2]")]
    assert found == expected
    assert page.xpath("//th/@aria-sort") == ["ascending" if clicks == 1 else "descending"]
