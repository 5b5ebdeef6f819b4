"""The page in a real browser: a picture, a file that is none, a service that is gone, a token, keyboard and sizes.

Needs Chromium with its driver, and selenium: ``apt-get install chromium-driver``, ``pip install selenium``. Screenshots
go to the folder that RESNEXT_SCREENSHOTS names.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serve_cases import photo, running

from resnext_core.testing.base import required

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

DRIVER = shutil.which("chromedriver")
if DRIVER is None and required("chromium"):
    raise pytest.UsageError("chromium is required here (RESNEXT_REQUIRE), but there is no chromedriver")
pytestmark = pytest.mark.skipif(DRIVER is None, reason="there is no chromedriver")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "disable-dev-shm-usage", "no-proxy-server",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield found
    found.quit()


@pytest.fixture
def page(browser: Any, model: Path) -> Iterator[Any]:
    with running({"resnext": model}) as service:
        browser.set_window_size(900, 900)
        browser.get(service.url)
        yield browser


def status(browser: Any) -> str:
    return str(browser.find_element(By.ID, "status").text)


def until(browser: Any, condition: Any) -> None:
    WebDriverWait(browser, 60).until(lambda _: condition())


def give(browser: Any, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    browser.find_element(By.ID, "file").send_keys(str(path))


def shoot(browser: Any, name: str) -> None:
    folder = os.environ.get("RESNEXT_SCREENSHOTS")
    if folder:
        browser.save_screenshot(f"{folder}/{name}.png")


def errors(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_picture_gets_its_classes_and_what_the_network_sees(page: Any, tmp_path: Path) -> None:
    errors(page)
    until(page, lambda: "5 classes, on reference" in page.find_element(By.ID, "model").text)
    give(page, tmp_path / "photo.jpg", photo(1, (640, 480)))
    until(page, lambda: page.find_element(By.ID, "result").is_displayed())
    rows = page.find_elements(By.CSS_SELECTOR, "#classes li")
    assert len(rows) == 5
    shares = [float(row.find_element(By.CLASS_NAME, "share").text.split()[0]) for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert status(page) == f"{rows[0].find_element(By.CLASS_NAME, 'name').text}, {shares[0]:.1f} %"
    for name, width in (("given", 640), ("seen", 36)):
        until(
            page,
            lambda name=name: page.execute_script(
                "return arguments[0].complete", page.find_element(By.ID, name)
            ),
        )
        picture = page.find_element(By.ID, name)
        assert page.execute_script("return arguments[0].naturalWidth", picture) == width
        assert picture.get_attribute("alt")
    assert "ms" in page.find_element(By.ID, "latency").text
    assert errors(page) == []
    shoot(page, "page")


def test_a_file_that_is_no_image_is_named_and_the_next_picture_works(page: Any, tmp_path: Path) -> None:
    give(page, tmp_path / "notes.txt", b"not a picture")
    until(page, lambda: "not an image of a known format" in status(page))
    assert "bad" in page.find_element(By.ID, "status").get_attribute("class")
    assert not page.find_element(By.ID, "result").is_displayed()
    shoot(page, "wrong-file")
    give(page, tmp_path / "photo.png", photo(2, kind="PNG"))
    until(page, lambda: page.find_element(By.ID, "result").is_displayed())


def test_a_service_that_is_gone_is_said(browser: Any, model: Path, tmp_path: Path) -> None:
    with running({"resnext": model}) as service:
        browser.get(service.url)
        until(browser, lambda: "5 classes" in browser.find_element(By.ID, "model").text)
    give(browser, tmp_path / "photo.jpg", photo(1))
    until(browser, lambda: status(browser) == "The service does not answer. Is it still running?")


def test_a_token_is_asked_for_and_the_picture_is_not_lost(browser: Any, model: Path, tmp_path: Path) -> None:
    with running({"resnext": model}, token="secret") as service:
        browser.get(service.url)
        until(browser, lambda: browser.find_element(By.ID, "ask").is_displayed())
        browser.find_element(By.ID, "token").send_keys("secret", Keys.ENTER)
        until(browser, lambda: "5 classes" in browser.find_element(By.ID, "model").text)
        give(browser, tmp_path / "photo.jpg", photo(1))
        until(browser, lambda: browser.find_element(By.ID, "result").is_displayed())


def test_models_can_be_chosen(browser: Any, model: Path) -> None:
    with running({"one": model, "two": model}) as service:
        browser.get(service.url)
        until(browser, lambda: browser.find_element(By.ID, "choose").is_displayed())
        names = [one.text for one in browser.find_elements(By.CSS_SELECTOR, "#name option")]
        assert names == ["one", "two"]


def test_a_picture_can_be_dropped_and_pasted(page: Any) -> None:
    script = """
      const canvas = document.createElement("canvas"); canvas.width = canvas.height = 40;
      canvas.getContext("2d").fillRect(0, 0, 40, 40);
      canvas.toBlob((blob) => {
        const data = new DataTransfer();
        data.items.add(new File([blob], arguments[0] + ".png", { type: "image/png" }));
        const event = arguments[0] === "drop"
          ? new DragEvent("drop", { dataTransfer: data, cancelable: true, bubbles: true })
          : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
        document.body.dispatchEvent(event);
      });
    """
    for way in ("drop", "paste"):
        page.execute_script("document.getElementById('result').hidden = true")
        page.execute_script(script, way)
        until(page, lambda: page.find_element(By.ID, "result").is_displayed())


def test_the_keyboard_reaches_everything_and_shows_where_it_is(page: Any) -> None:
    seen = []
    for _ in range(4):
        webdriver.ActionChains(page).send_keys(Keys.TAB).perform()
        active = page.switch_to.active_element
        seen.append(active.get_attribute("id") or active.get_attribute("href"))
        if seen[-1] == "file":
            assert "focused" in page.find_element(By.CSS_SELECTOR, "label[for=file]").get_attribute("class")
    assert seen[0] == "file"
    assert any("/docs" in str(one) for one in seen)


@pytest.mark.parametrize(("width", "dark"), [(360, False), (360, True), (1200, True)])
def test_it_fits_a_phone_and_the_dark(
    browser: Any, model: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    with running({"resnext": model}) as service:
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
        try:
            browser.get(service.url)
            give(browser, tmp_path / "photo.jpg", photo(1, (640, 480)))
            until(browser, lambda: browser.find_element(By.ID, "result").is_displayed())
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            back = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, back.strip("rgb()").split(","))) < 200) is dark
            shoot(browser, f"page-{width}-{'dark' if dark else 'light'}")
        finally:
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
