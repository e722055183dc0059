"""The pages of docs/ build strictly, without a network, to a site that loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="mkdocs is not installed (the extra `docs`)")

LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}
NO_NETWORK = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "NO_MKDOCS_2_WARNING": "1"}


class Assets(HTMLParser):
    """What a page loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name == LOADED.get(tag)]


@pytest.fixture(scope="module")
def site(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=repository, capture_output=True, text=True, timeout=240, env={**os.environ, **NO_NETWORK}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_every_page_loads_its_own_files_alone(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) >= 12
    for page in pages:
        for asset in Assets(page.read_text(encoding="utf-8")).found:
            assert not re.match(r"(?:[a-z]+:)?//", asset), f"{page.name} loads {asset}"
            if page.name != "404.html":
                assert (page.parent / asset.split("?")[0].split("#")[0]).exists(), f"{page.name} loads {asset}"
    for style in site.rglob("*.css"):
        assert not re.search(r"""(?:url\(|@import )["']?(?:https?:)?//""", style.read_text(encoding="utf-8")), style


def test_the_reference_holds_every_name_of_the_front_doors(site: Path) -> None:
    import model
    import pipeline

    for package in (pipeline, model):
        page = (site / "reference" / f"{package.__name__}.html").read_text(encoding="utf-8")
        for name in package.__all__:
            if name != "__version__":
                found = getattr(package, name)
                assert f'id="{found.__module__}.{found.__qualname__}"' in page, f"{package.__name__}.{name}"


def test_the_search_finds_the_reference(site: Path) -> None:
    assert "label_image" in (site / "search" / "search_index.json").read_text(encoding="utf-8")
