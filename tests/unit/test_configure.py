"""Flags of `mine` become one configuration, and what does not go together is one clear error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.format.schema import canonical_json
from pipeline.labeling.recipes import recipe
from pipeline.mining.flags import MineFlags
from pipeline.mining.options import licenses_of, mine_options, resolved
from pipeline.shards.plan import config_differences


def test_a_licence_reaches_its_source(tmp_path: Path) -> None:
    flags = MineFlags(input=[f"a={tmp_path}", f"b={tmp_path}"], output="out", license=["b=cc-by-4.0"])
    assert [source.license for source in mine_options(flags).sources] == [None, "CC-BY-4.0"]


def test_of_two_configurations_only_what_differs_is_named() -> None:
    """One as a plan keeps it, in JSON, where tuples are lists."""

    def record(**changed: object) -> dict[str, object]:
        return resolved(MineFlags(input=["a"], output="out", **changed))[0].to_json()  # type: ignore[arg-type]

    planned = json.loads(canonical_json(record()))
    for changed, expected in (
        ({}, []),
        ({"limit": 1}, ["limit: there null, here 1"]),
        ({"seed": 2, "no_images": True}, ["images: there true, here false", "seed: there 0, here 2"]),
        ({"recipe": "default-1000"}, [
            "conquer.pool.lead: there 75, here 200", "conquer.pool.nested_fraction: there 0.985, here 0.97",
            'recipe: there "default", here "default-1000"', "tree.max_masks: there 300, here 1000",
        ]),
    ):  # fmt: skip
        assert config_differences(planned, record(**changed)) == expected
    planned["conquer"]["costs"][1]["size_power"] = 0.75
    planned["conquer"]["thresholds"].pop()
    planned["older"] = planned.pop("seed")
    assert config_differences(planned, record()) == [
        "conquer.costs[1].size_power: there 0.75, here 0.5",
        "conquer.thresholds: there [0.9,0.8,0.7,0.6], here [0.9,0.8,0.7,0.6,0.5]",
        "older: there 0, here nothing",
        "seed: there nothing, here 0",
    ]


@pytest.mark.parametrize("values", [["CC-BY-4.0"], ["a="], ["=MIT"], ["a=MIT", "a=CC0-1.0"], ["a=banana"]])
def test_a_licence_that_names_no_single_source_is_refused(values: list[str]) -> None:
    with pytest.raises(InputError, match="--license"):
        licenses_of(values)


def test_a_licence_of_an_unknown_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'c'"):
        mine_options(MineFlags(input=[f"a={tmp_path}"], output="out", license=["c=MIT"]))


@pytest.mark.parametrize(
    "changed",
    [
        {"executor": "inline", "workers": 2},
        {"executor": "local", "ray_address": "auto"},
        {"executor": "local", "gpus_per_worker": 99.0},
        {"executor": "inline", "gpus_per_worker": 99.0},
        {"overwrite": True, "extend": True},
        {"retry_failed": ["bad luck"]},
        {"recipe": "none"},
        {"divide": "proposals"},
        {"proposals": "missing.json"},
        {"refine": "crf"},
        {"wholes": "six"},
        {"ranking": "chance"},
        {"recipe": "unsamv2", "backbone": "descriptor", "wholes": "flat"},
        {"recipe": "unsamv2", "backbone": "descriptor", "ranking": "consistency"},
    ],
)
def test_flags_that_do_not_go_together_are_refused(tmp_path: Path, changed: dict[str, object]) -> None:
    with pytest.raises(InputError, match="--"):
        mine_options(MineFlags(input=[f"a={tmp_path}"], output="out", **changed))  # type: ignore[arg-type]


def test_wholes_and_ranking_are_settings_of_any_recipe_on_superpixels(tmp_path: Path) -> None:
    config = mine_options(
        MineFlags(input=[f"a={tmp_path}"], output="out", wholes="stable", ranking="consistency", max_masks=7)
    ).config
    assert config.tree.max_masks == 7
    assert config.divide.wholes == "stable"
    assert config.conquer.ranking.method == "consistency"
    plain = mine_options(MineFlags(input=[f"a={tmp_path}"], output="out")).config
    assert (plain.divide.wholes, plain.conquer.ranking.method) == ("adaptive", "trees")
    learned = recipe("learned")
    assert (learned.divide.wholes, learned.conquer.ranking.method) == ("flat", "consistency")
    assert learned.conquer.ranking.scale < 1.0 < plain.conquer.ranking.scale


def coco_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"images": [], "annotations": []}')
    return path


def test_given_masks_are_a_file_or_what_a_folder_holds(tmp_path: Path) -> None:
    def found(**flags: object) -> str | None:
        return mine_options(MineFlags(output="out", **flags)).proposals  # type: ignore[arg-type]

    accepted, exported = (tmp_path / "accepted" / "annotations.json", tmp_path / "e" / "annotations" / "instances.json")
    for path in (accepted, exported):
        coco_file(path)
    empty = tmp_path / "empty"
    empty.mkdir()
    one, other, none = (
        f"{name}={path}" for name, path in zip("abc", (accepted.parent, tmp_path / "e", empty), strict=True)
    )
    assert found(input=[none], divide="proposals", proposals=str(accepted)) == str(accepted)
    assert found(input=[none], divide="union", proposals=str(accepted.parent)) == str(accepted)
    assert found(input=[none], divide="union", proposals=str(tmp_path / "e")) == str(exported)
    assert found(input=[one, none], divide="proposals") == str(accepted)
    assert found(input=[one]) is None  # nobody asked for them
    assert found(input=[one], divide="union") is None  # which has the samples' own annotations
    with pytest.raises(InputError, match="say which by --proposals"):
        found(input=[one, other], divide="proposals")
    with pytest.raises(InputError, match="holds neither"):
        found(input=[one], divide="proposals", proposals=str(empty))
    with pytest.raises(InputError, match="or one --input folder that holds its own"):
        found(input=[none], divide="proposals")
