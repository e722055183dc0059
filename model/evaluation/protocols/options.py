"""How a model is scored: the protocol's constants and the run's own, frozen, written into `scores.json` as they are."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Final, Literal, get_args

from pipeline.errors import InputError
from pipeline.format.granularity import GRANULARITIES

from ..benchmarks.records import LabelRule
from ..bootstrap import RESAMPLES
from ..flags import ScoreFlags
from .controls import JITTER_CLICKS, JITTER_RADIUS, SWEEP, constant_granularity
from .simulated_user import MAX_CLICKS

ModelTask = Literal["whole", "interactive", "sweep", "pairs", "video", "annotators"]
MODEL_TASKS: Final[tuple[ModelTask, ...]] = get_args(ModelTask)

_JSON_NAMES: Final = {
    "pred_iou_thresh": "pred_iou_threshold", "stability_score_thresh": "stability_threshold", "max_iou": "nms_iou",
}  # fmt: skip
"""In `scores.json`."""


@dataclass(frozen=True, kw_only=True)
class AnnotatorOptions:
    """What the simulated annotators can do, see `annotators.py`."""

    area_error: float = 0.2
    """Standard deviation of the log of a judged area: one of 20 %."""
    max_turns: int = 3
    """How often the dial is turned before the clicks that correct."""
    click_radius: float = 0.5
    """Clicks fall within this share of the distance from the middle of an error to its border."""
    target_iou: float = 0.90
    """A mask that is as good is right, and the person stops."""
    own_masks: bool = True
    """SAM-2's own masks may be asked for; False where nothing trained them."""

    @property
    def looks_right(self) -> float:
        """Log of areas whose difference is not acted on: what the judgement's error would hide."""
        return math.log1p(self.area_error)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """One scoring of a model. The first group belongs to the benchmark, the second to the caller, the third to the run
    and changes no number."""

    label_rule: LabelRule = "none"
    matching: Literal["one-to-one", "best"] = "one-to-one"
    """COCO's matching, or the best IoU of each object where people drew the same region several times."""
    target_iou: float = 0.9
    """Clicks end here; 0.85 for the part sets."""

    oracle: bool = True
    """The paper's protocol, the best of ten g by the ground truth; costs ten series of clicks an object."""
    label: bool = True
    """The protocol's own g of each object, where it has one."""
    fixed: tuple[float, ...] = (0.1, 0.5, 1.0)
    """One column each; these always go to their end."""
    controls: bool = True
    """The controls of `controls.py`; leave them out only to look at something else."""
    max_clicks: int = MAX_CLICKS
    objects_per_image: int | None = None
    """At most so many objects of an image get clicks, drawn by the seed; None: all."""
    disjoint_objects: bool = False
    """Those drawn do not overlap, as GraCo's protocol for SA-1B has it."""
    points_per_side: int = ScoreFlags.points_per_side
    """Clicks a side of the whole-image grid; 32 is SAM-2's own."""
    pred_iou_thresh: float = ScoreFlags.pred_iou_threshold
    """Whole image: masks with a lower predicted IoU go. 0.8 is SAM-2's generator; recall at a cap needs none."""
    stability_score_thresh: float = ScoreFlags.stability_threshold
    """Whole image: masks with a lower stability score go. 0.95 is SAM-2's generator."""
    max_iou: float = 0.9
    """Whole image: of two masks that overlap by more than this, the one with the higher score stays."""
    max_masks: int = 1000
    """Whole image: the cap of the protocol."""
    annotators: AnnotatorOptions | None = None
    """Of the task `annotators`."""
    seed: int = ScoreFlags.seed
    resamples: int = RESAMPLES
    limit: int | None = None
    """Only the first so many images."""

    workers: int = 1
    """Processes; more than one need a predictor that can be made anew in each."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("target_iou", 0.0, 1.0),
            ("max_iou", 0.0, 1.0),
            ("pred_iou_thresh", 0.0, 1.0),
            ("stability_score_thresh", 0.0, 1.0),
        ):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name}: expected a number in [{low}, {high}], found {getattr(self, name)}")
        for name in ("max_clicks", "points_per_side", "max_masks", "resamples", "workers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if any(not 0.1 <= g <= 1.0 for g in self.fixed):
            raise InputError(f"fixed granularity: expected numbers in [0.1, 1.0], found {self.fixed}")

    @property
    def constant(self) -> float:
        """The g of the controls without a dial."""
        return constant_granularity(self.label_rule)

    @property
    def click_thresholds(self) -> tuple[float, ...]:
        """Of the number of clicks: 0.80, 0.85, 0.90, as far as the clicks go on."""
        return tuple(each for each in (0.80, 0.85, 0.90) if each <= self.target_iou)

    def as_json(self) -> dict[str, object]:
        """Everything that a number depends on, the constants of the controls included."""
        stated = {
            _JSON_NAMES.get(name, name): value
            for name, value in asdict(self).items()
            if name not in ("workers", "limit") and not (name == "annotators" and value is None)
        }
        return {
            **stated,
            "fixed": list(self.fixed),
            "granularities": list(GRANULARITIES),
            "sweep": list(SWEEP),
            "constant_granularity": self.constant,
            "jitter_clicks": JITTER_CLICKS,
            "jitter_radius": JITTER_RADIUS,
        }
