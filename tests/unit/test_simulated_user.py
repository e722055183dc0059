"""The simulated user, against a slow reading of its definition and on drawn cases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from model.evaluation.protocols.simulated_user import Click, jittered_first_clicks, next_click, simulate

Mask = NDArray[np.bool_]


def by_definition(predicted: Mask, truth: Mask, ignore: Mask, clicked: Sequence[Click]) -> Click | None:
    def distance(error: Mask) -> NDArray[np.float64]:
        padded = np.zeros((error.shape[0] + 2, error.shape[1] + 2), dtype=bool)
        padded[1:-1, 1:-1] = error
        found = distance_transform_edt(padded)[1:-1, 1:-1]
        for click in clicked:
            found[click.y, click.x] = 0
        return found

    missing, surplus = distance(truth & ~predicted & ~ignore), distance(~truth & predicted & ~ignore)
    positive = missing.max() > surplus.max()
    chosen = missing if positive else surplus
    if chosen.max() == 0:
        return None
    for y in range(chosen.shape[0]):
        for x in range(chosen.shape[1]):
            if chosen[y, x] == chosen.max():
                return Click(x=x, y=y, positive=bool(positive))
    raise AssertionError


def blobs(random: np.random.Generator, size: int = 24) -> Mask:
    mask = np.zeros((size, size), dtype=bool)
    for _ in range(3):
        y, x, h, w = random.integers(0, size, 4)
        mask[y : y + h // 2 + 1, x : x + w // 2 + 1] ^= True
    return mask


@pytest.mark.parametrize("seed", range(40))
def test_clicks_as_defined(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth, predicted = blobs(random), blobs(random)
    ignore = blobs(random) if seed % 2 else np.zeros_like(truth)
    clicked: list[Click] = []
    for _ in range(4):
        click = next_click(predicted, truth, ignore, clicked)
        assert click == by_definition(predicted, truth, ignore, clicked)
        if click is None:
            break
        clicked.append(click)


def test_the_image_border_counts_as_background() -> None:
    truth = np.zeros((9, 9), dtype=bool)
    truth[:, :5] = True  # the fattest place is 2 pixels from the left border, not on it
    assert next_click(truth & False, truth) == Click(x=2, y=2, positive=True)


def test_equal_errors_give_a_negative_click_and_the_first_of_equals() -> None:
    truth, predicted = np.zeros((10, 20), dtype=bool), np.zeros((10, 20), dtype=bool)
    truth[2:5, 2:5] = truth[2:5, 8:11] = True
    assert next_click(predicted, truth) == Click(x=3, y=3, positive=True)
    predicted[6:9, 14:17] = True
    assert next_click(predicted, truth) == Click(x=15, y=7, positive=False)


def test_ignored_pixels_attract_no_click() -> None:
    truth = np.zeros((20, 20), dtype=bool)
    truth[1:12, 1:12] = truth[15:18, 15:18] = True
    ignore = np.zeros_like(truth)
    ignore[0:14, 0:14] = True
    assert next_click(truth & False, truth, ignore) == Click(x=16, y=16, positive=True)
    assert next_click(truth, truth, ignore) is None


def test_a_run_stops_at_its_target_or_at_twenty() -> None:
    truth = np.zeros((30, 30), dtype=bool)
    truth[5:25, 5:25] = True
    perfect = simulate(lambda clicks: truth, truth)
    assert perfect.ious == (1.0,)
    assert len(perfect.clicks) == 1
    empty = simulate(lambda clicks: truth & False, truth)
    assert empty.ious == (0.0,) * 20
    assert len(set(empty.clicks)) == 20

    def growing(clicks: Sequence[Click]) -> Mask:
        mask = np.zeros_like(truth)
        mask[5 : 5 + 4 * len(clicks), 5:25] = True
        return mask

    run = simulate(growing, truth, target_iou=0.8)
    assert run.ious == pytest.approx((0.2, 0.4, 0.6, 0.8))
    first = Click(x=20, y=20, positive=True)
    assert simulate(growing, truth, first=first).clicks[0] == first


def test_jittered_clicks_stay_in_the_object_and_depend_on_the_seed_alone() -> None:
    truth = np.zeros((40, 40), dtype=bool)
    truth[5:36, 10:20] = True
    clicks = jittered_first_clicks(truth, 10, radius=0.5, seed=[3, 1])
    assert len(clicks) == 10
    assert clicks == jittered_first_clicks(truth, 10, radius=0.5, seed=[3, 1])
    assert clicks != jittered_first_clicks(truth, 10, radius=0.5, seed=[4, 1])
    assert clicks[0] == next_click(truth & False, truth)
    assert all(truth[click.y, click.x] and click.positive for click in clicks)
    assert all(np.hypot(click.y - clicks[0].y, click.x - clicks[0].x) <= 2.5 for click in clicks)
