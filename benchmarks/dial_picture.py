"""The README's first picture: photographs as the dial shows their masks, a row for each, a column for each granularity.

    python -m benchmarks.dial_picture IMAGE... --output FILE [--recipe learned] [--boundaries FILE]
        [--granularity 0.1,0.3,0.5,0.7,1.0]

At each granularity a pixel has the colour of the smallest mask over it whose own granularity is no lower.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from model.evaluation.benchmarks.files import decoded_rgb
from model.network.adapters import granularity_values
from pipeline.dataset.labeled_image import LabeledImage
from pipeline.errors import GrainmillError
from pipeline.library import label_image

ROW_PX: Final = 210
"""Height of a photograph in the picture."""
TITLE_PX: Final = 26
GAP_PX: Final = 4
STRENGTH: Final = 0.5
"""Of a mask's colour over the photograph."""


def shown(labeled: LabeledImage, granularity: float) -> NDArray[np.int64]:
    """(H, W): the number of the smallest mask of at least this granularity over each pixel; -1 where there is none."""
    found = np.full((labeled.height, labeled.width), -1, dtype=np.int64)
    numbers = np.flatnonzero(labeled.granularity >= granularity)
    for number in numbers[np.argsort(-labeled.area_px[numbers], kind="stable")]:
        found[labeled.masks([number])[0]] = number
    return found


def coloured(labeled: LabeledImage, granularity: float) -> NDArray[np.uint8]:
    """The photograph under its masks' colours, with white borders; ROW_PX high."""
    height, width = ROW_PX, round(labeled.width * ROW_PX / labeled.height)
    photograph = cv2.resize(labeled.image, (width, height), interpolation=cv2.INTER_AREA)
    places = cv2.resize(
        shown(labeled, granularity).astype(np.int32), (width, height), interpolation=cv2.INTER_NEAREST
    ).reshape(height, width)
    hues = (np.arange(len(labeled) + 1) * 0.618034 * 180) % 180  # golden section: neighbours in number differ
    palette = np.stack([hues, np.full(hues.shape, 150), np.full(hues.shape, 235)], axis=1).astype(np.uint8)
    palette = cv2.cvtColor(palette[None], cv2.COLOR_HSV2RGB)[0]
    mixed = np.where(
        places[:, :, None] >= 0, (1 - STRENGTH) * photograph + STRENGTH * palette[places], photograph.astype(np.float64)
    )
    border = np.zeros((height, width), dtype=np.bool_)
    border[:, 1:] |= places[:, 1:] != places[:, :-1]
    border[1:] |= places[1:] != places[:-1]
    mixed[border] = 0.3 * mixed[border] + 0.7 * 255
    return np.rint(mixed).astype(np.uint8)


def picture(images: Sequence[LabeledImage], granularities: Sequence[float]) -> NDArray[np.uint8]:
    """Rows of photographs on white, each under its granularities."""
    rows = []
    for labeled in images:
        cells = []
        for value in granularities:
            cell = coloured(labeled, value)
            titled = np.full((TITLE_PX + cell.shape[0], cell.shape[1] + GAP_PX, 3), 255, dtype=np.uint8)
            titled[TITLE_PX:, : cell.shape[1]] = cell
            cv2.putText(
                titled, f"g = {value:g}", (6, TITLE_PX - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (30, 30, 30), 1, cv2.LINE_AA
            )
            cells.append(titled)
        rows.append(np.concatenate(cells, axis=1))
    whole = np.full((sum(len(row) for row in rows), max(row.shape[1] for row in rows), 3), 255, dtype=np.uint8)
    top = 0
    for row in rows:
        whole[top : top + len(row), : row.shape[1]] = row
        top += len(row)
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--output", required=True, help="A .jpg or .png file.")
    parser.add_argument("--recipe", default="learned", help="Of `grainmill mine`. Default: %(default)s.")
    parser.add_argument("--boundaries", help="Likewise.")
    parser.add_argument("--granularity", default="0.1,0.3,0.5,0.7,1.0", help="Columns. Default: %(default)s.")
    options = parser.parse_args(argv)
    try:
        granularities = granularity_values([float(each) for each in options.granularity.split(",")]).tolist()
        photographs = [decoded_rgb(Path(each).read_bytes(), where=each) for each in options.images]
        labeled = [label_image(each, recipe=options.recipe, boundaries=options.boundaries) for each in photographs]
    except (GrainmillError, OSError, ValueError) as error:
        parser.error(str(error))
    drawn = picture(labeled, granularities)
    if not cv2.imwrite(options.output, cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85]):
        parser.error(f"--output {options.output}: could not be written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
