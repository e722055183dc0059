"""The report in a real browser: the dial, the tree and the clicks draw what the shard's masks say, from one file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.dataset.export import sample_rows
from pipeline.dataset.open import open_dataset
from pipeline.dataset.viewer import report_of_run, write_report
from pipeline.format import rle, schema

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1300,900",
)  # fmt: skip


@pytest.fixture(scope="module")
def report(drawn_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    data = report_of_run(open_dataset(drawn_run), limit=48, seed=0, max_failures=10, title="<b>drawn</b> & more")
    write_report(data, path)
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium with chromedriver on this system (Debian: apt install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (the extra `dev`)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any, report: Path) -> Any:
    """The report, freshly loaded, without borders and with opaque colours."""
    browser.get(report.as_uri())
    browser.execute_script("""
        document.getElementById('borders').click();
        const strength = document.getElementById('strength');
        strength.value = 1;
        strength.dispatchEvent(new Event('input'));
    """)
    return browser


@pytest.fixture(scope="module")
def samples(drawn_run: Path) -> list[schema.Sample]:
    run = open_dataset(drawn_run)
    return [run.read_sample(row) for row in sample_rows(run)]


def set_dial(page: Any, g: float) -> None:
    page.execute_script(
        "const d = document.getElementById('dial'); d.value = arguments[0]; d.dispatchEvent(new Event('input'));",
        g,
    )


def pixels(page: Any, canvas: str) -> np.ndarray:
    """(H, W, 4) uint8 of a canvas."""
    width, height, flat = page.execute_script(
        "const c = document.getElementById(arguments[0]);"
        "return [c.width, c.height, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]];",
        canvas,
    )
    return np.array(flat, dtype=np.uint8).reshape(height, width, 4)


def colours(page: Any) -> list[list[int]]:
    """The colour of each mask of the image on the stage, from the tree's swatches, all of them unfolded."""
    found: dict[int, list[int]] = page.execute_script("""
        const tree = document.getElementById('tree');
        for (let row; (row = tree.querySelector('[aria-expanded=false] .toggle')); ) row.click();
        return Object.fromEntries([...tree.children].map((row) => [
            row.dataset.mask,
            getComputedStyle(row.querySelector('.swatch')).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number),
        ]));
    """)
    return [found[str(number)] for number in range(len(found))]  # type: ignore[index]


def expected_owner(sample: schema.Sample, g: float) -> np.ndarray:
    """(H, W) int: the mask that each pixel shows at g, -1 for none; straight from the rule, pixel by pixel."""
    masks = np.stack([rle.decode(mask.segmentation) for mask in sample.annotations])
    owner = np.full(masks.shape[1:], -1)
    for y, x in np.argwhere(masks.any(axis=0)):
        over = [mask for mask in sample.annotations if masks[mask.id, y, x]]
        instance = min((mask for mask in over if mask.is_instance), key=lambda mask: mask.area)
        chain = [mask for mask in over if mask.instance_id == instance.id]
        owner[y, x] = min(chain, key=lambda mask: (abs(mask.granularity - g), -mask.area)).id
    return owner


@pytest.mark.parametrize("g", [1.0, 0.8, 0.6, 0.33, 0.3, 0.1])
def test_the_dial_paints_the_masks_of_its_granularity(page: Any, samples: list[schema.Sample], g: float) -> None:
    set_dial(page, g)
    assert page.find_element("id", "dial-value").text == f"{g:.2f}"
    palette = np.array([*colours(page), [0, 0, 0]])
    drawn, owner = pixels(page, "stage-masks"), expected_owner(samples[0], g)
    assert len({tuple(colour) for colour in palette}) == len(palette)
    assert np.array_equal(drawn[..., :3], palette[owner])
    assert np.array_equal(drawn[..., 3] > 0, owner >= 0)


def test_every_image_can_be_stepped_through(page: Any, samples: list[schema.Sample]) -> None:
    set_dial(page, 0.1)
    for sample in samples:
        assert sample.source_uri in page.find_element("id", "stage-name").text
        palette = np.array([*colours(page), [0, 0, 0]])
        assert np.array_equal(pixels(page, "stage-masks")[..., :3], palette[expected_owner(sample, 0.1)])
        page.find_element("id", "next").click()
    assert samples[0].source_uri in page.find_element("id", "stage-name").text


def test_the_keyboard_moves_the_dial_and_the_tree(page: Any, samples: list[schema.Sample]) -> None:
    from selenium.webdriver.common.keys import Keys

    dial = page.find_element("id", "dial")
    before = pixels(page, "stage-masks")
    dial.send_keys(Keys.HOME)
    assert float(dial.get_attribute("value")) == 0.1
    assert not np.array_equal(pixels(page, "stage-masks"), before)
    first = page.find_element("css selector", "#tree [role=treeitem]")
    first.send_keys(Keys.ARROW_RIGHT)
    page.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    page.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    page.switch_to.active_element.send_keys(Keys.ENTER)
    selected = page.find_element("css selector", "#tree [aria-selected=true]")
    assert selected.get_attribute("data-mask") == "2"
    assert [row.get_attribute("aria-level") for row in page.find_elements("css selector", "#tree li")] == list("12311")


def test_a_click_in_the_tree_lights_just_that_mask(page: Any, samples: list[schema.Sample]) -> None:
    colours(page)
    page.find_element("css selector", '#tree [data-mask="1"] .tree-name').click()
    page.execute_script("document.getElementById('tree').dispatchEvent(new MouseEvent('mouseleave'))")
    darkened = pixels(page, "stage-select")
    mask = rle.decode(samples[0].annotations[1].segmentation)
    assert (darkened[~mask][:, 3] > 0).all()
    rim = darkened[mask][:, :3][darkened[mask][:, 3] > 0]
    assert (rim == 255).all()
    assert 0 < len(rim) < mask.sum() / 2
    assert "granularity 0.550" in page.find_element("id", "facts").text


def test_a_click_on_the_image_follows_the_dial(page: Any, samples: list[schema.Sample]) -> None:
    from selenium.webdriver import ActionChains

    sample, box = samples[0], page.find_element("id", "canvas-box")
    scale = box.size["width"] / sample.width
    x, y = 10.5, 10.5  # inside instance 0, its part 1 and the sub-part 2
    offset = (round((x - sample.width / 2) * scale), round((y - sample.height / 2) * scale))
    ActionChains(page).move_to_element_with_offset(box, *offset).click().perform()
    for g, mask in ((1.0, "0"), (0.6, "1"), (0.1, "2"), (0.9, "0")):
        set_dial(page, g)
        assert page.find_element("css selector", "#tree [aria-selected=true]").get_attribute("data-mask") == mask


def test_names_are_text_and_failures_are_listed(page: Any, samples: list[schema.Sample]) -> None:
    assert page.find_element("tag name", "h1").text == "<b>drawn</b> & more"
    cards = [card.get_attribute("aria-label") for card in page.find_elements("css selector", ".card")]
    assert cards == [f"Show {sample.source_uri}" for sample in samples]
    assert any("onerror" in card for card in cards)
    assert page.execute_script("return document.querySelectorAll('img[src=x], h1 b').length") == 0
    assert "drawn/d-text.jpg" in page.find_element("id", "failures").text
    assert len(page.find_elements("css selector", "[data-chart=granularity] .bar")) == 9


def test_nothing_is_fetched_and_nothing_fails(page: Any, browser: Any, report: Path) -> None:
    page.execute_script("document.getElementById('failures-title').scrollIntoView()")
    set_dial(page, 0.5)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    urls = [each["request"]["url"] for each in sent if each["documentURL"] == report.as_uri()]
    assert report.as_uri() in urls
    assert {url.split(":")[0] for url in urls if url != report.as_uri()} == {"data"}
    # What these tests read back from the canvas is their own doing, and Chromium says that it is slow.
    said = [entry for entry in browser.get_log("browser") if "getImageData" not in entry["message"]]
    assert said == []


def test_the_page_suits_a_narrow_window(page: Any) -> None:
    size = page.get_window_size()
    try:
        page.set_window_size(500, 900)
        assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    finally:
        page.set_window_size(size["width"], size["height"])
