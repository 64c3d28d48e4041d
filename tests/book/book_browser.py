"""A browser on a leash: headless Chromium, spoken to over two pipes, that can reach no host at
all.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

CHROMIUM = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    "--allow-file-access-from-files",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
]
SETTLED = """(async () => {
  if (window.MathJax && MathJax.startup && MathJax.startup.promise) await MathJax.startup.promise;
  await new Promise(done => setTimeout(done, 250));
})()"""


class Browser:
    """Use as a context manager.

    `visit` opens a page and remembers what it asked for and what went wrong.
    """

    def __enter__(self):
        self.profile = tempfile.mkdtemp(prefix="book-browser-")
        to_child, self.out = os.pipe()
        self.into, from_child = os.pipe()

        def wire():  # Chromium reads commands from descriptor 3 and answers on descriptor 4
            reads, writes = (fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (to_child, from_child))
            os.dup2(reads, 3)
            os.dup2(writes, 4)

        command = [CHROMIUM, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"]
        self.child = subprocess.Popen(
            command,
            preexec_fn=wire,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_child)
        os.close(from_child)
        self.buffer, self.count, self.session, self.target, self.events = b"", 0, None, None, []
        return self

    def _fresh_tab(self):
        self.session, old = None, self.target
        self.target = self.call("Target.createTarget", url="about:blank")["targetId"]
        if old:
            self.call("Target.closeTarget", targetId=old)
        self.session = self.call("Target.attachToTarget", targetId=self.target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __exit__(self, *_):
        self.child.terminate()
        self.child.wait(20)
        os.close(self.out)
        os.close(self.into)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method, **parameters):
        """Send one command of the DevTools protocol and wait for its answer; events are put
        aside.
        """
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def _next(self, patience=180):
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.into], [], [], patience)
            assert ready, "the browser is silent"
            self.buffer += os.read(self.into, 1 << 16)
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def visit(self, path, width=1280, height=900, dark=False):
        """Open a local page in a tab of its own, wait until formulas are set, and give what
        happened on the way.
        """
        self._fresh_tab()
        self.resize(width, height)
        scheme = "dark" if dark else "light"
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + 180
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            assert time.monotonic() < deadline, f"{path} did not load"
            self.events.append(self._next())
        self.run(SETTLED)
        return Visit(self.events)

    def resize(self, width, height):
        """Set the window; below 600 pixels it is a phone's."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def run(self, script):
        """The value of a JavaScript expression (a promise is awaited)."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def picture(self, target):
        """Write the whole page to `target` as PNG, by making the window as high as the page."""
        self.resize(*self.run("[innerWidth, document.documentElement.scrollHeight]"))
        self.run("new Promise(done => setTimeout(done, 200))")
        target.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


class Visit:
    """What a page asked for (`requests`) and what went wrong (`faults`)."""

    def __init__(self, events):
        about = [(event["method"], event["params"]) for event in events]
        self.requests = [
            p["request"]["url"] for name, p in about if name == "Network.requestWillBeSent"
        ]
        self.faults = [
            p["errorText"]
            for name, p in about
            if name == "Network.loadingFailed" and not p.get("canceled")
        ]
        self.faults += [
            _trouble(p["exceptionDetails"])
            for name, p in about
            if name == "Runtime.exceptionThrown"
        ]
        entries = [p["entry"] for name, p in about if name == "Log.entryAdded"]
        self.faults += [entry["text"] for entry in entries if entry["level"] == "error"]

    @property
    def abroad(self):
        """Requests that leave the machine."""
        return [
            url
            for url in self.requests
            if not url.startswith(("file:", "data:", "blob:", "about:"))
        ]


def _trouble(details):
    thrown = details.get("exception", {})
    return f"{details['text']} {thrown.get('description') or thrown.get('value') or thrown}"
