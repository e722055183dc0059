"""DIR on disk: the log of what was decided, and the files made of it at that moment.

    DIR/log.jsonl             one transaction a line, appended and synced before the page hears that it is done
    DIR/annotations.json      COCO: images, categories, annotations with `granularity`; replaced in one step
    DIR/exclude.txt           images that were dropped, one key or name a line, for `grainmill release --exclude`
    DIR/keep.txt              images that were kept, likewise, for `grainmill release --keep`
    DIR/mask_verdicts.jsonl   what was decided about mined masks, for `grainmill release --mask-verdicts`
    DIR/desk.json             the token and the port of the page, so that an open page goes on after a restart
    DIR/lock                  held by the one server that writes here

A line that a killed server left unfinished was never answered; it is cut off when the next one begins.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from pipeline.errors import InputError, SchemaError
from pipeline.format import rle as rle_codec
from pipeline.format.mask_verdicts import verdicts_bytes
from pipeline.storage.local import explained, sync_directory

from .records import LOG_FORMAT, AcceptedMask, State, Transaction

LOG: Final = "log.jsonl"
COCO: Final = "annotations.json"
EXCLUDE: Final = "exclude.txt"
KEEP: Final = "keep.txt"
MASK_VERDICTS: Final = "mask_verdicts.jsonl"
ADDRESS: Final = "desk.json"
LOCK: Final = "lock"
_HEADER: Final = msgspec.json.encode({"format": LOG_FORMAT}) + b"\n"


@dataclass(frozen=True)
class Address:
    """Where the page was last: the token of its URL, and the port (0: none yet)."""

    token: str
    port: int


class Store:
    """DIR, held by this process until `close`.

    Args:
        folder: made if it is missing.
        lists: write the lists for `grainmill release` too.

    Attributes:
        state: what the log comes to.

    Raises:
        InputError: another server holds it, or it has files of the desk's names that no desk wrote.
        SchemaError: a log of another format, or one that was damaged.
        StorageError: a full disk, missing rights.
    """

    def __init__(self, folder: Path, *, lists: bool) -> None:
        self.folder = folder
        self._lists = lists
        self._written: dict[tuple[str, int], tuple[AcceptedMask, bytes]] = {}
        with explained("write", folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.fdopen(os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                self._lock.close()
                raise InputError(
                    f"{folder}: another `grainmill annotate` is at work here; open its page, or choose another --output"
                ) from error
            try:
                transactions = self._recovered()
                self._log = (folder / LOG).open("ab")
                self._log_bytes = self._log.tell()
            except BaseException:
                self._lock.close()
                raise
        self.state = State.of(transactions)
        self._write_files()

    def _recovered(self) -> list[Transaction]:
        path = self.folder / LOG
        data = path.read_bytes() if path.exists() else b""
        if not data:
            self._expect_no_files_of_others()
            replace_file(path, _HEADER)
            return []
        if not data.startswith(_HEADER):
            raise SchemaError(f"{path}: expected the log of a desk ({LOG_FORMAT}), found {data[:60]!r}")
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        found = []
        for number, line in enumerate(whole.splitlines()[1:], start=2):
            try:
                found.append(msgspec.json.decode(line, type=Transaction))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise SchemaError(f"{path}, line {number}: not a transaction ({error}); restore it") from error
        return found

    def _expect_no_files_of_others(self) -> None:
        """Without a log, a file that would be replaced or removed is somebody else's."""
        for name in (COCO, EXCLUDE, KEEP, MASK_VERDICTS) if self._lists else (COCO,):
            if (self.folder / name).exists():
                raise InputError(
                    f"{self.folder / name}: is there, and no desk wrote it ({LOG} is missing); choose another --output"
                )

    def commit(self, done: Transaction) -> None:
        """Makes a transaction last: on return it is in the log and in the COCO file. One call at a time.

        One whose request is in the log already is not done again.

        Raises:
            StorageError: it cannot be written. What is not in the log has not happened; sent again, it is done once.
        """
        if done.request not in self.state.requests:
            with explained("write", self.folder / LOG):
                self._append(msgspec.json.encode(done) + b"\n")
            self.state.apply(done)
        self._write_files()

    def _append(self, line: bytes) -> None:
        """A line of the log, whole and synced; after an OSError none of it, at the latest when the next one begins."""
        if self._log.closed:
            self._reopen()
        try:
            self._log.write(line)
            self._log.flush()
            os.fsync(self._log.fileno())
        except OSError:
            with contextlib.suppress(OSError):  # what is left of the line in the buffer must not follow later
                self._log.close()
            with contextlib.suppress(OSError):  # tried again before the next line
                self._reopen()
            raise
        self._log_bytes += len(line)

    def _reopen(self) -> None:
        """Opens the log again, without what a failed write left behind its last whole line."""
        os.truncate(self.folder / LOG, self._log_bytes)
        self._log = (self.folder / LOG).open("ab")

    def close(self) -> None:
        """Lets the folder go; again does nothing."""
        self._log.close()
        self._lock.close()

    # -- what is made of it ----------------------------------------------------------------------------------------

    def _write_files(self) -> None:
        with explained("write", self.folder / COCO):
            replace_file(self.folder / COCO, self._coco())
            if self._lists:
                lists = {
                    name: "".join(
                        f"{key}\n" for key, each in self.state.images.items() if each.whole == verdict
                    ).encode()
                    for name, verdict in ((EXCLUDE, "drop"), (KEEP, "keep"))
                }
                judged = [each.mask_verdicts(key) for key, each in self.state.images.items()]
                lists[MASK_VERDICTS] = verdicts_bytes([each for each in judged if each]) if any(judged) else b""
                for name, content in lists.items():
                    if content:
                        replace_file(self.folder / name, content)
                    else:  # `release` takes an empty list for a mistake
                        (self.folder / name).unlink(missing_ok=True)

    def _coco(self) -> bytes:
        """The COCO file; what did not change since the last one is not encoded again."""
        category_id = {name: number for number, name in enumerate(self.state.categories, start=1)}
        images: list[dict[str, Any]] = []
        parts: list[bytes] = []
        written: dict[tuple[str, int], tuple[AcceptedMask, bytes]] = {}
        for image_id, (name, image) in enumerate(self.state.images.items(), start=1):
            images.append({"id": image_id, "file_name": name, "width": image.width, "height": image.height})
            for mask in image.masks.values():
                known = self._written.get((name, mask.id))
                if known is None or known[0] is not mask:
                    entry = coco_annotation(mask, image_id, category_id[mask.category])
                    known = (mask, msgspec.json.encode(entry))
                written[name, mask.id] = known
                parts.append(known[1])
        self._written = written
        head = {
            "info": {"description": "accepted at the desk of grainmill annotate", "format": LOG_FORMAT},
            "images": images,
            "categories": [{"id": number, "name": name} for name, number in category_id.items()],
        }
        return msgspec.json.encode(head)[:-1] + b',"annotations":[' + b",\n".join(parts) + b"]}\n"

    # -- the page's address ----------------------------------------------------------------------------------------

    def address(self) -> Address:
        """The last one, or a new token."""
        try:
            return msgspec.json.decode((self.folder / ADDRESS).read_bytes(), type=Address)
        except (OSError, msgspec.MsgspecError):
            return Address(new_token(), 0)

    def keep_address(self, address: Address) -> None:
        """For the next start; only its owner may read it."""
        with explained("write", self.folder / ADDRESS):
            replace_file(self.folder / ADDRESS, msgspec.json.encode(address), mode=0o600)


def coco_annotation(mask: AcceptedMask, image_id: int, category_id: int) -> dict[str, Any]:
    """An entry of `annotations`: COCO's fields, and ours beside them."""
    runs = rle_codec.run_lengths_of(mask.segmentation)
    entry: dict[str, Any] = {
        "id": mask.id,
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": 0,
        "segmentation": mask.segmentation,
        "bbox": list(rle_codec.bbox_xywh(runs, mask.segmentation["size"][0])),
        "area": rle_codec.area_px(runs),
        "granularity": mask.granularity,
        "parent_id": mask.parent_id,
        "origin": mask.origin,
        "predictor": mask.predictor,
    }
    if mask.score is not None:  # COCO's readers take a null for a number
        entry["score"] = round(mask.score, 6)
    if mask.object_id is not None:
        entry["object_id"] = mask.object_id
    return entry


def new_token() -> str:
    """Of a page's URL: 256 bits."""
    return secrets.token_urlsafe(32)


def replace_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """A file that is the old one or the new one, whole, whatever happens; synced."""
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    try:
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(scratch, path)
        sync_directory(path.parent)
    finally:
        scratch.unlink(missing_ok=True)
