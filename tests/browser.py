"""A real browser for tests of live pages: the system's Chromium, driven through Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PATIENCE_MILLISECONDS = 120_000
"""How long a page is waited for on a machine that has much else to do."""


@dataclass
class Tab:
    """An open page and what went wrong on it: errors of scripts, dialogs, missing files."""

    page: Page
    errors: list[str] = field(default_factory=list)

    def read(self, selector: str) -> list[str]:
        """Return the text of all elements that match, at one moment."""
        texts: list[str] = self.page.locator(selector).evaluate_all(
            "all => all.map(each => each.textContent)"
        )
        return texts

    def wait_for(self, expression: str) -> None:
        """Wait until a JavaScript expression is true; `all(selector)` finds elements in panels."""
        find = """
            const all = (selector, root = document) => [
              ...root.querySelectorAll(selector),
              ...[...root.querySelectorAll("*")].filter(each => each.shadowRoot)
                .flatMap(each => all(selector, each.shadowRoot))];
        """
        self.page.wait_for_function(f"() => {{ {find} return {expression}; }}")


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start Chromium; skip where it, or Playwright, is missing."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def open_tab(browser: Browser, address: str) -> Iterator[Tab]:
    """Open a page in a profile of its own."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(PATIENCE_MILLISECONDS)
    tab = Tab(context.new_page())
    page = tab.page
    page.on("pageerror", lambda error: tab.errors.append(f"exception: {error}"))
    page.on("console", lambda said: tab.errors.append(said.text) if said.type == "error" else None)
    page.on("requestfailed", lambda request: tab.errors.append(f"not loaded: {request.url}"))

    def refuse(dialog: object) -> None:
        tab.errors.append(f"dialog: {dialog}")
        dialog.dismiss()  # type: ignore[attr-defined]

    page.on("dialog", refuse)
    page.goto(address)
    yield tab
    context.close()
