"""Validation's figures on a model whose answer is known: a square at the click, its side proportional to g.

The target of a click labelled L is that square at g = L, so the IoU at g is (smaller / larger)^2, and every figure can
be worked out by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.data.stream import Example
from model.network.pixels import normalised_batch
from model.training import validation
from model.training.validation import (
    PICTURED,
    Validation,
    best_fixed_g,
    dial_figures,
    five_granularities,
    iou,
    measure_clicks,
    paired_gain,
    validate,
)
from pipeline.errors import InputError
from pipeline.format.granularity import GRANULARITIES

SIZE_PX = 48
WHOLE_PX = 40
"""Side of the square at g = 1."""
G = np.array(GRANULARITIES)


def sides(g: Any) -> NDArray[np.int64]:
    return np.rint(WHOLE_PX * np.asarray(g, dtype=np.float64)).astype(np.int64)


def square(x: int, y: int, side: int) -> NDArray[np.bool_]:
    mask = np.zeros((SIZE_PX, SIZE_PX), dtype=bool)
    mask[y : y + side, x : x + side] = True
    return mask


def expected_iou(g: Any, label: Any) -> NDArray[np.float64]:
    one, other = sides(g), sides(label)
    return (np.minimum(one, other) / np.maximum(one, other)) ** 2.0


@dataclass
class Squares:
    """A model as far as validation asks it: squares of a side of 40 g, or of `deaf_at`; it predicts an IoU of g / 2."""

    deaf_at: float | None = None
    asked: list[list[float]] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def encode(self, images: Tensor) -> Any:
        self.images.append(images)
        return SimpleNamespace(select=lambda index: index)

    def decode(self, features: Tensor, points: Tensor, labels: Tensor, granularity: Tensor) -> Any:
        assert features.tolist() == [0] * len(points)
        assert points.shape == (len(points), 1, 2)
        assert labels.tolist() == [[1]] * len(points)
        self.asked.append(granularity.tolist())
        shown = [self.deaf_at or float(g) for g in granularity]
        corners = points[:, 0].long().tolist()
        masks = np.stack([square(x, y, int(sides(g))) for (x, y), g in zip(corners, shown, strict=True)])
        return SimpleNamespace(
            logits_NMHW=torch.from_numpy(masks)[:, None].float() - 0.5, iou_NM=granularity[:, None] / 2
        )


def image(*labels: float, key: str = "image") -> Example:
    """One click for each label, each at another corner."""
    corners = [(number % 8, number // 8) for number in range(len(labels))]
    masks = [square(x, y, int(sides(label))) for (x, y), label in zip(corners, labels, strict=True)]
    return Example(
        position=0,
        key=key,
        image=np.random.default_rng(len(labels)).integers(0, 256, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8),
        points=np.array(corners, dtype=np.float32).reshape(-1, 2),
        granularity=np.array(labels, dtype=np.float32),
        masks_packed=np.packbits(np.array(masks, dtype=bool).reshape(-1, SIZE_PX, SIZE_PX), axis=2),
        correction_draws=np.zeros((len(labels), 0), dtype=np.float32),
        problem=None,
    )


def measured(model: Squares, *examples: Example) -> Any:
    return measure_clicks(model, examples)  # type: ignore[arg-type]


# -- what is measured of each click ------------------------------------------------------------------------------------

LABELS = ((0.25, 0.5, 0.8), (1.0,))


def test_each_click_is_measured_at_its_label_and_at_ten_granularities() -> None:
    found = measured(Squares(), *(image(*labels) for labels in LABELS))
    assert [len(each["label_iou"]) for each in found] == [3, 1]
    for columns, labels in zip(found, LABELS, strict=True):
        assert columns["label_iou"].tolist() == [1.0] * len(labels)
        assert columns["sweep_iou"] == pytest.approx(expected_iou(G[None], np.array(labels)[:, None]))
        assert columns["iou_error"] == pytest.approx(1 - np.array(labels) / 2)
        assert columns["spearman"].tolist() == [1.0] * len(labels)
        assert columns["end_iou"] == pytest.approx([0.1**2] * len(labels))
        assert columns["violation_rate"].tolist() == [0.0] * len(labels)
        assert columns["nesting"].tolist() == [1.0] * len(labels)
        assert columns["distinct_masks"].tolist() == [10.0] * len(labels)
        assert columns["components"].tolist() == [1.0] * len(labels)


def test_a_model_that_does_not_hear_the_dial_is_found_out() -> None:
    [found] = measured(Squares(deaf_at=0.5), image(0.25, 0.5))
    assert found["label_iou"].tolist() == found["shuffled_iou"].tolist() == [0.25, 1.0]
    assert found["sweep_iou"].tolist() == [[0.25] * 10, [1.0] * 10]
    assert found["iou_error"] == pytest.approx([0.25 - 0.125, 1 - 0.25])  # the prediction at the label's g
    assert found["spearman"].tolist() == found["spearman_shuffled"].tolist() == [0.0, 0.0]
    assert found["end_iou"].tolist() == [1.0, 1.0]
    assert found["distinct_masks"].tolist() == [1.0, 1.0]


def test_shuffled_labels_are_those_of_other_objects_over_all_images() -> None:
    labels = np.round(np.linspace(0.1, 1.0, 37), 3)
    model = Squares()
    found = measured(model, image(*labels[:25]), image(*labels[25:]))
    # twelve questions an image: the label, the shuffled one, the sweep
    own, other = (np.concatenate([model.asked[at], model.asked[at + 12]]) for at in (0, 1))
    assert own == pytest.approx(labels, rel=1e-6)
    assert np.sort(other) == pytest.approx(labels, rel=1e-6)
    assert np.count_nonzero(own != other) > 30
    first = set(np.round(model.asked[1], 3).tolist())
    assert first - set(labels[:25].tolist()), "no label of the other image"
    shuffled = np.concatenate([each["shuffled_iou"] for each in found])
    assert shuffled == pytest.approx(expected_iou(other, labels))
    assert abs(np.median(np.concatenate([each["spearman_shuffled"] for each in found]))) < 0.3


def test_images_without_a_click_are_passed_over() -> None:
    model = Squares()
    [found] = measured(model, image(), image(0.5), image())
    assert found["label_iou"].tolist() == [1.0]
    assert len(model.images) == 1
    assert torch.equal(model.images[0], normalised_batch([image(0.5).image], torch.device("cpu")))
    with pytest.raises(InputError, match="no mask lies in its images"):
        measured(model, image())


# -- the figures of all clicks -----------------------------------------------------------------------------------------


def test_figures_worked_out_by_hand() -> None:
    """Three clicks labelled 0.5 and one labelled 1.0: of the fixed g, 0.5 is right three times and 1/4 once."""
    columns = measured(Squares(), image(0.5, 0.5, 0.5), image(1.0))
    found = dial_figures(columns)
    assert (found["clicks"], found["images"]) == (4, 2)
    assert found["iou_label_g"] == 1.0
    assert (found["best_fixed_g"], found["fixed_g_chosen_elsewhere"]) == (0.5, False)
    assert found["iou_best_fixed_g"] == pytest.approx((3 * 1 + 0.25) / 4)
    assert found["gain_over_fixed_g"]["value"] == pytest.approx((3 * 0 + 0.75) / 4)
    assert found["iou_best_of_10"] == 1.0
    assert found["area_spearman"] == 1.0
    assert abs(found["area_spearman_shuffled"]) < 1.0
    assert found["iou_low_high"] == pytest.approx(0.01)
    assert found["iou_error"] == pytest.approx((3 * 0.75 + 0.5) / 4)
    assert (found["area_violations"], found["nesting"], found["distinct_masks"], found["components"]) == (0, 1, 10, 1)
    shuffled = np.concatenate([each["shuffled_iou"] for each in columns]).mean()
    assert found["iou_shuffled_g"] == pytest.approx(shuffled)
    assert found["gain_over_shuffled_g"]["value"] == pytest.approx(1 - shuffled)


def test_a_fixed_g_chosen_elsewhere_is_taken_as_it_is() -> None:
    found = dial_figures(measured(Squares(), image(0.5, 0.5, 0.5), image(1.0)), fixed_g=0.8)
    assert (found["best_fixed_g"], found["fixed_g_chosen_elsewhere"]) == (0.8, True)
    at = expected_iou(0.8, [0.5, 0.5, 0.5, 1.0])
    assert found["iou_best_fixed_g"] == pytest.approx(at.mean())
    assert found["gain_over_fixed_g"]["value"] == pytest.approx(1 - at.mean())


def test_the_best_of_ten_is_no_average_and_hangs_on_no_label() -> None:
    found = dial_figures(measured(Squares(), image(0.25, 0.5)))
    assert found["iou_best_of_10"] == pytest.approx((expected_iou(0.3, 0.25) + 1) / 2)
    assert found["iou_best_of_10"] < found["iou_label_g"] == 1.0
    assert found["gain_over_fixed_g"]["value"] == pytest.approx(1.0 - found["iou_best_fixed_g"])


def test_the_best_fixed_g_counts_clicks_not_images() -> None:
    assert best_fixed_g(measured(Squares(), image(0.2, 0.2, 0.2, 0.2, 0.2), image(1.0), image(1.0))) == 0.2
    assert best_fixed_g(measured(Squares(), image(0.2), image(1.0), image(1.0))) == 1.0


def test_the_fixed_g_of_a_run_is_chosen_on_images_it_trains_on() -> None:
    shown: list[int] = []
    found = validate(
        Squares(),  # type: ignore[arg-type]
        Validation(images=(image(1.0), image(), image(1.0)), chosen_on=(image(0.2),)),
        show=lambda number, picture: shown.append(number),
    )
    assert (found["best_fixed_g"], found["fixed_g_chosen_elsewhere"]) == (0.2, True)
    assert found["iou_best_fixed_g"] == pytest.approx(0.04)
    assert (found["iou_label_g"], found["images"], shown) == (1.0, 2, [0, 2])


# -- gains and their intervals -----------------------------------------------------------------------------------------


def test_a_gain_is_a_mean_over_clicks() -> None:
    assert paired_gain([np.ones(3), np.zeros(1)])["value"] == 0.75
    assert paired_gain([np.array([0.25, -0.5])])["value"] == -0.125


def test_intervals_come_from_images() -> None:
    """Clicks that differ inside images alike say nothing new; one image or the other says all there is."""
    assert paired_gain([np.tile([1.0, -1.0], 50)] * 4) == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert paired_gain([np.ones(100), np.zeros(100)]) == {"value": 0.5, "low": 0.0, "high": 1.0}
    uneven = paired_gain([np.ones(1), np.zeros(3)] * 100)  # whose clicks count alike, drawn again or not
    assert 0.15 < uneven["low"] < uneven["value"] == 0.25 < uneven["high"] < 0.35


def test_an_interval_holds_nineteen_of_twenty_resampled_means() -> None:
    values = np.random.default_rng(3).normal(0.2, 1.0, 400)
    found = paired_gain([np.full(2, value) for value in values])
    half = 1.96 * values.std() / np.sqrt(400)
    assert found["value"] == pytest.approx(values.mean())
    assert found["low"] == pytest.approx(values.mean() - half, abs=0.12 * half)
    assert found["high"] == pytest.approx(values.mean() + half, abs=0.12 * half)


def test_iou_by_hand() -> None:
    one = np.array([[1, 1, 0], [0, 0, 0]], dtype=bool)
    other = np.array([[0, 1, 1], [1, 0, 0]], dtype=bool)
    nothing = np.zeros_like(one)
    assert iou(one, other) == 0.25
    assert iou(one, nothing) == 0.0
    assert iou(nothing, nothing) == 1.0
    assert iou(np.stack([[one, other], [nothing, one]]), one[None, None]).tolist() == [[1.0, 0.25], [0.0, 1.0]]


# -- what people see ---------------------------------------------------------------------------------------------------


def test_the_pictured_masks_are_those_of_five_granularities(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PICTURED == (0.1, 0.3, 0.5, 0.7, 1.0)
    sheets: list[dict[str, Any]] = []
    real = validation.contact_sheet

    def contact_sheet(image: Any, masks: Any, captions: Any, **more: Any) -> Any:
        sheets.append({"areas": [int(mask.sum()) for mask in masks], "captions": captions, **more})
        return real(image, masks, captions, **more)

    monkeypatch.setattr(validation, "contact_sheet", contact_sheet)
    example = image(0.5, 0.9)
    picture = five_granularities(Squares(), example, click=1)  # type: ignore[arg-type]
    [sheet] = sheets
    assert sheet["areas"] == [4**2, 12**2, 20**2, 28**2, 40**2]
    assert sheet["captions"] == ["g = 0.1", "g = 0.3", "g = 0.5", "g = 0.7", "g = 1.0"]
    assert sheet["points_xy"].tolist() == [example.points[1].tolist()]
    assert sheet["labels"].tolist() == [1]
    panels = np.split(picture, 6, axis=1)
    assert len({panel.tobytes() for panel in panels}) == 6
    clickless = replace(example, points=example.points[:1], granularity=example.granularity[:1])
    assert not np.array_equal(five_granularities(Squares(), clickless), picture)  # type: ignore[arg-type]


def test_a_model_whose_answers_are_all_empty_has_figures_too() -> None:
    """As in its first steps: no warning, and numbers that JSON can hold."""
    found = dial_figures(measured(Squares(deaf_at=0.001), image(0.25, 0.5)))
    assert found["iou_label_g"] == found["iou_best_of_10"] == 0.0
    assert all(np.isfinite(value) for value in found.values() if isinstance(value, float))
