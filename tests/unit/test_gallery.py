"""The gallery's files: equal for equal runs, complete, without anything that could leave its script."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.dataset.open import open_dataset
from pipeline.release import gallery

FILES = ["gallery.html", "gallery/images-00000.js", "gallery/index.js", "gallery/thumbs-0000.js"]
"""Of up to eight images."""


def value_of(path: Path) -> object:
    """What a chunk hands to the page, after a check that it is one call and nothing else."""
    text = path.read_text(encoding="ascii")
    assert text.startswith(f'grainmill.take("{path.stem}", ')
    assert text.endswith(");\n")
    assert not set("<>&") & set(text)
    return json.loads(text[len(f'grainmill.take("{path.stem}", ') : -3])


def test_two_galleries_of_one_run_are_equal(drawn_run: Path, tmp_path: Path) -> None:
    run = open_dataset(drawn_run)
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        written.append(gallery.write_gallery(run, tmp_path / name, title="t"))
    assert written[0] == written[1] == FILES
    for name in written[0]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    found = sorted(str(path.relative_to(tmp_path / "one")) for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert found == written[0]


def test_the_index_has_every_image_and_failure(drawn_run: Path, tmp_path: Path) -> None:
    gallery.write_gallery(open_dataset(drawn_run), tmp_path, title="<script>")
    index = value_of(tmp_path / "gallery" / "index.js")
    assert isinstance(index, dict)
    assert index["title"] == "<script>"
    assert len(index["rows"]) == 7
    assert [row["reason"] for row in index["failures"]] == ["unsupported_format"]
    rows = [dict(zip(index["columns"], row, strict=True)) for row in index["rows"]]
    assert {(row["masks"], row["instances"]) for row in rows} == {(5, 3)}
    assert {row["granularity"] for row in rows} == {1.0}
    images = value_of(tmp_path / "gallery" / "images-00000.js")
    assert isinstance(images, list)
    assert [record["key"] for record in images] == [row["key"] for row in rows]


def test_a_limit_leaves_images_out_and_the_totals_stand(drawn_run: Path, tmp_path: Path) -> None:
    written = gallery.write_gallery(open_dataset(drawn_run), tmp_path, title="t", limit=3)
    assert written == FILES
    index = value_of(tmp_path / "gallery" / "index.js")
    assert isinstance(index, dict)
    assert (len(index["rows"]), index["totals"]["samples"]) == (3, 7)


def test_images_are_spread_over_chunks(drawn_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "IMAGES_PER_CHUNK", 3)
    monkeypatch.setattr(gallery, "THUMBS_PER_CHUNK", 7)
    written = gallery.write_gallery(open_dataset(drawn_run), tmp_path, title="t")
    assert written == sorted([*FILES, "gallery/images-00001.js", "gallery/images-00002.js"])
    assert [len(value_of(tmp_path / "gallery" / f"images-{number:05d}.js")) for number in range(3)] == [3, 3, 1]  # type: ignore[arg-type]


def test_a_run_without_images_has_no_pictures(tmp_path: Path, write_drawn_run) -> None:  # type: ignore[no-untyped-def]
    run = open_dataset(write_drawn_run(tmp_path / "run", images=False))
    (tmp_path / "out").mkdir()
    gallery.write_gallery(run, tmp_path / "out", title="t")
    assert value_of(tmp_path / "out" / "gallery" / "thumbs-0000.js") == [None] * 7
