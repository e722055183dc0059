"""The README's first picture: which mask a pixel shows at a granularity, and a file of rows and columns."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import dial_picture
from pipeline.dataset.labeled_image import LabeledImage
from pipeline.format import rle
from pipeline.format.schema import Annotation


def nested() -> LabeledImage:
    """A whole in the left half of 8 x 12, and a part in it."""
    made = []
    for number, (right, granularity) in enumerate(((6, 1.0), (3, 0.4))):
        mask = np.zeros((8, 12), dtype=bool)
        mask[:, :right] = True
        made.append(
            Annotation(
                id=number,
                segmentation=rle.encode(mask),
                bbox=(0, 0, right, 8),
                area=8 * right,
                granularity=granularity,
                instance_id=0,
                parent_id=0 if number else None,
                level=None,
                origin="conquer",
                score=None,
            )
        )
    return LabeledImage(annotations=tuple(made), height=8, width=12, pixels=np.full((8, 12, 3), 100, dtype=np.uint8))


@pytest.mark.parametrize(("granularity", "row"), [(0.3, [1] * 3 + [0] * 3), (0.4, [1] * 3 + [0] * 3), (0.5, [0] * 6)])
def test_the_smallest_mask_that_is_coarse_enough_is_shown(granularity: float, row: list[int]) -> None:
    assert dial_picture.shown(nested(), granularity).tolist() == [[*row, *[-1] * 6]] * 8


def test_photographs_are_rows_and_granularities_columns(tmp_path: Path) -> None:
    rgb = np.full((40, 60, 3), (30, 120, 60), dtype=np.uint8)
    rgb[8:30, 10:35] = (220, 60, 40)
    cv2.imwrite(str(tmp_path / "a.png"), rgb[:, :, ::-1])
    asked = [str(tmp_path / "a.png")] * 2 + ["--recipe", "default", "--granularity", "0.1,1.0"]
    assert dial_picture.main([*asked, "--output", str(tmp_path / "dial.png")]) == 0
    drawn = cv2.imread(str(tmp_path / "dial.png"))
    assert drawn is not None
    width = round(60 * dial_picture.ROW_PX / 40) + dial_picture.GAP_PX
    assert drawn.shape == (2 * (dial_picture.ROW_PX + dial_picture.TITLE_PX), 2 * width, 3)
    assert (drawn[: len(drawn) // 2] == drawn[len(drawn) // 2 :]).all()
