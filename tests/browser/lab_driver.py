"""Drive JupyterLab in a real Chromium: start both, open a notebook, run it, watch what it asks for.

Used by every journey of this folder. Chromium is the system's own (Debian: ``apt-get install
chromium``), found on PATH or named by FEDJAX_SECURE_CHROMIUM; Playwright downloads nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "journey"
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}
CHROMIUM_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-default-apps",
    "--disable-extensions", "--metrics-recording-only", "--no-pings",
)


def missing() -> str:
    """What a journey lacks on this machine, and the fix; empty where it lacks nothing."""
    if not all(importlib.util.find_spec(name) for name in ("jupyterlab", "playwright")):
        return ("needs JupyterLab and Playwright, one is not installed; "
                "run `scripts/setup.sh dev notebook`, or `make browser`")
    if chromium() is None:
        return ("needs Chromium, found none on PATH; run `apt-get install chromium`, "
                "or set FEDJAX_SECURE_CHROMIUM to its executable")
    return ""


def chromium() -> str | None:
    """The path of the system's Chromium."""
    named = os.environ.get("FEDJAX_SECURE_CHROMIUM")
    names = [named] if named else ["chromium", "chromium-browser", "google-chrome"]
    return next(filter(None, map(shutil.which, names)), None)


def write_notebook(path: Path, cells: Sequence[str]) -> None:
    """A notebook with these code cells, for the kernel of this environment."""
    import nbformat  # takes seconds, in every process that only collects the tests

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3",
                                       "language": "python"}
    nbformat.write(notebook, path)


@contextlib.contextmanager
def lab_server(notebooks: Path, home: Path, *, theme: str = "JupyterLab Light") -> Iterator[str]:
    """JupyterLab on a free port of this machine, with settings of its own.

    Args:
        notebooks: the folder it serves.
        home: an empty folder for its settings, runtime files and log.
        theme: ``"JupyterLab Light"`` or ``"JupyterLab Dark"``.

    Yields:
        Its address, ``http://127.0.0.1:PORT``.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {**SETTINGS, "@jupyterlab/apputils-extension/themes": {"theme": theme}}
    for name, value in settings.items():
        path = home / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    environment = {
        **os.environ,
        "HOME": str(home), "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"), "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"), "IPYTHONDIR": str(home / "ipython"),
        "MPLCONFIGDIR": str(home / "matplotlib"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}",
               "--ServerApp.port_retries=0", "--ip=127.0.0.1", f"--IdentityProvider.token={TOKEN}",
               f"--ServerApp.root_dir={notebooks}", "--allow-root"]
    with open(home / "jupyterlab.log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT,
                                  start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        _until(lambda: _answers(address, server, home), 60, "JupyterLab to answer")
        yield address
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@dataclasses.dataclass
class Lab:
    """A browser page on a JupyterLab.

    Attributes:
        page: Playwright's page.
        address: of the server; every other address is refused and noted.
        errors: what the browser's console reported as errors, and uncaught exceptions.
        external_requests: addresses outside the server that the page asked for.
    """

    page: object
    address: str
    errors: list[str] = dataclasses.field(default_factory=list)
    external_requests: list[str] = dataclasses.field(default_factory=list)

    def open(self, notebook: str) -> None:
        """Open a notebook alone in the window, and wait until its kernel is ready."""
        self.page.goto(f"{self.address}/doc/tree/{notebook}?token={TOKEN}&reset")
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        _until(self._kernel_ready, 60, "the kernel to be ready", self.page.wait_for_timeout)

    def run_all(self) -> None:
        """Run > Run All Cells."""
        self.page.get_by_role("menuitem", name="Run", exact=True).first.click()
        self.page.locator(".lm-Menu-item[data-command='runmenu:run-all']").first.click()

    def _kernel_ready(self) -> bool:
        address = f"{self.address}/api/sessions?token={TOKEN}"
        with urllib.request.urlopen(address, timeout=5) as answer:
            sessions = json.load(answer)
        return bool(sessions) and sessions[0]["kernel"]["execution_state"] == "idle" and (
            sessions[0]["kernel"]["connections"] >= 1)


@contextlib.contextmanager
def browser(address: str, *, width: int = 1280, height: int = 1000) -> Iterator[Lab]:
    """A headless Chromium that reaches the server and nothing else.

    Args:
        address: the server's.
        width, height: of the window, in CSS pixels.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium(), headless=True,
                                            args=list(CHROMIUM_FLAGS))
        try:
            context = chrome.new_context(viewport={"width": width, "height": height})
            lab = Lab(context.new_page(), address)

            def route(request):
                url = request.request.url
                if url.startswith((f"{address}/", "data:", "blob:")):
                    request.continue_()
                else:
                    lab.external_requests.append(url)
                    request.abort()

            def console(message):
                if message.type == "error":
                    lab.errors.append(message.text)

            context.route("**/*", route)
            lab.page.on("console", console)
            lab.page.on("pageerror", lambda error: lab.errors.append(f"uncaught: {error}"))
            yield lab
        finally:
            chrome.close()


def _answers(address: str, server: subprocess.Popen, home: Path) -> bool:
    if server.poll() is not None:
        raise RuntimeError("JupyterLab ended:\n" + (home / "jupyterlab.log").read_text()[-2000:])
    try:
        urllib.request.urlopen(f"{address}/api?token={TOKEN}", timeout=2).close()
    except (urllib.error.URLError, OSError):
        return False
    return True


def _until(holds, seconds: float, what: str, sleep=lambda ms: time.sleep(ms / 1000)) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s for {what}")
        sleep(100)
