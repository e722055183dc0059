"""Samples of a tar: members whose names agree up to the first dot of the last component, as WebDataset has it.

The image of a sample is the member that is called as the sample (`a.jpg`, before `a.mask.png`). Is there none, each
image that bears a further name is a sample of its own (`a.1.jpg`, `a.2.jpg`, or `a.left.png`, `a.right.png`), but those
that are called as label images; likewise both of `a.jpg` and `a.png`. `a.json` is the annotation of the only image,
`a.left.json` that of `a.left.png`. Is there no member with an image's ending at all, the first bytes are asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import BinaryIO, Final

from ..errors import FailureReason
from .kinds import IMAGE_SUFFIXES, SNIFF_BYTES, is_image, kind_of_name, named_format
from .passed_over import PassedOver
from .tars import TarEnd, TarMember, scan_tar

LABEL_NAMES: Final = frozenset(
    {
        "alpha",
        "annotation",
        "binary",
        "depth",
        "disparity",
        "edge",
        "edges",
        "gt",
        "instance",
        "instances",
        "label",
        "labels",
        "mask",
        "masks",
        "matte",
        "normal",
        "normals",
        "panoptic",
        "semantic",
        "seg",
        "segmentation",
        "trimap",
    }
)
"""`a.NAME.png` beside `a.OTHER.png`: no image."""
SNIFFED_SAMPLES: Final = 100
"""Samples without an image's ending whose members are opened; more of a tar without images is not looked at."""


@dataclass(frozen=True, kw_only=True)
class TarSample:
    """One sample, or one thing that failed.

    Attributes:
        name: of the image's member, or of the first one.
        occurrence: how often the name was met before.
        offset: of the image's data; None if it failed.
        size: bytes.
        json_offset: of the annotation's data, or None.
        json_size: bytes.
        reason: why it failed, or None.
        message: about that.
    """

    name: str | None
    occurrence: int = 0
    offset: int | None = None
    size: int = 0
    json_offset: int | None = None
    json_size: int = 0
    reason: FailureReason | None = None
    message: str | None = None


@dataclass
class _Group:
    """Members of one sample."""

    first: TarMember
    images: list[tuple[str, TarMember]] = field(default_factory=list)
    """With the name between the sample's and the ending: "" for `a.jpg`, `left` for `a.left.jpg`."""
    annotations: dict[str, TarMember] = field(default_factory=dict)
    others: list[TarMember] = field(default_factory=list)
    unsupported: tuple[TarMember, str] | None = None
    """An image of a format that is not mined, and the format."""


def tar_samples(stream: BinaryIO, size: int, *, uri: str, passed: PassedOver) -> Iterator[TarSample]:
    """Samples in the order of their first members, then, of a tar that is cut, what became of its rest.

    Args:
        stream: seekable.
        size: of the file in bytes.
        uri: of the tar, for examples.
        passed: hears of members that are used by no sample.
    """
    order: list[_Group | TarSample] = []
    groups: dict[str, _Group] = {}
    seen: dict[str, int] = {}
    end: str | None = None
    for each in scan_tar(stream, size):
        if isinstance(each, TarEnd):
            end = each.problem
            break
        occurrence = seen.get(each.name, 0)
        seen[each.name] = occurrence + 1
        sample = TarSample(name=each.name, occurrence=occurrence)
        if each.problem is not None:
            order.append(replace(sample, reason="bad_member_name", message=each.problem))
        elif any(part.startswith(".") and part != "." for part in each.name.split("/")):
            passed.add("member", f"{uri} {each.name}", kind="hidden")
        elif occurrence:
            message = f"the name stands {occurrence + 1} times in the tar"
            order.append(replace(sample, reason="duplicate_key", message=message))
        else:
            folder, _, name = each.name.rpartition("/")
            stem, _, rest = name.partition(".")
            group = groups.get(f"{folder}/{stem}")
            if group is None:
                group = groups[f"{folder}/{stem}"] = _Group(first=each)
                order.append(group)
            _sort_in(group, each, rest)
    sniffs_left = SNIFFED_SAMPLES
    for item in order:
        if isinstance(item, TarSample):
            yield item
            continue
        if not item.images and sniffs_left:
            sniffs_left -= 1
            _sniff(item, stream)
        yield from _samples_of(item, uri, passed)
    if end is not None:
        yield TarSample(name=None, reason="truncated_source", message=end)


def _sort_in(group: _Group, member: TarMember, rest: str) -> None:
    inner, _, ending = rest.rpartition(".")
    if f".{ending.lower()}" in IMAGE_SUFFIXES:
        group.images.append((inner, member))
    elif ending.lower() == "json" and inner not in group.annotations:
        group.annotations[inner] = member
    else:
        group.others.append(member)


def _sniff(group: _Group, stream: BinaryIO) -> None:
    """Images by content, for a sample that has none by name."""
    for member in list(group.others):
        if kind_of_name(member.name) is None:
            stream.seek(member.offset)
            first = stream.read(min(SNIFF_BYTES, member.size))
            found = named_format(first)
            if is_image(first):
                group.others.remove(member)
                group.images.append((_rest(member).rpartition(".")[0], member))
            elif found is not None and found[0] == "unsupported_image":
                group.unsupported = group.unsupported or (member, found[1])


def _samples_of(group: _Group, uri: str, passed: PassedOver) -> Iterator[TarSample]:
    plain = [image for image in group.images if not image[0]]
    named = [image for image in group.images if not LABEL_NAMES & set(image[0].lower().replace("_", ".").split("."))]
    chosen = plain or named or group.images
    if group.unsupported is not None and not chosen:
        member, kind = group.unsupported
        yield TarSample(name=member.name, reason="unsupported_format", message=f"{kind}, which is not mined")
        return
    if not chosen:
        yield TarSample(name=group.first.name, reason="incomplete_sample", message="no member is an image")
        return
    used = set()
    for inner, image in chosen:
        annotation = group.annotations.get(inner) if inner or len(chosen) == 1 else None
        if annotation is None and len(chosen) == 1:
            annotation = group.annotations.get("")
        used.add(None if annotation is None else annotation.name)
        sample = TarSample(name=image.name)
        for each in (image, annotation):
            if each is not None and not each.whole:
                message = f"the file ends inside {each.name}"
                sample = replace(sample, reason="truncated", message=message)
        if sample.reason is None:
            sample = replace(sample, offset=image.offset, size=image.size)
            if annotation is not None:
                sample = replace(sample, json_offset=annotation.offset, json_size=annotation.size)
        yield sample
    for inner, image in group.images:
        if (inner, image) not in chosen:
            passed.add("companion", f"{uri} {image.name}", kind=f".{inner}")
    for member in [*group.others, *(each for each in group.annotations.values() if each.name not in used)]:
        ending = _rest(member)
        passed.add("member", f"{uri} {member.name}", kind=f".{ending.lower()}" if ending else "no ending")


def _rest(member: TarMember) -> str:
    """What stands behind the sample's name."""
    return member.name.rpartition("/")[2].partition(".")[2]
