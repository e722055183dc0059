"""`grainmill proposals FILE... --images DIR --output proposals.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from .flags import JsonFlag


@dataclass(frozen=True, kw_only=True)
class ProposalsFlags:
    """What `grainmill proposals` is asked for."""

    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="What a detector wrote, or folders of it: detectron2's coco_instances_results.json (CutLER's too), "
            "ultralytics' predictions.json, to_json or save_txt, SAM's automatic masks, SA-1B's, COCO's, "
            "`segment --everything`.",
        ),
    ]
    output: Annotated[Path, typer.Option(metavar="FILE", help="For `mine --proposals`, one JSON. No default.")]
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The images: each mask's is looked for there, and masks without one are counted and left out. Needed "
            "for save_txt [default: names stay as they are, `mine` matches them].",
        ),
    ] = None
    dataset: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The COCO file that the detector ran on, whose images say which file a number is "
            "[default: numbers are looked for in the images' names].",
        ),
    ] = None
    json: JsonFlag = False


def run(flags: ProposalsFlags) -> None:
    """What a detector wrote, as one file of proposals for `grainmill mine --divide proposals`."""
    from ..console import note, print_json
    from ..sources.detections import gather, write

    found = gather(flags.files, images=flags.images, dataset=flags.dataset)
    write(found, flags.output)
    masks, images = len(found.record["annotations"]), len(found.record["images"])
    lost = sum(found.unmatched.values())
    if flags.json:
        print_json(
            {
                "output": str(flags.output),
                "forms": dict(found.forms),
                "images": images,
                "masks": masks,
                "unmatched_images": len(found.unmatched),
                "unmatched_masks": lost,
                "without_mask": found.without_mask,
            }
        )
    else:
        print(f"{flags.output}: {masks:,} masks on {images:,} images ({', '.join(found.forms)})")
    if lost:
        first = ", ".join(list(found.unmatched)[:3])
        note(
            f"left out: {lost:,} masks of {len(found.unmatched):,} images that are not in {flags.images}, such as "
            f"{first}"
        )
    if found.without_mask:
        note(f"left out: {found.without_mask:,} entries without a mask (boxes, crowds, empty ones)")
