"""A headless Chromium. Tests skip without it, or fail if LOOPLINE_REQUIRE_BROWSER=1."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def need(available, reason):
    if available:
        return
    if os.environ.get("LOOPLINE_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{reason}, and LOOPLINE_REQUIRE_BROWSER is set")
    pytest.skip(reason)


@contextmanager
def chromium():
    need(CHROMIUM.exists(), f"no {CHROMIUM}: install Debian's chromium, or name one in CHROMIUM")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS.split())
        yield browser
        browser.close()


def stroke(page, points):
    """Draw a line through points of the pad, given as shares of its side."""
    area = page.locator("canvas.pad:visible").bounding_box()
    places = [(area["x"] + x * area["width"], area["y"] + y * area["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place)
    page.mouse.up()


def answered(page, model, where="server"):
    page.wait_for_selector(f"#panel-{model}[data-answered={where}]", timeout=20_000)
