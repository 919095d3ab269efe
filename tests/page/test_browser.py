"""The page in a real browser: it moves, anyone can read it, and it asks nobody for anything."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium")

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.page.conftest import wait_for
from tests.page.support import NASTY, made_up

Show = Callable[..., Any]

SMALL, LARGE, HUGE = 10, 400, 2000
TRANSFORM = "return document.querySelector('.network.on .view').getAttribute('transform')"
SHOWN_ROWS = "return document.querySelectorAll('#items tbody tr:not([hidden])').length"
LUMINANCE = """
const parse = (c) => c.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
  .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const seen = (element) => {  // the colour behind an element
  for (let at = element; at; at = at.parentElement) {
    const colour = parse(getComputedStyle(at).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
const contrast = (a, b) => {
  const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
};
const found = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const element = walk.currentNode.parentElement;
  if (!walk.currentNode.data.trim() || element.closest("script, title, [hidden], option")) continue;
  const style = getComputedStyle(element);
  const isSvg = element instanceof SVGElement;
  const box = element.closest(".n")?.querySelector("rect");
  const ink = parse(isSvg ? style.fill : style.color);
  const paper = box ? parse(getComputedStyle(box).fill) : seen(element);
  found.push([contrast(ink, paper), element.tagName + "." + element.getAttribute("class"),
    walk.currentNode.data.slice(0, 30)]);
}
return found;
"""


def key(browser: Any, *keys: str) -> None:
    canvas = browser.find_element(By.CSS_SELECTOR, ".canvas")
    browser.execute_script("arguments[0].focus({preventScroll: true})", canvas)
    ActionChains(browser).send_keys(*keys).perform()


@pytest.mark.parametrize("layers", [SMALL, HUGE])
def test_nothing_is_loaded_and_the_drawing_shows(show: Show, layers: int) -> None:
    report = made_up(layers)
    browser = show(report)
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert report.network is not None
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('#before .n rect')]"
        ".map(r => r.getBoundingClientRect()).map(r => [r.width, r.height])"
    )
    assert len(boxes) == len(report.network.before)
    assert all(width > 0 and height > 0 for width, height in boxes)
    browser.find_element(By.CSS_SELECTOR, "[data-do=all]").click()
    frame = browser.execute_script(
        "const c = document.querySelector('.canvas').getBoundingClientRect();"
        "const v = document.querySelector('#before .view').getBoundingClientRect();"
        "return [v.left >= c.left - 1, v.top >= c.top - 1, v.right <= c.right + 1,"
        " v.bottom <= c.bottom + 1, v.width > c.width / 4 || v.height > c.height / 2]"
    )
    assert all(frame)


@pytest.mark.parametrize("layers", [SMALL, LARGE])
def test_filters_sort_and_the_way_from_the_table_to_the_drawing(show: Show, layers: int) -> None:
    report = made_up(layers)
    browser = show(report)
    total = report.total
    search = browser.find_element(By.NAME, "search")
    name = report.items[1].name
    search.send_keys(name.upper())
    text = "return document.querySelector('#shown').textContent"
    expected = sum(name in item.name for item in report.items)
    assert expected < total or layers == SMALL
    wait_for(browser, f"{text} === '{expected} of {total} shown'")
    assert browser.execute_script(SHOWN_ROWS) == expected
    browser.find_element(By.CSS_SELECTOR, ".filters [type=reset]").click()
    wait_for(browser, f"{text} === '{total} of {total} shown'")

    if report.kept:
        select = browser.find_element(By.NAME, "outcome")
        browser.execute_script(
            "arguments[0].value = 'kept';"
            "arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
            select,
        )
        wait_for(browser, f"{text} === '{report.kept} of {total} shown'")
        hits = browser.execute_script("return document.querySelectorAll('#before .hit').length")
        assert hits == report.kept
        browser.find_element(By.CSS_SELECTOR, ".filters [type=reset]").click()
        wait_for(browser, f"{text} === '{total} of {total} shown'")

    column = (
        "return [...document.querySelectorAll('#items tbody tr')].map(r => +r.cells[2].textContent)"
    )
    heading = browser.find_element(By.CSS_SELECTOR, "#items th:nth-child(3)")
    heading.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert heading.get_attribute("aria-sort") == "ascending"
    values = browser.execute_script(column)
    assert values == sorted(item.channels for item in report.items)
    heading.find_element(By.TAG_NAME, "button").send_keys(Keys.SPACE)
    assert heading.get_attribute("aria-sort") == "descending"
    assert browser.execute_script(column) == values[::-1]

    before = browser.execute_script(TRANSFORM)
    button = browser.find_element(By.CSS_SELECTOR, f"#item-{total - 1} .show")
    button.send_keys(Keys.ENTER)
    details = browser.find_element(By.ID, "details").text
    assert report.items[-1].name in details
    assert browser.execute_script(TRANSFORM) != before
    assert browser.execute_script("return document.activeElement.className") == "canvas"
    assert browser.execute_script(
        "const c = document.querySelector('.canvas').getBoundingClientRect();"
        "const b = document.querySelector('.sel rect').getBoundingClientRect();"
        "return b.left >= c.left && b.right <= c.right && b.top >= c.top && b.bottom <= c.bottom"
    )


def test_an_error_that_is_not_finite_sorts_last(show: Show) -> None:
    browser = show(made_up(SMALL))
    heading = browser.find_element(By.CSS_SELECTOR, "#verify th.number[aria-sort]")
    heading.find_element(By.TAG_NAME, "button").click()
    last = "return [...document.querySelectorAll('#verify table:last-of-type tbody tr')].at(-1)"
    assert "inf" in browser.execute_script(f"{last}.textContent")


@pytest.mark.parametrize("layers", [SMALL, LARGE])
def test_the_keyboard_does_everything(show: Show, layers: int) -> None:
    report = made_up(layers)
    assert report.network is not None
    browser = show(report)
    key(browser, "0")
    start = browser.execute_script(TRANSFORM)
    key(browser, "+")
    zoomed = browser.execute_script(TRANSFORM)
    assert "scale(1.5)" in zoomed and zoomed != start
    key(browser, Keys.ARROW_RIGHT)
    moved = browser.execute_script(TRANSFORM)
    assert moved != zoomed and "scale(1.5)" in moved
    key(browser, Keys.ARROW_LEFT)
    key(browser, "-")
    assert "scale(1)" in browser.execute_script(TRANSFORM)
    key(browser, "+", "+", "0")
    assert browser.execute_script(TRANSFORM) == "translate(0,0) scale(1)"

    key(browser, "n", "n")
    details = browser.find_element(By.ID, "details")
    assert report.network.before[1].name in details.text
    key(browser, "p")
    assert report.network.before[0].name in details.text
    if report.kept:
        key(browser, "k")
        marked = next(n for n in report.network.before if n.blocker or n.state == "kept")
        assert marked.name in details.text
    key(browser, "b")
    assert browser.execute_script("return document.querySelector('.network.on').id") == "after"
    after = browser.execute_script("return document.querySelectorAll('#after .n').length")
    assert after == len(report.network.after)
    key(browser, "b", "w")
    assert browser.execute_script(
        "const r = document.querySelector('#network').getBoundingClientRect();"
        "return r.width === innerWidth && r.height === innerHeight"
    )
    key(browser, Keys.ESCAPE)
    assert not browser.execute_script("return document.querySelector('.whole')")
    removed = next(n for n in report.network.before if n.item)
    key(browser, *"n" * (1 + report.network.before.index(removed)), Keys.ENTER)
    focused = browser.execute_script("return document.activeElement.closest('tr').id")
    assert focused == "item-0"


def test_the_tab_key_goes_through_the_page_in_order_and_focus_is_seen(show: Show) -> None:
    browser = show(made_up(SMALL))
    seen = []
    for _ in range(40):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        at = browser.execute_script(
            "const a = document.activeElement, s = getComputedStyle(a);"
            "if (a === document.body) return null;"
            "const order = [...document.querySelectorAll('*')].indexOf(a);"
            "return [order, s.outlineStyle, parseFloat(s.outlineWidth), a.className || a.tagName]"
        )
        if at is None:
            break
        seen.append(at)
    orders = [at[0] for at in seen]
    assert orders == sorted(orders) and len(set(orders)) == len(orders)
    assert all(style == "solid" and width >= 2 for _, style, width, _ in seen)
    assert seen[0][3] == "skip"
    assert "canvas" in [at[3] for at in seen]


def test_the_mouse_drags_and_zooms_and_the_wheel_alone_scrolls_the_page(show: Show) -> None:
    browser = show(made_up(60))
    wheel = (
        "const c = document.querySelector('.network.on');const r = c.getBoundingClientRect();"
        "c.dispatchEvent(new WheelEvent('wheel', {deltaY: -240, ctrlKey: %s, bubbles: true,"
        " cancelable: true, clientX: r.left + 100, clientY: r.top + 100}))"
    )
    start = browser.execute_script(TRANSFORM)
    browser.execute_script(wheel % "false")
    assert browser.execute_script(TRANSFORM) == start
    browser.execute_script(wheel % "true")
    zoomed = browser.execute_script(TRANSFORM)
    assert zoomed != start and "scale(1)" not in zoomed
    svg = browser.find_element(By.CSS_SELECTOR, ".network.on")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", svg)
    ActionChains(browser).drag_and_drop_by_offset(svg, 60, 30).perform()
    assert browser.execute_script(TRANSFORM) != zoomed


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_text_has_contrast_and_fits(show: Show, scheme: str, width: int) -> None:
    browser = show(made_up(60), width=width, height=800, prefers_color_scheme=scheme)
    browser.execute_script("document.querySelector('#items tbody tr').classList.add('lit')")
    low, *_ = sorted(browser.execute_script(LUMINANCE))
    assert low[0] >= 4.5, low
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    scroll = "return [document.documentElement.scrollWidth, innerWidth]"
    wide, window = browser.execute_script(scroll)
    assert wide <= window == width


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("mode", ["", "mid"])
def test_no_word_leaves_its_box(show: Show, width: int, mode: str) -> None:
    names = ("a.very.long.module.path." * 9, "W" * 70, "i" * 90, "x/BatchNormalization")
    browser = show(made_up(60, names=names), width=width)
    over = browser.execute_script(
        f"document.querySelector('#before').setAttribute('class', 'network on {mode}');"
        "return [...document.querySelectorAll('#before .n')].flatMap(n => {"
        " const box = n.querySelector('rect').getBoundingClientRect();"
        " const texts = [...n.querySelectorAll('text')].filter(t => t.getClientRects().length)"
        "  .map(t => [t.textContent, t.getBoundingClientRect()]);"
        " const first = texts.filter(([, r]) => r.top < box.top + box.height / 3);"
        " const meet = first.length > 1 && first[0][1].right > first[1][1].left;"
        " return texts.filter(([, r]) => meet || r.left < box.left || r.right > box.right"
        "  || r.top < box.top - 1 || r.bottom > box.bottom + 1).map(([text]) => text)})"
    )
    assert over == []


@pytest.mark.parametrize("width", [1280, 390])
def test_the_drawing_begins_where_words_can_be_read(show: Show, width: int) -> None:
    browser = show(made_up(LARGE), width=width)
    seen = browser.execute_script(
        "const c = document.querySelector('.canvas').getBoundingClientRect();"
        "const kept = [...document.querySelectorAll('#before .kept, #before .blocker')]"
        " .map(n => n.getBoundingClientRect()).filter(r => r.top >= c.top && r.left >= c.left"
        "  && r.right <= c.right && r.bottom <= c.bottom);"
        "const name = document.querySelector('#before .n text:not(.k)').getBoundingClientRect();"
        "return [kept.length, name.height]"
    )
    assert seen[0] > 0 and seen[1] >= 9


def test_words_are_drawn_where_one_looks_and_in_print(show: Show) -> None:
    report = made_up(HUGE)
    assert report.network is not None
    browser = show(report)
    drawn = "[...document.querySelectorAll('#before .k')].filter(k => k.getClientRects().length)"
    assert 10 < browser.execute_script(f"return {drawn}.length") < HUGE / 2
    key(browser, "p")  # the last op
    last = "return document.querySelector('#before .sel .k').getClientRects().length"
    assert browser.execute_script(last) == 1
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.execute_script(f"return {drawn}.length") == len(report.network.before)


def test_a_network_that_fits_is_shown_whole(show: Show) -> None:
    browser = show(made_up(100))
    assert browser.execute_script(TRANSFORM) in (None, "translate(0,0) scale(1)")
    height = "return document.querySelector('#before .k').getBoundingClientRect().height"
    assert browser.execute_script(height) >= 9


@pytest.mark.parametrize("width", [320, 390])
def test_captions_and_rows_use_the_width_of_a_phone(show: Show, width: int) -> None:
    browser = show(made_up(60), width=width, height=844)
    wide = browser.execute_script(
        "return [...document.querySelectorAll('caption')].map(c => c.getBoundingClientRect().width)"
    )
    assert len(wide) >= 5 and min(wide) > 0.8 * (width - 26)


def test_fingers_find_what_can_be_pressed(show: Show) -> None:
    browser = show(made_up(60), width=390, height=844)
    assert browser.execute_script("return matchMedia('(pointer: coarse)').matches")
    low = browser.execute_script(
        "return [...document.querySelectorAll('button, select, input, nav a, summary')]"
        ".map(e => [e.getBoundingClientRect().height, e.textContent])"
        ".filter(([h]) => h > 0 && h < 32)"
    )
    assert low == []


def test_long_names_do_not_widen_a_phone(show: Show) -> None:
    browser = show(made_up(SMALL, names=("n" * 400, "m" * 400)), width=360, height=740)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360


def test_print_shows_everything(show: Show) -> None:
    report = made_up(500)
    browser = show(report)
    browser.find_element(By.NAME, "search").send_keys("no such thing")
    wait_for(browser, "return document.querySelector('#shown').textContent.startsWith('0 of')")
    key(browser, "+", "+")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    visible = browser.execute_script(
        "return [...document.querySelectorAll('#items tbody tr')]"
        ".filter(r => r.getBoundingClientRect().height > 0).length"
    )
    assert visible == report.total
    for name in ("before", "after"):
        assert browser.execute_script(
            f"const s = document.querySelector('#{name}').getBoundingClientRect();"
            f"const v = document.querySelector('#{name} .view').getBoundingClientRect();"
            "return s.height > 0 && v.width > 0 && v.left >= s.left - 1 && v.right <= s.right + 1"
            " && v.top >= s.top - 1 && v.bottom <= s.bottom + 1 && s.right <= innerWidth"
        )
    assert not browser.execute_script("return document.querySelector('.filters').offsetHeight")
    pdf = browser.execute_cdp_cmd("Page.printToPDF", {})["data"]
    assert base64.b64decode(pdf).startswith(b"%PDF")


def test_without_javascript_the_page_is_complete(show: Show) -> None:
    driver = show(made_up(SMALL))
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        driver.refresh()
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    report = made_up(SMALL)
    assert report.network is not None
    assert driver.execute_script("return document.documentElement.className") == ""
    assert driver.execute_script(SHOWN_ROWS) == report.total
    assert driver.execute_script(
        "return ['before', 'after'].every(i => document.getElementById(i)"
        ".getBoundingClientRect().height > 0)"
    )
    assert not driver.execute_script(
        "return [...document.querySelectorAll('.toolbar, .filters, .show')]"
        ".some(e => e.getBoundingClientRect().height > 0)"
    )


def test_hostile_names_are_text(show: Show) -> None:
    report = made_up(40, names=NASTY)
    browser = show(report)
    browser.find_element(By.NAME, "search").send_keys("onerror")
    wait_for(browser, "return !document.querySelector('#shown').textContent.startsWith('0 of')")
    key(browser, "n", "n", "n")
    assert not browser.execute_script(
        "return document.querySelectorAll('img, .n svg, iframe').length"
    )
    assert browser.execute_script("return document.querySelectorAll('script').length") == 3
    handlers = browser.execute_script(
        "return [...document.querySelectorAll('*')].flatMap(e => [...e.attributes])"
        ".filter(a => a.name.startsWith('on')).length"
    )
    assert handlers == 0
    names = browser.execute_script(
        "return JSON.parse(document.querySelector('#data').textContent).report.items"
        ".map(i => i.name)"
    )
    wanted = [item.name for item in report.items]
    half = "half \ud800 pair"
    assert [n for n in names if "half" not in n] == [n for n in wanted if n != half]


def test_the_policy_forbids_what_escaping_might_miss(browser: Any, show: Show) -> None:
    show(made_up(SMALL))
    browser.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.bad = 1';"
        "document.body.append(s); document.body.insertAdjacentHTML('beforeend',"
        ' \'<img src="file:///nothing.png" onerror="window.bad = 1">\')'
    )
    entries = wait_for_log(browser)
    assert any("Content Security Policy" in entry["message"] for entry in entries)
    assert not browser.execute_script("return window.bad")


def wait_for_log(browser: Any) -> list[dict[str, Any]]:
    browser.execute_async_script("setTimeout(arguments[0], 100)")
    entries: list[dict[str, Any]] = browser.get_log("browser")
    return entries


def test_names_and_sizes_have_room(show: Show, tmp_path: Path) -> None:
    """Names of exporters are long: none is broken within a word, and no size before its unit."""
    report = made_up(
        SMALL, names=("/features/denseblock1/denselayer1/norm1/BatchNormalization",) * 3
    )
    browser = show(report)
    name = "return document.querySelector('#items tbody th').getBoundingClientRect().width"
    assert browser.execute_script(name) >= 17 * 16
    page = tmp_path / "sizes.html"
    page.write_text(report.to_html(sizes=(102_500_000, 102_100_000)), encoding="utf-8")
    browser = show(report, width=390)
    browser.get(page.as_uri())
    lines = (
        "return [...document.querySelectorAll('.tiles dd')].map(dd =>"
        " dd.getBoundingClientRect().height / parseFloat(getComputedStyle(dd).fontSize))"
    )
    assert max(browser.execute_script(lines)) < 2
