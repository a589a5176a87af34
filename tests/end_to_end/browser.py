"""ComfyUI's own page in headless Chromium, for tests of the pack in it."""

import json
import shutil
import time
from pathlib import Path

import pytest
from client import PACK, Server

webdriver = pytest.importorskip("selenium.webdriver", reason="NO PAGE TESTED: install selenium to run these tests")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
needs_page = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="NO PAGE TESTED: install chromium and chromedriver to run these tests"
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1800,1100"
).split()
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.InstalledVersion": "1.27.10"}
SECONDS = 300
# The page's errors: dialogs other than those that it keeps hidden, and red notices.
TROUBLE = """
    return [...document.querySelectorAll(".p-dialog, .p-toast-message-error, .comfy-modal")]
        .filter((e) => e.checkVisibility()).map((e) => e.innerText)
"""
# What a call of the page gives, once it has: arguments are its text and what it is called with.
AWAIT = """
    const [call, given, done] = arguments
    new Function("given", "return " + call)(given).then((value) => done({value}), (error) => done({error: `${error}`}))
"""


def open_page(server: Server, folder: Path):
    """A browser, whose profile lies in `folder`, with ComfyUI's page in it, ready to be worked with."""
    server.post("/settings", SETTINGS)  # or the page opens with a choice of templates
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    page = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    page.set_script_timeout(SECONDS)
    visit(page, server)
    return page


def visit(page, server: Server) -> None:
    """Open the page anew, with nothing of earlier visits: it would restore their workflows, and the server may forget a
    client that comes back under its old name."""
    page.execute_script("window.name = ''")
    page.get("about:blank")
    page.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": server.url, "storageTypes": "all"})
    page.get(server.url)
    until(lambda: page.execute_script("return window.app?.vueAppReady && !!app.graph"))


def until(holds):
    """Wait until `holds()` gives something, and give it."""
    deadline = time.monotonic() + SECONDS
    while not (value := holds()):
        assert time.monotonic() < deadline, "the page did not get there in time"
        time.sleep(0.2)
    return value


def call(page, text: str, given=None):
    """The value of an asynchronous call in the page, such as "app.queuePrompt(0)"."""
    result = page.execute_async_script(AWAIT, text, given)
    assert "error" not in result, result
    return result.get("value")


def load(page, path: Path) -> dict:
    """Open a workflow in the page; the workflow."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    page.get_log("browser")  # what came before is of other tests
    call(page, "app.loadGraphData(given).then(() => null)", workflow)  # newer pages give a circular object
    return workflow


def check_no_trouble(page) -> None:
    assert page.execute_script(TROUBLE) == []
    errors = [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    assert not [message for message in errors if PACK in message or "LDZNet" in message]
