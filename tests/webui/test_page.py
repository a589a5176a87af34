"""Real WebUIs in headless Chromium: from words to a mask in Inpaint upload, and masks beside what is drawn.

With LDZNET_SCREENSHOTS set to a folder, pictures of the page are written there.
"""

import base64
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from drawing import DRAW, TITLE
from studio import PARK

webdriver = pytest.importorskip("selenium.webdriver", reason="NO PAGE TESTED: install selenium to run these tests")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="NO PAGE TESTED: install chromium and chromedriver to run these tests"
)
SECONDS = 180
FLAGS = "--headless=new --no-sandbox --disable-gpu --no-first-run --no-proxy-server --window-size=1500,1500".split()


class Page:
    """The page of a WebUI, by what stands in its elements."""

    def __init__(self, driver, kind: str):
        self.driver, self.kind = driver, kind

    def js(self, code: str, *args):
        return self.driver.execute_script(code, *args)

    def wait(self, code: str, what: str, *args):
        """The first true value of a piece of JavaScript."""
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            if value := self.js(f"return {code}", *args):
                return value
            time.sleep(0.25)
        raise AssertionError(f"waited {SECONDS} s for {what}; the note says: {self.note}")

    @property
    def note(self) -> str:
        return self.js("return document.querySelector('#ldznet_note')?.innerText || ''")

    def tab(self, name: str) -> None:
        self.js(
            "[...document.querySelectorAll('#tabs > .tab-nav button, #tabs > div > .tab-nav button, "
            "#tabs button[role=tab]')].find(b => b.innerText.trim().toLowerCase() == arguments[0]).click()",
            name.lower(),
        )

    def write(self, selector: str, text: str) -> None:
        self.js(
            "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
            "for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, {bubbles: true}))",
            selector, text,
        )  # fmt: skip

    def click(self, selector: str) -> None:
        self.js("document.querySelector(arguments[0]).click()", selector)

    def upload(self, selector: str, file: Path) -> None:
        """Put a picture in the place of the one that is there, if any."""
        self.js(
            "document.querySelectorAll(`${arguments[0]} button`).forEach("
            "b => /clear|remove/i.test(b.ariaLabel || b.title) && b.click())", selector
        )  # fmt: skip
        self.wait(f"document.querySelector('{selector} input[type=file]')", f"room in {selector}")
        self.driver.find_element("css selector", f"{selector} input[type=file]").send_keys(str(file.resolve()))
        self.wait(f"document.querySelectorAll('{selector} img').length", f"the picture in {selector}")

    def choose(self, selector: str, option: str) -> None:
        """Choose an option of a dropdown."""
        self.driver.find_element("css selector", f"{selector} input").click()
        self.wait(f"document.querySelectorAll('{selector} li').length", "the options")
        options = self.driver.find_elements("css selector", f"{selector} li")
        next(one for one in options if option in one.text).click()

    def shot(self, name: str) -> None:
        if folder := os.environ.get("LDZNET_SCREENSHOTS"):
            time.sleep(1)
            self.driver.save_screenshot(str(Path(folder) / f"{self.kind}_{name}.png"))


@contextmanager
def browser(webui, profile: Path) -> Iterator[Page]:
    """Inside, the page of a WebUI is open."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(SECONDS)
    driver.set_script_timeout(SECONDS)
    try:
        driver.get(webui.url)
        page = Page(driver, webui.kind)
        page.wait("document.querySelector('#ldznet_find') && document.querySelector('#txt2img_generate')", "the page")
        time.sleep(3)
        yield page
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def page(webui, tmp_path_factory):
    with browser(webui, tmp_path_factory.mktemp("browser")) as page:
        yield page


IMAGES = "document.querySelectorAll('{} img').length"


def test_words_become_a_mask_that_is_repainted(page):
    page.tab("Words to masks")
    page.upload("#ldznet_picture", Path(PARK))
    page.write("#ldznet_phrases textarea", "panda\nladybug")
    page.choose("#ldznet_method", "miniature: ldznet (bundled)")
    time.sleep(0.5)
    page.click("#ldznet_find")
    page.wait(IMAGES.format("#ldznet_overlay"), "the overlay")
    page.wait("document.querySelector('#ldznet_note').innerText.trim() == ''", "no note")
    switch = "[l.innerText.trim(), l.querySelector('input').checked]"
    found = page.wait(f"[...document.querySelectorAll('#ldznet_chosen label')].map(l => {switch})", "the switches")
    assert found == [["1: panda", True], ["2: ladybug", True]]
    mask = page.wait("document.querySelector('#ldznet_mask img')?.src", "the mask")
    page.shot("tab")
    page.js("document.querySelectorAll('#ldznet_chosen input')[0].click()")
    page.wait("document.querySelector('#ldznet_mask img')?.src != arguments[0]", "the mask without the panda", mask)
    page.click("#ldznet_to_inpaint")
    for target in ("#img_inpaint_base", "#img_inpaint_mask"):
        page.wait(IMAGES.format(target), f"{target} of Inpaint upload")
    assert page.js("return document.querySelector('#img_inpaint_mask').offsetParent !== null"), "not shown"
    page.write("#img2img_prompt textarea", "a pumpkin")
    page.write("#img2img_steps input", "5")
    for side in ("width", "height"):
        page.write(f"#img2img_{side} input", "128")
    time.sleep(0.5)
    page.shot("inpaint_upload")
    page.click("#img2img_generate")
    page.wait(IMAGES.format("#img2img_gallery"), "the repainted picture")


def test_the_mask_follows_its_settings_and_what_is_wrong_is_said(page):
    page.tab("Words to masks")
    before = page.js("return document.querySelector('#ldznet_mask img').src")
    page.click("#ldznet_invert input")
    page.wait("document.querySelector('#ldznet_mask img')?.src != arguments[0]", "the inverted mask", before)
    page.write("#ldznet_phrases textarea", "")
    time.sleep(0.5)
    page.click("#ldznet_find")
    page.wait("document.querySelector('#ldznet_note').innerText.startsWith('no phrase was given')", "the sentence")


def test_a_folder_is_worked_through_past_a_bad_picture(page, tmp_path):
    shutil.copy(PARK, tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    page.tab("Words to masks")
    page.write("#ldznet_phrases textarea", "panda")
    page.write("#ldznet_folder textarea, #ldznet_folder input", str(tmp_path))
    time.sleep(0.5)
    page.click("#ldznet_start")
    page.wait("document.querySelector('#ldznet_progress').innerText.includes('done: masks of 1 of 2')", "the end")
    assert {path.name for path in (tmp_path / "masks").iterdir()} == {"a.png.panda.png", "a.png.overlay.png"}
    assert "b.png: this is not a picture" in page.js("return document.querySelector('#ldznet_progress').innerText")


def test_masks_stand_beside_what_was_drawn(page):
    page.tab("txt2img")
    page.write("#txt2img_prompt textarea", "a pumpkin on a blue background")
    page.write("#txt2img_steps input", "5")
    for side in ("width", "height"):
        page.write(f"#txt2img_{side} input", "128")
    page.click("#script_txt2img_ldznet_masks_accordion .label-wrap")
    time.sleep(0.5)
    page.click("#script_txt2img_ldznet_masks_enabled input")
    page.write("#script_txt2img_ldznet_masks_phrases textarea", "pumpkin")
    time.sleep(0.5)
    page.click("#txt2img_generate")
    page.wait(
        "document.querySelectorAll('#txt2img_gallery .thumbnail-item, #txt2img_gallery .grid-wrap button').length >= 3",
        "picture, mask and overlay",
    )  # fmt: skip
    page.shot("accordion")


ASKED = {
    "phrases": 'pumpkin | a "red", round: ball', "action": "inpaint each phrase", "method": "noise",
    "threshold": 0.45, "refine": False, "grow": -3, "feather": 2, "invert": True,
    "prompts": "an old pumpkin, cracked\na ball", "denoising": 0.35,
}  # fmt: skip
ACCORDION = "script_txt2img_ldznet_masks"
# What stands in a part of the accordion, in either version of Gradio.
STANDING = """
const part = document.getElementById(arguments[0]);
const chosen = [...part.querySelectorAll('label')].find(l => l.querySelector('input[type=radio]')?.checked);
const box = part.querySelector('input[type=checkbox]');
if (chosen) return chosen.innerText.trim();
if (box) return box.checked;
return part.querySelector('textarea, input[type=number], input').value;
"""


def standing(page, *names) -> dict:
    return {name: page.js(STANDING, f"{ACCORDION}_{name}") for name in names}


def read_back(page, file: Path) -> None:
    """By PNG Info, send what a picture says of itself to txt2img."""
    page.tab("PNG Info")
    page.upload("#pnginfo_image", file)
    time.sleep(2)
    page.click("#tab_pnginfo #txt2img_tab")


def test_what_was_asked_is_read_back_from_a_picture(page, webui, tmp_path):
    for name, args in {
        "all": [True, *ASKED.values()], "no prompts": [True, "cat", ASKED["action"]], "nothing": [False]
    }.items():  # fmt: skip
        answer = webui.post("/sdapi/v1/txt2img", **DRAW, alwayson_scripts={TITLE: {"args": args}})
        (tmp_path / f"{name}.png").write_bytes(base64.b64decode(answer["images"][0].split(",")[-1]))
    page.tab("txt2img")
    read_back(page, tmp_path / "all.png")
    phrases = f"document.querySelector('#{ACCORDION}_phrases textarea').value"
    page.wait(f"{phrases}.includes('round: ball')", "the phrases")
    expected = {name: value if isinstance(value, bool) else str(value) for name, value in ASKED.items()}
    assert standing(page, "enabled", *ASKED) == {"enabled": True, **expected}
    read_back(page, tmp_path / "no prompts.png")
    page.wait(f"{phrases} == 'cat'", "the other phrase")
    assert standing(page, "action", "prompts") == {"action": ASKED["action"], "prompts": ""}
    read_back(page, tmp_path / "nothing.png")
    page.wait(f"!document.querySelector('#{ACCORDION}_enabled input').checked", "the accordion switched off")


def test_the_tab_of_a_webui_without_a_checkpoint_says_so(empty, tmp_path):
    with browser(empty, tmp_path / "browser") as page:
        page.tab("Words to masks")
        page.upload("#ldznet_picture", Path(PARK))
        page.write("#ldznet_phrases textarea", "panda")
        time.sleep(0.5)
        page.click("#ldznet_find")
        page.wait("document.querySelector('#ldznet_note').innerText.startsWith('no checkpoint is loaded')", "the note")
