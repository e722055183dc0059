"""`grainmill segment`: what it writes, and one clear message for every wrong input."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.commands.segment import SegmentFlags
from pipeline import cli
from pipeline.format import rle

CAPTION, PICTURE = slice(None, 22), slice(22, None)
"""Rows of a contact sheet."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A micro model with random weights, as `train` writes it."""
    from model.network.checkpoint import write_checkpoint
    from model.network.load import checkpoint_record, new_model, trained_state

    path = tmp_path_factory.mktemp("model") / "micro.safetensors"
    model = new_model("micro", "full", 128, init="scratch", seed=3)
    state = {f"model.{name}": value for name, value in trained_state(model).items()}
    write_checkpoint(path, checkpoint_record(model, init="scratch"), state)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "square.png"
    pixels = np.full((60, 80, 3), 200, dtype=np.uint8)
    pixels[20:40, 30:60] = (180, 20, 20)
    Image.fromarray(pixels).save(path)
    return path


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))


def known_flags() -> set[str]:
    return {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(SegmentFlags)} | {"--as"}


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    code = cli.main(["segment", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert flags_in(err) <= known_flags()
    return code, json.loads(out) if out.startswith("{") else {}, err


def test_one_click_at_three_granularities_writes_a_picture_and_json(
    checkpoint: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, err = run(
        capsys, picture, "--checkpoint", checkpoint, "--point", "45,30", "--not-point", "5,5", "--granularity", "0.2,1",
        "--granularity", "none", "--output", tmp_path / "out", "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert found == json.loads((tmp_path / "out" / "square.masks.json").read_text())
    assert [each["granularity"] for each in found["annotations"]] == [0.2, 1.0, None]
    assert found["images"] == [{"id": 1, "file_name": "square.png", "width": 80, "height": 60}]
    for each in found["annotations"]:
        mask = rle.decode(each["segmentation"])
        assert mask.shape == (60, 80)
        assert each["area"] == mask.sum()
        assert 0.0 <= each["score"] <= 1.0
    with Image.open(tmp_path / "out" / "square.masks.png") as sheet:
        assert sheet.width == 4 * 320
    assert not list((tmp_path / "out").glob(".*"))


def test_the_demos_pictures_show_one_click_at_five_granularities(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo's own commands; the model answers with a square whose side is a fifth of the height times g."""
    from model.predict.image import GranularPredictor
    from pipeline.commands.demo import CLICKS, lay_out_photographs, steps

    asked: list[list[float]] = []

    def side(g: float) -> int:
        return round(0.2 * shape[0] * g)

    def predict(self: GranularPredictor, point_coords: Any, **more: Any) -> tuple[Any, Any, Any]:
        [[x, y]], granularity = point_coords.astype(int).tolist(), more["granularity"]
        asked.append(granularity)
        masks = np.zeros((len(granularity), *shape), dtype=bool)
        for mask, g in zip(masks, granularity, strict=True):
            mask[y : y + side(g), x : x + side(g)] = True
        return masks, np.full(len(masks), 0.5), None

    monkeypatch.setattr(GranularPredictor, "predict", predict)
    lay_out_photographs(tmp_path / "photographs")
    commands = [each.arguments for each in steps(tmp_path, train_steps=1, executor="inline", workers=1)]
    segmented = [each for each in commands if each[0] == "segment" and "--checkpoint" in each]
    assert len(segmented) == len(CLICKS)
    for _, photograph, *flags in segmented:
        flags[flags.index("--checkpoint") + 1] = str(checkpoint)
        with Image.open(photograph) as image:
            shape = (image.height, image.width)
        code, found, err = run(capsys, photograph, *flags, "--json")
        assert code == 0, err
        assert [each["granularity"] for each in found["annotations"]] == [0.1, 0.3, 0.5, 0.7, 1.0]
        assert [each["area"] for each in found["annotations"]] == [side(g) ** 2 for g in asked[-1]]
        with Image.open(tmp_path / "segments" / "student" / f"{Path(photograph).stem}.masks.png") as sheet:
            panels = np.split(np.asarray(sheet), 6, axis=1)
        captions, pictures = ({panel[part].tobytes() for panel in panels} for part in (CAPTION, PICTURE))
        assert (len(captions), len(pictures)) == (6, 6)
    assert asked == [[0.1, 0.3, 0.5, 0.7, 1.0]] * len(CLICKS)


def test_everything_writes_a_tree(
    checkpoint: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, err = run(
        capsys, picture, "--checkpoint", checkpoint, "--everything", "--granularity", "0.2,0.9", "--output", tmp_path,
        "--points-per-side", 4, "--min-predicted-iou", 0, "--min-stability", 0, "--max-masks", 20, "--json",
    )  # fmt: skip
    assert code == 0
    assert "segment: 32/32 clicks" in err
    assert found["everything"]["granularities"] == [0.2, 0.9]
    assert 1 <= len(found["annotations"]) <= 20
    for each in found["annotations"]:
        assert each["granularity"] in (0.2, 0.9)
        assert (each["parent_id"] is None) == (each["instance_id"] == each["id"])
    with Image.open(tmp_path / "square.masks.png") as sheet:
        assert sheet.width % 80 == 0
    assert cli.main(
        ["segment", str(picture), "--checkpoint", str(checkpoint), "--everything", "--granularity", "0.5",
         "--points-per-side", "2", "--min-predicted-iou", "1", "--output", str(tmp_path)]
    ) == 0  # fmt: skip
    assert "a lower --min-predicted-iou (it was 1) or --min-stability (0.6)" in capsys.readouterr().out
    code, _, err = run(capsys, picture, "--checkpoint", checkpoint, "--everything", "--point", "1,1")
    assert (code, "--everything clicks by itself" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--point", "80,10"], "point 80,10 lies outside the image of 80 x 60"),
        (["--point", "10"], "expected [N:]X,Y in pixels"),
        (["--box", "10,10,5,20"], "expected 0 <= X0 < X1 <= 80"),
        (["--point", "1,1", "--granularity", "0.05"], "expected a number in [0.1, 1.0]"),
        (["--point", "1,1", "--granularity", "nan"], "expected a number in [0.1, 1.0]"),
        (["--point", "1,1", "--granularity", "big"], "expected a number or `none`"),
        ([], "expected --point X,Y"),
        (["--point", "2:1,1"], "objects (N:) and --frame are for videos"),
        (["--point", "a:1,1"], "N a whole number"),
        (["--box", "1,1,9,9", "--box", "2,2,8,8"], "expected one for an object, found 2"),
        (["--point", "1,inf"], "expected [N:]X,Y in pixels, 2 numbers"),
        (["--point", "1,1", "--max-masks", "3"], "--max-masks is for --everything"),
        (["--everything", "--refine", "1"], "leave it out with --everything"),
    ],
)
def test_wrong_prompts_are_one_clear_message(
    arguments: list[str], message: str, checkpoint: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, picture, "--checkpoint", checkpoint, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_not_an_image_and_not_a_checkpoint(
    checkpoint: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "notes.jpg"
    text.write_text("not an image")
    code, _, err = run(capsys, text, "--checkpoint", checkpoint, "--point", "1,1")
    assert (code, "notes.jpg: not an image" in err) == (2, True)
    code, _, err = run(capsys, tmp_path / "gone.jpg", "--checkpoint", checkpoint, "--point", "1,1")
    assert (code, "expected an image, found nothing" in err) == (2, True)
    code, _, err = run(capsys, picture, "--checkpoint", text, "--point", "1,1")
    assert (code, "notes.jpg: expected a checkpoint" in err) == (2, True)
    code, _, err = run(capsys, picture, "--checkpoint", tmp_path, "--point", "1,1")
    assert (code, "a directory without checkpoints" in err) == (2, True)


def test_a_video_is_tracked_with_one_granularity_an_object(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for number in range(3):
        pixels = np.full((40, 60, 3), 210, dtype=np.uint8)
        pixels[10:30, 5 + 4 * number : 25 + 4 * number] = (200, 30, 30)
        Image.fromarray(pixels).save(folder / f"{number + 8}.png")
    code, found, err = run(
        capsys, folder, "--checkpoint", checkpoint, "--point", "1:15,20", "--point", "2:50,5", "--not-point", "2:15,20",
        "--granularity", "1:0.3", "--granularity", "2:none", "--frame", 1, "--output", tmp_path, "--json",
    )  # fmt: skip
    assert code == 0, err
    assert "segment: 3/3 frames" in err
    assert "its memory of earlier frames is untrained" in err
    assert found == json.loads((tmp_path / "clip.masks.json").read_text())
    assert {number: each["granularity"] for number, each in found["objects"].items()} == {"1": 0.3, "2": None}
    assert [(each["id"], each["frame"]) for each in found["images"]] == [(1, 0), (2, 1), (3, 2)]
    for each in found["annotations"]:
        assert each["granularity"] == {1: 0.3, 2: None}[each["object_id"]]
        assert rle.decode(each["segmentation"]).sum() == each["area"] > 0
    assert sorted(each.name for each in (tmp_path / "clip.masks").iterdir()) == ["00000.png", "00001.png", "00002.png"]
    for arguments, message in (
        (["--point", "1,1", "--frame", "3"], "--frame 3: expected 0 to 2"),
        (["--everything", "--as", "video"], "without --everything"),
        (["--point", "60,1"], "point 60,1 lies outside"),
        (["--point", "1,1", "--granularity", "0.1,0.2"], "expected one for object 1"),
        ([], "for at least one object"),
        (["--point", "1,1", "--refine", "1"], "without --everything and --refine"),
        (["--point", "1,1", "--point", "2:60,1"], "clip, object 2: point 60,1 lies outside"),
        (["--point", "1,1", "--granularity", "3:0.5"], "object 3 has a --granularity and nothing that points at it"),
        (["--point", "2:1,1", "--granularity", "0.5"], "object 1 has a --granularity and nothing that points at it"),
        (["--granularity", "0.5"], "--point [N:]X,Y, --not-point [N:]X,Y or --box [N:]X0,Y0,X1,Y1"),
    ):
        code, _, err = run(capsys, folder, "--checkpoint", checkpoint, *arguments)
        assert (code, message in err) == (2, True), err
        assert err.count("\n") == 1, "told before a model is loaded"
        assert "object" not in message or "--everything" not in err, "which videos refuse"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Three small frames."""
    folder = tmp_path / "clip"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (60, 40), (200, 30 * number, 30)).save(folder / f"{number}.png")
    return folder


def test_a_folder_is_called_by_its_whole_name_and_pictures_of_a_longer_video_go(
    checkpoint: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dotted, out = clip.rename(tmp_path / "clip.v2"), tmp_path / "out"
    monkeypatch.chdir(dotted)
    arguments = ("--checkpoint", checkpoint, "--point", "1,1", "--output", out, "--json")
    assert run(capsys, ".", *arguments)[0] == 0
    (out / "clip.v2.masks" / "notes.txt").write_text("not ours")
    (dotted / "2.png").unlink()
    code, _, err = run(capsys, dotted, *arguments)
    assert (code, "clip.v2.masks.json is of another file of that name" in err) == (2, True)
    assert run(capsys, dotted, *arguments, "--overwrite")[0] == 0
    assert sorted(each.name for each in out.iterdir()) == ["clip.v2.masks", "clip.v2.masks.json"]
    assert sorted(each.name for each in (out / "clip.v2.masks").iterdir()) == ["00000.png", "00001.png", "notes.txt"]


def everything_under(folder: Path) -> dict[str, bytes | None]:
    """Names and content."""
    return {str(each.relative_to(folder)): each.read_bytes() if each.is_file() else None for each in folder.rglob("*")}


@pytest.mark.parametrize("kind", ["click", "everything", "video"])
@pytest.mark.parametrize(
    ("output", "in_the_way", "message"),
    [
        ("file", "file", "cannot write {folder}/file: {folder}/file is a file; choose another --output"),
        ("file/deeper", "file", "cannot write {folder}/file/deeper: {folder}/file is a file; choose another --output"),
        ("out", "out/{name}.masks.json/", "{name}.masks.json: a folder has that name; choose another --output"),
        ("/proc/none", "unused", "cannot write /proc/none: no such file or directory; choose another --output"),
    ],
    ids=["a file", "below a file", "a folder of that name", "no place for folders"],
)
def test_an_output_that_cannot_be_is_one_clear_message(
    kind: str, output: str, in_the_way: str, message: str, checkpoint: Path, picture: Path, clip: Path,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = clip if kind == "video" else picture
    folder = tmp_path / "folder"
    obstacle = folder / in_the_way.format(name=source.stem)
    obstacle.parent.mkdir(parents=True)
    if in_the_way.endswith("/"):
        obstacle.mkdir()
    else:
        obstacle.write_text("in the way")
    before = everything_under(folder)
    few = ("--everything", "--points-per-side", 1) if kind == "everything" else ("--point", "1,1")
    code, _, err = run(capsys, source, "--checkpoint", checkpoint, *few, "--output", folder / output)
    *notes, told = err.strip().split("\n")
    assert (code, message.format(folder=folder, name=source.stem) in told) == (2, True), err
    assert all(any(word in each for word in ("segment: ", "memory of earlier", "taken as a video")) for each in notes)
    assert everything_under(folder) == before
