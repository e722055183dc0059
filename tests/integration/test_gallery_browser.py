"""The gallery of a release in a real browser, from disk: what is searched, sorted, opened, clicked and dialled."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.dataset.export import sample_rows
from pipeline.dataset.open import open_dataset
from pipeline.format import rle, schema
from pipeline.release import gallery

pytestmark = [pytest.mark.browser, pytest.mark.slow]

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1300,1000",
)  # fmt: skip
WAIT_S = 120.0


@pytest.fixture(scope="module")
def folder(drawn_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("gallery")
    gallery.write_gallery(open_dataset(drawn_run), output, title="<b>drawn</b> & more")
    return output


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver_path is None:
        pytest.skip("no chromium with chromedriver on this system (Debian: apt install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (the extra `dev`)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    yield driver
    driver.quit()


def until(check: Callable[[], Any], what: str) -> Any:
    deadline_s = time.monotonic() + WAIT_S
    while not (found := check()):
        assert time.monotonic() < deadline_s, f"still waiting for {what}"
        time.sleep(0.05)
    return found


def opened(browser: Any, page: Path, fragment: str = "") -> Any:
    browser.get("about:blank")
    browser.get(page.as_uri() + fragment)
    until(lambda: browser.execute_script("return document.body.dataset.ready"), "the gallery")
    browser.execute_script("""
        document.getElementById('borders').click();
        const strength = document.getElementById('strength');
        strength.value = 1;
        strength.dispatchEvent(new Event('input'));
    """)
    return browser


@pytest.fixture
def page(browser: Any, folder: Path) -> Any:
    return opened(browser, folder / gallery.PAGE)


@pytest.fixture(scope="module")
def samples(drawn_run: Path) -> dict[str, schema.Sample]:
    run = open_dataset(drawn_run)
    return {row["source_uri"]: run.read_sample(row) for row in sample_rows(run)}


def set_value(page: Any, name: str, value: Any, event: str = "input") -> None:
    page.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event(arguments[2]));",
        name, value, event,
    )  # fmt: skip


def names(page: Any) -> list[str]:
    """Of the cards, in their order: an image's source, a failure's reason."""
    found: list[str] = page.execute_script(
        "return [...document.getElementById('gallery').children].map((card) =>"
        " card.querySelector('.card-name')?.title ?? card.querySelector('b').textContent);"
    )
    return found


def text(page: Any, name: str) -> str:
    found: str = page.execute_script("return document.getElementById(arguments[0]).textContent;", name)
    return found


def pixels(page: Any, canvas: str) -> np.ndarray:
    width, height, flat = page.execute_script(
        "const c = document.getElementById(arguments[0]);"
        "return [c.width, c.height, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]];",
        canvas,
    )
    return np.array(flat, dtype=np.uint8).reshape(height, width, 4)


def owner(sample: schema.Sample, x: int, y: int, g: float) -> schema.Annotation | None:
    """The mask a click selects, straight from the rule."""
    over = [mask for mask in sample.annotations if rle.decode(mask.segmentation)[y, x]]
    if not over:
        return None
    instance = min((mask for mask in over if mask.is_instance), key=lambda mask: mask.area)
    chain = [mask for mask in over if mask.instance_id == instance.id]
    return min(chain, key=lambda mask: (abs(mask.granularity - g), -mask.area))


def test_search_and_order(page: Any, samples: dict[str, schema.Sample]) -> None:
    everything = names(page)
    assert sorted(everything) == sorted([*samples, "unsupported_format"])
    set_value(page, "search", "TURNED")
    until(lambda: names(page) == ["drawn/turned.jpg"], "the search")
    assert "1 of 8 shown" in text(page, "gallery-note")
    set_value(page, "search", "not an image that is there")
    until(lambda: names(page) == [], "the search")
    set_value(page, "search", "")
    until(lambda: len(names(page)) == 8, "the search")
    set_value(page, "sort", "failures", "change")
    assert names(page)[0] == "unsupported_format"
    set_value(page, "kind", "images", "change")
    set_value(page, "sort", "masks", "change")
    assert sorted(names(page)) == sorted(samples)


def test_order_by_each_column(browser: Any, folder: Path, tmp_path: Path) -> None:
    """The same gallery with numbers that differ, since the drawn images are all alike."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    index = copy / gallery.FOLDER / "index.js"
    name, value = index.read_text(encoding="ascii").removeprefix("grainmill.take(").removesuffix(");\n").split(", ", 1)
    data = json.loads(value)
    for place, row in enumerate(data["rows"]):
        for column, number in (("masks", place), ("instances", 10 - place), ("granularity", (place * 3 % 7) / 7)):
            row[gallery.INDEX_COLUMNS.index(column)] = number
    index.write_text(f"grainmill.take({name}, {json.dumps(data)});\n", encoding="ascii")
    page = opened(browser, copy / gallery.PAGE)
    set_value(page, "kind", "images", "change")
    for column in ("masks", "instances", "granularity"):
        at = gallery.INDEX_COLUMNS.index(column)
        expected = [row[1] for row in sorted(data["rows"], key=lambda row: row[at])]
        set_value(page, "sort", column, "change")
        assert names(page) == expected
        page.execute_script("document.getElementById('direction').click();")
        assert names(page) == expected[::-1]
        page.execute_script("document.getElementById('direction').click();")


@pytest.mark.parametrize("g", [1.0, 0.5, 0.1])
def test_a_click_selects_the_mask_mined_there(page: Any, samples: dict[str, schema.Sample], g: float) -> None:
    for source, sample in samples.items():
        page.execute_script(
            "for (const card of document.getElementById('gallery').children)"
            " if (card.querySelector('.card-name')?.title === arguments[0]) card.click();",
            source,
        )
        until(lambda source=source: text(page, "stage-name") == source, source)
        set_value(page, "dial", g)
        for x, y in ((10, 10), (sample.width // 2 + 18, 14), (sample.width // 2 + 2, sample.height - 2)):
            page.execute_script(
                "const box = document.getElementById('canvas-box'), r = box.getBoundingClientRect();"
                "box.dispatchEvent(new MouseEvent('click', {bubbles: true,"
                " clientX: r.left + (arguments[0] + 0.5) * r.width / arguments[2],"
                " clientY: r.top + (arguments[1] + 0.5) * r.height / arguments[3]}));",
                x, y, sample.width, sample.height,
            )  # fmt: skip
            mask = owner(sample, x, y, g)
            if mask is None:
                assert "instances" in text(page, "facts")
                continue
            assert text(page, "facts").startswith(f"mask {mask.id} ")
            page.execute_script("state.probe = null; drawSelection();")  # without the ring that marks the click
            dimmed = pixels(page, "stage-select")[:, :, 3] == 165
            assert np.array_equal(~dimmed, rle.decode(mask.segmentation)), (source, x, y)


def test_the_dial_moves_what_was_clicked(page: Any, samples: dict[str, schema.Sample]) -> None:
    source = text(page, "stage-name")
    sample = samples[source]
    page.execute_script("select(0, { probe: { x: 10, y: 10 } });")
    for g in (0.1, 0.55, 1.0):
        set_value(page, "dial", g)
        mask = owner(sample, 10, 10, g)
        assert mask is not None
        assert text(page, "facts").startswith(f"mask {mask.id} ")
        row = page.execute_script("return document.querySelector('#tree [aria-selected=true]').dataset.mask;")
        assert int(row) == mask.id


def test_the_keyboard_does_all(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    body = page.find_element("tag name", "body")
    first = text(page, "stage-name")
    body.send_keys("n")
    until(lambda: text(page, "stage-name") != first, "the next image")
    body.send_keys("p")
    until(lambda: text(page, "stage-name") == first, "the image before")
    body.send_keys("[")
    assert float(text(page, "dial-value")) == pytest.approx(0.95)
    body.send_keys("/")
    assert page.execute_script("return document.activeElement.id;") == "search"
    page.switch_to.active_element.send_keys("np[turned")
    until(lambda: names(page) == [], "typed words search and steer nothing")
    assert text(page, "stage-name") == first
    page.switch_to.active_element.send_keys(Keys.CONTROL + "a")
    page.switch_to.active_element.send_keys("turned")
    until(lambda: names(page) == ["drawn/turned.jpg"], "the search")


def test_a_link_opens_its_image(browser: Any, folder: Path, samples: dict[str, schema.Sample]) -> None:
    sample = samples["drawn/turned.jpg"]
    page = opened(browser, folder / gallery.PAGE, f"#{sample.key}")
    assert text(page, "stage-name") == "drawn/turned.jpg"


def test_nothing_is_fetched_elsewhere_and_names_are_text(page: Any, folder: Path) -> None:
    assert text(page, "title") == "<b>drawn</b> & more"
    loaded: list[str] = page.execute_script("return performance.getEntriesByType('resource').map((each) => each.name);")
    assert all(name.startswith((folder.as_uri(), "data:")) for name in loaded)
    said = page.get_log("browser")
    assert [
        each for each in said if "readback" not in each["message"]
    ] == []  # that one is about this test's own reading


@pytest.mark.parametrize("dark", [True, False])
def test_a_light_and_a_dark_look(browser: Any, folder: Path, dark: bool) -> None:
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    page = opened(browser, folder / gallery.PAGE)
    ground = page.execute_script("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number);")
    assert (sum(ground[:3]) < 3 * 60) == dark


def test_a_missing_folder_is_said(browser: Any, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / gallery.PAGE, tmp_path / gallery.PAGE)
    browser.get((tmp_path / gallery.PAGE).as_uri())
    until(lambda: "could not be loaded" in text(browser, "problem"), "the message")
    browser.get_log("browser")


def test_of_ten_thousand_images_little_is_loaded(browser: Any, folder: Path, tmp_path: Path) -> None:
    """Ready once the index and what is in sight are there: a handful of chunks, a screenful of cards."""
    copy = tmp_path / "large"
    shutil.copytree(folder, copy)
    index = copy / gallery.FOLDER / "index.js"
    name, value = index.read_text(encoding="ascii").removeprefix("grainmill.take(").removesuffix(");\n").split(", ", 1)
    data = json.loads(value)
    row = data["rows"][0]
    data["rows"] = [[f"key-{n:05d}", f"many/{n:05d}.jpg", *row[2:]] for n in range(10_000)]
    index.write_text(f"grainmill.take({name}, {json.dumps(data)});\n", encoding="ascii")
    for kind, count, digits, size in (("thumbs", 100, 4, 100), ("images", 2, 5, 8)):
        text_of = (copy / gallery.FOLDER / f"{kind}-{0:0{digits}d}.js").read_text(encoding="ascii")
        first = json.loads(text_of.split(", ", 1)[1].removesuffix(");\n"))[0]
        for number in range(count):
            (copy / gallery.FOLDER / f"{kind}-{number:0{digits}d}.js").write_text(
                f'grainmill.take("{kind}-{number:0{digits}d}", {json.dumps([first] * size)});\n', encoding="ascii"
            )
    page = opened(browser, copy / gallery.PAGE)
    assert page.execute_script("return document.getElementById('gallery').children.length;") <= 180
    loaded = page.execute_script(
        "return performance.getEntriesByType('resource').filter((e) => e.name.endsWith('.js')).length;"
    )
    assert loaded <= 6
    set_value(page, "search", "09999")
    until(lambda: names(page) == ["many/09999.jpg"], "the search among ten thousand")
