"""Real WebUIs in headless Chromium: from words to a mask in Inpaint upload, and masks beside what is drawn.

With LDZNET_SCREENSHOTS set to a folder, pictures of the page are written there.
"""

import os
import shutil
import time
from pathlib import Path

import pytest
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


@pytest.fixture(scope="module")
def page(webui, tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(SECONDS)
    try:
        driver.get(webui.url)
        page = Page(driver, webui.kind)
        page.wait("document.querySelector('#ldznet_find') && document.querySelector('#txt2img_generate')", "the page")
        time.sleep(3)
        yield page
    finally:
        driver.quit()


IMAGES = "document.querySelectorAll('{} img').length"


def test_words_become_a_mask_that_is_repainted(page):
    page.tab("Words to masks")
    page.driver.find_element("css selector", "#ldznet_picture input[type=file]").send_keys(str(Path(PARK).resolve()))
    page.wait(IMAGES.format("#ldznet_picture"), "the picture")
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
