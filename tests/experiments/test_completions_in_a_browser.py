"""The page of completions in headless Chromium: filter, search, keys, hostile texts, no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.browsers import browser

from dlmrl_kit.experiments.completions_page import page

__all__ = ["browser"]

pytestmark = pytest.mark.thorough

HOSTILE = (
    "</script><script>document.title = 'taken'</script>",
    "<!--<script>",
    "<img src=http://127.0.0.1:9/x onerror=\"document.title='taken'\">",
    "\u2028 __DATA__ &lt;b&gt;",
)


def rows() -> list[dict[str, Any]]:
    return [
        {
            "index": index,
            "prompt": [{"role": "user", "content": text}] if index == 1 else text,
            "prefix": text,
            "answer": f"{text}\ud800",  # half of a surrogate pair
            "completions": [{"text": text, "scores": {"solved": float(index == 2), text: 0.25}}],
        }
        for index, text in enumerate(HOSTILE)
    ]


def test_it_is_read_filtered_and_walked_through(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    def completion() -> str:
        return browser.execute_script("return document.querySelector('.completion').textContent")

    def where() -> str:
        return browser.find_element("id", "where").text

    path = tmp_path / "page.html"
    path.write_text(page("<i>title</i>", rows()))
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(path.as_uri())
    body = browser.find_element("tag name", "body")
    seen = [completion()]
    for key in ("j", Keys.ARROW_RIGHT, "j", "j"):
        body.send_keys(key)
        seen.append(completion())
    assert seen[:3] == list(HOSTILE[:3])
    assert seen[3] == seen[4]  # it stays at the last
    assert where() == "4 of 4"
    body.send_keys("k")
    assert completion() == HOSTILE[2]
    for show, expected in (("right", "1 of 1"), ("wrong", "1 of 3"), ("all", "1 of 4")):
        browser.find_element("css selector", f"#show option[value={show}]").click()
        assert where() == expected
    body.send_keys("/")
    browser.switch_to.active_element.send_keys("onerror")
    assert where() == "1 of 1"
    browser.switch_to.active_element.send_keys("jj")
    assert where() == "none of 4"
    assert browser.title == "<i>title</i>"
    assert browser.find_elements("css selector", "main img, main script, h1 i") == []
    asked = [e["message"] for e in browser.get_log("performance") if "requestWillBeSent" in e["message"]]
    assert asked
    assert all(path.as_uri() in message or '"url":"data:' in message for message in asked)
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
