"""The cards in `dataset_cards/` have the structure of a card, and numbers that are those of their own manifest."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.release.card import card_text, template_sha256
from pipeline.release.verify import card_problems

SECTIONS = [
    "Examples", "What lies where", "How to load it", "The numbers", "How it was made", "Sources and licence", "Splits",
    "Equal and near-equal images", "Known limits", "People and personal data", "What it is for", "Versions", "Citation",
]  # fmt: skip
FOLDER = Path(__file__).resolve().parents[2] / "dataset_cards"
CARDS = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")


def numbers_of(card: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Manifest and statistics beside a card."""
    record = json.loads(card.with_suffix(".json").read_bytes())
    return record["manifest"], record["statistics"]


def test_the_folder_holds_a_card() -> None:
    assert CARDS


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.stem)
def test_a_card_has_its_header_and_sections(card: Path) -> None:
    text = card.read_text(encoding="utf-8")
    header = yaml.safe_load(text.split("---\n")[1])
    assert {"license", "task_categories", "size_categories", "configs", "dataset_info", "tags"} <= set(header)
    typed = {each["config_name"] for each in header["dataset_info"] if each["features"]}
    assert {"samples", "masks", "webdataset"} <= typed
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    assert text.count("```python") == 5
    assert text.count("```bibtex") == 2
    assert "{{" not in text.replace("{{Self", "")


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.stem)
def test_a_cards_numbers_are_those_of_its_manifest(card: Path) -> None:
    manifest, statistics = numbers_of(card)
    text = card.read_text(encoding="utf-8")
    assert list(card_problems(text, manifest, statistics)) == []
    if manifest["card"]["template_sha256"] == template_sha256():
        assert text == card_text(manifest, statistics)
    assert card.stem == f"{manifest['name'].rsplit('/', 1)[-1]}-{manifest['version']}"
    assert manifest["digest"] in text
    assert statistics["digest"] == manifest["digest"]
    wrong = text.replace(f"| {manifest['masks']:,}, of which", f"| {manifest['masks'] + 1:,}, of which")
    assert list(card_problems(wrong, manifest, statistics))
