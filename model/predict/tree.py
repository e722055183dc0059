"""Clicks and a granularity in, masks out, without weights: `GranularPredictor`'s face on the mined tree.

`set_image` mines the image once, as `grainmill mine --wholes stable` would; `predict` chooses among the masks of its
tree. Nothing is learned but a few numbers of the predicted IoU. It is what a student has to beat, and what answers
before there is one.

How an answer is chosen (C clicks, positive ones inside, negative ones outside of what is meant):

1. *Candidates* are the masks that agree with the most clicks and hold a positive one, if there is any.
2. Which thing is meant? A `box` says it: the candidate whose own box has the best IoU with it is the whole, and g is
   measured anew (arXiv 2511.13714, eq. 3) among the masks of its tree that lie in it by 0.9. A `mask_input` says it:
   the instance of the candidate with the best IoU. Else a mined whole (divided, given or left by those), and only
   where no candidate is of one an instance that joins several; of several the smallest. (Of fourteen rules the best on
   BSDS500 train: `benchmarks/results/tree_clicks_cpu2_202611.md`.)
3. Of this thing's candidates the mask nearest in g is the answer; of equally near ones the larger. With a box or mask
   alone the candidates are those that hold the whole's innermost pixel. `granularity=None` is the thing's surest mask;
   `multimask_output` the surest of the smaller, the middle and the larger third of all candidates, by area.
4. *Corrections*: clicks that this mask has wrong are mended one after the other, so that every positive click is inside
   and every negative one outside. A missing pixel brings the largest mask that holds it, no negative click and is no
   larger than the answer so far (if none is so small, the smallest); a surplus pixel takes the largest mask that holds
   it and no positive click. Where no mask does, what no mask's border divides around the click, or a disc that ends
   half-way to the nearest click of the other kind; also of a click that no mask holds. Of two contrary clicks on one
   pixel the later counts.

Logits are certain (plus or minus `LOGIT_LIMIT`) but for cells that a border crosses. Fed back as `mask_input` they say
which thing is meant; the corrections come from the clicks alone, so all clicks are given each time, as to SAM-2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import InputError, SampleFailureError
from pipeline.format import rle as rle_codec
from pipeline.format.granularity import GRANULARITY_MAX, GRANULARITY_MIN
from pipeline.format.schema import CONTAINED_FRACTION, Annotation
from pipeline.labeling.atoms import BoxMask, cut_atoms, enlargement, sampled
from pipeline.labeling.config import DivideConfig, MineConfig

from ..data.run_lengths import RunLengths
from .coco_json import PredictedMask
from .image import LOGIT_LIMIT, ImageLike, Prompts, check_prompts
from .image_files import as_rgb

if TYPE_CHECKING:
    from pipeline.labeling.miner import ImageMiner

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

CLICKED: Final = MineConfig(divide=DivideConfig(wholes="stable"))
"""Larger wholes leave the dial more to choose from: one click on people's segments (BSDS500 val) has IoU 0.637 at
the best of ten g and 0.475 at 1.0, with the recipe's own `adaptive` wholes 0.604 and 0.492."""
GRID: Final = 256
"""Side of the logits: what SAM-2 has at its input of 1,024 pixels."""
FINEST_SIDE_PX: Final = 1024
"""Longer side of the grid on which pixels that no mask divides are found; as in mining."""
DISC_SHARE: Final = 0.02
"""Radius of the last resort's disc, of the image's shorter side; at least one pixel."""
MULTIMASKS: Final = 3

SCORE_FEATURES: Final = (
    "1", "log share", "log share squared", "g", "whole", "log candidates", "rank", "mended",
)  # fmt: skip
"""Of an answer: its share of the image; the g of the mask that it is or began as, whether that mask's instance is
none that joins wholes; how many masks were candidates, and the share of these that are smaller; whether corrections
mended it."""
SCORE_WEIGHTS: Final = (0.198, 0.384, 0.04, 0.994, 0.518, -0.22, -1.324, 0.477)
"""Of the logit of the predicted IoU, see `benchmarks/tree_clicks.py`."""


@dataclass(frozen=True)
class Tree:
    """The masks of one image, n of them, for looking up.

    Attributes:
        annotations: as mined.
        height: of the image.
        width: likewise.
    """

    annotations: tuple[Annotation, ...]
    height: int
    width: int

    @cached_property
    def run_lengths(self) -> RunLengths:
        return RunLengths.of([each.segmentation["counts"] for each in self.annotations], self.height, self.width)

    @cached_property
    def granularity(self) -> NDArray[np.float64]:
        """(n,)."""
        return np.array([each.granularity for each in self.annotations])

    @cached_property
    def instance(self) -> IntArray:
        """(n,) place of each mask's instance."""
        return np.array([each.instance_id for each in self.annotations], dtype=np.int64)

    @cached_property
    def area_px(self) -> IntArray:
        """(n,)."""
        return np.array([each.area for each in self.annotations], dtype=np.int64)

    @cached_property
    def corners(self) -> NDArray[np.float64]:
        """(n, 4) x0, y0, x1, y1 of each mask's box, the last ones behind it."""
        boxes = np.array([each.bbox for each in self.annotations], dtype=np.float64)
        boxes[:, 2:] += boxes[:, :2]
        return boxes

    @cached_property
    def whole(self) -> BoolArray:
        """(n,) whether a mask's instance was given, divided or left by the wholes: not one that joins several."""
        loose = np.array([each.origin == "conquer" for each in self.annotations])
        return ~loose[self.instance]

    @cached_property
    def grid_bits(self) -> NDArray[np.uint8]:
        """(n, GRID, GRID / 8) the masks at the cells' centres, packed."""
        columns, rows = enlargement(self.width, GRID), enlargement(self.height, GRID)
        return self.run_lengths.sampled(np.arange(len(self.annotations)), columns, rows)

    def holds(self, points: IntArray) -> BoolArray:
        """(n, K) which masks hold which of the pixels (K, 2) x, y."""
        asked = points[:, 0] * self.height + points[:, 1]
        begins = np.arange(len(self.annotations))[:, None] * (self.height * self.width)
        held: BoolArray = (
            np.searchsorted(self._ends, begins + asked, side="right") - self.run_lengths.first[:-1, None]
        ) % 2 == 1
        return held

    @cached_property
    def _ends(self) -> IntArray:
        """Where run lengths end, each mask's after the one before: ascending."""
        mask_of_run = np.repeat(np.arange(len(self.annotations)), np.diff(self.run_lengths.first))
        return self.run_lengths.ends + mask_of_run * (self.height * self.width)

    def mask(self, place: int) -> BoolArray:
        """(H, W)."""
        return rle_codec.decode(self.annotations[place].segmentation)

    @cached_property
    def _atoms(self) -> NDArray[np.int32]:
        """(h, w) pixels that no mask's border divides have one number."""
        scale = min(1.0, FINEST_SIDE_PX / max(self.height, self.width))
        grid = max(1, round(self.height * scale)), max(1, round(self.width * scale))
        boxes = [
            sampled(rle_codec.run_lengths_of(each.segmentation), (self.height, self.width), grid)
            for each in self.annotations
        ]
        return cut_atoms(np.zeros(grid, dtype=np.int32), boxes)[0].labels

    def undivided(self, point: IntArray) -> BoolArray:
        """(H, W) what hangs together with a pixel (x, y) without a mask's border between."""
        rows, columns = (
            enlargement(small, full) for small, full in zip(self._atoms.shape, (self.height, self.width), strict=True)
        )
        y, x = rows[point[1]], columns[point[0]]
        _, pieces = cv2.connectedComponents((self._atoms == self._atoms[y, x]).astype(np.uint8), connectivity=4)
        return np.asarray((pieces == pieces[y, x])[np.ix_(rows, columns)], dtype=np.bool_)


@dataclass(frozen=True)
class _Clicks:
    """K clicks: pixels (K, 2) x, y, and whether each is positive (K,)."""

    pixels: IntArray
    positive: BoolArray


@dataclass(frozen=True)
class _Choice:
    """What may be answered: candidates (n,) bool of which `thing` (n,) bool are of the thing meant, with their g (n,);
    `surest` if the thing is one mask."""

    candidates: BoolArray
    thing: BoolArray
    granularity: NDArray[np.float64]
    surest: int | None = None


@dataclass(frozen=True)
class TreeAnswer:
    """A mask of the tree, or what corrections made of it.

    Attributes:
        place: in the tree; -1: no mask holds a positive click.
        mended: (H, W) bool; None: the tree's mask as it is.
        features: (8,) see `SCORE_FEATURES`.
    """

    place: int
    mended: BoolArray | None
    features: NDArray[np.float64]


class TreePredictor:
    """An image's tree of masks, answering as a model does.

    Example:
        >>> predictor = TreePredictor()
        >>> predictor.set_image(rgb)  # doctest: +SKIP
        >>> masks, iou, logits = predictor.predict([[120, 80]], [1], granularity=[0.2, 0.5, 1.0])  # doctest: +SKIP

    Args:
        config: what is mined with; None: the recipe `default` with stable wholes (`CLICKED`).
    """

    def __init__(self, config: MineConfig | None = None) -> None:
        self.config = CLICKED if config is None else config
        self._mill: ImageMiner | None = None
        self._tree: Tree | None = None

    @classmethod
    def of_annotations(cls, annotations: Sequence[Annotation], height: int, width: int) -> TreePredictor:
        """With an image set that was mined already.

        Args:
            annotations: of one image, as `grainmill mine` makes them.
            height: of the image.
            width: likewise.
        """
        predictor = cls()
        predictor._set(annotations, height, width)
        return predictor

    def set_image(self, image: ImageLike) -> None:
        """Mines one image: (H, W, 3) uint8 RGB, or Pillow's image of mode RGB.

        Raises:
            InputError: no RGB image.
        """
        from pipeline.labeling.miner import ImageInput, ImageMiner

        rgb = as_rgb(image, "set_image")
        if self._mill is None:
            self._mill = ImageMiner(self.config)
        mined = self._mill.mine([ImageInput(rgb=rgb, source_uri="", member=None)])[0]
        # Where no region stands out, the image is the one thing in it.
        found = () if isinstance(mined, SampleFailureError) else mined.annotations
        self._set(found, rgb.shape[0], rgb.shape[1])

    def _set(self, annotations: Sequence[Annotation], height: int, width: int) -> None:
        if not annotations:
            annotations = [
                Annotation(
                    id=0, segmentation=rle_codec.encode(np.ones((height, width), dtype=np.bool_)),
                    bbox=(0, 0, width, height), area=height * width, granularity=GRANULARITY_MAX, instance_id=0,
                    parent_id=None, level=None, origin="remainder", score=None,
                )
            ]  # fmt: skip
        self._tree = Tree(tuple(annotations), height, width)

    @property
    def tree(self) -> Tree:
        """Of the image that is set.

        Raises:
            InputError: none is.
        """
        if self._tree is None:
            raise InputError("predict: set_image first")
        return self._tree

    def reset_predictor(self) -> None:
        """Forgets the image."""
        self._tree = None

    def predict(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
        *,
        granularity: Any = None,
    ) -> tuple[NDArray[Any], FloatArray, FloatArray]:
        """The masks of one prompt or of N; arguments and shapes are those of `GranularPredictor.predict`.

        Args:
            point_coords: clicks (x, y) in pixels of the image; one outside counts as on its border.
            point_labels: 1 inside, 0 outside, -1 is left out, 2 and 3 are a box's corners; None: all inside.
            box: x0, y0, x1, y1 in pixels.
            mask_input: logits of an earlier answer; h and w are `GRID`.
            multimask_output: the surest small, middling and large mask; with a granularity there is one.
            return_logits: masks as float32 logits instead of bool.
            normalize_coords: False: points and boxes are in [0, 1] instead of pixels.
            granularity: None: the surest mask.

        Returns:
            masks, the predicted IoU of each in (0, 1), and logits for `mask_input`.

        Raises:
            InputError: no image set, no prompt, shapes that do not fit, a granularity out of range.
        """
        tree = self.tree
        prompts = check_prompts(point_coords, point_labels, box, mask_input, granularity, side=GRID)
        scale = (1.0, 1.0) if normalize_coords else (tree.width, tree.height)
        found = self._answers(prompts, multimask=multimask_output, scale=scale)
        masks = np.stack([tree.mask(each.place) if each.mended is None else each.mended for each in found])
        scores = predicted_iou(np.stack([each.features for each in found])).astype(np.float32)
        logits = np.stack([_logits(each) for each in masks])
        if return_logits:
            masks = np.where(masks, LOGIT_LIMIT, -LOGIT_LIMIT).astype(np.float32)
        rows = (prompts.count, -1) if prompts.several else (-1,)
        return masks.reshape(*rows, *masks.shape[1:]), scores.reshape(rows), logits.reshape(*rows, GRID, GRID)

    def answers(
        self, point_coords: ArrayLike, point_labels: ArrayLike | None = None, *, granularity: Any = None
    ) -> list[TreeAnswer]:
        """One mask a prompt and granularity as `predict`, with what each answer was made of."""
        prompts = check_prompts(point_coords, point_labels, None, None, granularity, side=GRID)
        return self._answers(prompts, multimask=False, scale=(1.0, 1.0))

    def _answers(self, prompts: Prompts, *, multimask: bool, scale: tuple[float, float]) -> list[TreeAnswer]:
        """Of all prompts in order, one or `MULTIMASKS` each."""
        found: list[TreeAnswer] = []
        for number in range(prompts.count):
            g = None if prompts.granularity is None else float(prompts.granularity[number])
            three = multimask and g is None
            clicks, corners = _prompt(self.tree, prompts, number, np.array(scale))
            earlier = None if prompts.mask_inputs is None else prompts.mask_inputs[number]
            choice = self._choice(clicks, corners, earlier)
            if choice is None:
                found += [self._answer_from_nothing(clicks)] * (MULTIMASKS if three else 1)
            else:
                places = self._sizes(choice) if three else [self._place(choice, g)]
                found += [self._answer(place, choice.candidates, clicks) for place in places]
        return found

    def _answer(self, place: int, candidates: BoolArray, clicks: _Clicks) -> TreeAnswer:
        """Of a mask, with the clicks mended."""
        if (self.tree.holds(clicks.pixels)[place] == clicks.positive).all():
            return TreeAnswer(place, None, self._features(place, candidates))
        mask = self._mended(self.tree.mask(place), clicks)
        return TreeAnswer(place, mask, self._features(place, candidates, float(mask.mean())))

    def _answer_from_nothing(self, clicks: _Clicks) -> TreeAnswer:
        """Where no mask holds a positive click; its features are those of a loose, finest mask."""
        mask = self._mended(np.zeros((self.tree.height, self.tree.width), dtype=np.bool_), clicks)
        size = np.log(max(float(mask.mean()), 1e-6))
        return TreeAnswer(-1, mask, np.array([1.0, size, size**2, GRANULARITY_MIN, 0.0, 0.0, 0.0, 1.0]))

    @staticmethod
    def instance_order(tree: Tree, instances: IntArray) -> tuple[NDArray[Any], ...]:
        """Keys for `np.lexsort`, the last one first: which of some instances over a click is meant.

        Wholes before what joins several, then the smaller.
        """
        return instances, tree.area_px[instances], ~tree.whole[instances]

    # -- choosing --------------------------------------------------------------------------------------------------

    def _choice(
        self, clicks: _Clicks, corners: NDArray[np.float64] | None, earlier: FloatArray | None
    ) -> _Choice | None:
        """None: no mask holds a positive click."""
        tree = self.tree
        held = tree.holds(clicks.pixels)
        agreeing = (held == clicks.positive).sum(axis=1)
        if clicks.positive.any():
            agreeing[~held[:, clicks.positive].any(axis=1)] = -1
            if agreeing.max() < 0 and corners is None and earlier is None:
                return None
        candidates = agreeing == agreeing.max()
        nearest = None
        if corners is not None:
            nearest = _best(_box_iou(tree.corners, corners), candidates)
        elif earlier is not None:
            nearest = _best(self._grid_iou(earlier), candidates)
        if nearest is not None and not clicks.positive.any():
            held = tree.holds(_innermost(tree.mask(nearest))[None])[:, 0]
            candidates = candidates & held
            candidates[nearest] = True
        if corners is not None and nearest is not None:
            inside = self._inside(nearest)
            root = np.sqrt(tree.area_px.astype(np.float64))
            span = max(root[nearest] - root[inside].min(), 1e-9)
            scale = GRANULARITY_MAX - (GRANULARITY_MAX - GRANULARITY_MIN) * (root[nearest] - root) / span
            return _Choice(candidates, candidates & inside, scale, nearest)
        if nearest is None:
            instances = np.unique(tree.instance[candidates])
            instance = int(instances[np.lexsort(self.instance_order(tree, instances))[0]])
        else:
            instance = int(tree.instance[nearest])
        return _Choice(candidates, candidates & (tree.instance == instance), tree.granularity, nearest)

    def _place(self, choice: _Choice, granularity: float | None) -> int:
        """Of the mask at a granularity, or of the surest one."""
        places = np.flatnonzero(choice.thing)
        if granularity is None:
            return choice.surest if choice.surest is not None else self._surest(places, choice.candidates)
        gap = np.round(np.abs(choice.granularity[places] - granularity), 6)
        return int(places[np.lexsort((places, -self.tree.area_px[places], gap))[0]])

    def _sizes(self, choice: _Choice) -> list[int]:
        """The surest of each third of the candidates by area, the smaller first; fewer candidates come again."""
        places = np.flatnonzero(choice.candidates)
        places = places[np.argsort(self.tree.area_px[places], kind="stable")]
        found = [self._surest(each, choice.candidates) for each in np.array_split(places, MULTIMASKS) if each.size]
        return [*found, *found[-1:] * (MULTIMASKS - len(found))]

    def _inside(self, whole: int) -> BoolArray:
        """(n,) the masks of a mask's tree that lie in it."""
        tree = self.tree
        family = np.flatnonzero((tree.instance == tree.instance[whole]) & (tree.area_px <= tree.area_px[whole]))
        masks = [tree.annotations[place].segmentation for place in (whole, *family)]
        shared = rle_codec.pairwise_intersection_px(masks)[0, 1:]
        inside = np.zeros(len(tree.annotations), dtype=np.bool_)
        inside[family] = shared >= CONTAINED_FRACTION * tree.area_px[family]
        return inside

    def _grid_iou(self, logits: FloatArray) -> NDArray[np.float64]:
        """(n,) of each mask with an earlier answer, at the logits' cells."""
        bits, other = self.tree.grid_bits, np.packbits(logits > 0, axis=1)
        shared = np.bitwise_count(bits & other).sum(axis=(1, 2)).astype(np.float64)
        return shared / np.maximum(np.bitwise_count(bits | other).sum(axis=(1, 2)), 1)

    # -- corrections -----------------------------------------------------------------------------------------------

    def _mended(self, mask: BoolArray, clicks: _Clicks) -> BoolArray:
        """With every positive click inside and every negative one outside."""
        tree = self.tree
        held = tree.holds(clicks.pixels)
        for number, (x, y) in enumerate(clicks.pixels.tolist()):
            wanted = bool(clicks.positive[number])
            if mask[y, x] == wanted:
                continue
            others = held[:, clicks.positive != wanted].any(axis=1)
            places = np.flatnonzero(held[:, number] & ~others)
            piece = self._finest(clicks, number) if not places.size else tree.mask(self._piece(places, mask, wanted))
            mask = mask | piece if wanted else mask & ~piece
        return mask

    def _piece(self, places: IntArray, mask: BoolArray, wanted: bool) -> int:
        """Which of some masks is added or taken."""
        area = self.tree.area_px[places]
        order = np.lexsort((places, area))
        if wanted:
            fitting = order[area[order] <= mask.sum()]
            return int(places[fitting[-1] if fitting.size else order[0]])
        return int(places[order[-1]])

    def _finest(self, clicks: _Clicks, number: int) -> BoolArray:
        """Of a click whose masks all hold one of the other kind: what no border divides around it, else a disc."""
        tree, point = self.tree, clicks.pixels[number]
        others = clicks.pixels[clicks.positive != clicks.positive[number]]
        piece = tree.undivided(point)
        if not piece[others[:, 1], others[:, 0]].any():
            return piece
        radius = max(1.0, DISC_SHARE * min(tree.height, tree.width))
        squared = ((others - point) ** 2).sum(axis=1)
        squared_radius = min(radius**2, squared.min() / 4)
        rows, columns = np.ogrid[: tree.height, : tree.width]
        disc = (columns - point[0]) ** 2 + (rows - point[1]) ** 2 <= squared_radius
        return np.asarray(disc, dtype=np.bool_)

    # -- how sure --------------------------------------------------------------------------------------------------

    def _features(self, place: int, candidates: BoolArray, share: float | None = None) -> NDArray[np.float64]:
        """(8,) of an answer that is a mask, or (with the share of the image that it has now) began as one."""
        tree = self.tree
        area = tree.area_px[candidates]
        size = np.log(tree.area_px[place] / (tree.height * tree.width) if share is None else max(share, 1e-6))
        rank = (area < tree.area_px[place]).mean()
        return np.array(
            [1.0, size, size**2, tree.granularity[place], tree.whole[place], np.log(area.size), rank,
             share is not None]
        )  # fmt: skip

    def _surest(self, places: IntArray, candidates: BoolArray) -> int:
        """Of some candidates the one with the best predicted IoU; the first of equal ones."""
        scores = predicted_iou(np.stack([self._features(int(each), candidates) for each in places]))
        return int(places[np.argmax(scores)])

    def everything(self) -> list[PredictedMask]:
        """All masks of the tree as mined, with their parents; `score` is the predicted IoU of each, were it answered to
        a click in its middle."""
        tree = self.tree
        found = []
        for place, each in enumerate(tree.annotations):
            cells = np.unpackbits(tree.grid_bits[place], axis=1).astype(np.bool_)
            x, y, width, height = each.bbox
            middle = np.array([x + width // 2, y + height // 2])
            if cells.any():
                scale = np.array([tree.width, tree.height])
                middle = (2 * _innermost(cells) + 1) * scale // (2 * GRID)
            candidates = tree.holds(middle[None])[:, 0]
            candidates[place] = True
            found.append(
                PredictedMask(
                    segmentation=each.segmentation, granularity=each.granularity,
                    score=float(predicted_iou(self._features(place, candidates))),
                    parent_id=each.parent_id, instance_id=each.instance_id,
                )
            )  # fmt: skip
        return found


def predicted_iou(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 8) of `SCORE_FEATURES` -> (...) the IoU to expect with what was meant, in (0, 1)."""
    found: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-features @ np.array(SCORE_WEIGHTS)))
    return found


def _best(values: NDArray[np.float64], allowed: BoolArray) -> int:
    """Place of the largest of the allowed values; the first of equal ones."""
    return int(np.argmax(np.where(allowed, values, -np.inf)))


def _box_iou(boxes: NDArray[np.float64], box: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) of boxes (n, 4) with one, x0, y0, x1, y1."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    shared = np.prod(np.maximum(high - low, 0.0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) + np.prod(np.maximum(box[2:] - box[:2], 0.0))
    return np.asarray(shared / np.maximum(areas - shared, 1e-9), dtype=np.float64)


def _innermost(mask: BoolArray) -> IntArray:
    """(2,) x, y of the pixel farthest from the border; the image's edge counts."""
    box = BoxMask.of(mask)
    distance = cv2.distanceTransform(np.pad(box.inside, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    squared = np.rint(distance.astype(np.float64) ** 2)  # OpenCV's last bit is not the same in every call
    y, x = np.unravel_index(int(np.argmax(squared)), squared.shape)
    return np.array([box.left + int(x) - 1, box.top + int(y) - 1], dtype=np.int64)


def _logits(mask: BoolArray) -> FloatArray:
    """(GRID, GRID): how much of each cell is inside, from -LOGIT_LIMIT to LOGIT_LIMIT."""
    share = cv2.resize(mask.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA)
    return np.asarray(LOGIT_LIMIT * (2.0 * share - 1.0), dtype=np.float32)


def _prompt(
    tree: Tree, prompts: Prompts, number: int, scale: NDArray[np.float64]
) -> tuple[_Clicks, NDArray[np.float64] | None]:
    """One prompt's clicks at pixels, and its box x0, y0, x1, y1.

    Args:
        tree: of the image.
        prompts: checked.
        number: which of them.
        scale: pixels of the image in one unit of x and of y.
    """
    points, labels = np.zeros((0, 2)), np.zeros(0, dtype=np.int32)
    if prompts.points is not None and prompts.labels is not None:
        points, labels = prompts.points[number] * scale, prompts.labels[number]
    corners = None if prompts.boxes is None else prompts.boxes[number].astype(np.float64) * np.tile(scale, 2)
    if corners is None and (labels == 2).any() and (labels == 3).any():
        corners = np.concatenate([points[labels == 2][0], points[labels == 3][0]])
    on = np.isin(labels, (0, 1))
    if corners is None and prompts.mask_inputs is None and not on.any():
        raise InputError("predict: expected points, a box or a mask")
    pixels = np.clip(np.floor(points[on]).astype(np.int64), 0, (tree.width - 1, tree.height - 1))
    latest = {(x, y): bool(label) for (x, y), label in zip(pixels.tolist(), labels[on], strict=True)}
    clicks = _Clicks(
        pixels=np.array(list(latest), dtype=np.int64).reshape(-1, 2),
        positive=np.array(list(latest.values()), dtype=np.bool_),
    )
    return clicks, corners
