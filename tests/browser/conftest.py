"""Fixture: Chromium."""

import shutil

import pytest


@pytest.fixture(scope="module")
def browser():
    """Chromium, driven by Playwright; tests are skipped without it."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if not path:
        pytest.skip("needs Chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
