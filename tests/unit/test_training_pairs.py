"""How pairs that contradict each other are counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.training_pairs import WAYS, _pair, counted, main


def test_a_pair_beside_what_else_its_click_may_mean() -> None:
    masks = np.zeros((4, 10, 10), dtype=bool)
    masks[0, :2], masks[1, :4], masks[2, :8], masks[3] = True, True, True, True
    g = np.array([0.1, 0.5, 0.52, 1.0], dtype=np.float32)
    found = _pair(masks, g, np.array([1, 1, 3, 3]), 0.5, masks[1])
    assert found["masks over the click"] == 4
    assert found["instances over the click"] == 2
    assert found["ambiguous"] == 0.0  # 0.52's mask is twice as large: an IoU of exactly one half
    assert found["iou_same_g"] == pytest.approx((1.0 + 0.5) / 2)
    assert found["iou_next_g"] == pytest.approx(0.5)
    assert found["share of the image"] == pytest.approx(0.4)
    masks[2] = True
    assert _pair(masks, g, np.array([1, 1, 3, 3]), 0.5, masks[1])["ambiguous"] == 1.0
    alone = _pair(masks[:1], g[:1], np.array([1]), 0.1, masks[0])
    assert np.isnan(alone["iou_next_g"])
    assert alone["g of exactly 0.1"] == 1.0
    both = counted([found, alone])
    assert both["pairs"] == 2
    assert both["over half of the image"] == 0.0  # 0.4 and 0.2 of it
    assert counted([{**found, "share of the image": 0.6}, alone])["over half of the image"] == 0.5
    assert both["iou_next_g"] == pytest.approx(0.5)  # of those that have one
    assert both["of those with g of exactly 0.1"] == pytest.approx(0.2)
    assert both["of those with g of exactly 1.0"] == 0.0  # there are none
    whole = {**found, "g of exactly 1.0": 1.0, "share of the image": 0.6}
    assert counted([whole, alone])["of those with g of exactly 1.0"] == pytest.approx(0.6)


def test_every_way_of_drawing_is_counted(drawn_run: Path, tmp_path: Path) -> None:
    assert main(["--data", str(drawn_run), "--output", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["ways"]) == list(WAYS)
    assert found["images"] == 7
    for name, values in found["ways"].items():
        assert values["instances over the click"] <= values["masks over the click"], name
        assert (values["g of exactly 0.1"] > 0) == WAYS[name]["smallest_parts"]
    alone = found["ways"]["and wholes alone (--wholes-only)"]
    assert alone["instances over the click"] == 1.0
