"""The page of trajectories, used in headless Chromium as a person would: slider, keys, hover, phone, no network."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import runs
from support.browsers import browser
from support.traces import long_trace

from dlmrl_kit.training.start import start_training
from dlmrl_kit.training.trace import trace_group
from dlmrl_kit.training.trace_page import write_page

__all__ = ["browser"]

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    algorithm = runs.build("egspo_sa", ["Sampler.temperature = 1.0"])
    policy = start_training(algorithm).policy
    names = ("before training", "after training")
    traces = [trace_group(algorithm, policy, index=i, name=name) for i in (0, 1) for name in names]
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(path, "a title", traces)
    return path


def shown(browser: Any) -> list[str]:
    return [t.text.split("\n")[0] for t in browser.find_elements("css selector", ".sample:first-of-type .token")][:16]


def test_slider_keys_and_details(browser: Any, traced: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser.set_window_size(1280, 900)
    browser.get(traced.as_uri())
    assert browser.title == "a title"
    end = shown(browser)
    assert "·" not in end
    assert len(browser.find_elements("css selector", "#policies > div")) == 2
    slider = browser.find_element("id", "step")
    ActionChains(browser).click(slider).send_keys(Keys.HOME).perform()
    assert shown(browser) == ["·"] * 16
    slider.send_keys(Keys.ARROW_RIGHT)
    assert shown(browser).count("·") == 12  # 4 of 16 positions in a step
    said = browser.find_element("id", "said").get_attribute("textContent")
    assert said.startswith("After 1 of 4 steps. Sample 1 committed ")
    browser.find_element("tag name", "body").send_keys(Keys.END)
    assert shown(browser) == end
    browser.find_element("id", "play").click()  # from the end it starts again
    assert browser.find_element("id", "play").text == "Pause"
    browser.find_element("id", "play").click()
    first, second = browser.find_elements("css selector", ".token")[:2]
    ActionChains(browser).move_to_element(first).perform()
    assert "Position 1: " in browser.find_element("id", "token").text
    assert "Else: " in browser.find_element("id", "token").text
    browser.execute_script("arguments[0].focus()", first)
    first.send_keys(Keys.ARROW_RIGHT)
    assert browser.switch_to.active_element == second
    assert "Position 2: " in browser.find_element("id", "token").text
    browser.find_element("css selector", "#example option:nth-of-type(2)").click()
    assert shown(browser) != end
    for name in ("doubt", "order"):
        browser.find_element("css selector", f"#colour option[value={name}]").click()
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def test_no_request_leaves_the_page(browser: Any, traced: Path) -> None:
    browser.get_log("performance")
    browser.get(traced.as_uri())
    asked = [entry["message"] for entry in browser.get_log("performance") if "requestWillBeSent" in entry["message"]]
    assert asked
    assert all(traced.as_uri() in message or '"url":"data:' in message for message in asked)


@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_the_window_and_is_not_blank(browser: Any, traced: Path, width: int) -> None:
    from PIL import Image

    options = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", options)
    browser.get(traced.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    drawn = "Math.max(...[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width))"
    assert 0 < browser.execute_script(f"return {drawn}") <= 400, "numbers beside a curve grow with it"
    picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    assert len(picture.getcolors(maxcolors=10**6)) > 50
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


STRANGE = [
    "<img src=x onerror=document.title=1>",
    "\u05e9\u05dc\u05d5\u05dd",
    "\U0001f469\u200d\U0001f52c",
    "a\x00\x1b[31m",
    "\u202eevil",
    "&amp;",
]


def test_texts_of_any_kind_stay_texts(browser: Any, tmp_path: Path) -> None:
    """HTML, right to left, emoji, control characters and a long prompt: shown, harmless, within the window."""
    trace = long_trace("before", 1, len(STRANGE))
    tokens = [replace(token, text=text) for token, text in zip(trace.samples[0].tokens, STRANGE, strict=True)]
    prompt = "\u202e<script>document.title = 2</script> " + "word " * 5000
    answer = "\u05d0\u05d1 <b>\x07"
    trace = replace(trace, prompt=prompt, answer=answer, samples=(replace(trace.samples[0], tokens=tuple(tokens)),))
    write_page(tmp_path / "page.html", "<b>title", [trace])
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        browser.get((tmp_path / "page.html").as_uri())
        texts = browser.execute_script("return [...document.querySelectorAll('.token')].map(t => t.firstChild.data)")
        assert texts == [*STRANGE[:3], "a<0000><001B>[31m", "<202E>evil", STRANGE[5]]
        assert browser.title == "<b>title"
        assert not browser.find_elements("css selector", "main img, main b, main script")
        assert browser.execute_script("return document.getElementById('prompt').textContent") == (
            prompt.replace("\u202e", "<202E>")
        )
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        # A long prompt scrolls within its box, which the keyboard reaches.
        height, inside, tab = browser.execute_script(
            "const p = document.getElementById('prompt'); return [p.clientHeight, p.scrollHeight, p.tabIndex]"
        )
        assert inside > 10 * height
        assert tab == 0
        browser.execute_script(
            "document.querySelectorAll('.token')[4].dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))"
        )
        assert "<202E>evil" in browser.find_element("id", "token").text
        assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_step_touches_only_the_tokens_that_change(browser: Any, tmp_path: Path) -> None:
    write_page(tmp_path / "long.html", "long", [long_trace("before"), long_trace("after")])
    browser.get((tmp_path / "long.html").as_uri())
    count = """
        go(100);
        const watcher = new MutationObserver(() => {});
        const all = { subtree: true, childList: true, attributes: true, characterData: true };
        watcher.observe(document.getElementById("policies"), all);
        go(101);
        return watcher.takeRecords().length;
    """
    # 8 samples, each with 2 tokens that appear, 2 that were the newest before, and 3 cursors of 2 ends.
    assert 8 * 4 <= browser.execute_script(count) <= 8 * (2 * 4 + 2 + 6)
