"""Parts of a release, by themselves: licences, splits, signatures, YAML, exclusions, options."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, ImageEnhance

from pipeline.errors import InputError
from pipeline.format.licenses import check_license, check_link
from pipeline.format.schema import sha256_of
from pipeline.release.card import to_yaml
from pipeline.release.charts import bar_chart, masks_per_image_histogram
from pipeline.release.checks import OBLIGATIONS, license_gap
from pipeline.release.duplicates import MAX_BITS, DuplicateIndex, Signature, signature_of
from pipeline.release.flags import ReleaseFlags
from pipeline.release.options import check_name, parse_splits, release_options, remove_kinds
from pipeline.release.records import ReleaseOptions
from pipeline.release.selection import SampleList, Selection, own_split, read_sample_list, split_beside
from pipeline.storage.versions import version_order

# ---------------------------------------------------------------------------------------------------------------------
# Versions


def test_versions_are_ordered_as_semantic_versioning_orders_them() -> None:
    """The example of semver.org, with shorter and longer names between."""
    ascending = [
        "0.9", "0.9.1", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2",
        "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.1", "1.2", "1.10.0", "v2", "10",
    ]  # fmt: skip
    orders = [version_order(each) for each in ascending]
    assert all(before < after for before, after in itertools.pairwise(orders))  # type: ignore[operator]
    assert len({version_order(each) for each in ("1", "1.0", "v1.0.0", "1.0.0+build.7")}) == 1
    assert [version_order(each) for each in ("november", "2026-11-24", "1.0_a", "1..2", "1.0.x")] == [None] * 5


# ---------------------------------------------------------------------------------------------------------------------
# Licences


@pytest.mark.parametrize(
    ("stated", "declared"),
    [
        ("CC-BY-4.0", "CC0-1.0"),
        ("CC-BY-4.0", "MIT"),
        ("cc-by-4.0", "CC-BY-4.0"),
        ("CC-BY-SA-4.0", "CC-BY-4.0"),
        ("CC-BY-SA-4.0", "CC-BY-SA-3.0"),
        ("CC-BY-NC-SA-4.0", "CC-BY-NC-4.0"),
        ("other", "CC-BY-NC-ND-4.0"),
        ("other", "House-Terms"),
        ("House-Terms", "House-Terms"),
        ("CC-BY-ND-4.0", "CC-BY-ND-4.0"),
    ],
)
def test_licences_that_cover(stated: str, declared: str) -> None:
    assert license_gap(stated, declared) is None


@pytest.mark.parametrize(
    ("stated", "declared", "why"),
    [
        ("CC0-1.0", "CC-BY-4.0", "attribution"),
        ("CC-BY-4.0", "CC-BY-NC-4.0", "non-commercial"),
        ("CC-BY-SA-4.0", "CC-BY-NC-SA-4.0", "share-alike"),
        ("CC-BY-NC-SA-4.0", "CC-BY-SA-4.0", "share-alike"),
        ("CC-BY-SA-3.0", "CC-BY-SA-4.0", "newer"),
        ("Apache-2.0", "CC-BY-ND-4.0", "no-derivatives"),
        ("CC-BY-4.0", "House-Terms", "not a licence whose terms are known"),
        ("House-Terms", "CC-BY-4.0", "not a licence whose terms are known"),
    ],
)
def test_licences_that_do_not(stated: str, declared: str, why: str) -> None:
    gap = license_gap(stated, declared)
    assert gap is not None
    assert why in gap


def test_a_licence_is_one_of_the_list_in_any_case() -> None:
    for text in OBLIGATIONS:  # every licence whose terms are known here can be named
        assert check_license("--license", text).lower() == text
        assert check_license("--license", text.upper()) == check_license("--license", text)
    for text, expected in (
        ("cc-by-nc-sa-3.0-igo", "CC-BY-NC-SA-3.0-IGO"), ("mit", "MIT"), ("OTHER", "other"), ("GPL-2.0+", "GPL-2.0+"),
        ("licenseref-House-Terms", "LicenseRef-House-Terms"), ("ODbL", "odbl"),
    ):  # fmt: skip
        assert check_license("--license", text) == expected
    for text in (
        "",
        "foo",
        "banana",
        "CC-BY",
        "CC BY 4.0",
        "MIT OR Apache-2.0",
        "(MIT)",
        "LicenseRef-",
        "unknown",
        "a\nb",
    ):
        with pytest.raises(InputError, match=r"--license: .* is not on SPDX's list of licences"):
            check_license("--license", text)


def test_a_link_goes_with_terms_that_have_no_address() -> None:
    for license in ("other", "LicenseRef-House-Terms"):
        assert check_link(license, "https://example.org/terms?a=1#b") == "https://example.org/terms?a=1#b"
        assert check_link(license, None) is None
        for link in ("terms.txt", "javascript:alert(1)", "https://a b", "https://a/<b>", "https://", "ftp://a/b"):
            with pytest.raises(InputError, match="--license-link"):
                check_link(license, link)
    with pytest.raises(InputError, match="goes with --license other"):
        check_link("MIT", "https://example.org/terms")


def test_no_licence_loses_an_obligation() -> None:
    """Whatever the table says: what covers a part has all of the part's obligations."""
    for stated, declared in itertools.product(OBLIGATIONS, repeat=2):
        if license_gap(stated, declared) is None:
            assert OBLIGATIONS[declared] <= OBLIGATIONS[stated]


# ---------------------------------------------------------------------------------------------------------------------
# Signatures


def near(first: Signature, second: Signature) -> bool:
    index = DuplicateIndex()
    index.add("first", "a", first)
    return bool(index.matches("b", second))


def pictures(photographs: Path) -> dict[str, Image.Image]:
    names = [
        "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "color.png", "grass.png",
        "gravel.png", "ihc.png", "moon.png", "page.png", "rocket.jpg", "text.png",
    ]  # fmt: skip
    return {name: Image.open(photographs / name).convert("RGB") for name in names if (photographs / name).exists()}


def test_copies_of_photographs_are_found_and_others_are_not(photographs: Path, tmp_path: Path) -> None:
    found = pictures(photographs)
    assert len(found) >= 8
    signatures = {name: signature_of(np.asarray(image)) for name, image in found.items()}
    for name, image in found.items():
        image.save(tmp_path / "saved.jpg", quality=50)
        saved = Image.open(tmp_path / "saved.jpg").convert("RGB")
        half = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
        for what, copy in (
            ("quality 50", saved), ("half size", half), ("brighter", ImageEnhance.Brightness(image).enhance(1.03)),
        ):  # fmt: skip
            assert near(signatures[name], signature_of(np.asarray(copy))), (name, what)
    for (name, ours), (other, theirs) in itertools.combinations(signatures.items(), 2):
        assert not near(ours, theirs), (name, other)


def test_plain_images_are_told_apart_by_colour() -> None:
    plain = [signature_of(np.full((40, 50, 3), level, np.uint8)) for level in (20, 80, 200)]
    assert not any(near(ours, theirs) for ours, theirs in itertools.combinations(plain, 2))
    assert near(plain[0], signature_of(np.full((90, 50, 3), 22, np.uint8)))


def test_the_index_finds_what_comparing_all_finds() -> None:
    choose = random.Random(3)
    colours = bytes(48)
    known = [choose.getrandbits(64) for _ in range(300)]
    index = DuplicateIndex()
    for number, bits in enumerate(known):
        index.add(str(number), str(number), Signature(bits=bits, colours=colours))
    for _ in range(300):
        bits = choose.choice(known)
        for bit in choose.sample(range(64), choose.randrange(MAX_BITS + 3)):
            bits ^= 1 << bit
        expected = {str(n) for n, other in enumerate(known) if (other ^ bits).bit_count() <= MAX_BITS}
        assert {match.name for match in index.matches("x", Signature(bits=bits, colours=colours))} == expected


def test_signatures_survive_their_hexadecimal_form(photographs: Path) -> None:
    signature = signature_of(np.asarray(Image.open(photographs / "camera.png").convert("RGB")))
    assert Signature.from_hex(signature.perceptual_hash, signature.colour_grid) == signature


# ---------------------------------------------------------------------------------------------------------------------
# Splits


def test_splits_have_their_shares_and_depend_on_nothing_else() -> None:
    splits = {"train": 0.8, "val": 0.1, "test": 0.1}
    shas = [sha256_of(str(number).encode()) for number in range(5000)]
    found = Counter(own_split(sha, key="k", splits=splits) for sha in shas)
    assert 3850 < found["train"] < 4150
    assert 400 < found["val"] < 600
    assert [own_split(sha, key="k", splits=splits) for sha in shas[:50]] != [
        own_split(sha, key="other", splits=splits) for sha in shas[:50]
    ]
    assert own_split("f" * 64, key="k", splits={"train": 1.0}) == "train"


def test_a_copy_takes_the_split_of_what_it_copies() -> None:
    assert split_beside("train", []) == "train"
    assert split_beside("train", ["test", "test"]) == "test"
    assert split_beside("train", ["test", None]) == "test"
    assert split_beside("train", ["test", "val"]) is None


def rows(count: int, *, copies_of: int) -> list[tuple[dict[str, str | None], Signature]]:
    """Images of which each looks like some of `copies_of` motifs, by up to five bits."""
    choose = random.Random(9)
    motifs = [choose.getrandbits(64) for _ in range(copies_of)]
    made = []
    for number in range(count):
        bits = choose.choice(motifs)
        for bit in choose.sample(range(64), choose.randrange(6)):
            bits ^= 1 << bit
        sha = sha256_of(str(number).encode())
        row = {"key": f"k{number}", "source_sha256": sha, "source_uri": f"s/{number}", "member": None, "split": None}
        made.append((row, Signature(bits=bits, colours=bytes(48))))
    return made


def options_of(**given: Any) -> ReleaseOptions:
    return release_options(ReleaseFlags(directory="run", output="rel", name="n", version="1.0.0", **given))


def decided(images: list[tuple[dict[str, str | None], Signature]]) -> dict[str, str | None]:
    options = options_of(license="MIT", splits="train=0.6,val=0.2,test=0.2", split_key="k")
    selection = Selection(options=options, exclusions=SampleList())
    return {str(row["key"]): selection.decide(row, signature, standing=False).split for row, signature in images}


def test_near_duplicates_are_never_in_two_splits_and_nobody_moves() -> None:
    images = rows(400, copies_of=60)
    splits = decided(images)
    for (one, ours), (other, theirs) in itertools.combinations(images, 2):
        if (ours.bits ^ theirs.bits).bit_count() <= MAX_BITS:
            pair = {splits[str(one["key"])], splits[str(other["key"])]} - {None}
            assert len(pair) <= 1, (one["key"], other["key"])
    assert {"train", "val", "test"} <= set(splits.values())
    for count in (50, 200, 399):  # data that comes later moves nobody
        assert decided(images[:count]).items() <= splits.items()


@pytest.mark.parametrize("text", ["train", "train=0.5", "train=0.5,train=0.5", "Train=1", "a=0.5,b=0.6", "a=1,b=0", ""])
def test_bad_splits_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--splits"):
        parse_splits(text)


# ---------------------------------------------------------------------------------------------------------------------
# Text


def test_yaml_reads_back_as_it_was() -> None:
    value = {
        "a": "plain", "b": "1K<n<10K", "c": ["x", {"y": [1, 2.5], "z": None}], "d": {"e": {"f": True}},
        "g": "yes: no #",
        "h": "__key__", "i": "*.tar", "j": "a\nb", "k": "On", "l": "1.0", "m": [], "n": {}, "o": "é", "p": "-x",
        "q": "",
    }  # fmt: skip
    assert yaml.safe_load(to_yaml(value)) == value


def test_charts_escape_their_labels_and_say_their_numbers() -> None:
    svg = bar_chart("<b>", ['"&'], [1234])
    assert "<b>" not in svg
    assert "&quot;&amp;: 1,234" in svg


def test_masks_per_image_bins() -> None:
    found = masks_per_image_histogram(Counter({1: 2, 3: 1, 9: 1, 10: 5}))
    assert dict(zip(found["labels"], found["counts"], strict=True)) == {
        "1": 2, "2 to 4": 1, "5 to 9": 1, "10 to 19": 5, "20 to 49": 0,
    }  # fmt: skip


def test_exclusions_name_by_key_hash_and_uri(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text(f"# why\n\nk1\n{'AB' * 32}\nlabel/a.tar/x.jpg\nnobody\n", encoding="utf-8")
    found = read_sample_list(str(path))
    row = {"key": "k", "source_sha256": "0", "source_uri": "label/a.tar", "member": "x.jpg"}
    assert found.names(row)
    assert found.names({**row, "member": None, "source_sha256": "ab" * 32})
    assert found.names({**row, "member": None, "key": "k1"})
    assert not found.names({**row, "member": "y.jpg"})
    assert found.unmet == ["nobody"]
    path.write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(InputError, match="expected one key"):
        read_sample_list(str(path))


def test_of_what_is_new_the_list_of_kept_samples_alone_goes_in(tmp_path: Path) -> None:
    path = tmp_path / "keep.txt"
    path.write_text("k1\nk9\n", encoding="utf-8")
    options = options_of(license="MIT", duplicates=False)
    kept = read_sample_list(str(path), flag="--keep")
    selection = Selection(options=options, exclusions=SampleList(lines=frozenset({"k9"})), kept=kept)
    rows = {
        key: {"key": key, "source_sha256": key, "source_uri": f"a/{key}", "member": None} for key in ("k1", "k2", "k9")
    }
    left = {key: selection.decide(row, None, standing=False).left for key, row in rows.items()}
    assert left == {"k1": None, "k2": "unlisted", "k9": "excluded"}
    assert selection.decide({**rows["k2"], "split": None}, None, standing=True).left is None
    assert [(row["key"], row["why"]) for row in selection.removed] == [("k2", "unlisted"), ("k9", "excluded")]
    with pytest.raises(InputError, match="--keep"):
        read_sample_list(str(tmp_path / "none"), flag="--keep")


@pytest.mark.parametrize("name", ["a/b/c", "-a", "a b", "a--b", "../a", "", "a/"])
def test_names_that_the_hub_refuses(name: str) -> None:
    with pytest.raises(InputError, match="--name"):
        check_name(name)


def test_removal_needs_what_it_removes_by() -> None:
    assert remove_kinds(["near", "exact"], against=False, duplicates=True, splits=False) == {"near", "exact"}
    for values, against, duplicates in (
        (["far"], False, True),
        (["evaluation"], False, True),
        (["near"], False, False),
    ):
        with pytest.raises(InputError):
            remove_kinds(values, against=against, duplicates=duplicates, splits=False)


# ---------------------------------------------------------------------------------------------------------------------
# Terms of proposals


@pytest.mark.parametrize(
    ("told", "license"),
    [
        ({}, None),
        ({"info": {"license": "CC-BY-NC-4.0"}}, "CC-BY-NC-4.0"),
        ({"licenses": [{"id": 1, "name": "CC-BY-SA-4.0", "url": "x"}]}, "CC-BY-SA-4.0"),
        ({"licenses": [{"id": 1, "name": "A"}, {"id": 2, "name": "B"}]}, None),
        ({"info": "none", "licenses": "none"}, None),
    ],
)
def test_a_proposal_file_declares_its_terms(told: dict[str, object], license: str | None, tmp_path: Path) -> None:
    import json

    from pipeline.mining.flags import MineFlags
    from pipeline.mining.options import resolved
    from pipeline.release.eligibility import proposals_license

    path = tmp_path / "proposals.json"
    path.write_text(json.dumps({"images": [], "annotations": [], **told}), encoding="utf-8")
    config, _ = resolved(MineFlags(input=["x"], output="y", divide="union", proposals=str(path)))
    assert config.divide.proposals_license == license
    entry = {"config": config.to_json()}
    options = options_of(license="CC-BY-4.0", proposals_license="MIT")
    assert proposals_license(None, entry, options) == (license or "MIT")
