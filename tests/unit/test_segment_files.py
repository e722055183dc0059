"""`grainmill segment`'s files: what is read as images or a video, what is written, and what is never replaced."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.network.checkpoint import write_checkpoint
from model.network.granular import GranularSam2
from model.network.load import checkpoint_record, trained_state
from model.network.sam2_base import build_base
from model.predict.draw import contact_sheet
from model.predict.segment_image import everything_picture
from pipeline import cli
from pipeline.format import rle

Pixels = Any


def made_checkpoint(path: Path, *, empty: bool = False) -> Path:
    """Random weights, every object taken to be there; with `empty` the dial's masks have no pixel."""
    torch.manual_seed(3)
    model = GranularSam2("micro", "full", 64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sam_mask_decoder.transformer" in name and name.endswith("out_proj.weight"):
                parameter *= 6
            if empty and name.startswith("hypernetwork.layers.2"):
                parameter *= 0
        model.base.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(20.0)
    state = {f"model.{name}": value for name, value in trained_state(model).items()}
    write_checkpoint(path, checkpoint_record(model, init="scratch"), state)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_checkpoint(tmp_path_factory.mktemp("model") / "run" / "checkpoints" / "step-00000005.safetensors")


def noise(seed: int, height: int = 40, width: int = 60) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, seed: int, height: int = 40, width: int = 60, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed, height, width)).save(path, **more)
    return path


class Told:
    """What one call said."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        self.json = [json.loads(line) for line in out.splitlines() if line.startswith("{")]


@pytest.fixture
def segment(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object, output: Path = tmp_path / "out", weights: Path = checkpoint) -> Told:
        code = cli.main(
            ["segment", *map(str, arguments), "--checkpoint", str(weights), "--output", str(output), "--json"]
        )
        return Told(code, *capsys.readouterr())

    return run


EVERYTHING = ("--everything", "--granularity", "0.2,0.9", "--points-per-side", "3", "--min-predicted-iou", "0",
              "--min-stability", "0")  # fmt: skip
POINT = ("--point", "30,20")


def names_in(folder: Path) -> list[str]:
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())


# ---------------------------------------------------------------------------------------------------------------------
# What is read


def test_a_folder_is_images_with_everything_and_a_video_with_points(segment: Any, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for number in (1, 2, 10):
        save(folder / f"p{number}.jpg", number)
    (folder / "notes.txt").write_text("hello")
    (folder / "._p1.jpg").write_bytes(b"\0\5\x16\7")
    passed_over = "passed over: 1 hidden file (._p1.jpg), 1 other file (notes.txt)"
    images = segment(folder, *EVERYTHING)
    assert images.code == 0, images.err
    assert (
        f"{folder}: taken as 3 images, p1.jpg to p10.jpg (--as video: the frames of one); {passed_over}" in images.err
    )
    assert "segment: 54/54 clicks, image 3 of 3" in images.err
    assert [each["images"][0]["file_name"] for each in images.json] == ["p1.jpg", "p2.jpg", "p10.jpg"]
    for number, told in zip((1, 2, 10), images.json, strict=True):
        assert told == json.loads((tmp_path / "out" / f"p{number}.masks.json").read_text())
        alone = segment(folder / f"p{number}.jpg", *EVERYTHING)
        assert alone.json[0]["annotations"] == told["annotations"]
    video = segment(folder, *POINT)
    assert video.code == 0, video.err
    assert f"{folder}: taken as a video of 3 frames, p1.jpg to p10.jpg (--as images: each by itself); " in video.err
    assert passed_over in video.err
    assert [each["file_name"] for each in video.json[0]["images"]] == ["p1.jpg", "p2.jpg", "p10.jpg"]
    by_itself = segment(folder, *POINT, "--as", "images")
    assert f"{folder}: taken as 3 images, p1.jpg to p10.jpg; {passed_over}" in by_itself.err
    assert len(by_itself.json) == 3
    refused = segment(folder, *EVERYTHING, "--as", "video")
    assert (refused.code, "a video is segmented by --point" in refused.err) == (2, True)


def test_several_images_are_segmented_in_their_order(segment: Any, tmp_path: Path) -> None:
    b, a, sub = save(tmp_path / "b.png", 1), save(tmp_path / "a.png", 2, 44, 50), save(tmp_path / "more" / "c.png", 3)
    told = segment(b, a, sub.parent, *POINT, "--as", "images")
    assert told.code == 0, told.err
    assert [each["images"][0]["file_name"] for each in told.json] == ["b.png", "a.png", "c.png"]
    assert names_in(tmp_path / "out") == [f"{name}.masks.{end}" for name in ("a", "b", "c") for end in ("json", "png")]
    alone = segment(a, *POINT)
    assert alone.json[0] == told.json[1]
    outside = segment(b, a, "--point", "55,1")
    assert (outside.code, "a.png: point 55,1 lies outside the image of 50 x 44" in outside.err) == (2, True)
    objects = segment(b, a, "--point", "2:1,1")
    assert (objects.code, "are for videos; these are images" in objects.err) == (2, True)
    together = segment(b, sub.parent, *POINT)
    assert (together.code, "a video is segmented alone, found 2 inputs" in together.err) == (2, True)


def test_images_that_cannot_be_read_are_told_and_the_others_done(segment: Any, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for number in range(3):
        save(folder / f"{number}.png", number)
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:900])
    (folder / "3.jpg").write_text("no image")
    told = segment(folder, *POINT, "--as", "images")
    assert told.code == 2
    assert [each["images"][0]["file_name"] for each in told.json] == ["1.png", "2.png"]
    lines = told.err.splitlines()
    assert [line.split(": not an image")[0] for line in lines if "not an image" in line] == [
        str(folder / "0.png"), str(folder / "3.jpg"),
    ]  # fmt: skip
    assert lines[-1] == "grainmill segment: 2 of 4 images could not be read; the others are done"
    assert names_in(tmp_path / "out") == ["1.masks.json", "1.masks.png", "2.masks.json", "2.masks.png"]


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_damaged_images_are_refused_as_images_and_as_frames(kind: str, segment: Any, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    for number in range(2):
        save(folder / f"{number}.{kind}", number)
    bad = folder / f"1.{kind}"
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    for arguments in ((bad, *POINT), (bad, *EVERYTHING), (folder, *POINT)):
        told = segment(*arguments)
        assert (told.code, told.json) == (2, [])
        assert f"{bad}: not an image that can be read: " in told.err
    assert not (tmp_path / "out").exists()


def test_an_animation_is_a_video_with_points_and_its_first_frame_with_everything(segment: Any, tmp_path: Path) -> None:
    first, second = Image.fromarray(noise(1)), Image.fromarray(noise(2))
    for name in ("clip.gif", "clip.webp"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
        video = segment(tmp_path / name, *POINT, output=tmp_path / name[-3:])
        assert (video.code, len(video.json[0]["images"])) == (0, 2), video.err
        assert "taken as a video of 2 frames (--as images: each by itself)" in video.err
        image = segment(tmp_path / name, *EVERYTHING, output=tmp_path / f"all-{name[-3:]}")
        assert (image.code, len(image.json)) == (0, 1), image.err
        assert f"{name}: taken as an image, its first frame (--as video: all)" in image.err
    first.save(tmp_path / "still.gif")
    still = segment(tmp_path / "still.gif", *POINT)
    assert (still.code, still.err, still.json[0]["images"][0]["width"]) == (0, "", 60)
    (tmp_path / "cut.gif").write_bytes((tmp_path / "clip.gif").read_bytes()[:-900])
    cut = segment(tmp_path / "cut.gif", *POINT)
    assert (cut.code, "cut.gif: not an animation that can be read" in cut.err) == (2, True)
    named = segment(tmp_path / "clip.mp4", *POINT, "--as", "images")
    assert (named.code, "clip.mp4: a video; --as images is for folders" in named.err) == (2, True)
    wrong = segment(tmp_path / "still.gif", *POINT, "--as", "film")
    assert (wrong.code, "--as film: expected images or video" in wrong.err) == (2, True)


def test_an_image_that_is_too_large_is_told_without_flags_of_other_commands(segment: Any, tmp_path: Path) -> None:
    Image.new("1", (20_000, 6_000)).save(tmp_path / "huge.png")
    told = segment(tmp_path / "huge.png", *POINT)
    assert told.code == 2
    assert "huge.png: 20000 x 6000 pixels, more than the 100,000,000 that are taken; make it smaller" in told.err
    assert "--max" not in told.err


def test_frames_of_several_sizes_are_told_before_a_model_is_loaded(segment: Any, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for number in range(4):
        save(folder / f"{number}.png", number, height=40 + number // 3)
    told = segment(folder, *POINT, weights=tmp_path / "gone.safetensors")
    assert (told.code, "frame 3 (3.png) is 60 x 41 pixels, the first 60 x 40" in told.err) == (2, True)


def test_sam2s_own_weights_answer_without_a_granularity(segment: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    weights = tmp_path / "micro.pt"
    torch.save({"model": build_base("micro", 64).state_dict()}, weights)
    image = save(tmp_path / "a.png", 1)
    click = segment(image, *POINT, weights=weights)
    assert [each["granularity"] for each in click.json[0]["annotations"]] == [None], click.err
    told = segment(image, *POINT, "--granularity", "none,0.5", weights=weights)
    assert (told.code, "SAM-2's own weights, which know no granularity: leave --granularity out" in told.err) == (
        2,
        True,
    )
    everything = segment(image, *EVERYTHING[:1], *EVERYTHING[3:], weights=weights)
    assert everything.json[0]["everything"]["granularities"] == [None], everything.err
    for number in range(2):
        save(tmp_path / "clip" / f"{number}.png", number)
    video = segment(tmp_path / "clip", *POINT, weights=weights)
    assert video.json[0]["objects"]["1"]["granularity"] is None, video.err
    based = segment(image, *POINT, "--base", "nonsense.pt", weights=weights)
    assert (based.code, "micro.pt is a whole model and needs none; leave it out" in based.err) == (2, True)


# ---------------------------------------------------------------------------------------------------------------------
# What is written


def test_masks_are_written_as_images_of_ids_and_one_by_one(segment: Any, tmp_path: Path) -> None:
    image = save(tmp_path / "a.png", 1)
    for flags in ((*POINT, "--granularity", "0.1,0.8,none"), EVERYTHING):
        told = segment(image, *flags, "--masks", "ids", "--masks", "each")
        assert told.code == 0, told.err
        annotations = told.json[0]["annotations"]
        assert len(annotations) >= 2
        expected = np.zeros((40, 60), dtype=np.uint8)
        for each in sorted(annotations, key=lambda each: -each["area"]):
            mask = rle.decode(each["segmentation"])
            expected[mask] = each["id"]
            with Image.open(tmp_path / "out" / "a.masks.each" / f"{each['id']:05d}.png") as opened:
                assert opened.mode == "L"
                np.testing.assert_array_equal(np.asarray(opened), mask * 255)
        with Image.open(tmp_path / "out" / "a.masks.ids.png") as opened:
            assert opened.mode == "L"
            np.testing.assert_array_equal(np.asarray(opened), expected)
        assert len(list((tmp_path / "out" / "a.masks.each").iterdir())) == len(annotations)
    assert segment(image, *POINT).code == 0
    assert names_in(tmp_path / "out") == ["a.masks.json", "a.masks.png"], "nothing of the calls before stays"
    assert "--masks all: expected ids or each" in segment(image, *POINT, "--masks", "all").err


def test_masks_of_a_video_are_written_by_frame_and_object(segment: Any, tmp_path: Path) -> None:
    for number in range(2):
        save(tmp_path / "clip" / f"f{number}.png", number)
    points = ("--point", "1:10,10", "--point", "300:50,30")
    told = segment(tmp_path / "clip", *points, "--masks", "ids", "--masks", "each")
    assert told.code == 0, told.err
    found = {(each["image_id"] - 1, each["object_id"]): each for each in told.json[0]["annotations"]}
    assert found
    for frame in range(2):
        expected = np.zeros((40, 60), dtype=np.uint16)
        masks = {
            number: rle.decode(found[frame, number]["segmentation"]) for number in (1, 300) if (frame, number) in found
        }
        for number, mask in sorted(masks.items(), key=lambda each: -each[1].sum()):
            expected[mask] = number
        with Image.open(tmp_path / "out" / "clip.masks.ids" / f"{frame:05d}.png") as opened:
            assert opened.mode == "I;16"
            np.testing.assert_array_equal(np.asarray(opened), expected)
        for number in (1, 300):
            with Image.open(tmp_path / "out" / "clip.masks.each" / str(number) / f"{frame:05d}.png") as opened:
                np.testing.assert_array_equal(np.asarray(opened) > 0, masks.get(number, np.zeros((40, 60), dtype=bool)))
    big = segment(tmp_path / "clip", "--point", "70000:1,1", "--masks", "ids")
    assert (big.code, "a PNG holds objects 1 to 65535, found object 70000" in big.err) == (2, True)


def test_an_empty_answer_is_told_and_no_annotation(segment: Any, tmp_path: Path) -> None:
    weights = made_checkpoint(tmp_path / "empty.safetensors", empty=True)
    image = save(tmp_path / "a.png", 1)
    told = segment(image, *POINT, "--granularity", "0.3,none", weights=weights)
    assert [each["granularity"] for each in told.json[0]["annotations"]] == [None], told.err
    assert [each["id"] for each in told.json[0]["annotations"]] == [1]
    assert told.json[0]["granularities"] == [0.3, None]


def test_no_output_holds_a_path_of_this_machine(segment: Any, checkpoint: Path, tmp_path: Path) -> None:
    image = save(tmp_path / "private" / "a.png", 1)
    for number in range(2):
        save(tmp_path / "private" / "clip" / f"{number}.png", number)
    for arguments in ((image, *POINT), (image.parent / "clip", *POINT)):
        for weights, name in (
            (checkpoint, "run/checkpoints/step-00000005.safetensors"),
            (checkpoint.parent.parent, "run/checkpoints/step-00000005.safetensors"),
        ):
            told = segment(*arguments, "--masks", "ids", weights=weights)
            assert told.json[0]["checkpoint"] == name, told.err
            assert re.fullmatch("[0-9a-f]{64}", told.json[0]["source"]["sha256"])
    for each in (tmp_path / "out").rglob("*"):
        if each.is_file():
            assert b"private" not in each.read_bytes(), each
            assert str(tmp_path).encode() not in each.read_bytes(), each


def test_inputs_of_one_stem_have_outputs_each(segment: Any, tmp_path: Path) -> None:
    a, b, c = (save(tmp_path / name, seed) for seed, name in enumerate(("a.jpg", "a.png", "b.png")))
    told = segment(a, b, c, *POINT)
    assert told.code == 0, told.err
    assert names_in(tmp_path / "out") == [
        f"{name}.masks.{end}" for name in ("a.jpg", "a.png", "b") for end in ("json", "png")
    ]
    for name in ("a.jpg", "a.png", "b"):
        found = json.loads((tmp_path / "out" / f"{name}.masks.json").read_text())
        assert found["images"][0]["file_name"].startswith(name)
    other = save(tmp_path / "other" / "a.jpg", 9)
    same = segment(a, other, *POINT)
    assert (same.code, f"{a} and {other} would have the same outputs, a.jpg.masks.*" in same.err) == (2, True)
    d = save(tmp_path / "a.jpg.png", 5)
    assert segment(a, b, d, *POINT, output=tmp_path / "three").code == 0
    assert len(names_in(tmp_path / "three")) == 6


def test_outputs_of_another_input_are_never_replaced_unasked(segment: Any, tmp_path: Path) -> None:
    a, b, clip = save(tmp_path / "a.jpg", 1), save(tmp_path / "a.png", 2), tmp_path / "more" / "a"
    for number in range(2):
        save(clip / f"{number}.png", number)
    elsewhere = save(tmp_path / "other" / "a.jpg", 3)
    assert segment(a, *POINT, "--masks", "ids").code == 0
    before = {name: (tmp_path / "out" / name).read_bytes() for name in names_in(tmp_path / "out")}
    for other, whose in ((b, "a.jpg"), (elsewhere, "another file of that name"), (clip, "a.jpg")):
        told = segment(other, *POINT)
        assert told.code == 2
        assert f"a.masks.json is of {whose}, not of this {other.name}; --overwrite replaces it" in told.err
        assert {name: (tmp_path / "out" / name).read_bytes() for name in names_in(tmp_path / "out")} == before
    assert segment(a, *POINT, "--granularity", "0.3").code == 0, "the same input's are"
    assert segment(clip, *POINT, "--overwrite").code == 0
    assert names_in(tmp_path / "out") == ["a.masks.json", "a.masks/00000.png", "a.masks/00001.png"]
    (tmp_path / "out" / "a.masks.json").write_text("{}")
    told = segment(a, *POINT)
    assert (told.code, "a.masks.json is of something else" in told.err) == (2, True)


def test_a_folder_that_holds_outputs_is_segmented_again_without_them(segment: Any, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for number in range(2):
        save(folder / f"{number}.png", number)
    for _ in range(2):
        told = segment(folder, *EVERYTHING, "--masks", "ids", "--masks", "each", output=folder)
        assert (told.code, len(told.json)) == (0, 2), told.err
    assert "passed over: 8 outputs of segment (0.masks.each, 0.masks.ids.png, 0.masks.json, …)" in told.err


def test_a_panoramas_pictures_can_be_seen(segment: Any, tmp_path: Path) -> None:
    pixels, mask = noise(1, 300, 4000), np.zeros((300, 4000), dtype=bool)
    mask[50:200, 100:900] = True
    given: dict[str, Any] = {"points_xy": np.array([[300.0, 100.0]]), "labels": np.array([1])}
    sheet = contact_sheet(pixels, [mask, mask], ["a", "b"], **given)
    assert sheet.shape == (3 * (160 + 22), 2133, 3), "below each other, half a cell high"
    assert contact_sheet(noise(1, 60, 80), [mask[:60, :80]], ["a"], **given).shape == (240 + 22, 640, 3)
    assert contact_sheet(noise(1, 100, 200), [mask[:100, :200]], ["a"], **given).shape == (160 + 22, 640, 3)
    assert contact_sheet(noise(1, 20, 400), [mask[:20, :400]], ["a"], **given).shape == (2 * (20 + 22), 400, 3)
    assert everything_picture(pixels, []).shape == (300 + 22, 4000, 3)
    image = save(tmp_path / "wide.png", 1, 30, 120)
    assert segment(image, *EVERYTHING).code == 0
    with Image.open(tmp_path / "out" / "wide.masks.png") as opened:
        assert opened.width == 120
        assert opened.height % (30 + 22) == 0
        assert opened.height > 30 + 22
