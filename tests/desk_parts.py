"""What the tests of the desk share: a micro model, images, and messages as the page sends them."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

PERSON, OTHER = "person-one", "person-two"


def write_micro(path: Path) -> Path:
    """A micro model with random weights, as `train` writes it."""
    from model.network.checkpoint import write_checkpoint
    from model.network.load import checkpoint_record, new_model, trained_state

    model = new_model("micro", "full", 128, init="scratch", seed=3)
    state = {f"model.{name}": value for name, value in trained_state(model).items()}
    write_checkpoint(path, checkpoint_record(model, init="scratch"), state)
    return path


def write_images(folder: Path, count: int = 3) -> Path:
    """Small images of a few shapes, `1.png` to `N.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        image = Image.new("RGB", (96 + 8 * number, 72), (40, 60 + 20 * number, 90))
        draw = ImageDraw.Draw(image)
        draw.ellipse((10, 8, 58, 60), fill=(220, 80, 60))
        draw.ellipse((22, 18, 40, 36), fill=(250, 220, 80))
        draw.rectangle((66, 20, 90, 64), fill=(70, 190, 120))
        image.save(folder / f"{number}.png")
    return folder


def change(person: str = PERSON, **fields: Any) -> dict[str, Any]:
    """A change as the page sends it, with a mark of its own."""
    return {"person": person, "name": "Ada" if person == PERSON else "Bob", "request": uuid.uuid4().hex, **fields}


def prompt(*points: tuple[float, float], labels: list[int] | None = None, box: Any = None) -> dict[str, Any]:
    """Clicks, all inside unless told otherwise."""
    return {"points": [list(each) for each in points], "labels": labels or [1] * len(points), "box": box}


def pixels(counts: str, width: int, height: int) -> np.ndarray:
    """(H, W) bool of compressed run lengths."""
    from pipeline.format import rle

    return rle.decode({"size": [height, width], "counts": counts})
