"""A checkpoint on a benchmark: what `--checkpoint` names, scored as the flags of `grainmill score` say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline import __version__
from pipeline.errors import InputError
from pipeline.format.schema import canonical_json, sha256_of

from ..network.load import expect_base_is_needed, load_sam2, read_granular, recognised, usable_device
from ..network.sam2_base import sam2_feature_sizes, scripted_transforms
from ..network.unsamv2 import UNSAMV2
from ..network.weight_files import weights_sha256
from .annotator_tables import annotator_notes, annotator_tables
from .benchmarks.records import Split, Task
from .protocols.keystrokes import COST_VARIANTS
from .protocols.options import AnnotatorOptions, ModelOptions, ModelTask
from .protocols.run import measure_model
from .results import Scored, ScoreOptions, claim_output, summed
from .score_records import Details
from .tables import as_metric, notes_of, tables_of

if TYPE_CHECKING:
    from ..predict.tree import TreePredictor

TREE: Final = "tree"
"""What `--checkpoint` says instead of a file: the tree that mining finds in each image, without weights."""


def load_model(options: ScoreOptions) -> CheckpointModel | TreeModel:
    """The maker of what `--checkpoint` names, after a look at the file; `tree` needs none (a file of that name is
    `./tree`).

    Raises:
        InputError: no checkpoint there, or a file that is neither ours nor SAM 2.1's.
        SchemaError: one of ours that this version does not read.
    """
    assert options.checkpoint is not None
    if options.checkpoint == TREE:
        return TreeModel()
    weights = recognised(options.checkpoint)
    record = read_granular(weights.path).record if weights.ours else None
    expect_base_is_needed(options.base, record, where=weights.path)
    return CheckpointModel(path=str(weights.path), base=options.base, device=str(usable_device(options.device)))


def score_model(split: Split, predictor: object, tasks: Sequence[Task], options: ScoreOptions, output: Path) -> Scored:
    """Scores a model as the flags say.

    Args:
        split: of the benchmark, limited already.
        predictor: a `CheckpointModel`, a `TreeModel`, or anything that `measure_model` takes.
        tasks: of the benchmark.
        options: the flags.
        output: where rows of finished images are kept; claimed here.

    Raises:
        InputError: nothing to score, or a model that cannot be scored.
        ConfigMismatchError: the output holds other scores.
    """
    identity = predictor.sha256() if isinstance(predictor, CheckpointModel | TreeModel) else type(predictor).__name__
    claim_output(options, weights_sha256=identity)
    settings = model_options(options)
    wanted = model_tasks(tasks, split)
    if options.annotators:
        own_masks = predictor.own_masks() if isinstance(predictor, CheckpointModel | TreeModel) else True
        settings, wanted = replace(settings, annotators=AnnotatorOptions(own_masks=own_masks)), ("annotators",)
    videos = replace(predictor, video=True) if isinstance(predictor, CheckpointModel | TreeModel) else None
    found = measure_model(
        split,
        predictor,
        wanted,
        settings,
        output,
        identity=f"{__version__} {options.benchmark.name} {identity}",
        video_predictor=videos,
    )
    details: Details = {
        "protocol": settings.as_json(),
        "weights_sha256": identity,
        "objects_of_metrics": {name: interval.objects for name, interval in found.metrics.items()},
    }
    if options.annotators:
        details["costs"] = {name: costs.as_json() for name, costs in COST_VARIANTS.items()}
        tables, notes = annotator_tables(found, settings), annotator_notes(settings)
    else:
        tables, notes = tables_of(found, settings), notes_of(options.benchmark, settings, found)
        notes += predictor.notes() if isinstance(predictor, CheckpointModel | TreeModel) else []
    return Scored(
        metrics={name: as_metric(interval) for name, interval in found.metrics.items()},
        rows=found.rows,
        tables=tables,
        counts={name: count for name, count in found.counts.items() if count},
        left_out=summed([split.left_out, found.left_out]),
        details=details,
        curves=found.curves,
        notes=[*split.notes, *notes],
    )


def model_options(options: ScoreOptions) -> ModelOptions:
    """The flags in the protocol's words."""
    fixed = tuple(float(each.removeprefix("fixed:")) for each in options.granularity if each.startswith("fixed:"))
    benchmark = options.benchmark
    return ModelOptions(
        label_rule=benchmark.label_rule,
        matching=benchmark.matching,
        target_iou=benchmark.target_iou,
        oracle="oracle" in options.granularity,
        label="label" in options.granularity,
        fixed=fixed,
        objects_per_image=options.objects_per_image or benchmark.clicked_per_image,
        disjoint_objects=benchmark.clicked_per_image is not None,
        points_per_side=options.points_per_side,
        pred_iou_thresh=options.pred_iou_threshold,
        stability_score_thresh=options.stability_threshold,
        seed=options.seed,
        workers=options.workers,
    )


def model_tasks(tasks: Sequence[Task], split: Split) -> tuple[ModelTask, ...]:
    """What is measured: with clicks also the sweep and, where the benchmark has pairs, the pair test."""
    found: list[ModelTask] = []
    if split.images and "interactive" in tasks:
        found += ["interactive", "sweep", "pairs"]
    if split.images and "whole" in tasks:
        found.append("whole")
    if split.videos and "video" in tasks:
        found.append("video")
    return tuple(found)


# ---------------------------------------------------------------------------------------------------------------------
# What is scored, made in whichever process


@dataclass(frozen=True)
class CheckpointModel:
    """Makes the predictor of a checkpoint, in whichever process.

    Attributes:
        path: a checkpoint file of `train`, UnSAMv2's own, or a SAM-2 checkpoint as Meta publishes it.
        base: the base's weights for an adapter's checkpoint; None: where they were when it was trained.
        device: cpu, cuda, cuda:N.
        video: a predictor of videos.
    """

    path: str
    base: str | None
    device: str
    video: bool = False

    def __call__(self) -> object:
        """Our predictor, or sam2's own for weights without a dial."""
        if not recognised(self.path).ours:
            model = load_sam2(self.path, video=self.video).to(self.device)
            return model if self.video else sam2_predictor(model)
        if self.video:
            from ..predict.video import GranularVideoPredictor

            return GranularVideoPredictor.load(self.path, self.device, base=self.base)
        from ..predict.image import GranularPredictor

        return GranularPredictor.load(self.path, self.device, base=self.base)

    def sha256(self) -> str:
        """Of the checkpoint's bytes; an adapter's names its base's identity inside."""
        return weights_sha256(Path(self.path))

    def own_masks(self) -> bool:
        """Whether SAM-2's own masks, of no g, are in it and were ever trained: not in a model from scratch."""
        if not recognised(self.path).ours:
            return True
        record = read_granular(self.path).record
        return record["adapter"] != "full" and record.get("has_base", True)

    def notes(self) -> list[str]:
        """What of this model a reader of its numbers must know."""
        if not recognised(self.path).ours:
            return []
        record, notes = read_granular(self.path).record, []
        if record["kind"] == UNSAMV2:
            notes.append(
                "where everything is found, masks are filtered and ranked by the predicted IoU that UnSAMv2's code "
                "returns, which it predicts for another mask than the returned one"
            )
        if record["adapter"] == "full":
            notes.append(
                "own and best_of_3 say nothing here: a model trained from scratch has learned with the dial alone, "
                "SAM-2's own masks and its memory for videos never were trained"
            )
        return notes


@dataclass(frozen=True)
class TreeModel:
    """Makes the predictor without weights, in whichever process; see `model.predict.tree`."""

    video: bool = False

    def __call__(self) -> TreePredictor:
        """The predictor of images.

        Raises:
            InputError: of videos is asked.
        """
        if self.video:
            raise InputError("--checkpoint tree answers on images; a benchmark of videos needs a model")
        from ..predict.tree import TreePredictor

        return TreePredictor()

    def sha256(self) -> str:
        """Of what the answers depend on: the recipe's configuration and the predicted IoU's weights."""
        from ..predict.tree import CLICKED, SCORE_WEIGHTS

        return sha256_of(canonical_json([CLICKED.to_json(), SCORE_WEIGHTS]))

    def own_masks(self) -> bool:
        """There is no SAM-2 in it."""
        return False

    def notes(self) -> list[str]:
        """What of it a reader of its numbers must know."""
        return [
            "tree: nothing is trained; masks are chosen among those that `mine --wholes stable` finds in the image; "
            "own is the surest of them and best_of_3 the surest small, middling and large one"
        ]


def sam2_predictor(model: Any) -> Any:
    """sam2's own image predictor on a model of any input size."""
    with scripted_transforms():
        from sam2.sam2_image_predictor import SAM2ImagePredictor

        predictor = SAM2ImagePredictor(model)
    predictor._bb_feat_sizes = sam2_feature_sizes(model.image_size)
    return predictor
