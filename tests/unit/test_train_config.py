"""How a run is carried out by default, what goes together, and what a run may be resumed with."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from model.data.sampler import Order
from model.network.adapters import Adapter
from model.network.click_features import Sight
from model.training.config import TrainConfig, loader_processes, make_config, resumed_config
from model.training.flags import TrainFlags
from model.training.losses import LossWeights
from model.training.options import train_options
from pipeline import cli
from pipeline.errors import ConfigMismatchError, InputError


@pytest.mark.parametrize(
    ("asked", "on_gpu", "expected"), [(None, False, 0), (None, True, 4), (0, True, 0), (2, False, 2), (7, True, 7)]
)
def test_a_gpu_has_loader_processes_unless_other_ones_are_asked_for(
    asked: int | None, on_gpu: bool, expected: int
) -> None:
    assert loader_processes(asked, on_gpu=on_gpu) == expected


def config(init: str = "scratch", adapter: Adapter | None = None, **given: Any) -> TrainConfig:
    always = {"order": Order(), "seed": 0, "min_masks": 1, "holdout": 0.0, "precision": "fp32"}
    return make_config("micro", init, adapter, **always, **given)


def test_what_is_added_to_the_decoder_is_on_from_scratch_and_off_beside_a_base() -> None:
    scratch, tuned = config(), config("base.pt")
    assert scratch.sight == Sight(click_features=True, similarity="place")
    assert (scratch.dense_anchors, scratch.wholes_only, scratch.loss_stride) == (48, False, 4)
    assert (tuned.sight, tuned.dense_anchors, tuned.wholes_only, tuned.loss_stride) == (Sight(), 0, False, 2)
    assert not scratch.smallest_parts
    assert not tuned.smallest_parts
    for given in ({"click_features": False}, {"similarity": "off"}, {"similarity": "features"}):
        assert config(**given).sight == dataclasses.replace(scratch.sight, **given)
    assert config("base.pt", similarity="features").sight == Sight(similarity="features")
    assert config(similarity=None, click_features=None) == scratch


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"similarity": "colour"}, "--similarity colour: expected one of off, features, place"),
        ({"dense_weight": -1.0}, "--dense-weight -1.0: expected 0 or above"),
        (
            {"init": "base.pt", "dense_anchors": 8},
            "--dense-anchors 8: it trains the encoder's features, which --adapter paper leaves as they are",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"similarity": "off"}, "sight: .*'similarity': 'place'.* there, .*'similarity': 'off'.* now"),
        ({"dense_anchors": 4}, "dense_anchors: 48 there, 4 now"),
        ({"dense_weight": 0.5}, "dense_weight: 1.0 there, 0.5 now"),
        ({"wholes_only": True}, "wholes_only: False there, True now"),
        ({"smallest_parts": True}, "smallest_parts: False there, True now"),
    ],
)
def test_a_run_goes_on_with_the_same_values_only(given: dict[str, Any], message: str) -> None:
    saved = json.loads(json.dumps(config().to_json()))
    assert resumed_config(saved, config(), where="run") == config()
    with pytest.raises(ConfigMismatchError, match=message):
        resumed_config(saved, config(**given), where="run")


def test_a_run_from_before_the_additions_goes_on_without_them() -> None:
    added = ("sight", "dense_anchors", "dense_weight", "wholes_only", "smallest_parts")
    saved = {name: value for name, value in config("base.pt").to_json().items() if name not in added}
    old = config("base.pt", smallest_parts=True)
    assert resumed_config(saved, old, where="run") == old
    with pytest.raises(ConfigMismatchError, match="smallest_parts: True there, False now"):
        resumed_config(saved, config("base.pt"), where="run")


def test_a_dry_run_counts_what_is_added_and_what_is_left_behind(capsys: pytest.CaptureFixture[str]) -> None:
    """Width 64, maps of 64, 8 and 16 channels; the dense loss's network reads g and 8 channels."""
    counts = []
    for more in (["--similarity", "off", "--no-click-features", "--dense-anchors", "0"], ["--similarity", "place"]):
        assert cli.main(["train", "--dry-run", "--json", *more]) == 0
        counts.append(json.loads(capsys.readouterr().out))
    added = 2 * (88 * 64 + 64) + (72 * 3 + 3) + 1
    assert counts[1]["added_parameters"] - counts[0]["added_parameters"] == added
    assert counts[1]["trainable_parameters"] - counts[0]["trainable_parameters"] == added
    assert [each["training_only_parameters"] for each in counts] == [0, 9 * 64 + 64 + 64 * 64 + 64 + 64 * 3 + 3]


def test_beside_sam2_the_similarity_term_is_a_few_hundred_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    """Width 256 and 32 channels at stride 4: two rows of weights with their biases, and the gate."""
    counts = []
    for similarity in ("off", "features"):
        command = ["train", "--dry-run", "--json", "--size", "tiny", "--adapter", "paper", "--similarity", similarity]
        assert cli.main(command) == 0
        counts.append(json.loads(capsys.readouterr().out)["added_parameters"])
    assert counts[1] - counts[0] == 2 * (256 + 32) + 2 + 1 == 579


def test_a_micro_student_is_trained_on_as_it_was_trained() -> None:
    begun, goes_on = config(), config("run/", "full")
    assert dataclasses.replace(goes_on, init="scratch") == begun
    assert config("base.pt").clicks == 4  # an adapter beside a base: the paper's recipe


def test_an_adapter_may_take_the_loss_of_the_recipe_from_scratch() -> None:
    def chosen(**flags: Any) -> LossWeights:
        return train_options(TrainFlags(size="micro", device="cpu", **flags))[0].loss

    beside: dict[str, Any] = {"init": "base.pt", "adapter": "paper"}
    assert chosen(**beside) == chosen(**beside, loss="paper") == chosen(loss="paper") == LossWeights()
    assert chosen(**beside, loss="scratch") == chosen() == config().loss != LossWeights()
    with pytest.raises(InputError, match="--loss focal: expected one of paper, scratch"):
        chosen(loss="focal")
    saved = json.loads(json.dumps(config("base.pt").to_json()))
    with pytest.raises(ConfigMismatchError, match=r"loss: .*'focal': 20\.0.* there, .*'focal': 0\.0.* now"):
        resumed_config(saved, config("base.pt", loss=config().loss), where="run")
