"""Verdicts on single masks, from mining over the desk into a release and its next version, read back mask by mask."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline
from model.desk.answers import TreePredictors
from model.desk.desk import Desk
from model.desk.images import open_images
from model.desk.messages import Accept, Review
from model.desk.store import Store
from pipeline.cli import main
from pipeline.errors import InputError
from pipeline.format import rle
from pipeline.format.granularity import granularity_of
from pipeline.format.schema import Sample
from pipeline.release.checks import ReleaseRefusedError
from pipeline.release.verify import verify_release
from pipeline.storage.open import open_versioned
from tests.desk_parts import PERSON, change, write_images

SHARED = {"name": "curated", "license": "CC-BY-4.0", "gallery_images": 2}


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masks")
    write_images(folder / "in")
    flags = ["--executor", "inline"]
    assert main(["mine", "--input", str(folder / "in"), "--output", str(folder / "run"), *flags]) == 0
    return folder / "run"


def samples(location: Path) -> dict[str, Sample]:
    return {sample.key: sample for sample in pipeline.open_dataset(location)}


def decoded(sample: Sample) -> list[np.ndarray]:
    return [rle.decode(mask.segmentation) for mask in sample.annotations]


def sound(location: Path) -> dict[str, Any]:
    """The manifest of a release in which nothing is wrong, down to every mask."""
    assert [str(each) for each in verify_release(open_versioned(str(location)), deep=True)] == []
    manifest: dict[str, Any] = json.loads((location / "manifest.json").read_bytes())
    return manifest


def judge(run: Path, output: Path, *decisions: tuple[int, str, dict[str, Any]]) -> Path:
    """The list that the desk leaves after decisions: number of the image, accept or review, what the page sends."""
    images = open_images([str(run)], taken=None)
    desk = Desk(images, TreePredictors(), Store(output, lists=True))
    with contextlib.closing(desk):
        for number, way, fields in decisions:
            message = change(PERSON, images=images.mark, **fields)
            if way == "review":
                desk.review(number, Review(**message))
            else:
                desk.accept(number, Accept(**{"category": "thing", "source": "mined", **message}))
    return output / "mask_verdicts.jsonl"


def shape(sample: Sample) -> tuple[int, int, tuple[int, ...]]:
    """A whole, a part of it that has at least two parts of its own, and those."""
    for mask in sample.annotations:
        inner = tuple(each.id for each in sample.annotations if each.parent_id == mask.id)
        if mask.parent_id is not None and len(inner) >= 2:
            return mask.instance_id, mask.id, inner
    raise AssertionError("no such tree was mined; draw others")


def test_masks_that_people_judged_reach_a_release(
    mined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = samples(mined)
    keys = [*open_images([str(mined)], taken=None).names]
    first, second, third = (before[key] for key in keys)
    whole, part, inner = shape(first)
    two = [mask.id for mask in second.annotations if mask.is_instance][:2]
    verdicts = judge(
        mined, tmp_path / "desk",
        (0, "review", {"ids": [part], "verdict": "drop"}), (0, "accept", {"ids": [whole]}),
        (1, "accept", {"ids": two, "way": "merge"}),
        (2, "review", {"ids": [mask.id for mask in third.annotations], "verdict": "drop"}),
    )  # fmt: skip
    pipeline.build_release(mined, tmp_path / "all", version="1.0.0", **SHARED)
    made = pipeline.build_release(mined, tmp_path / "rel", version="1.0.0", mask_verdicts=str(verdicts), **SHARED)
    after = samples(tmp_path / "rel")
    manifest = sound(tmp_path / "rel")
    assert sorted(after) == sorted(keys[:2])
    assert manifest["digest"] != sound(tmp_path / "all")["digest"]
    assert manifest["versions"][0]["changes"]["left"] == {"no_masks": 1}
    assert manifest["versions"][0]["changes"]["curated"] == {
        "list_sha256": made["versions"][0]["changes"]["curated"]["list_sha256"],
        "kept_only": False, "images": 3,
        "masks": {"dropped": 1 + len(third.annotations), "merged": 2, "made": 1},
    }  # fmt: skip

    # The mask is gone, its parts are the whole's, and every other mask is where it was.
    [left, old] = decoded(after[first.key]), decoded(first)
    assert len(left) == len(old) - 1
    assert not any(np.array_equal(each, old[part]) for each in left)
    around = first.annotations[part].parent_id
    assert around is not None
    for each in inner:
        [mask] = [m for m in after[first.key].annotations if np.array_equal(rle.decode(m.segmentation), old[each])]
        assert mask.parent_id is not None
        assert np.array_equal(left[mask.parent_id], old[around])
    for instance in (mask.id for mask in after[first.key].annotations if mask.is_instance):
        family = [mask for mask in after[first.key].annotations if mask.instance_id == instance]
        expected = granularity_of(np.array([mask.area for mask in family]), "instance-minmax")
        assert [mask.granularity for mask in family] == [float(each) for each in expected]
    # Two wholes are one, and their parts are its parts.
    union = np.logical_or(*(decoded(second)[each] for each in two))
    [joined] = [m for m in after[second.key].annotations if np.array_equal(rle.decode(m.segmentation), union)]
    assert (joined.is_instance, joined.origin) == (True, "annotation")
    parts = sum(mask.instance_id in two and not mask.is_instance for mask in second.annotations)
    assert sum(mask.instance_id == joined.id for mask in after[second.key].annotations) == parts + 1

    card = (tmp_path / "rel" / "README.md").read_text()
    assert "People judged masks of 3 images" in card
    row = f"| 1.0.0 | 3 | {1 + len(third.annotations)} | 0 | 2 | 0 | 0 | 1 | 1 |"
    assert row in card
    assert "No person" not in card
    assert "by hand" not in card
    assert "People then judged masks" in (tmp_path / "rel" / "croissant.json").read_text()
    assert "masks judged by people, in 3 images" in (tmp_path / "rel" / "CHANGELOG.md").read_text()
    plain = (tmp_path / "all" / "README.md").read_text()
    assert "Nothing was drawn, corrected or chosen by hand." in plain
    assert (
        main(["mine", "--input", str(tmp_path / "rel"), "--output", str(tmp_path / "again"), "--executor", "inline"])
        == 0
    )
    capsys.readouterr()


def test_a_cut_a_later_version_and_kept_masks_only(mined: Path, tmp_path: Path) -> None:
    keys = [*open_images([str(mined)], taken=None).names]
    before = samples(mined)
    first = before[keys[0]]
    whole, part, _ = shape(first)
    pixels = decoded(first)[part]
    x, y = np.argwhere(pixels)[pixels.sum() // 3][::-1].tolist()
    cut: dict[str, Any] = {
        "source": "mined",
        "ids": [part],
        "way": "split",
        "prompt": {"points": [[x, y]], "labels": [1]},
    }
    for place in range(19):  # at some granularity the click's answer divides the mask
        try:
            verdicts = judge(mined, tmp_path / f"desk{place}", (0, "accept", _typed({**cut, "place": place})))
            break
        except InputError:
            continue
    pipeline.build_release(mined, tmp_path / "rel", version="1.0.0", **SHARED)
    pipeline.build_release(None, tmp_path / "rel", version="1.1.0", append=True, mask_verdicts=str(verdicts), **SHARED)
    manifest = sound(tmp_path / "rel")
    told = manifest["versions"][1]["changes"]["curated"]["masks"]
    assert (told["split"], told["made"] in (1, 2)) == (1, True)  # a piece that is a mask already is not there twice
    assert manifest["versions"][1]["changes"]["added"] == 0
    after = samples(tmp_path / "rel")
    pieces = [rle.decode(each["segmentation"]) for each in json.loads(verdicts.read_text().splitlines()[1])["made"]]
    assert np.array_equal(np.logical_or(*pieces), pixels)
    there = decoded(after[keys[0]])
    assert [sum(np.array_equal(each, mask) for mask in there) for each in pieces] == [1, 1]
    assert not any(np.array_equal(pixels, mask) for mask in there)
    assert all(after[key].annotations == before[key].annotations for key in keys[1:])
    old = samples(tmp_path / "rel" / "versions" / "1.0.0")
    assert {key: each.annotations for key, each in old.items()} == {
        key: each.annotations for key, each in before.items()
    }
    assert [str(each) for each in verify_release(open_versioned(str(tmp_path / "rel/versions/1.0.0")), deep=True)] == []
    # The same list once more finds another record, and changes nothing.
    pipeline.build_release(None, tmp_path / "rel", version="1.2.0", append=True, mask_verdicts=str(verdicts), **SHARED)
    assert sound(tmp_path / "rel")["digest"] == manifest["digest"]
    # A run that was mined anew has other records, and is refused rather than cut at the wrong places.
    other = verdicts.with_name("other.jsonl")
    sha256 = json.loads(verdicts.read_text().splitlines()[1])["record_sha256"]
    other.write_text(verdicts.read_text().replace(sha256, "0" * 64))
    with pytest.raises(ReleaseRefusedError, match="was judged in another record"):
        pipeline.build_release(mined, tmp_path / "x", version="1.0.0", mask_verdicts=str(other), **SHARED)

    kept = judge(mined, tmp_path / "kept", (0, "accept", {"ids": [whole]}))
    flags = {"mask_verdicts": str(kept), "kept_masks_only": True}
    pipeline.build_release(mined, tmp_path / "only", version="1.0.0", **SHARED, **flags)
    assert sound(tmp_path / "only")["versions"][0]["changes"]["curated"]["masks"] == {
        "unjudged": len(first.annotations) - 1
    }
    assert len(samples(tmp_path / "only")[keys[0]].annotations) == 1
    assert samples(tmp_path / "only")[keys[1]].annotations == before[keys[1]].annotations
    with pytest.raises(InputError, match="--kept-masks-only goes with --mask-verdicts"):
        pipeline.build_release(mined, tmp_path / "y", version="1.0.0", kept_masks_only=True, **SHARED)


def test_released_images_are_judged_again_while_their_run_is_added_once_more(mined: Path, tmp_path: Path) -> None:
    first, second, *_ = keys = [*open_images([str(mined)], taken=None).names]
    drop: dict[str, Any] = {"ids": [1], "verdict": "drop"}
    verdicts = judge(mined, tmp_path / "one", (0, "review", drop), (1, "review", drop))
    pipeline.build_release(mined, tmp_path / "rel", version="1.0.0", mask_verdicts=str(verdicts), **SHARED)
    left = {key: len(each.annotations) for key, each in samples(tmp_path / "rel").items()}
    every = {"ids": [*range(left[second])], "verdict": "drop"}
    again = judge(tmp_path / "rel", tmp_path / "two", (0, "review", drop), (1, "review", every))
    pipeline.build_release(
        mined, tmp_path / "rel", version="1.1.0", append=True, mask_verdicts=str(again), **SHARED
    )  # as of a run that grew: its records of these images are older than those that were judged
    changes = sound(tmp_path / "rel")["versions"][1]["changes"]
    assert (changes["added"], changes["present"], changes["left"]) == (0, len(keys), {"no_masks": 1})
    assert changes["curated"]["masks"] == {"dropped": 1 + left[second]}
    assert {key: len(each.annotations) for key, each in samples(tmp_path / "rel").items()} == {
        **{key: count for key, count in left.items() if key != second},
        first: left[first] - 1,
    }


def test_verdicts_of_another_mining_are_not_taken_for_these(mined: Path, tmp_path: Path) -> None:
    judge(mined, tmp_path / "desk", (0, "review", {"ids": [0], "verdict": "drop"}))
    log = tmp_path / "desk" / "log.jsonl"
    sha256 = json.loads(log.read_text().splitlines()[1])["record_sha256"]
    log.write_text(log.read_text().replace(sha256, "0" * 64))
    with pytest.raises(InputError, match="judged in another record"):
        judge(mined, tmp_path / "desk", (0, "review", {"ids": [1], "verdict": "drop"}))


def _typed(fields: dict[str, Any]) -> dict[str, Any]:
    from model.desk.records import PromptRecord

    prompt = fields["prompt"]
    points = tuple((float(x), float(y)) for x, y in prompt["points"])
    return {**fields, "prompt": PromptRecord(points=points, labels=tuple(prompt["labels"]))}
