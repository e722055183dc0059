"""The desk on disk: what was accepted is there at that moment, whatever dies, and nobody's work is another's."""

from __future__ import annotations

import dataclasses
import json
import stat
from pathlib import Path

import numpy as np
import pytest

from model.desk.claims import LEASE_S, Claims
from model.desk.records import AcceptedMask, State, Transaction
from model.desk.store import Address, Store
from pipeline.errors import InputError, SchemaError
from pipeline.format import rle
from pipeline.storage.base import StorageError


def mask(number: int, *, category: str = "cat", width: int = 5) -> AcceptedMask:
    drawn = np.zeros((6, 8), dtype=bool)
    drawn[1:4, 1 : 1 + width] = True
    return AcceptedMask(
        id=number, category=category, segmentation=rle.encode(drawn), granularity=0.35, score=0.5, origin="prompt",
        predictor="tree",
    )  # fmt: skip


def accepted(request: str, *masks: AcceptedMask, image: str = "a.png", deleted: tuple[int, ...] = ()) -> Transaction:
    return Transaction(
        request=request, person="Ada", time="2026-11-28T00:00:00+00:00", image=image, width=8, height=6,
        masks=masks, deleted=deleted,
    )  # fmt: skip


def coco(folder: Path) -> dict[str, list[dict[str, object]]]:
    content: dict[str, list[dict[str, object]]] = json.loads((folder / "annotations.json").read_text())
    return content


def test_what_is_accepted_is_in_both_files_at_that_moment(tmp_path: Path) -> None:
    store = Store(tmp_path / "out", lists=False)
    store.commit(accepted("one", mask(1)))
    lines = (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"format": "grainmill-desk/1"}
    assert json.loads(lines[1])["masks"][0]["id"] == 1
    [annotation] = coco(tmp_path / "out")["annotations"]
    assert (annotation["granularity"], annotation["area"], annotation["bbox"]) == (0.35, 15, [1, 1, 5, 3])
    assert coco(tmp_path / "out")["images"] == [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}]
    store.commit(accepted("two", mask(2, category="dog"), image="b.png"))
    store.commit(accepted("three", mask(1, width=2), image="a.png"))
    store.commit(accepted("four", image="b.png", deleted=(2,)))
    assert [(each["id"], each["area"]) for each in coco(tmp_path / "out")["annotations"]] == [(1, 6)]
    assert [each["name"] for each in coco(tmp_path / "out")["categories"]] == ["cat", "dog"]
    store.close()


def test_a_log_that_was_cut_goes_on_before_the_cut(tmp_path: Path) -> None:
    store = Store(tmp_path, lists=False)
    store.commit(accepted("one", mask(1)))
    store.commit(accepted("two", mask(2)))
    store.close()
    whole = (tmp_path / "log.jsonl").read_bytes()
    second = whole.rindex(b"\n", 0, -1) + 1
    for cut in (second + 1, (second + len(whole)) // 2, len(whole) - 1):
        (tmp_path / "log.jsonl").write_bytes(whole[:cut])
        (tmp_path / "annotations.json").unlink()
        store = Store(tmp_path, lists=False)
        assert [each["id"] for each in coco(tmp_path)["annotations"]] == [1]
        store.commit(accepted(f"again{cut}", mask(2)))
        store.close()
        reopened = Store(tmp_path, lists=False)
        assert [*reopened.state.images["a.png"].masks] == [1, 2]
        reopened.close()
    (tmp_path / "log.jsonl").write_bytes(whole.replace(b'"image"', b'"pictur"', 1))
    with pytest.raises(SchemaError, match="line 2"):
        Store(tmp_path, lists=False)
    (tmp_path / "log.jsonl").write_bytes(b'{"format":"another/9"}\n')
    with pytest.raises(SchemaError, match="another/9"):
        Store(tmp_path, lists=False)


def test_files_that_no_desk_wrote_are_left_alone(tmp_path: Path) -> None:
    for name, lists in (("annotations.json", False), ("exclude.txt", True), ("keep.txt", True)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("somebody's work")
        with pytest.raises(InputError, match=f"{name}: is there, and no desk wrote it"):
            Store(folder, lists=lists)
        assert (folder / name).read_text() == "somebody's work"
        assert not (folder / "log.jsonl").exists()
    for content in (b"somebody's log", b"of two lines\nwithout an end"):
        (tmp_path / "log.jsonl").write_bytes(content)
        with pytest.raises(SchemaError, match="expected the log of a desk"):
            Store(tmp_path, lists=False)
        assert (tmp_path / "log.jsonl").read_bytes() == content


def test_what_is_sent_twice_is_done_once(tmp_path: Path) -> None:
    store = Store(tmp_path, lists=False)
    store.commit(accepted("one", mask(1)))
    before = (tmp_path / "log.jsonl").read_bytes()
    store.commit(accepted("one", mask(2)))
    assert (tmp_path / "log.jsonl").read_bytes() == before
    assert store.state.requests["one"] == (1,)
    store.close()


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import model.desk.store as module

    store = Store(tmp_path, lists=False)
    store.commit(accepted("one", mask(1)))
    before = (tmp_path / "log.jsonl").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module.os, "fsync", full)
        with pytest.raises(StorageError, match="the disk is full"):
            store.commit(accepted("two", mask(2)))
    assert (tmp_path / "log.jsonl").read_bytes() == before
    assert [*store.state.images["a.png"].masks] == [1]
    store.commit(accepted("two", mask(2)))
    store.close()
    assert [each["id"] for each in coco(tmp_path)["annotations"]] == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations.json", "lock", "log.jsonl"]


def test_a_disk_that_does_not_even_shrink_a_file_is_told_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import model.desk.store as module

    store = Store(tmp_path, lists=False)
    store.commit(accepted("one", mask(1)))
    before = (tmp_path / "log.jsonl").read_bytes()

    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(module.os, "fsync", broken)
        patched.setattr(module.os, "truncate", broken)
        for _ in range(3):
            with pytest.raises(StorageError, match="Input/output error"):
                store.commit(accepted("two", mask(2)))
    assert [*store.state.images["a.png"].masks] == [1]
    store.commit(accepted("three", mask(3)))
    assert (tmp_path / "log.jsonl").read_bytes().startswith(before)
    store.close()
    reopened = Store(tmp_path, lists=False)
    assert [*reopened.state.requests] == ["one", "three"]
    reopened.close()


def test_one_server_holds_a_folder(tmp_path: Path) -> None:
    store = Store(tmp_path, lists=False)
    with pytest.raises(InputError, match="another `grainmill annotate`"):
        Store(tmp_path, lists=False)
    store.close()
    Store(tmp_path, lists=False).close()


def test_the_address_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    store = Store(tmp_path, lists=False)
    first = store.address()
    assert len(first.token) >= 40
    assert first.token != store.address().token
    store.keep_address(Address(first.token, 4711))
    assert store.address() == Address(first.token, 4711)
    assert stat.S_IMODE((tmp_path / "desk.json").stat().st_mode) == 0o600
    store.close()


def test_images_that_were_judged_become_lists(tmp_path: Path) -> None:
    store = Store(tmp_path, lists=True)
    for request, image, verdict in (
        ("1", "a", "drop"), ("2", "b", "keep"), ("3", "c", "drop"), ("4", "c", "undecided"),
    ):  # fmt: skip
        store.commit(dataclasses.replace(accepted(request, image=image), whole=verdict))
    lines = {name: (tmp_path / name).read_text().splitlines() for name in ("exclude.txt", "keep.txt")}
    assert lines == {"exclude.txt": ["a"], "keep.txt": ["b"]}
    store.commit(dataclasses.replace(accepted("5", image="a"), whole="keep"))
    store.close()
    assert not (tmp_path / "exclude.txt").exists()
    assert (tmp_path / "keep.txt").read_text().splitlines() == ["a", "b"]


def test_ids_are_never_given_twice() -> None:
    state = State.of([accepted("1", mask(1), mask(2)), accepted("2", deleted=(2,))])
    assert state.next_id == 3
    assert [*state.images["a.png"].masks] == [1]


def test_a_claim_is_one_persons_until_it_runs_out() -> None:
    now = 0.0
    claims = Claims(clock=lambda: now)
    assert claims.take(3, "a", "Ada").person == "a"
    assert claims.take(3, "b", "Bob").name == "Ada"
    now = LEASE_S - 1
    assert claims.take(3, "a", "Ada").until == now + LEASE_S
    now += 2
    assert claims.take(3, "b", "Bob").person == "a"
    assert [(each.name, each.image) for each in claims.all()] == [("Ada", 3)]
    now += LEASE_S
    assert claims.take(3, "b", "Bob").person == "b"
    assert claims.take(3, "a", "Ada").person == "b"
    assert claims.take(4, "a", "Ada").person == "a"
    assert claims.take(5, "a", "Ada").person == "a"
    assert [each.image for each in claims.all()] == [3, 5]
    claims.leave("b")
    assert [each.image for each in claims.all()] == [5]
