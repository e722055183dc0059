"""The report's parts: the seeded choice, reduced masks, and data that cannot leave its script element."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset import viewer
from pipeline.dataset.stats import RunStatistics
from pipeline.errors import InputError
from pipeline.format import rle


def rows(count: int) -> list[dict[str, str]]:
    return [{"key": f"key-{number}"} for number in range(count)]


def test_choice_is_seeded_ordered_and_bounded() -> None:
    chosen = viewer.chosen(iter(rows(1000)), limit=10, seed=3)
    assert chosen == viewer.chosen(iter(rows(1000)), limit=10, seed=3)
    assert chosen != viewer.chosen(iter(rows(1000)), limit=10, seed=4)
    numbers = [int(row["key"][4:]) for row in chosen]
    assert numbers == sorted(numbers)
    assert len(numbers) == 10
    assert viewer.chosen(iter(rows(5)), limit=10, seed=0) == rows(5)


def test_choice_does_not_depend_on_what_was_left_out() -> None:
    chosen = viewer.chosen(iter(rows(1000)), limit=10, seed=3)
    assert viewer.chosen(iter(chosen), limit=10, seed=3) == chosen


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(1280, 640, (640, 320)), (300, 200, (300, 200)), (60000, 1, (640, 1))]
)
def test_thumbnails_keep_their_ratio_and_never_grow(width: int, height: int, expected: tuple[int, int]) -> None:
    assert viewer.thumbnail_size(width, height, 640) == expected


def test_reduced_masks_take_the_pixel_under_each_centre() -> None:
    generator = np.random.default_rng(0)
    mask = generator.random((60, 80)) < 0.5
    reduced = rle.decode(viewer.reduced_rle(rle.encode(mask), width=20, height=15))
    assert np.array_equal(reduced, mask[2::4, 2::4])
    same = viewer.reduced_rle(rle.encode(mask), width=80, height=60)
    assert np.array_equal(rle.decode(same), mask)


def test_a_mask_too_thin_for_the_grid_keeps_a_pixel() -> None:
    mask = np.zeros((400, 400), dtype=bool)
    mask[399, 399] = True
    reduced = rle.decode(viewer.reduced_rle(rle.encode(mask), width=10, height=10))
    assert reduced.sum() == 1
    assert reduced[9, 9]


def page(title: str) -> str:
    state = {"committed": 1, "pending": 0}
    statistics = RunStatistics().to_json()
    failures = [{"key": title, "source_uri": title, "member": title, "stage": "read", "reason": "r", "message": title}]
    return viewer.render(
        viewer.report_data(title=title, images=[], statistics=statistics, failures=failures, state=state, seed=0)
    )


@pytest.mark.parametrize(
    "name", ["<img src=x onerror=alert(1)>", "</script><b>", "<!--<script>", "a\"'&{{script}}", "\ud800"]
)
def test_names_stay_inside_the_data(name: str) -> None:
    made = page(name)
    data = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', made, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])["title"] == name
    assert not set("<>&") & set(data[1])
    assert made.replace(data[1], "") == page("x").replace(
        re.search(r'id="report-data">(.*?)</script>', page("x"), re.DOTALL)[1],  # type: ignore[index]
        "",
    )


def test_the_policy_allows_just_the_script_and_style_of_the_page() -> None:
    made = page("run")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', made)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; img-src data:")
    for element in ("style", "script"):
        content = re.findall(rf"<{element}>(.*?)</{element}>", made, re.DOTALL)
        assert len(content) == 1
        digest = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy[1]
    assert "unsafe" not in policy[1]


def test_the_page_names_nothing_outside() -> None:
    assert set(re.findall(r"https?://[^\s\"']+", page("run"))) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:)""", page("run"))


def test_a_picture_must_be_a_png(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(viewer.PNG_SIGNATURE + b"rest")
    bad.write_bytes(b"GIF89a")
    assert base64.b64decode(viewer.picture_record(good, "a caption")["png"]) == good.read_bytes()
    with pytest.raises(InputError, match="expected a PNG"):
        viewer.picture_record(bad, "a caption")


def test_scores_begin_with_what_is_asked_for_in_words_and_keep_their_intervals() -> None:
    given: dict[str, tuple[float | None, float | None, float | None]] = {
        "zeta": (0.4, 0.3, 0.5), "alpha": (None, None, None), "interactive.oracle.noc_80": (20.0, 19.5, 20.0),
        "interactive.oracle.iou_1": (0.5, 0.4, 0.6), "interactive.own.noc_80": (20.0, 20.0, 20.0),
        "annotators.dial - clicks.seconds_80": (-2.0, -3.0, -1.0),
    }  # fmt: skip
    metrics = {name: dict(zip(("value", "low", "high"), ends, strict=True)) for name, ends in given.items()}
    record = viewer.score_record({"benchmark": "b", "split": "val", "metrics": metrics})
    assert record["metrics"] == [
        ["IoU of one click, at its best g", 0.5, 0.4, 0.6],
        ["clicks until IoU 0.80, at its best g", "not reached", 19.5, "not reached"],
        ["simulated annotator: seconds to IoU 0.80 (53: not reached), the dial less clicks alone", -2.0, -3.0, -1.0],
        ["zeta", 0.4, 0.3, 0.5],
        ["alpha", None, None, None],
        ["interactive.own.noc_80", "not reached", "not reached", "not reached"],
    ]
    with pytest.raises(InputError, match=r"scores\.json"):
        viewer.score_record({"benchmark": "b", "metrics": {}})
    with pytest.raises(InputError, match=r"scores\.json.*metrics"):
        viewer.score_record({"benchmark": "b", "split": "val", "metrics": {"zeta": {"value": 0.4, "low": 0.3}}})
