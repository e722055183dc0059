"""The desk behind its routes: the dial in one answer, decisions as they are asked for, and nothing for strangers."""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from starlette.testclient import TestClient

import pipeline
from model.desk.answers import DIAL, EncodedImages, ModelPredictor, TreePredictors, open_predictor
from model.desk.desk import Desk
from model.desk.guard import MAX_BODY_BYTES
from model.desk.images import ImageFiles, open_images
from model.desk.records import PromptRecord
from model.desk.server import PAGE_FILES, SHARED_FILES, create_app
from model.desk.store import Store
from model.predict.image import GranularPredictor
from model.predict.image_files import read_rgb
from pipeline import cli
from pipeline.environment.kept_student import VARIABLE
from pipeline.errors import InputError
from pipeline.format import rle
from tests.desk_parts import OTHER, PERSON, change, pixels, prompt, write_images, write_micro

TOKEN, HOST = "a-token-of-the-tests", "127.0.0.1:8000"
ORIGIN = f"http://{HOST}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_micro(tmp_path_factory.mktemp("model") / "micro.safetensors")


@pytest.fixture(scope="module")
def micro(checkpoint: Path) -> ModelPredictor:
    return ModelPredictor.load(str(checkpoint), device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "in")


class Page:
    """What a browser is to the desk."""

    def __init__(self, client: TestClient) -> None:
        self.client = client
        self.mark = client.get(f"/{TOKEN}/api/desk").json()["mark"]

    def get(self, path: str, status: int = 200) -> Any:
        answer = self.client.get(f"/{TOKEN}/{path}")
        assert answer.status_code == status, answer.text
        return answer.json() if answer.headers["content-type"] == "application/json" else answer

    def post(self, path: str, body: Any = None, status: int = 200) -> Any:
        body = {} if body is None else body
        if "person" in body:
            body = {"images": self.mark, **body}
        answer = self.client.post(f"/{TOKEN}/{path}", json=body, headers={"origin": ORIGIN})
        assert answer.status_code == status, answer.text
        return answer.json()


@pytest.fixture
def open_page(tmp_path: Path, micro: ModelPredictor, folder: Path) -> Iterator[Callable[..., Page]]:
    opened: list[TestClient] = []

    def open_it(images: Path = folder, *, predictor: Any = micro, output: Path | None = tmp_path / "out") -> Page:
        images = open_images([str(images)], taken=None)
        store = None if output is None else Store(output, lists=images.kind == "mined")
        app = create_app(Desk(images, predictor, store, categories=("cat",)), token=TOKEN, origins=[ORIGIN])
        client = TestClient(app, base_url=ORIGIN)
        opened.append(client.__enter__())
        return Page(client)

    yield open_it
    for client in opened:
        client.__exit__(None, None, None)


def accept(page: Page, *points: tuple[float, float], image: int = 0, status: int = 200, **fields: Any) -> Any:
    body = {"category": "cat", "source": "dial", "place": 18, "prompt": prompt(*points) if points else None, **fields}
    return page.post(f"api/images/{image}/accept", change(**body), status)


def coco(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "out" / "annotations.json").read_text())
    return content


# ---------------------------------------------------------------------------------------------------------------------
# Answers


def test_one_click_brings_the_whole_dial_as_the_predictor_answers_it(
    open_page: Callable[..., Page], checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    page = open_page()
    assert page.get("api/desk")["dial"] == list(DIAL)
    answer = page.post("api/images/0/answer", {"prompt": prompt((30, 30))})
    predictor = GranularPredictor.load(checkpoint)
    rgb = read_rgb(folder / "1.png")
    predictor.set_image(rgb)
    masks, scores, logits = predictor.predict([[30, 30]], [1], granularity=DIAL)
    assert answer["dial"]["granularity"] == list(DIAL)
    for counts, mask in zip(answer["dial"]["rle"], masks, strict=True):
        assert np.array_equal(pixels(counts, rgb.shape[1], rgb.shape[0]), mask)
    np.testing.assert_allclose(answer["dial"]["score"], scores, atol=1e-4)
    assert answer["own"] is None  # a model from scratch has nothing of SAM-2's to say
    # A correction starts, at each granularity, from that granularity's own answer.
    corrected = page.post("api/images/0/answer", {"prompt": prompt((30, 30), (70, 40), labels=[1, 0])})
    again, _, _ = predictor.predict([[30, 30], [70, 40]], [1, 0], mask_input=logits, granularity=DIAL)
    for counts, mask in zip(corrected["dial"]["rle"], again, strict=True):
        assert np.array_equal(pixels(counts, rgb.shape[1], rgb.shape[0]), mask)
    told = accept(page, (30, 30), (70, 40), prompt=prompt((30, 30), (70, 40), labels=[1, 0]), place=7)
    assert told["masks"][0]["granularity"] == DIAL[7]
    assert np.array_equal(rle.decode(coco(tmp_path)["annotations"][0]["segmentation"]), again[7])


def test_sam2s_own_three_masks_stand_beside_the_dials(open_page: Callable[..., Page], folder: Path) -> None:
    from model.network.granular import GranularSam2

    model = GranularSam2("micro", "lite", 128).eval()
    page = open_page(predictor=ModelPredictor(model, "lite", None))
    assert page.get("api/desk")["own"] == "SAM-2"
    answer = page.post("api/images/0/answer", {"prompt": prompt((30, 30))})
    predictor = GranularPredictor(model)
    predictor.set_image(read_rgb(folder / "1.png"))
    for name, granularity in (("own", None), ("dial", DIAL)):
        masks, _, _ = predictor.predict([[30, 30]], [1], granularity=granularity)
        assert len(masks) == len(answer[name]["rle"]) == {"own": 3, "dial": len(DIAL)}[name]
        assert all(np.array_equal(pixels(a, 104, 72), b) for a, b in zip(answer[name]["rle"], masks, strict=True))
    model.has_dial = False  # as SAM-2's own weights, which know no granularity
    plain = ModelPredictor(model, "SAM 2.1", None)
    desk = Desk(open_images([str(folder)], taken=None), plain, None)
    assert desk.overview()["dial"] == ()
    alone = desk.answer(0, PromptRecord(points=((30, 30),), labels=(1,)))
    assert (alone["dial"], len(alone["own"]["rle"])) == (None, 3)
    desk.close()


def test_a_box_is_answered_as_the_predictor_answers_it(
    open_page: Callable[..., Page], checkpoint: Path, folder: Path
) -> None:
    box = [8, 6, 60, 62]
    answer = open_page().post("api/images/0/answer", {"prompt": prompt(box=box)})
    predictor = GranularPredictor.load(checkpoint)
    predictor.set_image(read_rgb(folder / "1.png"))
    masks, _, _ = predictor.predict(box=box, granularity=DIAL)
    assert all(
        np.array_equal(pixels(counts, 104, 72), mask) for counts, mask in zip(answer["dial"]["rle"], masks, strict=True)
    )


def test_the_tree_answers_where_there_is_no_checkpoint(open_page: Callable[..., Page], tmp_path: Path) -> None:
    page = open_page(predictor=TreePredictors())
    answer = page.post("api/images/0/answer", {"prompt": prompt((30, 30))})
    assert len(answer["dial"]["rle"]) == len(DIAL)
    assert len(answer["own"]["rle"]) == 3
    whole, finest = (pixels(answer["dial"]["rle"][place], 104, 72) for place in (18, 0))
    assert whole[30, 30]
    assert (whole & finest).sum() == finest.sum() <= whole.sum()
    told = accept(page, (30, 30), source="own", place=2)
    assert told["masks"][0]["granularity"] is None
    assert np.array_equal(
        rle.decode(coco(tmp_path)["annotations"][0]["segmentation"]), pixels(answer["own"]["rle"][2], 104, 72)
    )
    job = page.post("api/images/0/everything")
    while job["state"] == "running":
        time.sleep(0.02)
        job = page.get(f"api/jobs/{job['job']}")
    found = page.get("api/images/0/everything")
    assert job["message"] == f"{len(found['rle'])} masks"
    many = accept(page, source="everything", ids=list(range(len(found["rle"]))), prompt=None)
    assert len(many["ids"]) == len(found["rle"])
    assert [each["area"] for each in many["masks"][1:]] == found["area"]


def test_everything_of_a_model_runs_beside_clicks_and_stops(open_page: Callable[..., Page]) -> None:
    page = open_page()
    job = page.post("api/images/0/everything")
    page.post("api/images/1/answer", {"prompt": prompt((30, 30))})
    page.post(f"api/jobs/{job['job']}")
    while job["state"] == "running":
        time.sleep(0.02)
        job = page.get(f"api/jobs/{job['job']}")
    assert job["state"] in ("stopped", "done")
    if job["state"] == "stopped":
        assert "search this image first" in page.get("api/images/0/everything", 400)["error"]
    page.get("api/jobs/another", 400)


def test_who_answers_by_default(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.safetensors"))
    assert open_predictor(None, base=None, device=None, demo=tmp_path).name == "tree"
    student = tmp_path / "student" / "checkpoints" / "step-00000001.safetensors"
    student.parent.mkdir(parents=True)
    student.write_bytes(checkpoint.read_bytes())
    assert open_predictor(None, base=None, device="cpu", demo=tmp_path).name.endswith("step-00000001.safetensors")
    assert open_predictor("tree", base=None, device=None, demo=tmp_path).name == "tree"
    kept = write_micro(tmp_path / "kept.safetensors")
    monkeypatch.setenv(VARIABLE, str(kept))
    assert open_predictor(None, base=None, device="cpu", demo=tmp_path).name.endswith("kept.safetensors")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.safetensors"))
    with pytest.raises(InputError, match="--device"):
        open_predictor("tree", base=None, device="cpu", demo=tmp_path)
    with pytest.raises(InputError):
        open_predictor(str(tmp_path / "gone"), base=None, device="cpu", demo=tmp_path)


def test_the_next_images_are_encoded_ahead(micro: ModelPredictor, folder: Path) -> None:
    read: list[int] = []
    images = open_images([str(folder)], taken=None)

    def reading(number: int) -> Any:
        read.append(number)
        return images.read(number)

    encoded = EncodedImages(reading, micro.encode)
    encoded.ahead(1)
    encoded.get(1)
    encoded.ahead(1)
    assert encoded.get(1) is encoded.get(1)
    assert read == [1]
    encoded.close()
    desk = Desk(images, micro, None)
    desk.image(0)
    deadline = time.monotonic() + 60
    while not (desk.encoded.ready(1) and desk.encoded.ready(2)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert desk.encoded.ready(1)
    assert desk.encoded.ready(2)
    desk.close()


# ---------------------------------------------------------------------------------------------------------------------
# Decisions


def test_accept_edit_relabel_delete(open_page: Callable[..., Page], tmp_path: Path) -> None:
    page = open_page()
    first = accept(page, (30, 30))["ids"]
    second = accept(page, (75, 40), category="box", place=3)["ids"]
    assert (first, second) == ([1], [2])
    edited = accept(page, (28, 40), place=5, replaces=1)
    assert edited["ids"] == [1]
    assert [(each["id"], each["granularity"]) for each in edited["masks"]] == [(1, DIAL[5]), (2, DIAL[3])]
    page.post("api/images/0/relabel", change(ids=[1], category="dog"))
    assert {each["id"]: each["category_id"] for each in coco(tmp_path)["annotations"]} == {1: 3, 2: 2}
    page.post("api/images/0/delete", change(ids=[2]))
    assert [each["id"] for each in coco(tmp_path)["annotations"]] == [1]
    assert accept(page, (75, 40))["ids"] == [3]
    assert "not there" in page.post("api/images/0/delete", change(ids=[2]), 400)["error"]
    assert [each["name"] for each in page.get("api/desk")["images"]] == ["1.png", "2.png", "3.png"]


def test_the_same_command_goes_on_where_a_killed_server_was(open_page: Callable[..., Page], tmp_path: Path) -> None:
    page = open_page()
    sent = change(category="cat", source="dial", place=9, prompt=prompt((30, 30)))
    told = page.post("api/images/0/accept", sent)
    files = {name: (tmp_path / "out" / name).read_bytes() for name in ("log.jsonl", "annotations.json")}
    after = tmp_path / "after"
    after.mkdir()
    for name, data in files.items():  # what a kill leaves: these files and no goodbye
        (after / name).write_bytes(data)
    again = open_page(output=after)
    assert again.get("api/images/0")["masks"] == told["masks"]
    assert again.post("api/images/0/accept", sent)["ids"] == told["ids"]
    assert {name: (after / name).read_bytes() for name in files} == files


def test_parts_stay_inside_the_mask_that_they_are_parts_of(open_page: Callable[..., Page], tmp_path: Path) -> None:
    page = open_page()
    whole = accept(page, (30, 30), place=14)["masks"][0]
    part = accept(page, (70, 30), place=18, inside=whole["id"])["masks"][1]
    masks = [rle.decode(each["segmentation"]) for each in coco(tmp_path)["annotations"]]
    assert masks[1].any()
    assert not (masks[1] & ~masks[0]).any()
    assert part["parent_id"] == whole["id"]
    # The whole becomes another: its part is clipped in the same breath.
    told = accept(page, (30, 30), place=4, replaces=whole["id"], status=200)
    masks = [rle.decode(each["segmentation"]) for each in coco(tmp_path)["annotations"]]
    assert not (masks[1] & ~masks[0]).any()
    assert len(told["masks"]) == 2
    assert "inside itself" in accept(page, (30, 30), inside=part["id"], replaces=whole["id"], status=400)["error"]
    page.post("api/images/0/delete", change(ids=[whole["id"]]))
    assert [each["parent_id"] for each in coco(tmp_path)["annotations"]] == [None]
    both = accept(page, (80, 30))["masks"]
    ids = [each["id"] for each in both]
    assert accept(page, prompt=None, source="accepted", ids=ids, way="merge", replaces=ids[0], status=400)["error"]
    assert page.get("api/images/0")["masks"] == both


def test_another_image_of_the_same_name_is_told(open_page: Callable[..., Page], tmp_path: Path) -> None:
    page = open_page()
    accept(page, (30, 30))
    page.client.__exit__(None, None, None)
    other = write_images(tmp_path / "other", 2)
    (other / "2.png").replace(other / "1.png")
    again = open_page(other)
    for error in (again.get("api/images/0", 400)["error"], accept(again, (30, 30), status=400)["error"]):
        assert "1.png: it has 112 x 72 pixels" in error
    assert len(coco(tmp_path)["annotations"]) == 1


def test_a_page_of_other_images_changes_nothing(open_page: Callable[..., Page], tmp_path: Path) -> None:
    page = open_page()
    accept(page, (30, 30))
    page.client.__exit__(None, None, None)
    before = (tmp_path / "out" / "log.jsonl").read_bytes()
    other = write_images(tmp_path / "other")
    (other / "0.png").write_bytes((other / "1.png").read_bytes())  # so the first image has another place
    again = open_page(other)
    assert again.mark != page.mark
    left_open = {"images": page.mark}
    for number in (0, 1, 99):
        told = again.post(f"api/images/{number}/delete", change(ids=[1], **left_open), 410)
        assert "started again with other images" in told["error"]
    accept(again, (30, 30), status=410, **left_open)
    again.post("api/images/0/review", change(whole="drop", **left_open), 410)
    again.post("api/here", {"person": PERSON, "name": "Ada", "image": 0, **left_open}, 410)
    assert (tmp_path / "out" / "log.jsonl").read_bytes() == before
    assert again.post("api/here", {"person": PERSON, "name": "Ada", "image": -1, **left_open})["people"] == []
    assert accept(again, (30, 30))["ids"] == [2]


def test_images_have_one_mark_as_long_as_they_are_the_same(tmp_path: Path, folder: Path, drawn_run: Path) -> None:
    images = write_images(tmp_path / "in")
    first = open_images([str(images)], taken=None).mark
    assert open_images([str(images)], taken=None).mark == first
    assert open_images([str(drawn_run)], taken=None).mark == open_images([str(drawn_run)], taken=None).mark != first
    files = [images / f"{number}.png" for number in (1, 2, 3)]
    assert ImageFiles(files, images, "in").mark == first
    assert ImageFiles([files[1], files[0], files[2]], images, "in").mark != first
    files[0].write_bytes(files[1].read_bytes())
    assert ImageFiles(files, images, "in").mark != first
    files[0].unlink()  # it is told when it is asked for
    assert ImageFiles(files, images, "in").mark != first


def test_nobody_overwrites_another_and_a_third_sees_who_is_where(open_page: Callable[..., Page]) -> None:
    page = open_page()
    here = {"person": PERSON, "name": "Ada", "image": 0}
    assert page.post("api/here", here)["mine"]
    other = page.post("api/here", {"person": OTHER, "name": "Bob", "image": 0})
    assert (other["mine"], other["holder"]) == (False, "Ada")
    body = change(OTHER, category="cat", source="dial", place=1, prompt=prompt((30, 30)))
    assert "Ada has this image" in page.post("api/images/0/accept", body, 409)["error"]
    for route, fields in (("delete", {"ids": [1]}), ("relabel", {"ids": [1], "category": "x"}), ("review", {})):
        page.post(f"api/images/0/{route}", change(OTHER, **fields), 409)
    page.post("api/images/1/accept", body)
    third = page.post("api/here", {"person": "person-three", "name": "Cleo", "image": 2})
    assert [(each["name"], each["image"], each["you"]) for each in third["people"]] == [
        ("Ada", 0, False), ("Bob", 1, False), ("Cleo", 2, True),
    ]  # fmt: skip
    assert third["masks"] == [0, 1, 0]
    page.post("api/here", {**here, "image": -1})
    assert page.post("api/here", {"person": OTHER, "name": "Bob", "image": 0})["mine"]


def test_a_desk_that_only_shows_accepts_nothing(open_page: Callable[..., Page], tmp_path: Path) -> None:
    page = open_page(output=None)
    assert page.get("api/desk")["read_only"]
    page.post("api/images/0/answer", {"prompt": prompt((30, 30))})
    assert "only shows" in accept(page, (30, 30), status=403)["error"]
    page.post("api/images/0/delete", change(ids=[1]), 403)
    assert not list(tmp_path.glob("out/*"))


def test_bad_messages_are_one_clear_error(open_page: Callable[..., Page]) -> None:
    page = open_page()
    for body in (
        {}, {"prompt": prompt()}, {"prompt": prompt((200, 30))}, {"prompt": prompt((30, 30), labels=[0])},
        {"prompt": {**prompt((30, 30)), "labels": [1, 1]}}, {"prompt": {**prompt((30, 30)), "labels": [7]}},
        {"prompt": prompt(box=[50, 10, 20, 60])}, {"prompt": prompt((30, 30)), "more": 1},
        {"prompt": {**prompt((30, 30)), "points": [["x", 1]]}}, {"prompt": prompt(*[(1, 1)] * 101)},
    ):  # fmt: skip
        assert page.post("api/images/0/answer", body, 400)["error"]
    page.post("api/images/3/answer", {"prompt": prompt((30, 30))}, 400)
    for fields in (
        {"place": 19}, {"place": -1}, {"category": ""}, {"category": "a\nb"}, {"category": "x" * 81}, {"source": "own"},
        {"inside": 9}, {"replaces": 9}, {"source": "mined", "ids": [0]}, {"source": "accepted", "ids": [1]},
        {"source": "everything", "ids": [0]}, {"request": "short"}, {"source": "dial", "way": "merge"},
    ):  # fmt: skip
        assert accept(page, (30, 30), status=400, **fields)["error"]
    assert page.get("api/images/0")["masks"] == []


# ---------------------------------------------------------------------------------------------------------------------
# Mined masks


def test_the_masks_of_a_run_and_a_release_are_reviewed(
    open_page: Callable[..., Page], drawn_run: Path, drawn_release: Path, tmp_path: Path
) -> None:
    for place, images in enumerate((drawn_run, drawn_release)):
        out = tmp_path / f"out{place}"
        page = open_page(images, output=out)
        assert page.get("api/desk")["kind"] == "mined"
        image = page.get("api/images/0")
        mined, (width, height) = image["mined"], image["size"]
        masks = [pixels(each, width, height) for each in mined["rle"]]
        kept = accept(page, source="mined", ids=[0, 3], prompt=None)
        assert kept["verdicts"] == {"0": "keep", "3": "keep"}
        assert [(each["origin"], each["mined_ids"], each["granularity"]) for each in kept["masks"]] == [
            ("mined", [0], 1.0), ("mined", [3], 1.0),
        ]  # fmt: skip
        assert "accepted already" in accept(page, source="mined", ids=[0, 3], prompt=None, status=400)["error"]
        more = accept(page, source="mined", ids=[0, 3, 4], prompt=None)
        assert [each["mined_ids"] for each in more["masks"]] == [[0], [3], [4]]
        whole = kept["ids"][1]
        part = accept(page, source="dial", prompt=prompt(box=[0, 0, width, height]), place=18, inside=whole)["ids"][0]
        dropped = page.post("api/images/0/review", change(ids=[3], verdict="drop"))
        assert dropped["verdicts"] == {"0": "keep", "4": "keep", "3": "drop"}
        assert [(each["mined_ids"], each["parent_id"]) for each in dropped["masks"]] == [
            ([0], None), ([4], None), ([], None),
        ]  # fmt: skip
        page.post("api/images/0/delete", change(ids=[part]))
        merged = accept(page, source="mined", ids=[3, 4], way="merge", prompt=None)
        content = json.loads((out / "annotations.json").read_text())["annotations"]
        assert np.array_equal(rle.decode(content[1]["segmentation"]), masks[3] | masks[4])
        assert merged["verdicts"]["4"] == "drop"
        assert [each["mined_ids"] for each in merged["masks"]] == [[0], [3, 4]]  # the merged one stands for both
        inside = np.argwhere(masks[1])[len(np.argwhere(masks[1])) // 2][::-1].tolist()
        answer = page.post("api/images/0/answer", {"prompt": prompt(inside)})["dial"]["rle"]
        dividing = [
            n for n, each in enumerate(answer)
            if 0 < (pixels(each, width, height) & masks[1]).sum() < masks[1].sum()
        ]  # fmt: skip
        if dividing:
            accept(page, inside, source="mined", ids=[1], way="split", place=dividing[0])
            content = json.loads((out / "annotations.json").read_text())["annotations"]
            one, two = (rle.decode(each["segmentation"]) for each in content[-2:])
            assert np.array_equal(one | two, masks[1])
            assert not (one & two).any()
        page.post("api/images/0/review", change(whole="drop"))
        page.post("api/images/1/review", change(whole="keep"))
        names = [each["name"] for each in page.get("api/desk")["images"]]
        assert (out / "exclude.txt").read_text().splitlines() == [names[0]]
        assert (out / "keep.txt").read_text().splitlines() == [names[1]]
        assert page.post("api/images/0/review", change(ids=[99], verdict="keep"), 400)["error"]
    shared = {"name": "curated", "version": "1.0.0", "license": "CC-BY-4.0", "date": "2026-11-28"}
    kept = pipeline.build_release(drawn_run, tmp_path / "kept", keep=str(out / "keep.txt"), **shared)
    assert [sample.key for sample in pipeline.open_dataset(tmp_path / "kept")] == [names[1]]
    without = pipeline.build_release(drawn_run, tmp_path / "without", exclude=str(out / "exclude.txt"), **shared)
    assert sorted(sample.key for sample in pipeline.open_dataset(tmp_path / "without")) == sorted(names[1:])
    assert kept["versions"][0]["changes"]["left"] == {"unlisted": len(names) - 1}
    assert without["versions"][0]["changes"]["left"] == {"excluded": 1}


# ---------------------------------------------------------------------------------------------------------------------
# Strangers


def test_a_wrong_address_host_or_origin_is_refused(open_page: Callable[..., Page]) -> None:
    client = open_page().client
    good = f"/{TOKEN}/api/desk"
    assert client.get(good).status_code == 200
    for path in ("/", "/api/desk", "/wrong-token/api/desk", f"/{TOKEN}x/api/desk", f"/{TOKEN[:-1]}/api/desk", "/ä/"):
        answer = client.get(path)
        assert answer.status_code == 403
        assert TOKEN not in answer.text
    for origin in ("http://evil.example", "null", f"https://{HOST}", "http://127.0.0.1:8001", f"{ORIGIN}.evil.example"):
        for method in (client.get, client.post):
            assert method(good, headers={"origin": origin}).status_code == 403
    for host in ("evil.example", "127.0.0.1", "127.0.0.1:8001", f"{HOST}.evil.example"):
        assert client.get(good, headers={"host": host}).status_code == 421
    assert client.post(f"/{TOKEN}/api/here", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert client.put(good).status_code == 405
    headers = client.get(f"/{TOKEN}/").headers
    assert headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "access-control-allow-origin" not in headers


def test_an_address_without_its_last_slash_leads_to_the_page(open_page: Callable[..., Page]) -> None:
    client = open_page().client
    answer = client.get(f"/{TOKEN}", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, f"/{TOKEN}/")
    assert "Grainmill desk" in client.get(f"/{TOKEN}").text
    assert client.get(f"/{TOKEN[:-1]}", follow_redirects=False).status_code == 403


def test_no_path_outside_is_served(open_page: Callable[..., Page], tmp_path: Path) -> None:
    page = open_page()
    (tmp_path / "secret.txt").write_text("secret")
    for name in (*PAGE_FILES, *SHARED_FILES):
        assert page.client.get(f"/{TOKEN}/{name}").status_code == 200
    for path in (
        "../secret.txt", "..%2f..%2fsecret.txt", "%2e%2e/secret.txt", "....//secret.txt", "/etc/passwd",
        "//etc/passwd", "page/index.html", "desk.py", "__init__.py", "..\\secret.txt", "api/../../secret.txt",
        "api/images/..%2f..%2fsecret.txt/jpeg", "api/images/-1", "api/images/0/jpeg/../../x",
        "api/images/1e3", "api/images/99999999999999999999", "log.jsonl",
        "annotations.json", "%00", "desk.js%00.txt", f"api/images/{'9' * 900}", f"api/images/{'9' * 5000}",
    ):  # fmt: skip
        answer = page.client.get(f"/{TOKEN}/{path}")
        assert answer.status_code in (400, 403, 404, 414), path
        assert "secret" not in answer.text.replace("secret.txt", "")
        assert "root:" not in answer.text


def test_a_body_has_a_limit_with_and_without_its_length(open_page: Callable[..., Page]) -> None:
    page = open_page()
    large = b" " * (MAX_BODY_BYTES + 1)
    path = f"/{TOKEN}/api/images/0/answer"
    assert page.client.post(path, content=large).status_code == 413
    pieces = (large[start : start + 65_536] for start in range(0, len(large), 65_536))
    assert page.client.post(path, content=pieces).status_code == 413
    assert page.client.post(path, content=b"{" * 100_000).status_code == 400
    assert page.client.post(path, content=b"[" * 500_000).status_code == 400
    assert page.client.post(path, content=b"\xff\xfe").status_code == 400


def huge_png(width: int, height: int) -> bytes:
    """A file that says that it is so large, and is not."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def test_images_that_are_too_large_cut_or_gone_are_told_and_the_others_go_on(
    open_page: Callable[..., Page], folder: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    for path in folder.iterdir():
        (bad / path.name).write_bytes(path.read_bytes())
    (bad / "4.png").write_bytes(huge_png(20_000, 10_000))
    (bad / "5.png").write_bytes((folder / "1.png").read_bytes()[:200])
    (bad / "6.png").write_bytes((folder / "1.png").read_bytes())
    page = open_page(bad)
    (bad / "6.png").unlink()
    for number, words in ((3, "200,000,000|20000 x 10000"), (4, "not an image|truncated|cut"), (5, "nothing")):
        for path in (f"api/images/{number}", f"api/images/{number}/jpeg"):
            error = page.get(path, 400)["error"]
            assert any(each in error for each in words.split("|")), error
            assert str(bad) not in error
        accept(page, (30, 30), image=number, status=400)
    accept(page, (30, 30), image=2)
    (bad / "5.png").write_bytes((folder / "1.png").read_bytes())  # mended: it is tried again
    page.get("api/images/4")


def test_a_checkpoint_that_vanishes_goes_on_answering(
    tmp_path: Path, checkpoint: Path, open_page: Callable[..., Page]
) -> None:
    copy = tmp_path / "gone.safetensors"
    copy.write_bytes(checkpoint.read_bytes())
    page = open_page(predictor=ModelPredictor.load(str(copy), device="cpu"))
    copy.unlink()
    page.post("api/images/0/answer", {"prompt": prompt((30, 30))})
    assert accept(page, (30, 30))["ids"] == [1]
    with pytest.raises(InputError, match="gone"):
        ModelPredictor.load(str(copy), device="cpu")


def test_images_are_what_was_given(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_images([str(folder / "[12].png")], taken=None).names == ("1.png", "2.png")
    assert open_images([str(folder / "2.png"), str(folder)], taken=None).names == ("2.png", "1.png", "3.png")
    frames = open_images([str(write_images(tmp_path / "clip", 1))], taken="video")
    assert (frames.kind, frames.names) == ("video", ("1.png",))
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for grey in (50, 100, 150):
        writer.write(np.full((48, 64, 3), grey, dtype=np.uint8))
    writer.release()
    film = open_images([str(tmp_path / "clip.avi")], taken=None)
    assert (film.kind, len(film.names)) == ("video", 3)
    assert [round(float(film.read(number).mean()), -1) for number in range(3)] == [50, 100, 150]
    for given, words in (([str(tmp_path / "no")], "nothing"), ([str(folder / "*.tif")], "no image matches")):
        with pytest.raises(InputError, match=words):
            open_images(given, taken=None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="expected IMAGES"):
        open_images([], taken=None)
    write_images(tmp_path / "demo" / "photographs" / "cc0", 2)
    assert open_images([], taken=None).names == ("cc0/1.png", "cc0/2.png")


# ---------------------------------------------------------------------------------------------------------------------
# A video


def test_a_name_that_is_no_utf8_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="other bytes than UTF-8's"):
        ImageFiles([tmp_path / "caf\udce9.png"], tmp_path, "images")


def test_objects_of_a_video_are_followed_and_written_as_segment_writes_them(
    micro: ModelPredictor, checkpoint: Path, tmp_path: Path
) -> None:
    from model.desk.images import VideoFrames
    from model.desk.video import VideoTracker
    from model.predict.video import GranularVideoPredictor

    clip = write_images(tmp_path / "clip", 1)
    for number in (2, 3, 4):
        (clip / f"{number}.png").write_bytes((clip / "1.png").read_bytes())
    frames, out = VideoFrames(clip), tmp_path / "out"
    tracker = VideoTracker(frames, out, str(checkpoint), base=None, device="cpu")
    app = create_app(Desk(frames, micro, Store(out, lists=False), tracker=tracker), token=TOKEN, origins=[ORIGIN])

    def finished(page: Page) -> dict[str, Any]:
        job: dict[str, Any] = page.post("api/propagate")
        while job["state"] == "running":
            time.sleep(0.02)
            job = page.get("api/jobs/propagate")
        return job

    with TestClient(app, base_url=ORIGIN) as client:
        page = Page(client)
        assert finished(page)["state"] == "failed"
        accept(page, (30, 30), image=1, place=4, object_id=1)
        accept(page, (78, 40), image=2, place=18, object_id=7)
        job = finished(page)
        assert job["state"] == "done", job
        tracked = page.get("api/images/1")["tracked"]
    accepted = {each["object_id"]: rle.decode(each["segmentation"]) for each in coco(tmp_path)["annotations"]}
    content = json.loads((out / "clip.masks.json").read_text())
    assert [each["file_name"] for each in content["images"]] == ["1.png", "2.png", "3.png", "4.png"]
    assert sorted(path.name for path in (out / "clip.masks").iterdir()) == [f"0000{n}.png" for n in range(4)]
    predictor = GranularVideoPredictor.load(checkpoint)
    state = predictor.init_state(str(clip))
    predictor.add_new_mask(state, 1, 1, accepted[1], granularity=DIAL[4])
    predictor.add_new_mask(state, 2, 7, accepted[7], granularity=DIAL[18])
    expected: dict[tuple[int, int], np.ndarray] = {}
    for reverse in (False, True):  # the first frame is answered in both directions; it is kept as it was first
        for frame, ids, logits in predictor.propagate_in_video(state, 1, reverse=reverse):
            for number, mask in zip(ids, (logits[:, 0] > 0).numpy(), strict=True):
                if mask.any():
                    expected.setdefault((frame, number), mask)
    found = {(each["image_id"] - 1, each["object_id"]): each for each in content["annotations"]}
    assert {each: rle.decode(entry["segmentation"]).sum() for each, entry in found.items()} == {
        each: mask.sum() for each, mask in expected.items()
    }
    assert {entry["granularity"] for (_, number), entry in found.items() if number == 1} == {DIAL[4]}
    assert [each["object_id"] for each in tracked] == [number for frame, number in sorted(found) if frame == 1]


def test_following_stops_and_needs_a_model(tmp_path: Path, micro: ModelPredictor, checkpoint: Path) -> None:
    from model.desk.images import VideoFrames
    from model.desk.jobs import StoppedError
    from model.desk.records import AcceptedMask
    from model.desk.video import VideoTracker

    frames = VideoFrames(write_images(tmp_path / "clip", 1))
    drawn = np.zeros((72, 104), dtype=bool)
    drawn[20:40, 20:50] = True
    mask = AcceptedMask(
        id=1, category="cat", segmentation=rle.encode(drawn), granularity=0.5, score=None, origin="prompt",
        predictor="x", object_id=1,
    )  # fmt: skip

    def stop(share: float) -> None:
        raise StoppedError

    out = tmp_path / "out"
    with pytest.raises(StoppedError):
        VideoTracker(frames, out, str(checkpoint), base=None, device="cpu").propagate([(0, mask)], stop)
    assert not out.exists()
    for gone, words in ((None, "--checkpoint"), (str(tmp_path / "gone.safetensors"), "gone")):
        with pytest.raises(InputError, match=words):
            VideoTracker(frames, out, gone, base=None, device="cpu").propagate([(0, mask)], stop)


# ---------------------------------------------------------------------------------------------------------------------
# The command


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "expected --output DIR"),
        (("--output", "OUT", "--read-only"), "and not both"),
        (("--output", "OUT", "--as", "film"), "expected images or video"),
        (("--read-only", "--checkpoint", "tree", "--origin", "desk.example.org"), "expected https://HOST"),
        (("--read-only", "--checkpoint", "tree", "--origin", "https://desk.example.org/a"), "expected https://HOST"),
        (("--read-only", "--checkpoint", "tree", "--origin", "http://[::1"), "expected https://HOST"),
        (("--read-only", "--checkpoint", "tree", "--origin", "https://desk.example.org:x"), "expected https://HOST"),
        (("--read-only", "--checkpoint", "tree", "--origin", "https://:8443"), "expected https://HOST"),
        (("--read-only", "--checkpoint", "tree", "--origin", "https://desk.example.org?a"), "expected https://HOST"),
        (("--read-only", "--checkpoint", "tree", "--origin", "http://desk.example.org"), "without TLS"),
        (("--output", "OUT", "--checkpoint", "gone"), "gone"),
        (("--output", "OUT", "--checkpoint", "tree", "--port", "PORT"), "choose another"),
    ],
)
def test_wrong_flags_are_one_message(
    flags: tuple[str, ...], words: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from model.desk.server import bound_socket

    bound = bound_socket(0)
    places = {"OUT": str(tmp_path / "out"), "PORT": str(bound.getsockname()[1])}
    assert cli.main(["annotate", str(folder), *(places.get(each, each) for each in flags)]) == 2
    assert words in capsys.readouterr().err
    bound.close()


def test_origins_are_what_a_browser_sends() -> None:
    from model.commands.annotate import _origin

    for given, sent in (
        ("https://desk.example.org/", "https://desk.example.org"), ("https://a.example:443", "https://a.example"),
        ("https://a.example:8443", "https://a.example:8443"), ("http://localhost:9000", "http://localhost:9000"),
    ):  # fmt: skip
        assert _origin(given) == sent


def test_a_token_of_ones_own_has_to_be_long(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for token in ("short", "with/slash-and-more-of-it", ""):
        monkeypatch.setenv("GRAINMILL_DESK_TOKEN", token)
        assert cli.main(["annotate", str(folder), "--read-only", "--checkpoint", "tree"]) == 2
        assert "at least 16" in capsys.readouterr().err
