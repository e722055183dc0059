"""Clicks counted, video, sweeps over granularity and the pair test, on cases with known answers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from model.evaluation.protocols import metrics


def square(y: int, x: int, side: int, size: int = 64) -> NDArray[np.bool_]:
    mask = np.zeros((size, size), dtype=bool)
    mask[y : y + side, x : x + side] = True
    return mask


def test_number_of_clicks_counts_a_failure_as_twenty() -> None:
    ious = np.array([0.5, 0.81, 0.79, 0.92])
    assert metrics.number_of_clicks(ious, 0.8) == 2
    assert metrics.number_of_clicks(ious, 0.9) == 4
    assert metrics.number_of_clicks(ious, 0.95) == 20
    assert metrics.number_of_clicks(np.zeros(0), 0.9) == 20
    assert metrics.number_of_clicks(np.array([*[0.0] * 19, 0.9, 0.99]), 0.95) == 20


def test_iou_leaves_ignored_pixels_out() -> None:
    truth, predicted = square(0, 0, 10), square(0, 0, 20)
    assert metrics.mask_iou(predicted, truth) == 0.25
    ignore = predicted & ~truth
    assert metrics.mask_iou(predicted, truth, ignore) == 1.0
    assert metrics.mask_iou(truth & False, truth, truth) == 1.0


def test_region_and_boundary_of_video() -> None:
    truth = square(16, 16, 20)
    assert metrics.region_similarity(truth, truth) == metrics.boundary_accuracy(truth, truth) == 1.0
    empty = truth & False
    assert metrics.boundary_accuracy(empty, truth) == metrics.boundary_accuracy(truth, empty) == 0.0
    assert metrics.boundary_accuracy(empty, empty) == metrics.region_similarity(empty, empty) == 1.0
    # ceil(0.008 x diagonal of 64 x 64) = 1 px: a shift by one pixel is within it, one by three is not.
    assert metrics.boundary_accuracy(np.roll(truth, 1, axis=1), truth) == 1.0
    assert 0.3 < metrics.boundary_accuracy(np.roll(truth, 3, axis=1), truth) < 0.7
    far = square(0, 0, 5)
    assert metrics.boundary_accuracy(far, truth) == 0.0


def test_a_sweep_that_grows_is_monotone_nested_and_smooth() -> None:
    granularities = np.linspace(0.1, 1.0, 10)
    masks = np.stack([square(4, 4, 10 + 4 * step) for step in range(10)])
    columns = metrics.sweep_columns(masks, granularities)
    assert columns["spearman"] == pytest.approx(1.0)
    assert columns["violation_rate"] == 0
    assert columns["monotone"] == 1
    assert columns["nesting"] == columns["nesting_adjacent"] == 1
    assert columns["variation_ratio"] == pytest.approx(1.0)
    assert columns["end_iou"] == pytest.approx(10**2 / 46**2)
    assert columns["distinct_masks"] == 10
    assert columns["components"] == 1
    assert columns["holes"] == 0
    areas = np.array([(10 + 4 * step) ** 2 for step in range(10)]) / 64**2
    assert columns["spread"] == pytest.approx(np.abs(areas - areas[0]).mean())


def test_a_sweep_that_ignores_jumps_or_falls_shows_it() -> None:
    granularities = np.linspace(0.1, 1.0, 10)
    ignored = metrics.sweep_columns(np.stack([square(4, 4, 20)] * 10), granularities)
    assert (ignored["end_iou"], ignored["spread"], ignored["distinct_masks"], ignored["spearman"]) == (1, 0, 1, 0)
    assert np.isnan(ignored["variation_ratio"])
    falling = metrics.sweep_columns(np.stack([square(4, 4, 46 - 4 * step) for step in range(10)]), granularities)
    assert falling["spearman"] == pytest.approx(-1.0)
    assert falling["violation_rate"] == 1
    jumping = metrics.sweep_columns(np.stack([square(0, 0, 20), square(40, 40, 22)]), np.array([0.1, 1.0]))
    assert jumping["nesting"] == 0
    assert jumping["largest_jump"] == 1
    empty = metrics.sweep_columns(np.zeros((3, 8, 8), bool), np.array([0.1, 0.5, 1.0]))
    assert np.isnan(empty["nesting"])
    assert empty["components"] == 0


def test_holes_and_pieces_are_counted() -> None:
    ring = square(10, 10, 20) & ~square(15, 15, 5)
    two = square(0, 0, 5) | square(20, 20, 5)
    columns = metrics.sweep_columns(np.stack([ring, two]), np.array([0.1, 1.0]))
    assert columns["components"] == 1.5
    assert columns["holes"] == 0.5


def test_pair_success_needs_the_part_below_the_whole() -> None:
    child, parent = np.array([0.8, 0.6, 0.2]), np.array([0.1, 0.5, 0.9])
    assert metrics.pair_success(child, parent, 0.7)
    assert not metrics.pair_success(child[::-1], parent[::-1], 0.7)
    assert not metrics.pair_success(child, parent * 0.5, 0.7)
    one = np.array([0.75, 0.75])
    assert metrics.pair_success(one, one, 0.7)  # why the ratio must fit the threshold
    assert metrics.pair_order(child, parent)
    assert not metrics.pair_order(one, one)


@pytest.mark.parametrize("ratio", np.linspace(0.02, 0.98, 25))
def test_a_model_blind_to_granularity_never_passes_where_pairs_count(ratio: float) -> None:
    for share in np.linspace(0, 1, 101):
        between = ratio + share * (1 - ratio)  # a mask of this area, the part inside it, it inside the whole
        child, parent = np.full(10, ratio / between), np.full(10, between)
        columns = metrics.pair_columns(child, parent, ratio)
        for target in (50, 70):
            assert columns[f"pair_success_{target}"] == 0 or np.isnan(columns[f"pair_success_{target}"])


def test_spearman_averages_ties() -> None:
    from scipy.stats import spearmanr

    random = np.random.default_rng(0)
    for _ in range(5):
        x, y = random.integers(0, 6, 30), random.integers(0, 6, 30)
        assert metrics.spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
