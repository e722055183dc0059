"""Questions to masks as runs, against the plain definition: decode the mask, look at the pixels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.index import LoadedSample
from model.prompts import _covered_pixels
from model.runs import Runs
from model.views import (
    KEPT_FRACTION,
    Augmentation,
    View,
    draw_view,
    jitter_colours,
    true_masks,
    unpacked,
    view_image,
    view_masks,
    whole_view,
)
from pipeline import rle
from pipeline.errors import SchemaError

KINDS = (
    Augmentation(),
    Augmentation(crop_probability=1.0, crop_min_scale=0.2),
    Augmentation(crop_probability=1.0, crop_min_scale=0.3, rotation_deg=25.0, shear_deg=20.0),
    Augmentation(crop_probability=0.0, rotation_deg=180.0),
)


@st.composite
def masks_of_one_image(draw: st.DrawFn) -> NDArray[np.bool_]:
    """(n, H, W): noise of any density, rectangles, and the empty and the full mask."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 5))
    masks = rng.random((count, height, width)) < rng.random((count, 1, 1))
    boxes = np.zeros((2, height, width), dtype=bool)
    boxes[0, height // 3 :, : 1 + width // 2] = True
    boxes[1, : 1 + height // 2] = True
    return np.concatenate([masks, boxes, np.zeros((1, height, width), bool), np.ones((1, height, width), bool)])


def runs_of(masks: NDArray[np.bool_]) -> Runs:
    return Runs.of([rle.encode(mask) for mask in masks], masks.shape[1])


def sample_of(masks: NDArray[np.bool_]) -> LoadedSample:
    """Each mask a whole of its own, but the second a part of the first."""
    instance = np.arange(len(masks))
    instance[1] = 0
    return LoadedSample(
        key="k",
        where="test",
        image=np.zeros((*masks.shape[1:], 3), np.uint8),
        rles=tuple(rle.encode(mask) for mask in masks),
        runs=runs_of(masks),
        granularity=np.ones(len(masks), np.float32),
        instance_id=instance,
        area_px=masks.sum(axis=(1, 2)),
    )


def plain_source(view: View) -> NDArray[np.int64]:
    """The view's map by its definition, one pixel after the other: the centre, turned, scaled into the crop."""
    x0, y0, x1, y1 = view.box_xyxy
    source = np.full((view.size, view.size), -1, dtype=np.int64)
    for v in range(view.size):
        for u in range(view.size):
            across, down = (view.turn @ [u + 0.5, v + 0.5, 1.0]) / view.size
            if 0 <= across < 1 and 0 <= down < 1:
                x, y = int(x0 + across * (x1 - x0)), int(y0 + down * (y1 - y0))
                source[v, u] = min(x, x1 - 1) * view.height + min(y, y1 - 1)
    return source


@given(masks_of_one_image(), st.integers(0, 2**32))
@settings(deadline=None)
def test_what_holds_a_pixel(masks: NDArray[np.bool_], seed: int) -> None:
    runs, (count, height, width) = runs_of(masks), masks.shape
    pixels = np.random.default_rng(seed).integers(-1, height * width, 30)
    expected = np.array([[p >= 0 and mask[p % height, p // height] for p in pixels] for mask in masks])
    which = np.arange(count)[::-1].copy()
    assert np.array_equal(runs.holds(which, pixels), expected[::-1])
    some = np.array([0, count - 2])
    places = np.flatnonzero(expected[some].any(axis=0))
    for most in (1, 3, 30):
        assert np.array_equal(runs.first_held(some, pixels, most), places[:most])


@given(masks_of_one_image(), st.integers(0, 2**32), st.sampled_from(KINDS), st.sampled_from((8, 24, 40)))
@settings(max_examples=150, deadline=None)
def test_masks_through_a_view(masks: NDArray[np.bool_], seed: int, how: Augmentation, size: int) -> None:
    view = draw_view(np.random.default_rng(seed), *masks.shape[1:], size, how)
    source = plain_source(view)
    differing = (view.source != source).mean()
    assert differing == 0 if view.is_straight else differing < 0.02  # a rounding at the border of two pixels
    source = view.source
    flat = masks.transpose(0, 2, 1).reshape(len(masks), -1)
    expected = flat[:, source] & (source >= 0)
    which = np.array([len(masks) - 1, 0, 1, 0])
    assert np.array_equal(unpacked(view_masks(runs_of(masks), which, view)), expected[which])
    pixels = np.arange(size * size)
    assert np.array_equal(view.source_of(pixels), source.reshape(-1))


@given(masks_of_one_image(), st.integers(0, 2**32), st.sampled_from(KINDS))
@settings(max_examples=150, deadline=None)
def test_what_a_view_keeps(masks: NDArray[np.bool_], seed: int, how: Augmentation) -> None:
    height, width = masks.shape[1:]
    view = draw_view(np.random.default_rng(seed), height, width, 24, how)
    x0, y0, x1, y1 = view.box_xyxy
    back = np.linalg.inv(np.concatenate([view.turn, [[0.0, 0.0, 1.0]]]))
    inside = np.zeros((height, width), dtype=bool)
    for y in range(y0, y1):
        for x in range(x0, x1):
            centre = np.array([(x + 0.5 - x0) / (x1 - x0), (y + 0.5 - y0) / (y1 - y0)]) * view.size
            u, v, _ = back @ [*centre, 1.0]
            inside[y, x] = -1e-9 <= u < view.size + 1e-9 and -1e-9 <= v < view.size + 1e-9
    low, high = view.seen_rows()
    rows = np.arange(height)[:, None]
    seen = (rows >= low) & (rows < high)
    assert (seen != inside).mean() < 0.02  # a centre on the border itself
    runs = runs_of(masks)
    assert runs.areas_between(np.arange(len(masks)), low, high).tolist() == (masks & seen).sum(axis=(1, 2)).tolist()
    sample = sample_of(masks)
    if not view.shows_all:
        kept = (masks & seen).sum(axis=(1, 2)) >= KEPT_FRACTION * sample.area_px
        assert np.array_equal(true_masks(sample, view), kept[sample.instance_id])
    else:
        assert true_masks(sample, view).all()


@pytest.mark.parametrize("covered_px", [0, 1, 12, 300])
def test_clicks_fall_alike_on_what_is_covered(covered_px: int) -> None:
    """Few pixels are found by an image of what is covered, many by drawing again; either way all alike."""
    height, width, size = 24, 24, 24
    mask = np.zeros(height * width, dtype=bool)
    mask[np.random.default_rng(1).permutation(height * width)[:covered_px]] = True
    sample = sample_of(np.stack([mask.reshape(height, width), np.zeros((height, width), bool)]))
    view, rng = whole_view(height, width, size), np.random.default_rng(0)
    eligible = np.array([True, True])
    drawn = np.concatenate([_covered_pixels(rng, sample, view, eligible, 8) for _ in range(1500)])
    counts = np.bincount(drawn, minlength=size * size).reshape(size, size)
    assert (counts[~mask.reshape(height, width)] == 0).all()
    if covered_px:
        assert drawn.size == 12_000
        found = counts[mask.reshape(height, width)]
        expected = drawn.size / covered_px
        assert abs(found - expected).max() < 6 * np.sqrt(expected) + 1


@pytest.mark.parametrize("shape", [(40, 56), (200, 130), (513, 64)])
def test_a_view_keeps_means_and_places(shape: tuple[int, int]) -> None:
    """A gradient seen whole at a smaller size is the gradient at the places of the pixels."""
    height, width = shape
    y, x = np.mgrid[:height, :width]
    image = np.stack([255 * (x + 0.5) / width, 255 * (y + 0.5) / height, np.full(shape, 100.0)], axis=2).astype(
        np.uint8
    )
    seen = view_image(image, whole_view(height, width, 32)).astype(float)
    v, u = np.mgrid[:32, :32]
    assert np.abs(seen[..., 0] - 255 * (u + 0.5) / 32).max() < 3.5
    assert np.abs(seen[..., 1] - 255 * (v + 0.5) / 32).max() < 3.5
    assert (seen[..., 2] == 100).all()


@given(st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_jitter_is_brightness_contrast_and_saturation(seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    how = Augmentation(brightness=0.3, contrast=0.3, saturation=0.3, grey_probability=0.2)
    draws = np.random.default_rng(seed + 1).random(4)
    brightness, contrast, saturation = (1 + 0.3 * (2 * draw - 1) for draw in draws[:3])
    grey = image @ np.array([0.299, 0.587, 0.114])
    saturation = 0.0 if draws[3] < 0.2 else saturation
    values = grey[..., None] + saturation * (image - grey[..., None])
    values = brightness * (grey.mean() + contrast * (values - grey.mean()))
    found = jitter_colours(np.random.default_rng(seed + 1), image, how)
    assert np.abs(found - np.clip(values, 0, 255)).max() < 1  # OpenCV rounds the matrix too


@given(masks_of_one_image())
@settings(deadline=None)
def test_ends_are_the_sums_of_the_runs(masks: NDArray[np.bool_]) -> None:
    rles = [rle.encode(mask) for mask in masks]
    ends, first = rle.ends_of(rles)
    for number, each in enumerate(rles):
        assert ends[first[number] : first[number + 1]].tolist() == np.cumsum(rle.runs_of(each)).tolist()


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
@settings(max_examples=200, deadline=None)
def test_ends_refuse_what_runs_refuse_and_with_the_same_words(text: str) -> None:
    good, odd = rle.encode(np.eye(4, dtype=bool)), rle.Rle(size=[4, 4], counts=text)

    def outcome(read: Callable[[], list[int]]) -> list[int] | str:
        try:
            return read()
        except SchemaError as error:
            return str(error)

    def ends_of_the_second() -> list[int]:
        ends, first = rle.ends_of([good, odd])
        return ends[first[1] :].tolist()

    assert outcome(ends_of_the_second) == outcome(lambda: np.cumsum(rle.runs_of(odd)).tolist())
