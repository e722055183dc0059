"""Flags of `mine` become one configuration, and what does not go together is one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.configure import MineFlags, licenses_of, mine_options
from pipeline.errors import InputError


def test_a_licence_reaches_its_source(tmp_path: Path) -> None:
    flags = MineFlags(input=[f"a={tmp_path}", f"b={tmp_path}"], output="out", license=["b=CC-BY-4.0"])
    assert [source.license for source in mine_options(flags).sources] == [None, "CC-BY-4.0"]


@pytest.mark.parametrize("values", [["CC-BY-4.0"], ["a="], ["=MIT"], ["a=MIT", "a=CC0-1.0"]])
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
        {"overwrite": True, "extend": True},
        {"retry_failed": ["bad luck"]},
        {"recipe": "none"},
        {"divide": "proposals"},
        {"proposals": "missing.json"},
        {"refine": "crf"},
    ],
)
def test_flags_that_do_not_go_together_are_refused(tmp_path: Path, changed: dict[str, object]) -> None:
    with pytest.raises(InputError, match="--"):
        mine_options(MineFlags(input=[f"a={tmp_path}"], output="out", **changed))  # type: ignore[arg-type]
