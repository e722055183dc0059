"""Berkeley: 100 objects on 96 photographs of BSDS.

Source: McGuinness and O'Connor, "A comparative evaluation of interactive segmentation algorithms", Pattern Recognition
2010; in the form that RITM, SimpleClick and GraCo share (`Berkeley.zip`). Licence: research. One split of 96 images and
100 objects; NoC@90. Layout: `images/NAME.jpg` and `masks/NAME.png`, 255 the object, 128 ignored; an image with
several objects has several masks.

Its photographs are BSDS's: leave them out of what a model is trained or tuned on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from .files import first_folder
from .grabcut import pair_up
from .records import Benchmark, Split


def read_berkeley(root: Path, split: str) -> Split:
    """The one split.

    Raises:
        InputError: a folder is missing, or an image has no mask.
    """
    del split
    folder = first_folder(root, ("", "Berkeley"), holding="masks")
    return Split(images=tuple(pair_up(folder / "images", folder / "masks")))


BENCHMARKS: Final = (
    Benchmark(
        name="berkeley",
        title="Berkeley, objects on photographs of BSDS",
        source="Berkeley.zip as RITM, SimpleClick and GraCo use it; McGuinness and O'Connor, Pattern Recognition 2010",
        licence="research",
        splits=("test",),
        objects="96 images, 100 objects",
        layout="images/NAME.jpg, masks/NAME.png (255 object, 128 ignored)",
        read=read_berkeley,
        tasks=("interactive",),
        published="berkeley",
    ),
)
