"""A browser that looks at Horizon: Debian's Chromium under Playwright, and axe-core for who cannot see or point."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

from tests.openstack.cloud.layout import PASSWORD, REPOSITORY

_ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
#: milliseconds
_PATIENCE = 40_000
#: what WCAG 2.1 AA asks for, as axe-core can tell it by itself
_RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}
#: Horizon's own, which no plugin draws: tabs and steps, buttons of tables, menus, spinners of numbers
_NOT_OURS = (
    ".nav-pills", ".nav-tabs", ".table_actions", ".dropdown-toggle", ".spinner-btn", ".themable-spinner-btn",
    ".page-breadcrumb", ".modal-header", ".modal-footer",
)  # fmt: skip


class Looks:
    """One window. `problems`: what its console and its scripts said that was no good."""

    def __init__(self, page: Page, url: str, pictures: Path | None) -> None:
        self.page, self.url = page, url
        self.problems: list[str] = []
        self._pictures = pictures
        page.set_default_timeout(_PATIENCE)
        page.on("pageerror", lambda error: self.problems.append(str(error)))

    def log_in(self, user: str) -> None:
        self.page.goto(f"{self.url}/auth/login/")
        self.page.fill("#id_username", user)
        self.page.fill("#id_password", PASSWORD)
        self.page.click("#loginBtn")
        self.page.wait_for_selector("#content_body")

    def go(self, path: str) -> None:
        # until its scripts have taken the page over
        answer = self.page.goto(f"{self.url}{path}", wait_until="networkidle")
        assert answer is not None and answer.status == 200, (path, answer and answer.status)

    def alerts(self) -> list[str]:
        return [each.strip() for each in self.page.locator("#main_content .messages .alert").all_inner_texts()]

    def picture(self, name: str) -> None:
        """For the docs, where RAKSHA_PICTURES names a folder."""
        if self._pictures is not None:
            self.page.wait_for_timeout(400)
            self.page.screenshot(path=self._pictures / f"{name}.png")

    def accessible(self, within: str) -> None:
        """Everything of ours on the page can be read and used without eyes or a mouse, as far as axe-core can tell."""
        self.page.wait_for_timeout(300)
        where = {"include": [[within]], "exclude": [[each] for each in _NOT_OURS]}
        found = Axe().run(self.page, context=where, options=_RULES).response["violations"]
        told = [(each["id"], [node["html"][:160] for node in each["nodes"]][:4]) for each in found]
        assert not told, told

    def until(self, path: str, found: Callable[[], Any]) -> Any:
        """Load the page until it says so."""
        for _ in range(60):
            self.go(path)
            if seen := found():
                return seen
            self.page.wait_for_timeout(1000)
        raise AssertionError(self.page.inner_text("body")[-2000:])


@contextmanager
def browser(url: str) -> Iterator[Looks]:
    folder = os.environ.get("RAKSHA_PICTURES")
    pictures = REPOSITORY / folder if folder else None
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path="/usr/bin/chromium", args=list(_ARGUMENTS))
        looks = Looks(started.new_page(viewport={"width": 1360, "height": 860}), url, pictures)
        try:
            yield looks
        except BaseException:
            looks.page.screenshot(path="/tmp/raksha-browser-failed.png")
            raise
        finally:
            started.close()
