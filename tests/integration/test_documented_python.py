"""Every Python block of README.md and docs/ runs: a page's blocks in order, in one process, as a reader copies them.

The folder they run in holds small things at the paths that the pages use: `photos/` and `photo.jpg`, `frames/` (of a
video), `out/` (a run), `coco/` (its export), `rel/` (its release), `run/` (a micro student with weights made at
random). A block that begins with a comment `# not run here: WHY` is compiled only.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

REPOSITORY = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
NOT_RUN = "# not run here: "
MOST_LINES = 12
"""Of a block, so that it can be taken in at a glance."""
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
MADE_BY_PAGE = {"README.md": ("out", "rel"), "laptop.md": ("out",), "publish.md": ("rel",)}
"""What a page makes itself, so that it must not be there before."""


def blocks(page: Path) -> Iterator[tuple[int, str]]:
    """The line at which each block begins, and its text."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        lines = [line.removeprefix(found[1]) for line in found[2].splitlines()]
        yield text[: found.start()].count("\n") + 2, "\n".join(lines) + "\n"


def draw(path: Path, number: int) -> None:
    """A photograph of 160 x 120 with two things on a ground."""
    image = Image.new("RGB", (160, 120), (70, 110 + 10 * number, 80))
    pen = ImageDraw.Draw(image)
    pen.ellipse((90 - 6 * number, 50, 150 - 6 * number, 108), fill=(200, 60, 40))
    pen.rectangle((100 - 6 * number, 66, 120 - 6 * number, 90), fill=(250, 220, 60))
    pen.rectangle((10, 12 + 4 * number, 50, 60 + 4 * number), fill=(40, 60, 190))
    noise = np.random.default_rng(number).normal(0, 1, (120, 160, 3))
    Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages use, made once."""
    import pipeline
    from model.network.checkpoint import write_checkpoint
    from model.network.load import checkpoint_record, new_model, trained_state
    from pipeline.dataset.export import export_run
    from pipeline.dataset.open import open_dataset

    folder = tmp_path_factory.mktemp("prepared")
    for name, count in (("photos", 4), ("frames", 3)):
        (folder / name).mkdir()
        for number in range(count):
            draw(folder / name / f"{number}.jpg", number)
    shutil.copy(folder / "photos" / "0.jpg", folder / "photo.jpg")
    pipeline.mine(folder / "photos", folder / "out", executor="inline")
    pipeline.build_release(folder / "out", folder / "rel", name="my-masks", version="1.0.0", license="CC-BY-4.0")
    export_run(open_dataset(folder / "out"), folder / "coco", layout="coco")
    model = new_model("micro", "full", 128, init="scratch", seed=3)
    state = {f"model.{name}": value for name, value in trained_state(model).items()}
    (folder / "run" / "checkpoints").mkdir(parents=True)
    path = folder / "run" / "checkpoints" / "step-00000001.safetensors"
    write_checkpoint(path, checkpoint_record(model, init="scratch"), state)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_the_blocks_of_a_page_run(page: Path, prepared: Path, tmp_path: Path) -> None:
    script = []
    for line, block in blocks(page):
        compile(block, f"{page.name}:{line}", "exec")
        assert block.count("\n") <= MOST_LINES, f"{page.name}:{line}: more than {MOST_LINES} lines"
        if not block.startswith(NOT_RUN):
            script.append(f"exec(compile({block!r}, '{page.name}:{line}', 'exec'))")
    if not script:
        return
    for entry in prepared.iterdir():
        if entry.name not in MADE_BY_PAGE.get(page.name, ()):
            copy = shutil.copytree if entry.is_dir() else shutil.copy
            copy(entry, tmp_path / entry.name)
    (tmp_path / "page.py").write_text("\n".join(script), encoding="utf-8")
    command = [sys.executable, "-W", "ignore", "page.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_is_not_run_says_why() -> None:
    found = [(page.name, block.splitlines()[0]) for page in PAGES for _, block in blocks(page)]
    assert len(found) >= 6
    kept = [(name, first) for name, first in found if first.startswith(NOT_RUN)]
    assert all(len(first) > len(NOT_RUN) + 8 for _, first in kept), kept
    assert len(kept) <= len(found) / 3
