"""Pieces of HTML pages that need nothing else: document, tables, figures, facts.

Whatever text is given, names of files and compounds among it, is escaped here. A page loads nothing
from elsewhere and says so to the browser, which then refuses also what got in by mistake; the only
script that it runs is the one that the page was made with.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import Final

STYLE: Final = """
:root { color-scheme: light dark; --ground: #ffffff; --text: #1b1f24; --faint: #5c6672;
        --line: #d9dee4; --band: #f3f5f7; --accent: #2b6ca8; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ground: #14171b; --text: #e6e9ed; --faint: #9aa5b1; --line: #323a43;
          --band: #1d2228; --accent: #7db6e8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; background: var(--ground);
       color: var(--text); font: 1rem/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
h1 { margin: 0 0 .3rem; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.6rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line);
     font-size: 1.3rem; }
p { margin: .5rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.faint, figcaption, caption { color: var(--faint); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: 1rem 0; }
dt { color: var(--faint); }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .35rem; font-size: .95rem; }
th, td { padding: .28rem .7rem; text-align: right; white-space: nowrap;
         vertical-align: top; border-bottom: 1px solid var(--line); }
th { color: var(--faint); font-weight: 600; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: .2rem; }
tbody tr:nth-child(even) { background: var(--band); }
.words { text-align: left; white-space: normal; }
td.words { overflow-wrap: break-word; }
figure { margin: 1rem 0; }
figure svg { width: 100%; max-width: 42rem; height: auto; }
figcaption { font-size: .9rem; max-width: 42rem; }
code, pre { font-size: .88em; }
pre { overflow-x: auto; padding: .7rem .9rem; background: var(--band); }
details { margin: .6rem 0; }
summary { color: var(--accent); cursor: pointer; }
ul { padding-left: 1.2rem; max-width: 46rem; }
@media print {
  :root { font-size: 10pt; }
  body { max-width: none; padding: 0; }
  h2, caption, figcaption { break-after: avoid; }
  figure, tr, dl { break-inside: avoid; }
  .wide { overflow: visible; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; } }
"""


def build_document(title: str, parts: Sequence[str], *, style: str = "", script: str = "") -> str:
    """Put a page together.

    Args:
        title: Title of the window.
        parts: HTML, from the other functions.
        style: CSS that comes after that of all pages.
        script: What the page runs; without it the page must be complete, too.

    Returns:
        HTML, one self-contained document.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    running = ""
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
        running = f"<script>{script}</script>\n"
    content = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n"
        f"<body>\n<main>\n{content}\n</main>\n{running}</body>\n</html>\n"
    )


def build_table(
    rows: Sequence[Sequence[str]],
    caption: str,
    *,
    words: Collection[str] = (),
    sortable: bool = False,
    faint: Collection[int] = (),
) -> str:
    """Build a table; columns in which nothing stands are left out.

    Args:
        rows: Cells, those of the first row the headers.
        caption: What the table shows.
        words: Headers of columns that hold words rather than numbers.
        sortable: Marks the table for `SORTING`.
        faint: Rows to draw fainter, from 1.
    """
    head, *body = rows
    filled = [i for i in range(len(head)) if any(row[i] for row in body)]
    kinds = {i: ' class="words"' if head[i] in words else "" for i in filled}
    header = "".join(f'<th scope="col"{kinds[i]}>{escape(head[i])}</th>' for i in filled)
    lines = []
    for number, row in enumerate(body, start=1):
        opening = '<tr class="faint">' if number in faint else "<tr>"
        cells = "".join(f"<td{kinds[i]}>{escape(row[i])}</td>" for i in filled)
        lines.append(f"{opening}{cells}</tr>")
    opening, content = '<table class="sortable">' if sortable else "<table>", "\n".join(lines)
    return (
        f'<div class="wide">{opening}<caption>{escape(caption)}</caption>'
        f"<thead><tr>{header}</tr></thead>\n<tbody>{content}</tbody></table></div>"
    )


def build_details(summary: str, content: str) -> str:
    """Build a part that opens on a click; its content is HTML already."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def build_figure(svg: str, caption: str) -> str:
    """Build a figure of an SVG, which stays as it is, with its caption."""
    return (
        f'<figure><div role="img" aria-label="{escape(caption)}">{svg}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def build_facts(entries: Mapping[str, str]) -> str:
    """Build a list of names with what is said of each; those without are left out."""
    body = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        for name, value in entries.items()
        if value
    )
    return f"<dl>{body}</dl>"


def build_title(text: str) -> str:
    """Build the title of a page."""
    return f"<h1>{escape(text)}</h1>"


def build_paragraph(text: str, *, faint: bool = False) -> str:
    """Build a paragraph."""
    opening = '<p class="faint">' if faint else "<p>"
    return f"{opening}{escape(text)}</p>"


def build_code(text: str) -> str:
    """Build a block of text that stands as it is: a command, a file."""
    return f"<pre>{escape(text)}</pre>"


def build_list(items: Sequence[str]) -> str:
    """Build a list of points."""
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


SORTING: Final = """
"use strict";
const read = (row, column) => row.cells[column].textContent;
const number = (text) => parseFloat(text.replace(/^[<>]/, "").replaceAll(",", ""));
const compareNumbers = (a, b, sign) => {
  const [x, y] = [number(a), number(b)];
  if (Number.isNaN(x) || Number.isNaN(y)) { return Number.isNaN(x) - Number.isNaN(y); }
  return sign * (x - y);
};
const compareWords = (a, b, sign) => sign * a.localeCompare(b);
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const compare = head.classList.contains("words") ? compareWords : compareNumbers;
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => compare(read(a, column), read(b, column), down ? -1 : 1));
      table.tBodies[0].append(...rows);
    });
  });
}
"""
"""A click on a header sorts a marked table; cells without a number go last."""

SORTING_STYLE: Final = """
.sortable th button { all: unset; cursor: pointer; }
.sortable th button:hover, .sortable th button:focus-visible { color: var(--accent);
  text-decoration: underline; }
.sortable th[aria-sort="ascending"] button::after { content: " ▲"; }
.sortable th[aria-sort="descending"] button::after { content: " ▼"; }
"""
