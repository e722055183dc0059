"""Intervals over images, against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest

from model.evaluation.bootstrap import bootstrap


def test_as_a_plain_loop_over_resampled_images() -> None:
    random = np.random.default_rng(5)
    images = [f"i{index}" for index in random.integers(0, 8, 60)]
    values = random.random(60)
    values[::7] = np.nan
    found = bootstrap(images, {"x": values}, resamples=400, seed=3)["x"]
    names = sorted(set(images))
    picks = np.random.default_rng([3, len(names)]).integers(0, len(names), (400, len(names)))
    means = []
    for row in picks:
        drawn = np.concatenate([values[np.array(images) == names[index]] for index in row])
        means.append(np.nanmean(drawn))
    assert found.value == pytest.approx(np.nanmean(values))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))
    assert found.objects == int(np.isfinite(values).sum())
    assert found.images == 8


def test_a_constant_has_no_width_and_an_absent_column_no_value() -> None:
    found = bootstrap(["a", "a", "b"], {"one": np.ones(3), "none": np.full(3, np.nan)})
    assert (found["one"].low, found["one"].value, found["one"].high) == (1.0, 1.0, 1.0)
    assert np.isnan([found["none"].value, found["none"].low, found["none"].high]).all()
    assert found["none"].objects == found["none"].images == 0
    assert bootstrap([], {}) == {}


def test_a_paired_difference_is_narrower_than_its_sides() -> None:
    random = np.random.default_rng(0)
    images = np.repeat(np.arange(40), 5)
    hard = random.random(40)[images]  # some images are hard for everybody
    ours, theirs = hard + 0.05 + 0.01 * random.random(200), hard.copy()
    theirs[:3] = np.nan  # counted only where both have a value
    found = bootstrap(images, {"ours": ours, "theirs": theirs}, pairs=[("ours", "theirs")], seed=1)
    difference = found["ours - theirs"]
    assert difference.objects == 197
    assert difference.value == pytest.approx(np.mean((ours - theirs)[3:]))
    assert difference.high - difference.low < 0.1 * (found["ours"].high - found["ours"].low)
    assert 0 < difference.low < difference.value < difference.high


def test_objects_of_one_image_stand_together() -> None:
    images = np.repeat(np.arange(10), 100)
    by_image = np.arange(10.0)[images]
    wide = bootstrap(images, {"x": by_image})["x"]
    narrow = bootstrap(np.arange(1000), {"x": by_image})["x"]
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


def test_seed_and_order() -> None:
    images, values = np.arange(30) // 3, np.random.default_rng(2).random(30)
    first = bootstrap(images, {"x": values}, seed=4)
    assert first == bootstrap(images, {"x": values}, seed=4)
    assert first != bootstrap(images, {"x": values}, seed=5)
    order = np.random.default_rng(3).permutation(30)
    again = bootstrap(images[order], {"x": values[order]}, seed=4)["x"]
    assert (again.value, again.low, again.high) == pytest.approx((first["x"].value, first["x"].low, first["x"].high))
