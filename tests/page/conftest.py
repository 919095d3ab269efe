"""A real Chromium, without a window; where there is none, its tests are skipped and say so."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bnfold import FoldReport
from tests.page.support import page


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A driver; its console is kept."""
    webdriver = pytest.importorskip("selenium.webdriver")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if binary is None or chromedriver is None:
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=chromedriver)
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Open a report's page at a size; afterwards, the console must be empty."""

    def open_page(report: FoldReport, *, width: int = 1280, height: int = 900, **media: str) -> Any:
        file = tmp_path / "page.html"
        file.write_bytes(page(report).encode())
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        touch = {"enabled": width < 600}
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", touch)
        features = [{"name": name.replace("_", "-"), "value": media[name]} for name in media]
        features.append({"name": "prefers-reduced-motion", "value": "reduce"})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
        browser.get(file.as_uri())
        wait_for(browser, "return performance.getEntriesByName('shown').length")
        return browser

    browser.get_log("browser")
    yield open_page
    assert browser.get_log("browser") == []


def wait_for(browser: Any, script: str) -> Any:
    """What a script returns, once that is something."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 20, 0.02).until(lambda driver: driver.execute_script(script))
