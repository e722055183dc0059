"""The tree as a predictor: which instance a click means, how sure an answer is, and what a student has to beat.

    python -m benchmarks.tree_clicks --train MINED --validation MINED --bsds500 DIR --output FILE.json [--images N]

MINED are shards of `grainmill mine` of BSDS500 train and val; the photographs' trees are read there, not mined again.
On train: `model.predict.tree`'s rule for the instance beside others, and the weights of the predicted IoU
(`SCORE_WEIGHTS`: a logistic fit of the IoU with people's segments, of answers to one click at the label's g and at 1.0,
and of answers to RITM's second to fourth click at g 1.0). On val: the figures of `validation.dial_figures`, as
`benchmarks.micro_run` has them for a student (1,200 clicks on mined labels and on people's segments), with the mask of
the tree that is best under the click as an oracle; and how far the predicted IoU is off, by tenths of it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.data.shards import ShardIndex
from model.data.stream import Example
from model.evaluation.benchmarks.bsds import read_bsds500
from model.evaluation.benchmarks.mined import match_mined
from model.evaluation.benchmarks.records import EvalImage
from model.evaluation.protocols.metrics import mask_iou, number_of_clicks
from model.evaluation.protocols.simulated_user import MAX_CLICKS, Click, next_click, simulate
from model.predict.tree import SCORE_FEATURES, SCORE_WEIGHTS, Tree, TreePredictor, predicted_iou
from model.training.validation import best_fixed_g, dial_figures, fixed_example, iou, measure_clicks
from pipeline.bench.report import environment
from pipeline.errors import InputError
from pipeline.format import rle
from pipeline.format.granularity import GRANULARITIES
from pipeline.labeling.atoms import enlargement

from .micro_run import people_sample

SIDE: Final = 256
"""Of the view that clicks and masks are compared in, as for a micro student."""
CORRECTIONS: Final = 3
CORRECTED_OBJECTS: Final = 4
"""Of a photograph, that get further clicks for the fit."""

CORRECTED_IMAGES: Final = 40
"""Of val, whose segments are clicked until they are right."""


def parts_of(tree: Tree, instances: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.bincount(tree.instance, minlength=len(tree.annotations))[instances]


def away(tree: Tree, instances: NDArray[np.int64], share: float) -> NDArray[np.float64]:
    """How far instances are from a share of the photograph, in logarithms."""
    return np.abs(np.log(tree.area_px[instances] / (share * tree.height * tree.width)))


RULES: Final = {
    "wholes, then the smallest (shipped)": TreePredictor.instance_order,
    "the smallest": lambda tree, found: (found, tree.area_px[found]),
    "the largest": lambda tree, found: (found, -tree.area_px[found]),
    "wholes, then the largest": lambda tree, found: (found, -tree.area_px[found], ~tree.whole[found]),
    "most masks in its tree": lambda tree, found: (found, tree.area_px[found], -parts_of(tree, found)),
    "nearest to 10 % of the photograph": lambda tree, found: (found, away(tree, found, 0.1)),
    "nearest to 20 % of the photograph": lambda tree, found: (found, away(tree, found, 0.2)),
    "nearest to 30 % of the photograph": lambda tree, found: (found, away(tree, found, 0.3)),
    "wholes, then nearest to 10 %": lambda tree, found: (found, away(tree, found, 0.1), ~tree.whole[found]),
}


@dataclass(frozen=True)
class Ground:
    """Photographs with their trees, and their clicks on mined labels and on people's segments."""

    predictors: dict[str, TreePredictor]
    mined: list[Example]
    people: list[Example]
    truths: dict[str, list[NDArray[np.bool_]]]
    """Of each photograph some of people's segments at full size."""

    def answering(self, example: Example, granularity_MG: NDArray[np.float64]) -> Any:
        """As `model.training.validation.answers`, in the example's view."""
        masks = np.zeros((*granularity_MG.shape, SIDE, SIDE), dtype=np.bool_)
        predicted = np.zeros(granularity_MG.shape)
        for click, asked in enumerate(granularity_MG):
            masks[click], features = self.seen(example, click, asked)
            predicted[click] = predicted_iou(features)
        return masks, predicted

    def seen(self, example: Example, click: int, asked: NDArray[np.float64]) -> Any:
        """Answers to a click of the view at some g: masks (G, SIDE, SIDE), features (G, 8)."""
        predictor = self.predictors[example.key]
        tree = predictor.tree
        columns, rows = enlargement(tree.width, SIDE), enlargement(tree.height, SIDE)
        x, y = example.points[click].astype(int)
        found = predictor.answers([[columns[x], rows[y]]], [1], granularity=asked)
        masks = [
            np.unpackbits(tree.grid_bits[each.place], axis=1).astype(np.bool_)
            if each.mended is None
            else each.mended[np.ix_(rows, columns)]
            for each in found
        ]
        return np.stack(masks), np.stack([each.features for each in found])


def read_ground(mined: str, images: Sequence[EvalImage]) -> Ground:
    """Photographs that were mined; one that was not is an error."""
    index = ShardIndex.open(mined)
    place_of = {key: place for place, key in enumerate(index.sample_keys())}
    predictors, labels, people, truths = {}, [], [], {}
    for image, row in zip(images, match_mined(mined, images).rows, strict=True):
        if row is None:
            raise InputError(f"{mined}: {image.name} is not in it; mine the whole split")
        sample = index.load(place_of[row.key])
        predictor = TreePredictor.of_annotations(row.load().annotations, row.height, row.width)
        truth = image.load()
        human = people_sample(image, truth, people="all", whole="segments")
        predictors |= {sample.key: predictor, human.key: predictor}
        labels.append(fixed_example(sample, SIDE))
        people.append(fixed_example(human, SIDE))
        drawn = np.random.default_rng(0).permutation(len(truth.scored))[:CORRECTED_OBJECTS]
        truths[human.key] = [rle.decode(truth.objects[truth.scored[place]].mask) for place in drawn]
    return Ground(predictors, labels, [each for each in people if each.count], truths)


def with_rule(ground: Ground, rule: Any) -> Ground:
    """The same photographs, asked by another rule for the instance."""
    ruled = type("Ruled", (TreePredictor,), {"instance_order": staticmethod(rule)})
    predictors = {}
    for key, predictor in ground.predictors.items():
        tree = predictor.tree
        predictors[key] = ruled.of_annotations(tree.annotations, tree.height, tree.width)
        predictors[key]._tree = tree  # with what it knows already
    return Ground(predictors, ground.mined, ground.people, ground.truths)


def figures(ground: Ground, examples: Sequence[Example], fixed_g: float | None) -> dict[str, Any]:
    """Of `dial_figures`, and 1-IoU at g = 1.0 and of the best mask under the click."""
    measured = measure_clicks(None, examples, answering=ground.answering)
    swept = np.concatenate([each["sweep_iou"] for each in measured])
    oracle = np.concatenate([under_click(ground, each).max(axis=1, initial=0.0) for each in examples if each.count])
    return {
        "iou_g_1": float(swept[:, -1].mean()),
        "iou_best_under_click": float(oracle.mean()),
        "iou_at_g": dict(zip(map(str, GRANULARITIES), swept.mean(axis=0).tolist(), strict=True)),
        **dial_figures(measured, fixed_g=fixed_g),
    }


def under_click(ground: Ground, example: Example) -> NDArray[np.float64]:
    """(M, n) IoU of every mask with every click's truth, 0 where the mask does not hold the click."""
    tree = ground.predictors[example.key].tree
    bits = np.unpackbits(tree.grid_bits, axis=2).astype(bool)
    x, y = example.points.astype(int).T
    found = np.stack([iou(bits, truth[None]) for truth in example.masks()])
    return np.where(bits[:, y, x].T, found, 0.0)


# ---------------------------------------------------------------------------------------------------------------------
# The predicted IoU


def answered(ground: Ground) -> Iterator[tuple[str, NDArray[np.float64], float]]:
    """Kind, features and true IoU of answers to clicks on people's segments."""
    for example in ground.people:
        for click, truth in enumerate(example.masks()):
            masks, features = ground.seen(example, click, np.array([example.granularity[click], 1.0]))
            yield from zip(("label g", "g 1.0"), features, iou(masks, truth[None]).tolist(), strict=True)
        for whole in ground.truths[example.key]:
            yield from corrected(ground.predictors[example.key], whole)


def corrected(predictor: TreePredictor, truth: NDArray[np.bool_]) -> Iterator[tuple[str, NDArray[np.float64], float]]:
    """Answers to the second and further clicks of RITM's clicker at g = 1.0."""
    clicks: list[Any] = []
    mask = np.zeros_like(truth)
    for number in range(1 + CORRECTIONS):
        click = next_click(mask, truth, None, clicks)
        if click is None:
            return
        clicks.append(click)
        points, labels = [[each.x, each.y] for each in clicks], [int(each.positive) for each in clicks]
        [answer] = predictor.answers(points, labels, granularity=1.0)
        mask = predictor.tree.mask(answer.place) if answer.mended is None else answer.mended
        if number:
            yield "corrected", answer.features, mask_iou(mask, truth)


def fit(features: NDArray[np.float64], truth: NDArray[np.float64], ridge: float = 1e-3) -> NDArray[np.float64]:
    """Weights of a logistic model of a share in [0, 1], by Newton's steps."""
    weights = np.zeros(features.shape[1])
    for _ in range(50):
        expected = 1.0 / (1.0 + np.exp(-features @ weights))
        slope = features.T @ (truth - expected) - ridge * weights
        curve = (features * (expected * (1 - expected))[:, None]).T @ features + ridge * np.eye(len(weights))
        weights = weights + np.linalg.solve(curve, slope)
    return weights


def calibration(predicted: NDArray[np.float64], truth: NDArray[np.float64]) -> dict[str, Any]:
    """Mean error, bias, mean gap of tenths of the answers by predicted IoU, and the error of the one best number."""
    tenths = np.array_split(np.argsort(predicted, kind="stable"), 10)
    table = [[float(predicted[each].mean()), float(truth[each].mean())] for each in tenths]
    return {
        "answers": len(truth),
        "mean_error": float(np.abs(predicted - truth).mean()),
        "mean_error_of_a_constant": float(np.abs(np.median(truth) - truth).mean()),
        "bias": float((predicted - truth).mean()),
        "calibration_error": float(np.mean([abs(one - other) for one, other in table])),
        "correlation": float(np.corrcoef(predicted, truth)[0, 1]),
        "tenths_predicted_and_true": table,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Corrections


def clicked(ground: Ground, images: int) -> dict[str, Any]:
    """RITM's clicks on some people's segments at g = 1.0: NoC (20: not reached), mean IoU after clicks."""
    runs = []
    for key in [each.key for each in ground.people][:images]:
        predictor = ground.predictors[key]

        def predict(clicks: Sequence[Click], predictor: TreePredictor = predictor) -> NDArray[np.bool_]:
            points, labels = [[each.x, each.y] for each in clicks], [int(each.positive) for each in clicks]
            return np.asarray(predictor.predict(points, labels, granularity=1.0)[0][0], dtype=np.bool_)

        runs += [np.array(simulate(predict, truth).ious) for truth in ground.truths[key]]
    held = np.stack([np.append(each, np.full(MAX_CLICKS - len(each), each[-1])) for each in runs])
    numbers = {f"noc_{goal:.2f}": [number_of_clicks(each, goal) for each in held] for goal in (0.8, 0.85, 0.9)}
    return {
        "objects": len(runs),
        **{name: float(np.mean(each)) for name, each in numbers.items()},
        "not_reached_0.90": int((held.max(axis=1) < 0.9).sum()),
        "iou_after_clicks": {str(count): float(held[:, count - 1].mean()) for count in (1, 2, 3, 5, 10, 20)},
    }


def by_kind(ground: Ground, weights: NDArray[np.float64]) -> dict[str, Any]:
    rows = list(answered(ground))
    found = {}
    for kind in dict.fromkeys(each[0] for each in rows):
        chosen = [each for each in rows if each[0] == kind]
        predicted = 1.0 / (1.0 + np.exp(-np.stack([each[1] for each in chosen]) @ weights))
        found[kind] = calibration(predicted, np.array([each[2] for each in chosen]))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--validation", required=True)
    parser.add_argument("--bsds500", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200, help="Of each split, at most.")
    parser.add_argument("--skip-rules", action="store_true", help="Leave the other rules for the instance out.")
    arguments = parser.parse_args(argv)
    load = os.getloadavg()
    train = read_ground(arguments.train, read_bsds500(arguments.bsds500, "train").images[: arguments.images])
    rows = list(answered(train))
    weights = fit(np.stack([each[1] for each in rows]), np.array([each[2] for each in rows]))
    print(f"SCORE_WEIGHTS: {tuple(round(each, 3) for each in weights.tolist())}", file=sys.stderr)
    found: dict[str, Any] = {
        "score_features": SCORE_FEATURES,
        "score_weights": weights.tolist(),
        "score_weights_shipped": SCORE_WEIGHTS,
    }
    validation = read_ground(arguments.validation, read_bsds500(arguments.bsds500, "val").images[: arguments.images])
    found["predicted_iou_on_val"] = by_kind(validation, np.array(SCORE_WEIGHTS))
    fixed = best_fixed_g(measure_clicks(None, train.mined, answering=train.answering))
    found["val"] = {
        "mined_labels": figures(validation, validation.mined, fixed),
        "people": figures(validation, validation.people, None),
    }
    found["corrections_on_val"] = clicked(validation, CORRECTED_IMAGES)
    arguments.output.write_text(json.dumps({**found, "environment": environment(load)}, indent=1) + "\n")
    if arguments.skip_rules:
        return 0
    rules = {}
    for name, rule in RULES.items():
        print(name, file=sys.stderr)
        ruled = with_rule(train, rule)
        chosen = {"mined_labels": figures(ruled, ruled.mined, None), "people": figures(ruled, ruled.people, None)}
        names = ("iou_g_1", "iou_label_g", "iou_best_fixed_g", "best_fixed_g", "iou_best_of_10", "iou_best_under_click")
        rules[name] = {ground: {each: values[each] for each in names} for ground, values in chosen.items()}
        found["rules_on_train"] = rules
        arguments.output.write_text(json.dumps({**found, "environment": environment(load)}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
