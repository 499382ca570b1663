# SPDX-License-Identifier: Apache-2.0
"""A real browser without a window, driven over its debugging pipe: what pages do when looked at."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The browser reads from 3 and writes to 4; the ends of the pipes may be either of them.
_START = """if True:
    import os, sys
    ends = [os.dup(os.dup(os.dup(int(end)))) for end in sys.argv[1:3]]
    os.dup2(ends[0], 3)
    os.dup2(ends[1], 4)
    os.execvp(sys.argv[3], sys.argv[3:])
"""
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def program() -> str | None:
    """The path of a browser that can be driven, None where there is none."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Tab:
    """One page of a browser."""

    def __init__(self, to_browser: int, from_browser: int):
        self._out, self._in = to_browser, from_browser
        self._rest, self._num, self._session = b"", 0, ""
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = session["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Performance", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Asks the browser and waits for its answer."""
        self._num += 1
        message = {"id": self._num, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._next()
            if reply.get("id") == self._num:
                assert "error" not in reply, reply
                return reply["result"]

    def open(self, path: Path, state: str = "", **view: Any) -> None:
        """Opens a page and waits until it is loaded; `view` as in `look`."""
        if view:
            self.look(**view)
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=f"{path.resolve().as_uri()}{state}")
        self.until("document.readyState === 'complete' && location.protocol === 'file:'")

    def look(self, width: int = 1280, height: int = 900, *, is_dark: bool = False) -> None:
        """Sets the size of the window in pixels, and the colours people prefer."""
        metrics = dict(width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = dict(name="prefers-color-scheme", value="dark" if is_dark else "light")
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def value(self, script: str) -> Any:
        """What an expression gives; promises are waited for."""
        reply = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in reply, (script, reply["exceptionDetails"])
        return reply["result"].get("value")

    def until(self, script: str, timeout_s: float = 60) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + timeout_s
        while not self.value(script):
            assert time.monotonic() < end, f"never became true: {script}"
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """A key, such as `j`, `Tab` or `Escape`, pressed and let go."""
        text = dict(text=key) if len(key) == 1 else {}
        codes = {"Tab": 9, "Escape": 27, "Enter": 13}
        code = codes.get(key, ord(key[0].upper()))
        for kind in ("keyDown", "keyUp"):
            extra = text if kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **extra
            )

    def picture(self, path: Path) -> None:
        """What is in the window, as a PNG file."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._in, 2**16)
            assert part, "the browser is gone"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(line)
        if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(json.dumps(message["params"]))
        return message


@contextlib.contextmanager
def browser() -> Iterator[Tab]:
    """A browser with one tab, ended on leaving. The program must be there (`program`)."""
    read_ours, write_theirs = os.pipe()
    read_theirs, write_ours = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        flags = "--headless --no-sandbox --disable-gpu --remote-debugging-pipe --no-first-run"
        command = [program() or "", *flags.split(), f"--user-data-dir={home}"]
        process = subprocess.Popen(
            [sys.executable, "-c", _START, f"{read_theirs}", f"{write_theirs}", *command],
            pass_fds=(read_theirs, write_theirs),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_theirs)
        os.close(write_theirs)
        try:
            yield Tab(write_ours, read_ours)
        finally:
            with contextlib.suppress(OSError):
                os.write(write_ours, b'{"id": 0, "method": "Browser.close"}\0')
            process.wait(30)
            os.close(write_ours)
            os.close(read_ours)
