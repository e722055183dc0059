"""DAVIS: the 345 frames of the interactive protocol, and the sequences of DAVIS-2016.

Source: Perazzi et al., "A benchmark dataset and evaluation methodology for video object segmentation", CVPR 2016.
Licence: non-commercial research (CC BY-NC).

- `davis`: 345 frames of 50 sequences, all objects of a frame as one mask; NoC@90. Chosen by Jang and Kim (CVPR 2019),
  in the form that RITM, SimpleClick and GraCo share (`DAVIS.zip`). Layout: `img/NAME.jpg`, `gt/NAME.png`.
- `davis2016`: 20 sequences of val, 30 of train; J, F and J&F of one click on the first frame, carried on. Layout as
  downloaded: `JPEGImages/480p/SEQUENCE/N.jpg`, `Annotations/480p/SEQUENCE/N.png`, and `ImageSets/480p/SPLIT.txt`
  (2016) or `ImageSets/2016/SPLIT.txt` (2017's copy). Without the lists, the sequences of the official split that are
  there are taken, and a note says so.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from pipeline.errors import InputError
from pipeline.format import rle as rle_codec

from ..protocols.video import object_mask
from .files import alone, by_stem, existing, first_folder, matching_files, read_lines, with_stem
from .records import Benchmark, EvalImage, EvalObject, EvalVideo, GroundTruth, Split

VAL_2016: Final = (
    "blackswan", "bmx-trees", "breakdance", "camel", "car-roundabout", "car-shadow", "cows", "dance-twirl", "dog",
    "drift-chicane", "drift-straight", "goat", "horsejump-high", "kite-surf", "libby", "motocross-jump",
    "paragliding-launch", "parkour", "scooter-black", "soapbox",
)  # fmt: skip
TRAIN_2016: Final = (
    "bear", "bmx-bumps", "boat", "breakdance-flare", "bus", "car-turn", "dance-jump", "dog-agility", "drift-turn",
    "elephant", "flamingo", "hike", "hockey", "horsejump-low", "kite-walk", "lucia", "mallard-fly", "mallard-water",
    "motocross-bumps", "motorbike", "paragliding", "rhino", "rollerblade", "scooter-gray", "soccerball", "stroller",
    "surf", "swing", "tennis", "train",
)  # fmt: skip


def read_davis(root: Path, split: str) -> Split:
    """The 345 frames.

    Raises:
        InputError: a folder is missing, or a frame has no mask.
    """
    del split
    folder = first_folder(root, ("", "DAVIS"), holding="gt")
    frames = by_stem(matching_files(folder / "img"))
    images = [
        EvalImage(name=path.name, path=path, load=partial(load_frame, with_stem(folder / "gt", stem, (".png",))))
        for stem, path in frames.items()
    ]
    masks = [path for path in matching_files(folder / "gt", (".png",)) if path.stem not in frames]
    return Split(images=tuple(images), notes=alone(masks, without="its frame"))


def load_frame(path: Path) -> GroundTruth:
    """All objects of a frame as one.

    Raises:
        InputError: not a mask.
    """
    mask = object_mask(path)
    height, width = mask.shape
    one = EvalObject(id="0", mask=rle_codec.encode(mask), area_px=int(mask.sum()), granularity=1.0)
    return GroundTruth(height=height, width=width, objects=(one,))


def read_davis2016(root: Path, split: str) -> Split:
    """The sequences of a split.

    Raises:
        InputError: a sequence, a frame or an annotation is missing.
    """
    folder = first_folder(root, ("", "DAVIS"), holding="JPEGImages/480p")
    names, notes = _sequences(folder, split)
    videos = []
    for name in names:
        frames = by_stem(matching_files(folder / "JPEGImages" / "480p" / name, (".jpg",)))
        annotated = folder / "Annotations" / "480p" / name
        masks = [existing(annotated / f"{stem}.png") for stem in frames]
        for path in matching_files(annotated, (".png",)):
            if path.stem not in frames:
                raise InputError(
                    f"{path}: an annotation without its frame; expected "
                    f"{folder / 'JPEGImages' / '480p' / name / path.stem}.jpg"
                )
        videos.append(EvalVideo(name=name, frames=tuple(frames.values()), masks=tuple(masks)))
    return Split(videos=tuple(videos), notes=notes)


def _sequences(folder: Path, split: str) -> tuple[list[str], tuple[str, ...]]:
    for lists in ("480p", "2016"):
        path = folder / "ImageSets" / lists / f"{split}.txt"
        if path.is_file():  # a line is "SEQUENCE", or "/JPEGImages/480p/SEQUENCE/N.jpg /Annotations/…"
            parts = [line.split()[0].strip("/").split("/") for line in read_lines(path)]
            return list(dict.fromkeys(each[-2] if len(each) > 1 else each[0] for each in parts)), ()
    official = VAL_2016 if split == "val" else TRAIN_2016
    present = [name for name in official if (folder / "JPEGImages" / "480p" / name).is_dir()]
    if not present:
        raise InputError(
            f"{folder / 'ImageSets' / '480p' / f'{split}.txt'}: missing, and none of the {len(official)} sequences of "
            f"{split} lies in {folder / 'JPEGImages' / '480p'}"
        )
    note = f"no ImageSets list: {len(present)} of the {len(official)} sequences of the official {split} are here"
    return present, (note,)


_LICENCE: Final = "non-commercial research (CC BY-NC)"

BENCHMARKS: Final = (
    Benchmark(
        name="davis",
        title="DAVIS, 345 frames, all objects of a frame as one",
        source="DAVIS.zip as RITM, SimpleClick and GraCo use it; Perazzi et al., CVPR 2016; Jang and Kim, CVPR 2019",
        licence=_LICENCE,
        splits=("test",),
        objects="345 frames, 345 objects",
        layout="img/NAME.jpg, gt/NAME.png",
        read=read_davis,
        tasks=("interactive",),
        published="davis",
    ),
    Benchmark(
        name="davis2016",
        title="DAVIS-2016, one click and g on the first frame",
        source="DAVIS-data.zip (davischallenge.org); Perazzi et al., CVPR 2016",
        licence=_LICENCE,
        splits=("val", "train"),
        objects="val 20 sequences, train 30 sequences, one object each",
        layout="JPEGImages/480p/SEQUENCE/N.jpg, Annotations/480p/SEQUENCE/N.png, ImageSets/480p/SPLIT.txt",
        read=read_davis2016,
        tasks=("video",),
    ),
)
