"""A headless Chromium, driven through its DevTools protocol: just what a test of a page needs.

    with Browser() as browser, browser.page("http://127.0.0.1:8000/") as page:
        page.press("Tab")
        page.wait_for("document.title === 'Ready'")
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from websockets.sync.client import connect

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
KEY_CODES = {"Enter": 13, "Escape": 27, "Tab": 9, " ": 32, "ArrowDown": 40}


def find_browser() -> str | None:
    """The path of a Chromium, if there is one."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Browser:
    """One browser with a fresh profile, closed at the end of the `with` block."""

    def __enter__(self) -> Self:
        program = find_browser()
        assert program, f"no browser: none of {', '.join(PROGRAMS)} is on the path"
        self._profile = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        # As root Chromium refuses its sandbox; the pages here are our own.
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        self._process = subprocess.Popen(
            [program, "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={self._profile.name}", "--disable-gpu",
             "--no-first-run", "--disable-dev-shm-usage", "--disable-background-networking", *root, "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._port = self._wait_for_port()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        self._profile.cleanup()

    def _wait_for_port(self, seconds: float = 60) -> int:
        told = Path(self._profile.name, "DevToolsActivePort")
        until = time.monotonic() + seconds
        while time.monotonic() < until and self._process.poll() is None:
            if told.exists() and told.read_text().strip():
                return int(told.read_text().split()[0])
            time.sleep(0.05)
        raise AssertionError(f"the browser did not start in {seconds:.0f} s (exit status {self._process.poll()})")

    @contextlib.contextmanager
    def page(self, url: str, width: int = 1280, height: int = 900) -> Iterator[Page]:
        """A tab of its own: its session storage begins empty."""
        address = f"http://127.0.0.1:{self._port}/json"
        created = urllib.request.Request(f"{address}/new?about:blank", method="PUT")
        with urllib.request.urlopen(created, timeout=30) as answer:
            target = json.load(answer)
        try:
            with connect(target["webSocketDebuggerUrl"], max_size=None) as socket:
                page = Page(socket)
                page.resize(width, height)
                page.open(url)
                yield page
        finally:
            urllib.request.urlopen(f"{address}/close/{target['id']}", timeout=30).close()


class Page:
    """One tab. `problems` are the console's errors, uncaught exceptions and violations of the content policy."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._paused: list[dict[str, Any]] = []
        self.problems: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        kind, told = message.get("method"), message.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(told["exceptionDetails"]))
        elif kind == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.problems.append(json.dumps(told["args"]))
        elif kind == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.problems.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif kind == "Fetch.requestPaused":
            self._paused.append(told)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def reload(self) -> None:
        self.evaluate("window.old = true")
        self.call("Page.reload")
        self.wait_for("!window.old && document.readyState === 'complete'")

    def resize(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)

    def dark(self) -> None:
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])

    def offline(self, gone: bool) -> None:
        self.call("Network.emulateNetworkConditions", offline=gone, latency=0, downloadThroughput=-1, uploadThroughput=-1)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, f"{expression}: {told['exceptionDetails']}"
        return told["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 300) -> None:
        """Wait until the expression is true."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.evaluate(f"Boolean({expression})"):
                return
            time.sleep(0.05)
        raise AssertionError(f"not in {seconds:.0f} s: {expression}\nThe page said:\n{self.text('body')}\n"
                             f"Problems: {self.problems}")

    def text(self, selector: str) -> str:
        """What a person reads in an element."""
        return self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def texts(self, selector: str) -> list[str]:
        return self.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].map((found) => found.innerText)")

    def click(self, selector: str) -> None:
        """A click of the mouse in the middle of the element."""
        place = self.evaluate(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)}); found.scrollIntoView({{block: 'center'}});"
            "const box = found.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def write(self, text: str) -> None:
        """Put text where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release a key."""
        letter = {"text": "\r"} if key == "Enter" else {"text": " "} if key == " " else {}
        about = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": KEY_CODES[key],
                 "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **letter)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    @contextlib.contextmanager
    def answering(self, pattern: str, status: int, headers: dict[str, str], body: str) -> Iterator[None]:
        """Inside the block, the browser gets this answer to the next request that fits, in place of the server's."""
        self.call("Fetch.enable", patterns=[{"urlPattern": pattern}])
        yield
        while not self._paused:
            self._note(json.loads(self._socket.recv(timeout=60)))
        request = self._paused.pop()
        self.call("Fetch.fulfillRequest", requestId=request["requestId"], responseCode=status,
                  responseHeaders=[{"name": name, "value": value} for name, value in headers.items()],
                  body=base64.b64encode(body.encode()).decode())
        self.call("Fetch.disable")

    def screenshot(self, path: str | Path) -> None:
        """The whole page as a PNG file."""
        told = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(told["data"]))
