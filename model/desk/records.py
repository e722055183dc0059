"""What people decided at the desk: the records of its log, and the state that they add up to.

The log is the truth, one `Transaction` a line; `State` is what they come to, a function of them alone. Ids of masks
count from 1 over all images and are never given twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from pipeline.format.mask_verdicts import How, ImageVerdicts, MadeMask
from pipeline.format.rle import Rle

LOG_FORMAT: Final = "grainmill-desk/1"
FIRST_ID: Final = 1
Origin = Literal["prompt", "everything", "mined", "merge", "split"]
"""Where a mask came from: a prompt's answer, the search of everything, `mine`; several joined, one cut in two."""
Verdict = Literal["keep", "drop"]


@dataclass(frozen=True, kw_only=True)
class PromptRecord:
    """Clicks and a box, pixels of the image, as they were asked."""

    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    """1 inside, 0 outside."""
    box: tuple[float, float, float, float] | None = None
    """x0, y0, x1, y1."""


@dataclass(frozen=True, kw_only=True)
class AcceptedMask:
    """One mask that a person accepted."""

    id: int
    category: str
    segmentation: Rle
    """On the image's own grid."""
    granularity: float | None
    """The dial's value, or what mining measured; None: a predictor's own answer, or masks joined or cut."""
    score: float | None
    """Predicted IoU; None: nothing predicted it."""
    origin: Origin
    predictor: str
    """Who answered: a checkpoint's name, or `tree`."""
    prompt: PromptRecord | None = None
    parent_id: int | None = None
    """The accepted mask that it was kept inside of."""
    object_id: int | None = None
    """Of a video: which object it is."""
    mined_ids: tuple[int, ...] = ()
    """The masks of the run or release that it was made of."""


@dataclass(frozen=True, kw_only=True)
class Transaction:
    """What one press of a button changed, whole or not at all."""

    request: str
    """The page's own mark of it: what is sent again after a lost answer is not done again."""
    person: str
    """The name that the page gave."""
    time: str
    """UTC, ISO 8601."""
    image: str
    """Its name."""
    width: int
    """Of the image, pixels."""
    height: int
    masks: tuple[AcceptedMask, ...] = ()
    """New ones, and new states of old ones."""
    deleted: tuple[int, ...] = ()
    verdicts: dict[int, Verdict | None] = field(default_factory=dict)
    """Of mined masks, by their id; None takes one back."""
    whole: Verdict | Literal["undecided"] | None = None
    """Of the whole image; None: not spoken of."""
    record_sha256: str | None = None
    """Of a mined image: its record, to whose masks the ids belong."""


@dataclass
class ImageState:
    """What is decided of one image.

    Attributes:
        width: pixels.
        height: likewise.
        masks: accepted ones, by id.
        verdicts: of mined masks, by their id.
        whole: of the image as a whole.
        record_sha256: of what was mined; None: this is no mined image.
    """

    width: int
    height: int
    masks: dict[int, AcceptedMask] = field(default_factory=dict)
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    whole: Verdict | None = None
    record_sha256: str | None = None

    def mask_verdicts(self, key: str) -> ImageVerdicts | None:
        """What was decided about its mined masks, for `grainmill release`; None: nothing.

        What stands in a mask's place says it all: that one is neither kept nor dropped. A mask that was merged or cut,
        and whose outcome was deleted, is dropped.
        """
        if self.record_sha256 is None or not self.verdicts:
            return None
        made = tuple(
            MadeMask(of=each.mined_ids, how=_HOW.get(each.origin, "edited"), segmentation=each.segmentation)
            for each in self.masks.values()
            if each.mined_ids and each.origin != "mined"
        )
        replaced = {mined for each in made for mined in each.of}

        def judged(verdict: Verdict) -> tuple[int, ...]:
            return tuple(sorted(m for m, said in self.verdicts.items() if said == verdict and m not in replaced))

        return ImageVerdicts(
            key=key, record_sha256=self.record_sha256, kept=judged("keep"), dropped=judged("drop"), made=made
        )


_HOW: Final[dict[Origin, How]] = {"merge": "merged", "split": "split"}


@dataclass
class State:
    """What a log comes to.

    Attributes:
        images: by name, in the order in which they were first worked on.
        categories: in the order of their first use.
        requests: marks of what is done -> the ids of its masks.
        next_id: of the next mask.
    """

    images: dict[str, ImageState] = field(default_factory=dict)
    categories: dict[str, None] = field(default_factory=dict)
    requests: dict[str, tuple[int, ...]] = field(default_factory=dict)
    next_id: int = FIRST_ID

    @classmethod
    def of(cls, transactions: Iterable[Transaction]) -> State:
        """From the beginning."""
        state = cls()
        for each in transactions:
            state.apply(each)
        return state

    def apply(self, done: Transaction) -> None:
        """Takes one transaction in."""
        image = self.images.setdefault(
            done.image, ImageState(done.width, done.height, record_sha256=done.record_sha256)
        )
        if not image.verdicts:
            image.record_sha256 = done.record_sha256
        for mask in done.masks:
            image.masks[mask.id] = mask
            self.categories.setdefault(mask.category)
            self.next_id = max(self.next_id, mask.id + 1)
        for gone in done.deleted:
            image.masks.pop(gone, None)
        for mined, verdict in done.verdicts.items():
            image.verdicts.pop(mined, None)
            if verdict is not None:
                image.verdicts[mined] = verdict
        if done.whole is not None:
            image.whole = None if done.whole == "undecided" else done.whole
        self.requests[done.request] = tuple(each.id for each in done.masks)
