"""A browser for tests: Chromium, steered by ChromeDriver over HTTP (W3C WebDriver)."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

#: Headless, as root, in a container, without talking to anyone.
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of a reference to an element, by the standard


class Browser:
    """One page in Chromium. Use it as a context; the test is skipped where Chromium or ChromeDriver is missing."""

    def __init__(self, folder: Path, timeout: int = 240) -> None:
        self.timeout = timeout
        self._chromium = shutil.which("chromium") or shutil.which("google-chrome")
        driver = shutil.which("chromedriver")
        if self._chromium is None or driver is None:
            pytest.skip("needs Chromium and ChromeDriver: apt-get install chromium chromium-driver")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._address = f"http://127.0.0.1:{port}"
        self._profile = folder / "profile"
        self._driver = subprocess.Popen(
            [driver, f"--port={port}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._session = ""

    def __enter__(self) -> Browser:
        assert self._driver.stdout is not None
        for line in self._driver.stdout:
            if "started successfully" in line:
                break
        chrome = {"binary": self._chromium, "args": [*_FLAGS, f"--user-data-dir={self._profile}"]}
        wanted = {"alwaysMatch": {"goog:chromeOptions": chrome, "timeouts": {"script": 1000 * self.timeout}}}
        self._session = self._call("POST", "/session", {"capabilities": wanted})["sessionId"]
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._session:
                self._call("DELETE", f"/session/{self._session}")
        finally:
            self._driver.terminate()
            self._driver.wait()

    def open(self, url: str) -> None:
        """Load a page."""
        self._call("POST", f"/session/{self._session}/url", {"url": url})

    def choose(self, selector: str, file: Path) -> None:
        """Choose a file in an input of the page."""
        found = self._call(
            "POST", f"/session/{self._session}/element", {"using": "css selector", "value": selector}
        )
        self._call("POST", f"/session/{self._session}/element/{found[_ELEMENT]}/value", {"text": str(file)})

    def data(self, *names: str) -> dict[str, str]:
        """Wait until the body has one of the ``data-`` attributes `names`; return all that it has, and remove them."""
        script = """
            const names = arguments[0], done = arguments[1], body = document.body;
            const look = () => {
              if (!names.some((name) => name in body.dataset)) return;
              watch.disconnect();
              const found = { ...body.dataset };
              for (const name in found) delete body.dataset[name];
              done(found);
            };
            const watch = new MutationObserver(look);
            watch.observe(body, { attributes: true });
            look();
        """
        value: dict[str, str] = self._call(
            "POST", f"/session/{self._session}/execute/async", {"script": script, "args": [list(names)]}
        )
        return value

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._address + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout + 30) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
