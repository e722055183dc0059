"""What the desk does, without the network: images, answers, claims and decisions behind one face.

Every method takes checked messages and returns what becomes JSON. An image is changed only by the person who has it.
"""

from __future__ import annotations

import dataclasses
import datetime
import threading
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.viewer import image_record, reduced_rle, thumbnail_size
from pipeline.errors import GrainmillError, InputError
from pipeline.format import rle as rle_codec
from pipeline.format.rle import Rle

from ..predict.coco_json import PredictedMask
from ..predict.prompt_flags import Prompt
from .answers import DIAL, DISPLAY_SIDE_PX, Answer, Encoded, EncodedImages, Predictor, checked
from .claims import Claims
from .images import Images
from .jobs import Job, Report
from .messages import Accept, Change, Delete, Here, Message, Relabel, Review
from .records import AcceptedMask, ImageState, Origin, PromptRecord, State, Transaction, Verdict
from .store import Store
from .video import VideoTracker

JPEG_QUALITY: Final = 90
AHEAD: Final = 2
"""Images after the one that is open which are encoded in the background."""

SEARCHES_KEPT: Final = 4
"""Images whose automatic masks are held; of an older one they are searched again."""
SHOWS_ONLY: Final = "this desk only shows (--read-only): nothing is accepted here"
BoolArray = NDArray[np.bool_]


class TakenError(GrainmillError):
    """Somebody else has the image."""


class OtherImagesError(GrainmillError):
    """A page that was loaded for other images."""


class ReadOnlyError(GrainmillError):
    """A desk that only shows."""


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """A mask that is to be accepted, before it has an id."""

    segmentation: Rle
    granularity: float | None
    score: float | None
    origin: Origin
    mined_ids: tuple[int, ...] = ()
    accepted_id: int | None = None
    """Where it is an accepted mask already."""


class Desk:
    """Everything that one server knows.

    Args:
        images: to annotate.
        predictor: who answers.
        store: where decisions go; None: a desk that only shows.
        categories: offered before any was used.
        tracker: of a video; None: these are none, or the desk only shows.
    """

    def __init__(
        self,
        images: Images,
        predictor: Predictor,
        store: Store | None,
        *,
        categories: Sequence[str] = (),
        tracker: VideoTracker | None = None,
    ) -> None:
        self.images, self.predictor, self.store = images, predictor, store
        self.categories = tuple(categories)
        self.claims = Claims()
        self.tracker = tracker
        self.encoded = EncodedImages(images.read, predictor.encode)
        self._changing = threading.RLock()
        self._searching = threading.Lock()
        self._everything: dict[int, list[PredictedMask]] = {}
        self._jobs: dict[str, Job] = {}

    @property
    def state(self) -> State:
        """What is decided; empty for a desk that only shows."""
        return State() if self.store is None else self.store.state

    def close(self) -> None:
        """Ends what works in the background, and lets DIR go."""
        for job in self._jobs.values():
            job.stop()
        self.encoded.close()
        if self.store is not None:
            self.store.close()

    # -- looking ---------------------------------------------------------------------------------------------------

    def overview(self) -> dict[str, Any]:
        """Of the whole desk."""
        with self._changing:
            counted = [{"name": name, **self._counted(name)} for name in self.images.names]
        return {
            "title": self.images.title,
            "kind": self.images.kind,
            "mark": self.images.mark,
            "predictor": self.predictor.name,
            "dial": DIAL if self.predictor.has_dial else (),
            "own": self.predictor.own_name,
            "read_only": self.store is None,
            "images": counted,
            "categories": self.all_categories(),
        }

    def all_categories(self) -> list[str]:
        """Offered ones, then others in the order of their first use."""
        with self._changing:
            return list(dict.fromkeys((*self.categories, *self.state.categories)))

    def _counted(self, name: str) -> dict[str, Any]:
        state = self.state.images.get(name)
        return {"masks": len(state.masks) if state else 0, "whole": state.whole if state else None}

    def _name(self, number: int) -> str:
        if not 0 <= number < len(self.images.names):
            raise InputError(f"image {number}: expected 0 to {len(self.images.names) - 1}")
        return self.images.names[number]

    def jpeg(self, number: int) -> bytes:
        """An image on the page's grid, JPEG.

        Raises:
            InputError: there is none, or it is damaged or too large.
        """
        self._name(number)
        rgb = self.images.read(number)
        width, height = thumbnail_size(rgb.shape[1], rgb.shape[0], DISPLAY_SIDE_PX)
        if rgb.shape[:2] != (height, width):
            rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
        bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
        done, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        assert done, "OpenCV encodes any RGB image as JPEG"
        return encoded.tobytes()

    def image(self, number: int) -> dict[str, Any]:
        """One image with what is accepted and mined in it; encodes it, and the next ones in the background.

        Raises:
            InputError: there is none, or it is damaged or too large.
        """
        name = self._name(number)
        encoded = self.encoded.get(number)
        self._state_of(number, encoded)
        for ahead in range(number + 1, min(number + 1 + AHEAD, len(self.images.names))):
            self.encoded.ahead(ahead)
        width, height = thumbnail_size(encoded.width, encoded.height, DISPLAY_SIDE_PX)
        sample = self.images.mined(number)
        return {
            "number": number,
            "name": name,
            "size": [encoded.width, encoded.height],
            "shown": [width, height],
            "mined": None if sample is None else image_record(sample, None, side_px=DISPLAY_SIDE_PX),
            "tracked": self._tracked(number, width, height),
            **self._decided(number),
        }

    def _tracked(self, number: int, width: int, height: int) -> list[dict[str, Any]]:
        """What was followed through a video, on one frame."""
        found = [] if self.tracker is None else self.tracker.found(number)
        return [
            {"object_id": each, "rle": reduced_rle(mask, width=width, height=height)["counts"]} for each, mask in found
        ]

    def _decided(self, number: int) -> dict[str, Any]:
        """What is decided of one image."""
        with self._changing:
            state = self.state.images.get(self._name(number)) or ImageState(0, 0)
            return {
                "masks": [self._accepted_json(each) for each in state.masks.values()],
                "verdicts": {str(mined): verdict for mined, verdict in state.verdicts.items()},
                "whole": state.whole,
                "categories": self.all_categories(),
            }

    def _accepted_json(self, mask: AcceptedMask) -> dict[str, Any]:
        height, width = mask.segmentation["size"]
        shown_width, shown_height = thumbnail_size(width, height, DISPLAY_SIDE_PX)
        return {
            "id": mask.id,
            "category": mask.category,
            "granularity": mask.granularity,
            "score": mask.score,
            "origin": mask.origin,
            "parent_id": mask.parent_id,
            "object_id": mask.object_id,
            "mined_ids": mask.mined_ids,
            "prompt": mask.prompt,
            "area": rle_codec.area_px(rle_codec.run_lengths_of(mask.segmentation)),
            "rle": reduced_rle(mask.segmentation, width=shown_width, height=shown_height)["counts"],
        }

    def here(self, message: Here) -> dict[str, Any]:
        """A page says that it is there; who else is, and where.

        Raises:
            OtherImagesError: it was loaded for other images.
        """
        if message.image >= 0:
            self._expect_images(message)
        if message.image < 0 or self.store is None:
            self.claims.leave(message.person)
            mine = self.store is None
            holder = None
        else:
            self._name(message.image)
            claim = self.claims.take(message.image, message.person, message.name)
            mine = claim.person == message.person
            holder = claim.name
        with self._changing:
            counts = [self._counted(name)["masks"] for name in self.images.names]
        return {
            "mine": mine,
            "holder": holder,
            "people": [
                {"name": each.name, "image": each.image, "you": each.person == message.person}
                for each in self.claims.all()
            ],
            "masks": counts,
        }

    # -- asking ----------------------------------------------------------------------------------------------------

    def answer(self, number: int, record: PromptRecord) -> dict[str, Any]:
        """The masks of a prompt, on the page's grid: the whole dial, and the predictor's own sizes.

        Raises:
            InputError: no such image, or a prompt that does not lie in it.
        """
        self._name(number)
        encoded = self.encoded.get(number)
        prompt = checked(_prompt(record), encoded.height, encoded.width)
        return {
            "dial": _answer_json(encoded.dial(prompt)) if self.predictor.has_dial else None,
            "own": _answer_json(encoded.own(prompt)) if self.predictor.own_name else None,
        }

    def search_everything(self, number: int) -> dict[str, Any]:
        """Begins the search of all masks of an image, as a job."""
        self._name(number)

        def search(report: Report) -> str:
            with self._searching:
                if number not in self._everything:
                    self._everything[number] = self.encoded.get(number).everything(report)
                while len(self._everything) > SEARCHES_KEPT:
                    self._everything.pop(next(iter(self._everything)))
                return f"{len(self._everything[number])} masks"

        return self.begin(f"everything-{number}", search)

    def everything(self, number: int) -> dict[str, Any]:
        """What the search found, as the report's page takes it.

        Raises:
            InputError: nothing was searched, or another image since then.
        """
        found = self._found(number)
        encoded = self.encoded.get(number)
        width, height = thumbnail_size(encoded.width, encoded.height, DISPLAY_SIDE_PX)
        return {
            "width": width,
            "height": height,
            "size": [encoded.width, encoded.height],
            "rle": [reduced_rle(each.segmentation, width=width, height=height)["counts"] for each in found],
            "area": [each.area_px for each in found],
            "granularity": [1.0 if each.granularity is None else each.granularity for each in found],
            "instance": [n if each.instance_id is None else each.instance_id for n, each in enumerate(found)],
            "parent": [each.parent_id for each in found],
            "score": [each.score for each in found],
        }

    def _found(self, number: int) -> list[PredictedMask]:
        found = self._everything.get(number)
        if found is None:
            raise InputError("everything: search this image first")
        return found

    def propagate(self) -> dict[str, Any]:
        """Begins to follow all objects of a video, as a job.

        Raises:
            InputError: this is no video.
            ReadOnlyError: nothing is written here.
        """
        if self.store is None:
            raise ReadOnlyError(SHOWS_ONLY)
        tracker = self.tracker
        if tracker is None:
            raise InputError("these images are no video")
        with self._changing:
            number = {name: place for place, name in enumerate(self.images.names)}
            accepted = [
                (number[name], mask)
                for name, state in self.state.images.items()
                if name in number
                for mask in state.masks.values()
            ]
        accepted.sort(key=lambda each: each[1].id)
        return self.begin("propagate", lambda report: tracker.propagate(accepted, report))

    # -- jobs ------------------------------------------------------------------------------------------------------

    def begin(self, name: str, work: Any) -> dict[str, Any]:
        """Begins a job, unless one of that name is at work."""
        with self._changing:
            job = self._jobs.get(name)
            if job is None or job.state != "running":
                job = self._jobs[name] = Job()
                job.start(work)
        return {"job": name, **job.to_json()}

    def job(self, name: str, *, stop: bool = False) -> dict[str, Any]:
        """How far a job is; `stop` ends it.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self._jobs:
            raise InputError(f"no job {name!r}")
        if stop:
            self._jobs[name].stop()
        return {"job": name, **self._jobs[name].to_json()}

    # -- deciding --------------------------------------------------------------------------------------------------

    def accept(self, number: int, message: Accept) -> dict[str, Any]:
        """Accepts masks; returns what is decided of the image, and the new ids.

        Raises:
            InputError: what is asked for is not there, or nothing is left of it.
            TakenError: somebody else has the image.
            OtherImagesError: the page was loaded for other images.
            ReadOnlyError: nothing can be accepted here.
            StorageError: it cannot be written.
        """
        return self._change(number, message, lambda encoded, state: self._accepted(number, encoded, state, message))

    def delete(self, number: int, message: Delete) -> dict[str, Any]:
        """Deletes accepted masks; parts of them stay, inside of nothing. Raises as `accept`."""

        def deleted(encoded: Encoded, state: ImageState) -> dict[str, Any]:
            gone = {self._accepted_mask(state, each).id for each in message.ids}
            kept = {
                mined for each in gone for mined in state.masks[each].mined_ids if state.verdicts.get(mined) == "keep"
            }
            return {
                "deleted": tuple(sorted(gone)), "masks": _orphans(state, gone), "verdicts": dict.fromkeys(sorted(kept)),
            }  # fmt: skip

        return self._change(number, message, deleted)

    def relabel(self, number: int, message: Relabel) -> dict[str, Any]:
        """Gives accepted masks another category. Raises as `accept`."""

        def relabelled(encoded: Encoded, state: ImageState) -> dict[str, Any]:
            masks = [self._accepted_mask(state, each) for each in message.ids]
            return {"masks": tuple(dataclasses.replace(each, category=message.category) for each in masks)}

        return self._change(number, message, relabelled)

    def review(self, number: int, message: Review) -> dict[str, Any]:
        """Verdicts on mined masks and on the whole image. A dropped mask that was kept before goes. Raises as
        `accept`."""

        def reviewed(encoded: Encoded, state: ImageState) -> dict[str, Any]:
            for each in message.ids:
                self._mined(number, each)
            gone: set[int] = set()
            if message.verdict != "keep":
                gone = {m.id for m in state.masks.values() if m.origin == "mined" and _any(m, message.ids)}
            return {
                "verdicts": dict.fromkeys(message.ids, message.verdict),
                "whole": message.whole,
                "deleted": tuple(sorted(gone)),
                "masks": _orphans(state, gone),
            }

        return self._change(number, message, reviewed)

    def _change(self, number: int, message: Change, make: Any) -> dict[str, Any]:
        """One transaction, made by `make` of the encoded image and its state."""
        if self.store is None:
            raise ReadOnlyError(SHOWS_ONLY)
        self._expect_images(message)
        name = self._name(number)
        encoded = self.encoded.get(number)
        with self._changing:
            if message.request not in self.state.requests:
                self._expect_claim(number, message)
                state = self._state_of(number, encoded)
                done = Transaction(
                    request=message.request, person=message.name,
                    time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), image=name,
                    width=encoded.width, height=encoded.height, record_sha256=self.images.record_sha256(number),
                    **make(encoded, state),
                )  # fmt: skip
                self.store.commit(done)
            return {"ids": self.state.requests[message.request], **self._decided(number)}

    def _state_of(self, number: int, encoded: Encoded) -> ImageState:
        name = self._name(number)
        state = self.state.images.get(name)
        if state is not None and (state.width, state.height) != (encoded.width, encoded.height):
            raise InputError(
                f"{name}: it has {encoded.width} x {encoded.height} pixels, and what was accepted in an image of this "
                f"name has {state.width} x {state.height}: another image; give it another --output"
            )
        record = self.images.record_sha256(number)
        if state is not None and state.verdicts and state.record_sha256 != record:
            raise InputError(
                f"{name}: its masks were judged in another record ({str(state.record_sha256)[:12]}) than this one "
                f"({str(record)[:12]}): mined again since? Give the new masks another --output"
            )
        return state or ImageState(encoded.width, encoded.height)

    def _expect_images(self, message: Message) -> None:
        if message.images != self.images.mark:
            raise OtherImagesError(
                "the desk was started again with other images, or with changed ones. What it had accepted is kept; "
                "what was sent since then was not taken. Load the page again"
            )

    def _expect_claim(self, number: int, message: Message) -> None:
        claim = self.claims.take(number, message.person, message.name)
        if claim.person != message.person:
            raise TakenError(f"{claim.name} has this image; nothing was changed")

    def _accepted(self, number: int, encoded: Encoded, state: ImageState, message: Accept) -> dict[str, Any]:
        """What accepting changes."""
        chosen = self._chosen(number, encoded, state, message)
        gone = {each.accepted_id for each in chosen if each.accepted_id is not None}
        if message.way == "merge":
            chosen = [_merged(chosen)]
        elif message.way == "split":
            chosen = self._split(chosen, encoded, message)
        verdict: Verdict = "keep" if message.way == "each" else "drop"
        used = {mined for each in chosen for mined in each.mined_ids} if message.source == "mined" else set()
        if verdict == "drop":
            gone |= {each.id for each in state.masks.values() if each.origin == "mined" and _any(each, used)}
        parent = None if message.inside is None else self._accepted_mask(state, message.inside)
        old = None if message.replaces is None else self._accepted_mask(state, message.replaces)
        if old is not None and (len(chosen) != 1 or old.id in gone):
            raise InputError("one mask takes another's place")
        if parent is not None and (parent.id in gone or (old is not None and self._is_inside(state, parent, old))):
            raise InputError("a mask cannot lie inside itself")
        masks: list[AcceptedMask] = []
        next_id = self.state.next_id
        for each in chosen:
            segmentation = each.segmentation if parent is None else _clipped(each.segmentation, parent.segmentation)
            if not rle_codec.area_px(rle_codec.run_lengths_of(segmentation)):
                where = "" if parent is None else f" inside mask {parent.id}"
                raise InputError(f"nothing is left of the mask{where}")
            masks.append(
                AcceptedMask(
                    id=old.id if old else next_id, category=message.category, segmentation=segmentation,
                    granularity=each.granularity, score=each.score, origin=each.origin,
                    predictor="grainmill mine" if each.origin == "mined" else self.predictor.name,
                    prompt=message.prompt, parent_id=parent.id if parent else None, object_id=message.object_id,
                    mined_ids=each.mined_ids or (old.mined_ids if old else ()),
                )
            )  # fmt: skip
            next_id += 0 if old else 1
        if old is not None:
            masks += self._parts_clipped(state, old, masks[0].segmentation)
        return {
            "masks": (*masks, *_orphans(state, gone)),
            "deleted": tuple(sorted(gone)),
            "verdicts": dict.fromkeys(sorted(used), verdict),
        }

    def _chosen(self, number: int, encoded: Encoded, state: ImageState, message: Accept) -> list[_Chosen]:
        """The masks that a message names, at least one."""
        if message.source in ("dial", "own"):
            answer = self._answer(encoded, message.prompt, own=message.source == "own")
            place = _within(message.place, len(answer.score), "place")
            mask = rle_codec.encode(answer.full(place))
            return [
                _Chosen(
                    segmentation=mask, granularity=answer.granularity[place], score=answer.score[place],
                    origin="prompt",
                )
            ]  # fmt: skip
        chosen: list[_Chosen] = []
        kept = state.masks.values()
        for each in dict.fromkeys(message.ids):
            if message.source == "accepted":
                old = self._accepted_mask(state, each)
                chosen.append(
                    _Chosen(
                        segmentation=old.segmentation, granularity=old.granularity, score=old.score,
                        origin=old.origin, mined_ids=old.mined_ids, accepted_id=old.id,
                    )
                )  # fmt: skip
            elif message.source == "everything":
                found = self._found(number)
                mask_found = found[_within(each, len(found), "mask")]
                chosen.append(
                    _Chosen(
                        segmentation=mask_found.segmentation, granularity=mask_found.granularity,
                        score=mask_found.score, origin="everything",
                    )
                )  # fmt: skip
            else:
                mined = self._mined(number, each)
                if message.way == "each" and any(m.origin == "mined" and each in m.mined_ids for m in kept):
                    continue  # kept already: one more of the same would say nothing
                chosen.append(
                    _Chosen(
                        segmentation=mined.segmentation, granularity=mined.granularity, score=mined.score,
                        origin="mined", mined_ids=(each,),
                    )
                )  # fmt: skip
        if not message.ids:
            raise InputError("expected at least one mask, found none")
        if not chosen or (message.source == "accepted" and message.way == "each"):
            raise InputError("these masks are accepted already")
        return chosen

    def _answer(self, encoded: Encoded, record: PromptRecord | None, *, own: bool) -> Answer:
        if record is None:
            raise InputError("expected a prompt, found none")
        if not (self.predictor.own_name if own else self.predictor.has_dial):
            raise InputError(f"{self.predictor.name} has no such answer")
        prompt = checked(_prompt(record), encoded.height, encoded.width)
        return encoded.own(prompt) if own else encoded.dial(prompt)

    def _split(self, chosen: Sequence[_Chosen], encoded: Encoded, message: Accept) -> list[_Chosen]:
        """One mask as two: what the prompt answers inside of it, and the rest."""
        if len(chosen) != 1:
            raise InputError(f"one mask is split by a click, found {len(chosen)}")
        [one] = chosen
        answer = self._answer(encoded, message.prompt, own=False)
        mask = rle_codec.decode(one.segmentation)
        piece = answer.full(_within(message.place, len(answer.score), "place")) & mask
        if not piece.any() or (piece == mask).all():
            raise InputError("the click's answer does not divide this mask; move the dial or click elsewhere")
        return [
            _Chosen(
                segmentation=rle_codec.encode(each), granularity=None, score=None, origin="split",
                mined_ids=one.mined_ids,
            )
            for each in (piece, mask & ~piece)
        ]  # fmt: skip

    def _mined(self, number: int, mined: int) -> Any:
        sample = self.images.mined(number)
        if sample is None:
            raise InputError("this image has no mined masks")
        return sample.annotations[_within(mined, len(sample.annotations), "mined mask")]

    @staticmethod
    def _accepted_mask(state: ImageState, mask_id: int) -> AcceptedMask:
        if mask_id not in state.masks:
            raise InputError(f"mask {mask_id} is not there (any more)")
        return state.masks[mask_id]

    @staticmethod
    def _is_inside(state: ImageState, mask: AcceptedMask, other: AcceptedMask) -> bool:
        """Whether `mask` is `other`, or kept inside of it through any number of steps."""
        at: AcceptedMask | None = mask
        while at is not None:
            if at.id == other.id:
                return True
            at = None if at.parent_id is None else state.masks.get(at.parent_id)
        return False

    def _parts_clipped(self, state: ImageState, parent: AcceptedMask, to: Rle) -> list[AcceptedMask]:
        """The parts of a mask that changed, and theirs, kept inside of what it is now."""
        found: list[AcceptedMask] = []
        for part in state.masks.values():
            if part.parent_id == parent.id:
                clipped = _clipped(part.segmentation, to)
                if not rle_codec.area_px(rle_codec.run_lengths_of(clipped)):
                    raise InputError(f"mask {part.id} is kept inside of it and would vanish; delete that one first")
                if clipped != part.segmentation:
                    found.append(dataclasses.replace(part, segmentation=clipped))
                    found += self._parts_clipped(state, part, clipped)
        return found


def _orphans(state: ImageState, gone: Container[int]) -> tuple[AcceptedMask, ...]:
    """The parts of masks that go, which stay, inside of nothing."""
    return tuple(
        dataclasses.replace(each, parent_id=None)
        for each in state.masks.values()
        if each.parent_id in gone and each.id not in gone
    )


def _prompt(record: PromptRecord) -> Prompt:
    if len(record.points) != len(record.labels) or not set(record.labels) <= {0, 1}:
        raise InputError("expected a label 1 (inside) or 0 (outside) for each click")
    return Prompt(points=record.points, labels=record.labels, box=record.box)


def _answer_json(answer: Answer) -> dict[str, Any]:
    return {
        "granularity": answer.granularity,
        "score": [round(each, 4) for each in answer.score],
        "rle": [each["counts"] for each in answer.shown],
    }


def _within(place: int, count: int, what: str) -> int:
    if not 0 <= place < count:
        raise InputError(f"{what} {place}: expected 0 to {count - 1}")
    return place


def _any(mask: AcceptedMask, mined: Iterable[int]) -> bool:
    return not set(mask.mined_ids).isdisjoint(mined)


def _clipped(mask: Rle, to: Rle) -> Rle:
    return rle_codec.encode(rle_codec.decode(mask) & rle_codec.decode(to))


def _merged(chosen: Sequence[_Chosen]) -> _Chosen:
    if len(chosen) < 2:
        raise InputError("at least two masks become one")
    union = np.logical_or.reduce([rle_codec.decode(each.segmentation) for each in chosen])
    return _Chosen(
        segmentation=rle_codec.encode(union), granularity=None, score=None, origin="merge",
        mined_ids=tuple(sorted({mined for each in chosen for mined in each.mined_ids})),
    )  # fmt: skip
