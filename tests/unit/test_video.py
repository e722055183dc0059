"""Video: g stays with its object, objects do not disturb each other, and without a g it is SAM-2's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from model.network.granular import GranularSam2
from model.network.sam2_base import build_base
from model.predict.video import Frames, GranularVideoPredictor
from pipeline.errors import InputError
from tests.loud import make_loud
from tests.numeric import assert_same_sums

FRAMES = 4
SIDE = 128
SIZE = (60, 80)


def drawn(frame: int) -> Any:
    """Two squares that move apart."""
    pixels = np.full((*SIZE, 3), 210, dtype=np.uint8)
    pixels[20:40, 10 + 3 * frame : 30 + 3 * frame] = (200, 30, 30)
    pixels[10:22, 60 - 4 * frame : 72 - 4 * frame] = (20, 60, 190)
    return pixels


class Tracked(NamedTuple):
    """What sam2's methods return, as numbers: a frame, the objects' ids, their logits (N, H, W)."""

    frame: int
    object_ids: tuple[int, ...]
    logits_NHW: Any


def tracked(answer: tuple[int, list[int], torch.Tensor]) -> Tracked:
    return Tracked(answer[0], tuple(answer[1]), answer[2][:, 0].numpy())


def propagate(predictor: GranularVideoPredictor, state: Any, **more: Any) -> list[Tracked]:
    return [tracked(each) for each in predictor.propagate_in_video(state, **more)]


@pytest.fixture(scope="module")
def frames() -> Frames:
    return Frames([drawn(frame) for frame in range(FRAMES)])


@pytest.fixture(scope="module")
def predictor() -> GranularVideoPredictor:
    """Random weights with loud attention and a loud dial; every object is taken to be there."""
    torch.manual_seed(3)
    model = GranularSam2("micro", "paper", SIDE, video=True)
    make_loud(model, dial=5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_b" in name:
                parameter += 0.1 * torch.randn_like(parameter)
        model.base.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(20.0)
        model.adopt_base()
    return GranularVideoPredictor(model.eval())


def track(predictor: GranularVideoPredictor, frames: Frames, **dial: float | None) -> list[Tracked]:
    """Objects "1" and "2", each clicked in its square on the first frame."""
    state = predictor.init_state(frames)
    for name, granularity in dial.items():
        point = [[20, 30]] if name == "one" else [[66, 16]]
        predictor.add_new_points_or_box(state, 0, 1 if name == "one" else 2, point, granularity=granularity)
    return propagate(predictor, state)


def test_all_objects_on_all_frames(predictor: GranularVideoPredictor, frames: Frames) -> None:
    found = track(predictor, frames, one=0.3, two=0.9)
    assert [each.frame for each in found] == list(range(FRAMES))
    for each in found:
        assert each.object_ids == (1, 2)
        assert each.logits_NHW.shape == (2, *SIZE)
        assert np.isfinite(each.logits_NHW).all()
        assert each.logits_NHW.min() > -1000, "an object was taken to be absent"


def test_each_object_has_its_own_granularity(predictor: GranularVideoPredictor, frames: Frames) -> None:
    both = track(predictor, frames, one=0.2, two=1.0)
    alone = {"one": track(predictor, frames, one=0.2), "two": track(predictor, frames, two=1.0)}
    for frame in range(FRAMES):
        for place, name in enumerate(("one", "two")):
            single = alone[name][frame].logits_NHW[0]
            assert_same_sums(both[frame].logits_NHW[place], single)
    swapped = track(predictor, frames, one=1.0, two=0.2)
    for frame in (0, FRAMES - 1):  # on the prompted frame and on those without a prompt
        difference = np.abs(both[frame].logits_NHW - swapped[frame].logits_NHW).max(axis=(1, 2))
        assert (difference > 1e-2).all()


def test_the_granularity_is_kept_with_the_object(predictor: GranularVideoPredictor, frames: Frames) -> None:
    state = predictor.init_state(frames)
    predictor.add_new_points_or_box(state, 0, 7, [[20, 30]], granularity=np.float32(0.4))
    predictor.add_new_points_or_box(state, 0, 9, [[66, 16]])
    assert state["granularity"] == {7: pytest.approx(0.4), 9: None}
    corrected = tracked(predictor.add_new_points_or_box(state, 0, 7, [[5, 5]], [0], clear_old_points=False))
    assert state["granularity"][7] == pytest.approx(0.4)
    assert corrected.object_ids == (7, 9)
    first = [each.logits_NHW for each in propagate(predictor, state)]
    again = [each.logits_NHW for each in propagate(predictor, state)]
    assert_same_sums(first, again)
    predictor.add_new_points_or_box(state, 0, 7, [[20, 30]], granularity=1)
    assert state["granularity"][7] == 1.0
    predictor.reset_state(state)
    assert state["granularity"] == {}
    assert not predictor.model.base.sam_mask_decoder.__dict__.get("forward"), "the decoder is sam2's again"


def test_mask_prompts_get_the_granularity_too(predictor: GranularVideoPredictor, frames: Frames) -> None:
    mask = np.zeros(SIZE, dtype=bool)
    mask[20:40, 10:30] = True
    later = []
    for granularity in (0.1, 1.0):
        state = predictor.init_state(frames)
        predictor.add_new_mask(state, 0, 1, mask, granularity=granularity)
        later.append([each.logits_NHW for each in propagate(predictor, state)][-1])
    assert np.abs(later[0] - later[1]).max() > 1e-2


def own_video(predictor: GranularVideoPredictor, folder: Path) -> list[Any]:
    """sam2's own class with the same weights, reading the same frames with its own loader."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from model.network import sam2_base

    config = sam2_base.base_config("micro", SIDE, video=True)
    own: Any = instantiate(
        OmegaConf.merge(config, {"_target_": "sam2.sam2_video_predictor.SAM2VideoPredictor"}), _recursive_=True
    ).eval()
    own.load_state_dict(predictor.model.base_state())
    state = own.init_state(str(folder))
    own.add_new_points_or_box(state, 0, 1, points=[[20, 30]], labels=[1])
    own.add_new_points_or_box(state, 0, 2, points=[[66, 16], [5, 5]], labels=[1, 0])
    return [(frame, logits[:, 0].numpy()) for frame, _, logits in own.propagate_in_video(state)]


def test_without_granularity_it_is_sam2s_own(predictor: GranularVideoPredictor, tmp_path: Path) -> None:
    for frame in range(FRAMES):
        Image.fromarray(drawn(frame)).save(tmp_path / f"{frame:05d}.jpg", quality=95)
    expected = own_video(predictor, tmp_path)
    state = predictor.init_state(Frames(tmp_path))
    predictor.add_new_points_or_box(state, 0, 1, [[20, 30]])
    predictor.add_new_points_or_box(state, 0, 2, [[66, 16], [5, 5]], [1, 0])
    found = propagate(predictor, state)
    assert [each.frame for each in found] == [frame for frame, _ in expected]
    for each, (_, logits) in zip(found, expected, strict=True):
        assert_same_sums(each.logits_NHW, logits)


def test_an_object_may_come_later(predictor: GranularVideoPredictor, frames: Frames) -> None:
    """Before its first prompt an object has memories of the future only, in sam2's own half precision."""
    state = predictor.init_state(frames)
    predictor.add_new_points_or_box(state, 0, 1, [[20, 30]], granularity=0.3)
    predictor.add_new_points_or_box(state, 2, 2, box=[50, 8, 68, 24], granularity=0.8)
    found = propagate(predictor, state)
    assert [each.object_ids for each in found] == [(1, 2)] * FRAMES
    back = propagate(predictor, state, start_frame_idx=2, reverse=True)
    assert [each.frame for each in back] == [2, 1, 0]
    assert all(np.isfinite(each.logits_NHW).all() for each in [*found, *back])


def test_one_object_with_and_one_without(predictor: GranularVideoPredictor, frames: Frames) -> None:
    mixed = track(predictor, frames, one=0.5, two=None)
    plain = track(predictor, frames, two=None)
    for frame in range(FRAMES):
        assert_same_sums(mixed[frame].logits_NHW[1], plain[frame].logits_NHW[0])


def test_attention_over_memory_is_fused(predictor: GranularVideoPredictor, frames: Frames) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(str(function))
            return function(*args, **(kwargs or {}))

    names: list[str] = []
    with Operations():
        track(predictor, frames, one=0.5)
    assert sum("scaled_dot_product" in name for name in names) > 20
    assert not [name for name in names if "softmax" in name]


def test_folders_are_read_in_natural_order_and_files_by_opencv(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for number in (1, 2, 10):
        Image.new("RGB", (12, 10), (number, 0, 0)).save(folder / f"f{number}.png")
    (folder / "notes.txt").write_text("not a frame")
    frames = Frames(folder)
    assert [int(frame[0, 0, 0]) for frame in frames] == [1, 2, 10]
    assert (frames.name, frames.width, frames.height) == ("clip", 12, 10)
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (SIZE[1], SIZE[0]))
    for number in range(3):
        writer.write(np.ascontiguousarray(drawn(number)[:, :, ::-1]))
    writer.release()
    frames = Frames(path)
    assert len(frames) == 3
    assert np.abs(frames[1].astype(int) - drawn(1)).mean() < 8


def test_frames_stand_in_the_order_that_people_read(tmp_path: Path) -> None:
    for number, names in enumerate(
        (
            ["scene_a_001", "scene_bb_001", "scene_c_001"],
            ["img", "img_1", "img_2", "img_10"],
            ["1", "2", "10", "a"],
            ["a1b2", "a1b10", "a2b1"],
            ["f01", "f2", "f10"],
            ["IMG_1", "img_2", "IMG_3"],
            ["x.1", "x.2", "x.10"],
            ["00000", "00001"],
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in reversed(names):
            Image.new("RGB", (4, 4)).save(folder / f"{name}.png")
        assert [each.stem for each in Frames(folder).files] == names


def test_what_is_no_frame_of_a_folder_is_counted(tmp_path: Path) -> None:
    for name in ("000.jpg", "001.jfif", "002", "003.JPG", "004.png"):
        Image.new("RGB", (12, 10)).save(tmp_path / name, format="PNG" if name.endswith("png") else "JPEG")
    assert Frames(tmp_path).remarks == ""
    for name in ("._000.jpg", ".DS_Store"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7\0\2")
    for name in ("Thumbs.db", "notes.txt", "a.nef", "b.gif", "no-end"):
        (tmp_path / name).write_bytes(b"II*\0 and more")
    (tmp_path / "sub").mkdir()
    frames = Frames(tmp_path)
    assert [each.name for each in frames.files] == ["000.jpg", "001.jfif", "002", "003.JPG", "004.png"]
    assert frames.remarks == (
        "passed over: 2 hidden files (.DS_Store, ._000.jpg), 5 other files (Thumbs.db, a.nef, b.gif, …), 1 folder (sub)"
    )
    assert len(list(frames)) == 5


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_animations_are_videos_frame_by_frame(kind: str, tmp_path: Path) -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    first, *others = [Image.new("RGB", (12, 10), colour) for colour in colours]
    path = tmp_path / f"clip.{kind}"
    first.save(path, save_all=True, append_images=others, lossless=True, duration=40)
    frames = Frames(path)
    assert [frame.shape for frame in frames] == [(10, 12, 3)] * 3
    for frame, colour in zip(frames, colours, strict=True):
        assert np.abs(frame[5, 5].astype(int) - colour).max() <= 5
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=f"clip.{kind}: "):
        Frames(path)


def test_frames_that_a_file_lacks_are_told(tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (SIZE[1], SIZE[0]))
    for noise in np.random.default_rng(0).integers(0, 256, (8, *SIZE, 3), dtype=np.uint8):
        writer.write(noise)
    writer.release()
    assert Frames(path).remarks == ""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    cut = Frames(path)
    assert 0 < len(cut) < 8
    assert cut.remarks == f"its header tells of 8 frames, {len(cut)} can be read"


def test_frames_are_paths_arrays_or_pillows_images(predictor: GranularVideoPredictor, tmp_path: Path) -> None:
    for frame in range(2):
        Image.fromarray(drawn(frame)).save(tmp_path / f"{frame}.png")
    answers = []
    for source in (
        tmp_path,
        str(tmp_path),
        Frames(tmp_path),
        [drawn(0), drawn(1)],
        np.stack([drawn(0), drawn(1)]),
        [Image.fromarray(drawn(0)), Image.fromarray(drawn(1))],
        (Image.open(tmp_path / "0.png"), drawn(1)),
    ):
        state = predictor.init_state(source)
        predictor.add_new_points_or_box(state, 0, 1, [[20, 30]], granularity=0.5)
        answers.append(np.stack([each.logits_NHW for each in propagate(predictor, state)]))
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([np.zeros((5, 6), dtype=np.uint8)], r"frame 0: expected \(H, W, 3\) uint8 RGB, found \(5, 6\) uint8"),
        ([np.zeros((5, 6, 4), dtype=np.uint8)], r"found \(5, 6, 4\) uint8"),
        ([np.zeros((5, 6, 3))], r"found \(5, 6, 3\) float64"),
        ([drawn(0), np.zeros((60, 80), dtype=np.uint8)], "frame 1: expected"),
        ([drawn(0), drawn(0)[:50]], "frame 1 is 80 x 50 pixels, the first 80 x 60"),
        ([Image.new("L", (6, 5))], r'expected an image of mode RGB, found L, 6 x 5; give image.convert\("RGB"\)'),
        ([torch.zeros(5, 6, 3)], "expected an array .* found Tensor"),
        (["frame.jpg"], "expected an array .* found str"),
        (drawn(0), r"frame 0: expected \(H, W, 3\) uint8 RGB, found \(80, 3\) uint8"),
        ([], "at least one frame"),
        (5, "expected a folder, a video file or a list of frames, found int"),
        ((drawn(frame) for frame in range(2)), "found generator"),
        ("missing", "missing: expected a folder of frames or a video file, found nothing"),
    ],
)
def test_what_is_no_video_is_one_clear_message(source: Any, message: str, predictor: GranularVideoPredictor) -> None:
    with pytest.raises(InputError, match=message):
        predictor.init_state(source)


def test_one_image_is_no_video_of_its_neighbours(tmp_path: Path) -> None:
    """OpenCV takes a_1.jpg for the pattern of a series."""
    for number in range(3):
        Image.new("RGB", (12, 10)).save(tmp_path / f"a_{number}.jpg")
    with pytest.raises(InputError, match="expected a folder of frames or a video file, found an image"):
        Frames(tmp_path / "a_0.jpg")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"points": [[float("nan"), 3]]}, "a coordinate is not a finite number"),
        ({"points": [[1, float("inf")]]}, "a coordinate is not a finite number"),
        ({"box": [1, 2, 3, float("nan")]}, "a coordinate is not a finite number"),
        ({"points": [[1, 3]], "labels": [5]}, r"expected labels 1 \(inside\) and 0 \(outside\)"),
        ({"points": [[1, 3]], "labels": [0.5]}, r"expected labels 1 \(inside\) and 0 \(outside\)"),
        ({"points": [[1, 3]], "labels": ["in"]}, "expected an array of numbers as labels"),
        ({"points": [[1, 3]], "labels": [1, 0]}, r"expected 1 labels, found \(2,\)"),
        ({"points": [["a", 3]]}, "expected an array of numbers as points"),
        ({"points": [[1, 2, 3]]}, r"expected points \(K, 2\), found \(1, 3\)"),
        ({"box": [1, 2, 3]}, "expected one box x0, y0, x1, y1, found 3 numbers"),
        ({"box": [1, 2, 3, 4], "labels": [1]}, "labels without points"),
    ],
)
def test_a_prompt_that_is_none_is_one_clear_message(
    prompt: dict[str, Any], message: str, predictor: GranularVideoPredictor, frames: Frames
) -> None:
    state = predictor.init_state(frames)
    with pytest.raises(InputError, match=message):
        predictor.add_new_points_or_box(state, 0, 1, **prompt)
    assert state["granularity"] == {}, "nothing was added"


def test_wrong_input_is_one_clear_message(predictor: GranularVideoPredictor, frames: Frames, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no image"):
        Frames(tmp_path)
    with pytest.raises(InputError, match="found nothing"):
        Frames(tmp_path / "gone.mp4")
    Image.new("RGB", (12, 10)).save(tmp_path / "a1.png")
    Image.new("RGB", (10, 12)).save(tmp_path / "a2.png")
    odd = Frames(tmp_path)
    with pytest.raises(InputError, match=r"frame 1 \(a2.png\) is 10 x 12 pixels, the first 12 x 10"):
        odd[1]
    (tmp_path / "a3.png").write_text("no image")
    with pytest.raises(InputError, match=r"a3.png: not an image"):
        Frames(tmp_path)[2]
    state = predictor.init_state(frames)
    with pytest.raises(InputError, match="a prompt for at least one object"):
        next(predictor.propagate_in_video(state))
    with pytest.raises(InputError, match="frame 4: expected 0 to 3"):
        predictor.add_new_points_or_box(state, 4, 1, [[1, 1]])
    with pytest.raises(InputError, match=r"granularity 1.5: expected a number in \[0.1, 1.0\]"):
        predictor.add_new_points_or_box(state, 0, 1, [[1, 1]], granularity=1.5)
    with pytest.raises(InputError, match="expected points or a box"):
        predictor.add_new_points_or_box(state, 0, 1)
    with pytest.raises(InputError, match="one value for an object, found 2"):
        predictor.add_new_points_or_box(state, 0, 1, [[1, 1]], granularity=[0.2, 0.4])
    with pytest.raises(InputError, match="expected a mask"):
        predictor.add_new_mask(state, 0, 1, np.zeros((3, 3), dtype=bool))
    with pytest.raises(InputError, match=r"expected a mask \(60, 80\) of bool, found \(60, 80\) float64"):
        predictor.add_new_mask(state, 0, 1, np.full(SIZE, -3.0))
    with pytest.raises(InputError, match=r"frame 0.5: expected 0 to 3"):
        predictor.add_new_points_or_box(state, 0.5, 1, [[1, 1]])  # type: ignore[arg-type]
    assert state["granularity"] == {}
    with pytest.raises(InputError, match="built for video"):
        GranularVideoPredictor(GranularSam2("micro", "lite", 64))
    assert build_base("micro", 64).__class__.__name__ == "SAM2Base"
