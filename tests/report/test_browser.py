"""The pages in a browser: what is seen, heard, hovered over and fetched. Skipped where there is no Chromium."""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from made_up_runs import EVIL, ended, finished, held, of_a_front, poisoned, rows, run_json, slim, write

from archgrad.report import compare, page as pages
from archgrad.report.board import Board, Server

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed; it comes with the extra dev")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

BROWSERS, DRIVERS = ("chromium", "chromium-browser", "google-chrome"), ("chromedriver",)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1100,900",
)  # fmt: skip
# The last name that a rule gives stands for the pages' own.
FROM_A_FILE = "file"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    binary = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    driver = next((found for name in DRIVERS if (found := shutil.which(name))), None)
    if binary is None or driver is None:
        pytest.skip("there is no chromium with its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture(autouse=True)
def quiet(request: pytest.FixtureRequest) -> Iterator[None]:
    """No errors, no script of a stranger, and nothing asked for but the page itself."""
    driver = request.getfixturevalue("browser")
    driver.get_log("browser"), driver.get_log("performance")
    yield
    assert [line for line in driver.get_log("browser") if line["level"] == "SEVERE" and not _gone(line)] == []
    assert driver.execute_script("return window.evil") is None
    events = [json.loads(one["message"])["message"] for one in driver.get_log("performance")]
    asked = [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]
    asked = [url for url in asked if not url.startswith(("chrome:", "chrome-untrusted:"))]  # its own page
    assert asked
    assert {urlparse(url).hostname or FROM_A_FILE for url in asked if not url.startswith("data:")} <= {
        "127.0.0.1",
        FROM_A_FILE,
    }


# One browser at a time: of two on one machine, one has not got the focus.
pytestmark = pytest.mark.xdist_group("browser")


def _gone(line: dict[str, Any]) -> bool:
    # A board that was closed on purpose.
    return any(reason in line["message"] for reason in ("net::ERR_CONNECTION_", "net::ERR_EMPTY_RESPONSE"))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pages.write(finished(tmp_path_factory.mktemp("run"))).as_uri()


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pages.write(finished(tmp_path_factory.mktemp("strange"), evil=EVIL)).as_uri()


@pytest.fixture(scope="module")
def slimmed(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("slimmed")
    write(folder, "record.json", slim())
    write(folder, "history.jsonl", rows(0, 30))
    write(folder, "run.json", run_json("finished"))
    return pages.write(folder).as_uri()


def size(driver: Any, width: int, *, dark: bool = False) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def wait(until: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What `until` gives once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := until()):
        assert time.monotonic() < deadline, "did not come about"
        time.sleep(0.05)
    return found


def css(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def text(driver: Any, selector: str) -> str:
    """What is written in a part that may be put anew at any time."""
    return driver.execute_script("return document.querySelector(arguments[0])?.innerText || ''", selector)


def tip(driver: Any) -> str:
    return driver.execute_script(
        "return [...document.querySelectorAll('.tip:not([hidden])')].map(t => t.textContent).join()"
    )


def focused(driver: Any, selector: str) -> str:
    """The tip of an element once it has the focus, which a busy machine may give late."""
    driver.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})  # whatever window has it
    driver.execute_script("document.querySelector(arguments[0]).focus()", selector)
    deadline = time.monotonic() + 1.0
    while not tip(driver) and time.monotonic() < deadline:
        time.sleep(0.05)
    return tip(driver)


def test_pictures_are_there_with_a_size_and_a_name(browser: Any, report: str) -> None:
    size(browser, 1100)
    browser.get(report)
    found = browser.execute_script(
        "return [...document.querySelectorAll('main figure svg')].filter(s => !s.closest('details:not([open])'))"
        ".map(s => [s.getBoundingClientRect().width, s.getBoundingClientRect().height, s.getAttribute('role'),"
        " (document.getElementById(s.getAttribute('aria-labelledby')) || {}).textContent])"
    )
    assert len(found) >= 5
    for width, height, role, name in found:
        assert width > 50 and height > 20 and role == "img" and name
    fills = "return ['.g-node', '.g-op', '.g-edge'].map(c => getComputedStyle(document.querySelector(c)).fill)"
    assert browser.execute_script(fills) == ["rgb(253, 253, 252)", "rgb(243, 244, 244)", "none"]


def test_headings_landmarks_and_tables(browser: Any, report: str) -> None:
    browser.get(report)
    levels = browser.execute_script("return [...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    for landmark in ("header", "nav[aria-label]", "main", "footer", "a.skip[href='#main']"):
        assert css(browser, landmark)
    bare = "[...document.querySelectorAll('table')].filter(t => !t.caption || !t.querySelector('th[scope]')).length"
    assert browser.execute_script(f"return {bare}") == 0
    ids = browser.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    css(browser, "body").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("class") == "skip"


def test_theme_follows_the_system_and_the_button_is_remembered(browser: Any, report: str) -> None:
    def paper() -> str:
        return browser.execute_script("return getComputedStyle(document.body).backgroundColor")

    size(browser, 1100)
    browser.get(report)
    light = paper()
    size(browser, 1100, dark=True)
    dark = wait(lambda: paper() != light and paper())
    button = css(browser, "#theme")
    assert button.is_displayed() and button.text == "Light theme"
    button.click()
    assert paper() == light and button.text == "Dark theme"

    def remembered() -> bool:
        browser.refresh()
        if paper() == light:
            return True
        # A browser writes its storage a moment later, and a page that leaves before may take the choice with it.
        css(browser, "#theme").click()
        time.sleep(0.5)
        return False

    wait(remembered)
    css(browser, "#theme").click()
    assert paper() == dark
    # Back at what the system says, it follows the system again.
    assert browser.execute_script("return localStorage.length") == 0
    size(browser, 1100)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("kind", ["report", "strange", "slimmed"])
def test_axe_finds_nothing_to_complain_of(
    browser: Any, request: pytest.FixtureRequest, kind: str, dark: bool
) -> None:
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("axe is not installed; make test installs it")
    script = (Path(found.origin).parent / "axe.min.js").read_text(encoding="utf-8")
    for width in (390, 768, 1100):
        size(browser, width, dark=dark)
        browser.get(request.getfixturevalue(kind))
        browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
        browser.execute_cdp_cmd("Runtime.evaluate", {"expression": script})
        run = {"expression": "axe.run().then(r => JSON.stringify(r.violations.map(v => [v.id, v.nodes[0].html])))"}
        answer = browser.execute_cdp_cmd("Runtime.evaluate", {**run, "awaitPromise": True})
        assert json.loads(answer["result"]["value"]) == []
    size(browser, 1100)


def test_key_figures_are_seen_on_a_phone_without_scrolling_sideways(browser: Any, slimmed: str) -> None:
    size(browser, 390)
    browser.get(slimmed)
    for row in ("#figures td", "#figures th", "#controls td", "#controls th", "#trade-off svg", "#layers li span"):
        ends = browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.getBoundingClientRect())"
            ".map(r => [r.left, r.right, r.width])", row,
        )  # fmt: skip
        assert ends and all(left >= 0 and right <= 390 for left, right, width in ends if width), row
    wide = "return [...document.querySelectorAll('.scroll')].filter(s => s.scrollWidth > s.clientWidth + 1).length"
    assert browser.execute_script(wide) == 0
    first = browser.execute_script("return document.querySelector('main section').id")
    assert first == "trade-off"
    # A limit that is kept is no alarm.
    color = "return getComputedStyle(document.querySelector('.limit')).borderLeftColor"
    assert browser.execute_script(color) == "rgb(47, 132, 84)"
    size(browser, 1100)


@pytest.mark.parametrize("kind", ["report", "strange", "slimmed"])
def test_nothing_is_wider_than_a_phone(browser: Any, request: pytest.FixtureRequest, kind: str) -> None:
    size(browser, 360)
    browser.get(request.getfixturevalue(kind))
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    # And yet what is wide can be scrolled by itself.
    browser.execute_script("document.querySelector('.figures').style.width = '900px'")
    inner = browser.execute_script(
        "const s = document.querySelector('.scroll'); return s.scrollWidth > s.clientWidth"
    )
    assert inner and browser.execute_script("return document.documentElement.scrollWidth") == 360
    size(browser, 1100)


# What a reader would see as a fault of the layout. Pixels are not compared: fonts and their rendering differ between
# machines, by more than what such a fault changes; where boxes lie to each other does not.
FAULTS = """
const shown = e => e.checkVisibility({checkOpacity: true, checkVisibilityCSS: true}) && e.getClientRects().length;
const box = e => e.getBoundingClientRect();
const meet = (a, b, by) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > by
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > by;
const name = e => (e.id || e.tagName) + ' "' + e.textContent.trim().slice(0, 30) + '"';
const found = [];
if (document.documentElement.scrollWidth > innerWidth) found.push('the page is wider than the window');
const parts = [...document.querySelectorAll('header, nav, main > *, footer')].filter(shown);
parts.forEach((a, i) => parts.slice(i + 1).forEach(b => {
    if (!a.contains(b) && !b.contains(a) && meet(box(a), box(b), 1)) found.push(name(a) + ' lies on ' + name(b));
}));
for (const picture of [...document.querySelectorAll('main svg')].filter(shown)) {
    const texts = [...picture.querySelectorAll('text')].filter(t => shown(t) && t.textContent.trim());
    texts.forEach((a, i) => {
        const r = box(a), whole = box(picture);
        if (Math.min(r.left - whole.left, whole.right - r.right, r.top - whole.top, whole.bottom - r.bottom) < -2)
            found.push(name(a) + ' leaves its picture');
        texts.slice(i + 1).forEach(b => { if (meet(r, box(b), 2)) found.push(name(a) + ' lies on ' + name(b)); });
    });
}
for (const cell of [...document.querySelectorAll('main td, main th, main li, main p')].filter(shown))
    if (cell.scrollWidth > cell.clientWidth + 1 && getComputedStyle(cell).overflowX === 'hidden')
        found.push(name(cell) + ' is cut off');
return found;
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("kind", ["report", "slimmed"])
def test_nothing_lies_on_anything_else_at_three_widths(
    browser: Any, request: pytest.FixtureRequest, kind: str, dark: bool
) -> None:
    for width in (390, 768, 1100):
        size(browser, width, dark=dark)
        browser.get(request.getfixturevalue(kind))
        browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert browser.execute_script(FAULTS) == [], width
    # The measure itself measures.
    browser.execute_script(
        "const t = document.querySelector('main svg text'); t.parentNode.append(t.cloneNode(true));"
        "document.querySelector('footer').style.marginTop = '-300px';"
    )
    assert len(browser.execute_script(FAULTS)) >= 2
    size(browser, 1100)


def test_points_tell_of_themselves_under_the_pointer_and_the_keys(browser: Any, report: str) -> None:
    browser.get(report)
    loss = css(browser, ".plot[data-name=Loss] .cursor")
    assert tip(browser) == ""
    ActionChains(browser).scroll_to_element(loss).move_to_element(loss).perform()
    wait(lambda: tip(browser).startswith("search, step 1") and ": loss 0.1" in tip(browser))
    front = css(browser, ".plot[data-name='Score against macs'] .cursor")
    ActionChains(browser).scroll_to_element(front).move_to_element(front).perform()
    wait(lambda: tip(browser).startswith(("on the front: score", "score")) and "macs" in tip(browser))
    assert "edge " in tip(browser)
    ActionChains(browser).move_to_element(css(browser, "h1")).perform()
    wait(lambda: tip(browser) == "")
    # The keys go on from where the pointer was.
    wait(lambda: focused(browser, ".plot[data-name=Loss] .cursor").startswith("search, step 1"))
    loss.send_keys(Keys.HOME)
    wait(lambda: tip(browser) == "search, step 0: loss 2")
    loss.send_keys(Keys.ARROW_RIGHT)
    wait(lambda: tip(browser) == "search, step 1: loss 1" == loss.get_attribute("aria-valuetext"))
    loss.send_keys(Keys.END)
    wait(lambda: tip(browser).startswith("search, step 29"))
    loss.send_keys(Keys.ESCAPE)
    wait(lambda: tip(browser) == "")


def test_tabs_reach_the_points(browser: Any, report: str) -> None:
    browser.get(report)
    reached = set()
    for _ in range(60):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.add(browser.execute_script("return document.activeElement.getAttribute('aria-label')"))
        if "Points: Loss" in reached:
            break
    assert {"Points: Score against macs", "Points: Loss"} <= reached


def test_a_strangers_names_stay_text(browser: Any, strange: str) -> None:
    browser.get(strange)
    body = css(browser, "body").text
    for shown in ("A search", "an alarm", "a note", "input"):
        assert shown + EVIL[:20] in body
    assert browser.execute_script("return document.scripts.length") == 1
    assert browser.execute_script("return document.querySelectorAll('main img').length") == 0
    wait(lambda: "</script>" in focused(browser, ".plot[data-name='Score against macs'] .cursor"))


RECORDS = {"a search": ended, "a slimmed network": slim, "a front with int8": of_a_front}


@pytest.mark.parametrize("kind", RECORDS)
def test_every_text_of_a_record_stays_text_on_every_page(browser: Any, tmp_path: Path, kind: str) -> None:
    folders = [tmp_path / "runs" / name for name in ("a", "b")]
    for folder, status in zip(folders, ("finished", "running"), strict=True):
        write(folder, "record.json", poisoned(RECORDS[kind]()))
        write(folder, "history.jsonl", [poisoned(row) | {f"loss{EVIL}": 1.0} for row in rows(0, 9)])
        write(folder, "run.json", run_json(status, evil=EVIL))
        command = {"command": "slim", "directory": EVIL, "options": {"data": EVIL}, "arguments": ["slim", EVIL]}
        write(folder, "command.json", command)
    browser.get(pages.write(folders[0]).as_uri())
    assert EVIL[:20] in css(browser, "body").text
    _is_harmless(browser)
    pages.replace(tmp_path / "compare.html", compare.page(compare.read(folders)))
    browser.get((tmp_path / "compare.html").as_uri())
    assert EVIL[:20] in css(browser, "body").text
    _is_harmless(browser)
    for place, end in ((folders[1], 15), (tmp_path / "runs", 20)):
        with Server(Board(place, poll_ms=100, share=1.0), port=0) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            browser.get(server.url)
            write(folders[1], "history.jsonl", [poisoned(row) for row in rows(0, end)])
            wait(lambda seen=f"step\n{end - 1}": seen in text(browser, "main"))  # drawn by the page's own script
            _is_harmless(browser)
            browser.get("about:blank")  # which asks the server for nothing more
            server.shutdown()
            thread.join()


def _is_harmless(browser: Any) -> None:
    """One script, the page's own; no picture or handler that came with a text; and tips show texts as they are."""
    assert browser.execute_script("return window.evil") is None
    assert browser.execute_script("return document.scripts.length") <= 1
    assert browser.execute_script("return document.querySelectorAll('main img:not([src^=data])').length") == 0
    assert browser.execute_script("return document.querySelectorAll('[onerror],[onload],[onclick]').length") == 0
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    browser.execute_script("document.querySelectorAll('.cursor').forEach(c => c.focus())")
    assert browser.execute_script("return window.evil") is None


def test_a_comparison(browser: Any, tmp_path: Path) -> None:
    sides = compare.read(
        [finished(tmp_path / "a"), finished(tmp_path / "b", steps=20), finished(tmp_path / "c", evil=EVIL)]
    )
    pages.replace(tmp_path / "compare.html", compare.page(sides))
    size(browser, 360)
    browser.get((tmp_path / "compare.html").as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    wait(lambda: focused(browser, ".plot[data-name=Loss] .cursor") == "a: search, step 0: loss 2")
    browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    wait(lambda: tip(browser) == "b: search, step 0: loss 2")
    size(browser, 1100)


def test_the_board_follows_a_run_to_its_end(browser: Any, tmp_path: Path) -> None:
    write(tmp_path, "run.json", run_json())
    with Server(Board(tmp_path, poll_ms=100, share=1.0), port=0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        with held(tmp_path):
            browser.get(server.url)
            assert "Running" in text(browser, "#now")
            write(tmp_path, "history.jsonl", rows(0, 20))
            wait(lambda: "step\n19" in text(browser, "#now"))
            assert len(browser.find_elements("css selector", ".plot[data-name=Loss] svg")) == 1
            _keeps_the_readers_place(browser, tmp_path)
        write(tmp_path, "record.json", ended())
        write(tmp_path, "run.json", run_json("finished"))
        wait(lambda: "Finished" in text(browser, "#now") and "A search" in text(browser, "h1"))
        assert "90.00 %" in text(browser, "#figures")
        server.shutdown()
        thread.join()
    wait(lambda: css(browser, "#lost").is_displayed())


def _keeps_the_readers_place(browser: Any, folder: Path) -> None:
    """The theme, the place, an open part and the point in focus stay while the page is drawn anew."""
    css(browser, "#theme").click()
    css(browser, "#facts-1 summary").click()
    browser.execute_script("const c = document.querySelector('.plot[data-name=Loss] .cursor'); c.focus()")
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    browser.execute_script("scrollTo({top: 300, behavior: 'instant'})")
    before = browser.execute_script("return document.getElementById('facts-h').getBoundingClientRect().top")
    write(folder, "history.jsonl", rows(0, 25))
    wait(lambda: "step\n24" in text(browser, "#now"))
    after = browser.execute_script("return document.getElementById('facts-h').getBoundingClientRect().top")
    assert abs(after - before) < 3 and browser.execute_script("return scrollY") > 200
    assert browser.execute_script("return document.documentElement.dataset.theme") == "dark"
    assert css(browser, "#facts-1").get_attribute("open") is not None
    assert browser.switch_to.active_element.get_attribute("aria-valuetext") == "search, step 1: loss 1"
    css(browser, "#theme").click()
