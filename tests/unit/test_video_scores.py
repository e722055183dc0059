"""Video: a model whose tracks are known, and sam2's own predictor on real frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from model.evaluation.benchmarks.davis import read_davis2016
from model.evaluation.benchmarks.records import EvalVideo, Split
from model.evaluation.checkpoint import CheckpointModel
from model.evaluation.protocols.options import ModelOptions
from model.evaluation.protocols.run import measure_model
from model.evaluation.protocols.simulated_user import Click
from model.evaluation.protocols.video import Prompt, Sam2Video, as_video_model, video_row
from model.network.checkpoint import write_checkpoint
from model.network.load import build_sam2, checkpoint_record, new_model, trained_state
from pipeline.errors import InputError

OPTIONS = ModelOptions(label_rule="whole", fixed=(0.5,), resamples=50)


def object_at(frame: int, side: int) -> NDArray[np.bool_]:
    mask = np.zeros((48, 80), dtype=bool)
    mask[8 : 8 + side, 4 + 6 * frame : 4 + 6 * frame + side] = True
    return mask


@pytest.fixture
def video(tmp_path: Path) -> EvalVideo:
    frames, masks = [], []
    for number in range(5):
        frames.append(tmp_path / f"{number}.jpg")
        masks.append(tmp_path / f"{number}.png")
        Image.new("RGB", (80, 48), (10 * number, 50, 90)).save(frames[-1])
        Image.fromarray(object_at(number, 24).astype(np.uint8) * 255).save(masks[-1])
    return EvalVideo(name="drawn", frames=tuple(frames), masks=tuple(masks))


class Follows:
    """The object at g = 1, the upper left quarter of it at smaller g; without a g it stays where it was."""

    takes_granularity = answers_without = True

    def __init__(self) -> None:
        self.prompts: list[Prompt] = []
        self.is_open = False

    def open(self, frames: Sequence[Path]) -> None:
        self.frames, self.is_open = len(frames), True

    def close(self) -> None:
        self.is_open = False

    def propagate(self, prompts: Sequence[Prompt]) -> Iterator[NDArray[np.bool_]]:
        assert self.is_open
        self.prompts += prompts
        for frame in range(self.frames):
            yield np.stack([self.mask(frame, each.granularity) for each in prompts])

    def mask(self, frame: int, granularity: float | None) -> NDArray[np.bool_]:
        if granularity is None:
            return object_at(0, 24)
        return object_at(frame, 24 if granularity > 0.95 else 12)


def test_each_column_has_its_value(video: EvalVideo) -> None:
    model = Follows()
    row = video_row(model, video, OPTIONS)
    assert not model.is_open
    assert len(set(model.prompts)) == len(model.prompts)  # none twice
    for name in ("oracle", "label", "ignored", "best_of_10_clicks"):
        assert row[f"{name}.j"] == row[f"{name}.f"] == row[f"{name}.jf"] == 1.0, name
    assert row["oracle.granularity"] == 1.0
    assert row["fixed:0.50.j"] == pytest.approx(0.25)
    still = [(24 - 6 * frame) / (24 + 6 * frame) for frame in (1, 2, 3)]  # frames 0 and 4 are not scored
    for name in ("own", "held"):
        assert row[f"{name}.j"] == pytest.approx(np.mean(still)), name
    assert row["own.j_by_frame"] == pytest.approx(still)
    assert row["own.jf"] == pytest.approx((row["own.j"] + row["own.f"]) / 2)  # type: ignore[operator]
    assert row["oracle.drift"] == row["own.drift"] == 0.0


def test_video_metrics_and_their_mean(video: EvalVideo, tmp_path: Path) -> None:
    found = measure_model(Split(videos=(video,)), Follows(), ["video"], OPTIONS, tmp_path)
    assert found.counts["videos"] == 1
    assert found.metrics["video.label.jf"].value == 1.0
    assert found.metrics["video.label - held.jf"].value == pytest.approx(1 - found.metrics["video.held.jf"].value)


def test_what_cannot_be_scored_is_told(video: EvalVideo) -> None:
    class TooFew(Follows):
        def propagate(self, prompts: Sequence[Prompt]) -> Iterator[NDArray[np.bool_]]:
            yield from list(super().propagate(prompts))[:3]

    with pytest.raises(InputError, match="3 of 5 frames"):
        video_row(TooFew(), video, OPTIONS)
    short = EvalVideo(name="short", frames=video.frames[:2], masks=video.masks[:2])
    with pytest.raises(InputError, match="at least three frames"):
        video_row(Follows(), short, OPTIONS)
    with pytest.raises(InputError, match="videos"):
        as_video_model(object())


@pytest.fixture(scope="module")
def blackswan(shared_data: Path) -> EvalVideo:
    video = read_davis2016(shared_data / "davis2016-4seq", "val").videos[0]
    return EvalVideo(name=video.name, frames=video.frames[:4], masks=video.masks[:4])


def test_sam2s_own_video_predictor_on_real_frames(blackswan: EvalVideo) -> None:
    torch.manual_seed(0)
    model = as_video_model(build_sam2("micro", 64, video=True))
    assert isinstance(model, Sam2Video)
    clicks = [Click(x=400, y=200, positive=True), Click(x=100, y=300, positive=True)]
    model.open(blackswan.frames)
    together = list(model.propagate([Prompt(click, None) for click in clicks]))
    apart = [list(model.propagate([Prompt(click, None)])) for click in clicks]
    model.close()
    assert len(together) == 4
    assert together[0].shape == (2, 480, 854)
    for frame in range(4):  # objects that share a pass do not see each other
        assert np.array_equal(together[frame], np.concatenate([apart[0][frame], apart[1][frame]]))
    row: dict[str, Any] = video_row(model, blackswan, OPTIONS)
    assert {name.split(".")[0] for name in row} == {"own", "best_of_10_clicks", "held"}
    assert all(0 <= row[f"{name}.jf"] <= 1 for name in ("own", "held"))
    assert row["best_of_10_clicks.jf"] >= row["own.jf"]


def test_our_video_predictor_on_real_frames(blackswan: EvalVideo, tmp_path: Path) -> None:
    fresh = new_model("micro", "full", 64, init="scratch", seed=1)  # one that sees an object
    tensors = {f"model.{name}": value for name, value in trained_state(fresh).items()}
    write_checkpoint(tmp_path / "fresh.safetensors", checkpoint_record(fresh, init="scratch"), tensors)
    maker = CheckpointModel(path=str(tmp_path / "fresh.safetensors"), base=None, device="cpu", video=True)
    model = as_video_model(maker())
    assert isinstance(model, Sam2Video)
    assert model.takes_granularity
    prompts = [Prompt(Click(x=400, y=200, positive=True), g) for g in (0.1, 1.0, None)]
    model.open(blackswan.frames)
    together = list(model.propagate(prompts))
    alone = list(model.propagate(prompts[1:2]))
    model.close()
    for frame in range(4):
        assert np.array_equal(together[frame][1], alone[frame][0])
    assert any(not np.array_equal(masks[0], masks[2]) for masks in together)
    row: dict[str, Any] = video_row(model, blackswan, ModelOptions(label_rule="whole", fixed=(0.5,)))
    columns = {name.split(".")[0] for name in row}
    assert columns == {"oracle", "label", "fixed:0", "ignored", "own", "best_of_10_clicks", "held"}
    assert row["oracle.jf"] >= max(row["label.jf"], row["fixed:0.50.jf"])
