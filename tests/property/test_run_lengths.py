"""Questions to masks as run lengths, against the plain definition: decode the mask, look at the pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.data.augmentation import (
    COLOUR_DRAWS,
    KEPT_FRACTION,
    VIEW_DRAWS,
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
from model.data.prompts import _choose, _draw, _held, draw_prompts, prompt_draws
from model.data.run_lengths import RunLengths
from model.data.shards import LoadedSample
from pipeline.errors import SchemaError
from pipeline.format import rle

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


def run_lengths_of(masks: NDArray[np.bool_]) -> RunLengths:
    return RunLengths.of([rle.encode(mask)["counts"] for mask in masks], *masks.shape[1:])


def sample_of(masks: NDArray[np.bool_]) -> LoadedSample:
    """Each mask a whole of its own, but the second a part of the first."""
    instance = np.arange(len(masks))
    instance[1] = 0
    return LoadedSample(
        key="k",
        where="test",
        image=np.zeros((*masks.shape[1:], 3), np.uint8),
        counts=tuple(rle.encode(mask)["counts"] for mask in masks),
        run_lengths=run_lengths_of(masks),
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
def test_what_holds_a_pixel(masks: NDArray[np.bool_], seed: int) -> None:
    runs, (count, height, width) = run_lengths_of(masks), masks.shape
    rng = np.random.default_rng(seed)
    pixels, eligible = rng.integers(-1, height * width, 30), rng.random(count) < 0.7
    expected = np.array([[p >= 0 and mask[p % height, p // height] for p in pixels] for mask in masks])
    found, number = _held(runs.ends, runs.first, eligible, pixels)
    for j in range(len(pixels)):
        assert found[j, : number[j]].tolist() == np.flatnonzero(expected[:, j] & eligible).tolist()


@given(masks_of_one_image(), st.integers(0, 2**32), st.integers(1, 4), st.sampled_from((0.0, 0.5, 1.0)))
def test_clicks_are_the_first_pixels_on_something_and_have_different_masks_under_them(
    masks: NDArray[np.bool_], seed: int, most: int, balance: float
) -> None:
    rng, (count, height, width) = np.random.default_rng(seed), masks.shape
    sample = replace(sample_of(masks), granularity=rng.random(count).astype(np.float32))
    eligible = rng.random(count) < 0.7
    pixels, clicks = rng.integers(0, height * width, 20), 6
    source = np.where(rng.random(20) < 0.1, -1, pixels)
    choices, count = rng.random((clicks, most, 3)), clicks * most - 1
    covered, points, mask_id = _draw(
        sample.run_lengths.ends, sample.run_lengths.first, sample.instance_id, sample.granularity, eligible, pixels,
        source, 8, choices, balance, count,
    )  # fmt: skip
    wholes = masks[np.unique(sample.instance_id[eligible])].any(axis=0)
    expected = [i for i, p in enumerate(source) if p >= 0 and wholes[p % height, p // height]][:clicks]
    assert covered.tolist() == expected
    plain: list[tuple[float, float, int]] = []
    for click, place in enumerate(expected):
        pixel = pixels[place]
        under = np.flatnonzero(masks[:, pixel % height, pixel // height] & eligible).tolist()
        for draw in range(min(most, len(under))):
            pick = _choose(sample.granularity[under], choices[click, draw], balance)
            plain.append((pixel % 8, pixel // 8, under.pop(pick)))
    assert [(*point, mask) for point, mask in zip(points.tolist(), mask_id.tolist(), strict=True)] == plain[:count]


@given(masks_of_one_image(), st.integers(0, 2**32), st.sampled_from(KINDS), st.sampled_from((8, 24, 40)))
@settings(max_examples=150)
def test_masks_through_a_view(masks: NDArray[np.bool_], seed: int, how: Augmentation, size: int) -> None:
    view = draw_view(np.random.default_rng(seed).random(VIEW_DRAWS), *masks.shape[1:], size, how)
    source = plain_source(view)
    differing = (view.source != source).mean()
    assert differing == 0 if view.is_straight else differing < 0.02  # a rounding at the border of two pixels
    source = view.source
    flat = masks.transpose(0, 2, 1).reshape(len(masks), -1)
    expected = flat[:, source] & (source >= 0)
    which = np.array([len(masks) - 1, 0, 1, 0])
    assert np.array_equal(unpacked(view_masks(run_lengths_of(masks), which, view)), expected[which])
    pixels = np.arange(size * size)
    assert np.array_equal(view.source_of(pixels), source.reshape(-1))


@given(masks_of_one_image(), st.integers(0, 2**32), st.sampled_from(KINDS))
@settings(max_examples=150)
def test_what_a_view_keeps(masks: NDArray[np.bool_], seed: int, how: Augmentation) -> None:
    height, width = masks.shape[1:]
    view = draw_view(np.random.default_rng(seed).random(VIEW_DRAWS), height, width, 24, how)
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
    runs = run_lengths_of(masks)
    inside_px, areas_px = (masks & seen).sum(axis=(1, 2)), masks.sum(axis=(1, 2))
    which = np.array([0, 2, 0, len(masks) - 1, 1])
    for share in (0.0, 0.3, 0.9, 1.0):
        enough = (inside_px >= share * areas_px)[which]
        assert runs.mostly_between(which, areas_px, low, high, share).tolist() == enough.tolist()
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
    drawn = []
    for _ in range(1500):
        prompts = draw_prompts(
            rng.random(prompt_draws(8, 1)), sample, view, eligible, count=8, masks_per_click=1, balance=0.0
        )
        drawn += (prompts.points @ [1, size]).astype(int).tolist()
        assert (prompts.mask_id == 0).all()
    counts = np.bincount(drawn, minlength=size * size).reshape(size, size)
    assert (counts[~mask.reshape(height, width)] == 0).all()
    if covered_px:
        assert len(drawn) == 12_000
        found = counts[mask.reshape(height, width)]
        expected = len(drawn) / covered_px
        assert abs(found - expected).max() < 6 * np.sqrt(expected) + 1
    else:
        assert not drawn


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


@pytest.mark.parametrize(
    ("shape", "shrinks"), [((480, 640), (1, 2)), ((640, 300), (2, 1)), ((513, 700), (2, 2)), ((999, 300), (3, 1))]
)
def test_what_shrinks_to_half_or_less_is_averaged(shape: tuple[int, int], shrinks: tuple[int, int]) -> None:
    """The way of `view_image`, by definition: enlarged to a multiple of the view, then means over whole pixels."""
    image, (down, across) = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8), shrinks
    enlarged = cv2.resize(image, (across * 256, down * 256), interpolation=cv2.INTER_LINEAR).astype(float)
    means = enlarged.reshape(256, down, 256, across, 3).mean(axis=(1, 3))
    assert np.abs(view_image(image, whole_view(*shape, 256)) - means).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("flip_probability", [0.0, 1.0])
def test_a_view_is_an_image_of_its_own(flip_probability: float) -> None:
    """Flips and colours go in place: never into the image, which loader processes keep."""
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    how = Augmentation(flip_probability=flip_probability, crop_probability=0.0)
    before = image.copy()
    seen = view_image(image, draw_view(np.full(VIEW_DRAWS, 0.5), 32, 32, 32, how))
    assert np.array_equal(seen, image[:, ::-1] if flip_probability else image)
    jitter_colours(np.full(COLOUR_DRAWS, 0.9), seen, how)
    assert np.array_equal(image, before)
    assert not np.array_equal(seen, before)


@given(st.integers(0, 2**32))
@settings(max_examples=30)
def test_jitter_is_brightness_contrast_and_saturation(seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    how = Augmentation(brightness=0.3, contrast=0.3, saturation=0.3, grey_probability=0.2)
    draws = np.random.default_rng(seed + 1).random(COLOUR_DRAWS)
    brightness, contrast, saturation = (1 + 0.3 * (2 * draw - 1) for draw in draws[:3])
    grey = image @ np.array([0.299, 0.587, 0.114])
    saturation = 0.0 if draws[3] < 0.2 else saturation
    values = grey[..., None] + saturation * (image - grey[..., None])
    values = brightness * (grey[::8].mean() + contrast * (values - grey[::8].mean()))
    found = jitter_colours(draws, image, how)
    assert np.abs(found - np.clip(values, 0, 255)).max() < 1  # OpenCV rounds the matrix too


@given(masks_of_one_image())
def test_ends_are_the_sums_of_the_runs(masks: NDArray[np.bool_]) -> None:
    rles = [rle.encode(mask) for mask in masks]
    ends, first = rle.ends_of([each["counts"] for each in rles], *masks.shape[1:])
    for number, each in enumerate(rles):
        assert ends[first[number] : first[number + 1]].tolist() == np.cumsum(rle.run_lengths_of(each)).tolist()


def counts_of(*runs: int) -> str:
    """The compressed form of numbers that need not be runs."""
    return rle.from_run_lengths(np.array(runs), 4, 4)["counts"]


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
@example(counts_of(3, 10, 3))
@example(counts_of(3, 10, 3).replace("3", "s0", 1))  # outside the alphabet, the right bits
@example(counts_of(3, 10, 3) + "P")  # ends inside a number
@example(counts_of(5, -2, 13))  # a negative run, the right sum
@example(counts_of(20, -4))  # ends behind the last pixel, and comes back
@example(counts_of(3, 10))  # too few pixels
@example(counts_of(3, 10, 3).replace("3", "S" + "P" * 8 + "0", 1))  # three, in ten characters
@example("P" * 13 + counts_of(16))  # more digits than any number has
@example(counts_of(2**31 + 16, -(2**31)))
@example("\u0663")
@settings(max_examples=200)
def test_ends_refuse_what_runs_refuse_and_with_the_same_words(text: str) -> None:
    good, odd = rle.encode(np.eye(4, dtype=bool)), rle.Rle(size=[4, 4], counts=text)

    def outcome(read: Callable[[], list[int]]) -> list[int] | str:
        try:
            return read()
        except SchemaError as error:
            return str(error)

    def ends_of_the_second() -> list[int]:
        ends, first = rle.ends_of([good["counts"], odd["counts"]], 4, 4)
        return ends[first[1] :].tolist()

    assert outcome(ends_of_the_second) == outcome(lambda: np.cumsum(rle.run_lengths_of(odd)).tolist())
