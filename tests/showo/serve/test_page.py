"""The page of `showo demo` in a real browser: what it shows is what the pipeline draws and answers."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from showo import ShowoPipeline
from showo.engine.batching import Draw, Engine, Extend, Inpaint, Ticket, Vary

pytest.importorskip("gradio", reason="the extra `demo` is not installed")
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

from showo.serve.page.app import served_page  # noqa: E402
from tests.ports import free_port  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1200,1000"
)
SCREENSHOT = Path(__file__).parents[3] / "docs" / "images" / "page.png"
SECONDS = 60  # until a wait gives up
SEED, STEPS = 7, 8
FEWER = 3  # steps, where no preview is looked at
RED, PAINT = (220, 30, 30), (255, 77, 255)  # of the star, and of the brush on white

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio"),
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"),
]


class RecordingEngine(Engine):
    """Remembers what it was asked for."""

    def submit(self, request: Any, **limits: Any) -> Ticket:
        self.requests = [*getattr(self, "requests", []), request]
        return super().submit(request, **limits)


class Browser:
    """The page as somebody sees it who clicks, types, paints and looks."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver, self.address = driver, address

    def one(self, selector: str) -> Any:
        return wait(lambda: next(iter(self.driver.find_elements(By.CSS_SELECTOR, selector)), None), selector)

    def click(self, name: str) -> None:
        self.one(f"#{name}").click()

    def open_tab(self, name: str) -> None:
        tabs = self.driver.find_elements(By.CSS_SELECTOR, "button[role=tab]")
        next(tab for tab in tabs if tab.text == name).click()

    def type(self, name: str, text: str) -> None:
        box = self.one(f"#{name} textarea, #{name} input")
        box.send_keys(Keys.CONTROL + "a")
        box.send_keys(text)
        box.send_keys(Keys.TAB)

    def all(self, selector: str, name: str) -> list[Any]:
        """A property of all elements, in one go, so that none goes meanwhile."""
        script = "return [...document.querySelectorAll(arguments[0])].map(element => element[arguments[1]])"
        return self.driver.execute_script(script, selector, name)

    def told(self, name: str) -> list[str]:
        return self.all(f"#{name}-told textarea, #{name}-told input", "value")

    def picture(self, name: str) -> Image.Image | None:
        shown = self.all(f"#{name} img", "src")
        return Image.open(io.BytesIO(httpx.get(shown[0]).content)).convert("RGB") if shown and shown[0] else None

    def drawn(self, name: str, box: str) -> Image.Image:
        """The finished picture, once it is there."""
        wait(lambda: self.told(name) == [f"seed {SEED}"] or self.complaints(), f"{name} to be drawn")
        assert not self.complaints()
        picture = wait(lambda: self.picture(box), box)
        self.type(f"{name}-prompt", "")
        return picture

    def complaints(self) -> str:
        """What the page says of errors just now."""
        return "\n".join(self.all(".toast-body", "innerText"))

    def chat(self) -> list[str]:
        return [text.strip() for text in self.all("#ask-chat .message-content", "innerText")]

    def upload(self, name: str, file: Path) -> None:
        self.one(f"#{name} input[type=file]").send_keys(str(file))

    def addresses(self) -> set[str]:
        """Whatever the page has asked for so far."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return {each["request"]["url"] for each in asked if each["documentURL"].startswith(self.address)}


def wait(condition: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {SECONDS} seconds in vain for {what}")


def same(left: Image.Image, right: Image.Image) -> bool:
    return left.size == right.size and left.tobytes() == right.tobytes()


@pytest.fixture(scope="module")
def pipe() -> ShowoPipeline:
    """Not the engine's: what the page shows is compared with what this one does."""
    return ShowoPipeline.from_pretrained()


@pytest.fixture(scope="module")
def engine() -> Iterator[RecordingEngine]:
    with RecordingEngine(ShowoPipeline.from_pretrained()) as engine:
        yield engine


@pytest.fixture(scope="module")
def browser(engine: RecordingEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    with served_page(engine, "127.0.0.1", free_port()) as address:
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        try:
            driver.get(address)
            yield Browser(driver, address)
        finally:
            driver.quit()


def test_draw_paint_extend_vary_and_ask(
    browser: Browser, engine: RecordingEngine, pipe: ShowoPipeline, request: pytest.FixtureRequest
) -> None:
    """One visit, in the order of the tabs, each of which begins with the picture that the first one has drawn."""
    # generate
    browser.one("#generate-go")
    wait(lambda: browser.one(".label-wrap").is_displayed(), "the page")
    browser.one(".label-wrap").click()
    browser.type("seed", str(SEED))
    browser.type("steps", str(STEPS))
    browser.type("generate-prompt", "a red star and a blue ring")
    browser.click("generate-go")
    preview = wait(lambda: browser.picture("generate-result"), "a preview")
    assert preview.size == (64, 64)
    assert (128, 128, 128) in {colour for _, colour in preview.getcolors(4096)}, "no masks in the first preview"
    picture = browser.drawn("generate", "generate-result")
    assert same(picture, pipe.generate(["a red star and a blue ring"], seed=SEED, steps=STEPS)[0])

    # inpaint, with a stroke of the brush
    browser.click("generate-to-inpaint")
    canvas = browser.one("#inpaint-editor canvas")
    wait(lambda: shows(canvas, RED), "the picture in the editor")
    time.sleep(1)  # gradio's editor loses strokes while it still places a picture, and gives no sign of that
    stroke = ActionChains(browser.driver).move_to_element_with_offset(canvas, -30, 0).click_and_hold()
    stroke.move_by_offset(30, 0).move_by_offset(30, 0).release().perform()
    wait(lambda: shows(canvas, PAINT), "the stroke")
    browser.type("inpaint-prompt", "a green square and a blue ring")
    browser.click("inpaint-go")
    changed = browser.drawn("inpaint", "inpaint-result")
    asked = engine.requests[-1]
    assert isinstance(asked, Inpaint)
    assert same(asked.picture, picture)
    left, top, right, bottom = asked.mask.getbbox()
    assert 10 <= left < 32 < right <= 54
    assert 20 <= top < 32 < bottom <= 44
    expected = pipe.inpaint(picture, asked.prompt, asked.mask, blend=asked.blend, seed=SEED, steps=STEPS)[0]
    assert same(changed, expected)
    differs = np.any(np.asarray(changed) != np.asarray(picture), axis=2)
    far = np.ones_like(differs)
    far[top - 4 : bottom + 4, left - 4 : right + 4] = False
    assert differs.any()
    assert not (differs & far).any(), "pixels away from the stroke have changed"
    if request.config.getoption("--write-screenshot"):
        Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())).quantize(256).save(SCREENSHOT, optimize=True)

    # extend, by an arrow, and back
    browser.open_tab("Generate")
    browser.click("generate-to-extend")
    browser.type("steps", str(FEWER))
    browser.type("extend-prompt", "a green square")
    browser.click("extend-right")
    wide = browser.drawn("extend", "extend-picture")
    assert isinstance(engine.requests[-1], Extend)
    assert same(wide, pipe.extend(picture, "a green square", "right", seed=SEED, steps=FEWER)[0])
    browser.click("extend-undo")
    wait(lambda: same(browser.picture("extend-picture"), picture), "the picture before the arrow")

    # vary
    browser.open_tab("Generate")
    browser.click("generate-to-vary")
    browser.type("vary-prompt", "a red star and a blue ring")
    browser.click("vary-go")
    varied = browser.drawn("vary", "vary-result")
    assert isinstance(engine.requests[-1], Vary)
    assert same(varied, pipe.vary(picture, "a red star and a blue ring", share=0.5, seed=SEED, steps=FEWER)[0])

    # ask
    browser.open_tab("Generate")
    browser.click("generate-to-ask")
    questions = ["what colour is the star?", "what shape is blue?"]
    chat = pipe.chat([picture])
    for number, question in enumerate(questions, start=1):
        browser.type("ask-question", question)
        browser.click("ask-go")
        wait(lambda number=number: len(browser.chat()) == 2 * number and engine.facts().running == 0, "an answer")
        chat.ask(question)
    said = [text for turn in chat.turns for text in (turn.question, turn.answer.strip())]
    wait(lambda: browser.chat() == said, f"{said}, not {browser.chat()}")
    assert said[1] == "red"

    foreign = {url for url in browser.addresses() if not url.startswith((browser.address, "data:", "blob:"))}
    assert not foreign


def shows(element: Any, colour: tuple[int, int, int]) -> bool:
    """Whether the browser shows a pixel near a colour there."""
    pixels = np.asarray(Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB")).astype(int)
    return bool((np.abs(pixels - colour).max(axis=2) < 60).any())


def test_texts_are_texts(browser: Browser) -> None:
    """What is asked is shown as it is, and no markup in it does anything."""
    browser.open_tab("Ask")
    before = len(browser.chat())
    question = "<img src=x onerror=\"document.title='mine'\"> **is this bold?**"
    browser.type("ask-question", question)
    browser.click("ask-go")
    wait(lambda: question in browser.chat()[before:], f"{question}, not {browser.chat()}")
    assert browser.driver.title == "Show-o"


def test_bad_uploads_are_refused_with_a_reason(browser: Browser, tmp_path: Path) -> None:
    browser.open_tab("Vary")
    (tmp_path / "bad.png").write_text("<script>alert(1)</script>")
    browser.upload("vary-other", tmp_path / "bad.png")
    wait(lambda: "not a readable picture" in browser.complaints(), "the reason")
    Image.new("RGB", (300, 200), "green").save(tmp_path / "good.png")
    browser.one("#vary-other input[type=file]")  # empty again
    browser.upload("vary-picture", tmp_path / "good.png")
    wait(lambda: (shown := browser.picture("vary-picture")) and shown.size == (64, 64), "the picture as it is seen")


def test_stop_and_leaving_free_the_engine(browser: Browser, engine: RecordingEngine) -> None:
    for leave in (lambda: browser.click("generate-stop"), lambda: browser.driver.get("about:blank")):
        browser.driver.get(browser.address)
        cancelled, requests = engine.facts().cancelled, len(engine.requests)
        browser.click("generate-go")
        wait(lambda requests=requests: len(engine.requests) > requests, "a request")
        assert isinstance(engine.requests[-1], Draw)
        wait(lambda: browser.picture("generate-result"), "a preview")
        leave()
        wait(lambda cancelled=cancelled: engine.facts().cancelled > cancelled, "the engine to be free")
        assert engine.facts().running == 0
