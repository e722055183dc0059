"""The end of a release: described files into their places, SHA256SUMS, then the manifest, which is the commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..format.release_tables import MANIFEST
from ..format.schema import canonical_json, load_json, sealed
from ..storage.local import LocalStorage, explained
from .durable_files import make_durable, place
from .records import CARD, MACHINES, NEXT, STATISTICS, SUMS, file_record, json_text, named_files


def commit_release(output: LocalStorage, manifest: dict[str, Any], machines: bytes) -> None:
    """Puts the described files into their places, then SHA256SUMS, then the manifest: the commit."""
    for file in manifest["files"]:
        staged = output.path(f"{NEXT}/{file['name']}")
        if staged.is_file():
            place(output, staged, file["name"])
    data = canonical_json(sealed(manifest))
    make_durable()
    output.put_atomic(MACHINES, machines)
    output.put_atomic(SUMS, sums_text(manifest, data))
    output.put_atomic(f"versions/{manifest['version']}/{MANIFEST}", data)
    output.put_atomic(MANIFEST, data)
    output.clean_scratch()


def sums_text(manifest: dict[str, Any], manifest_bytes: bytes) -> bytes:
    """SHA256SUMS: every file of the manifest and the manifest itself, for `sha256sum --check`."""
    named = [(record["name"], record["sha256"]) for record in named_files(manifest)]
    named.append((MANIFEST, file_record(MANIFEST, manifest_bytes)["sha256"]))
    return "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(named)).encode()


def copy_card(output: LocalStorage, manifest: dict[str, Any], folder: str) -> None:
    """Puts `NAME-VERSION.md` and, as `NAME-VERSION.json`, the numbers it was rendered from into a folder."""
    target = Path(folder)
    name = f"{manifest['name'].rsplit('/', 1)[-1]}-{manifest['version']}"
    told = {field: value for field, value in manifest.items() if field != "files"}
    where = f"{output.location}/{STATISTICS}"
    record = {"manifest": told, "statistics": load_json(output.read_bytes(STATISTICS), where=where)}
    with explained("write", target):
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{name}.md").write_bytes(output.read_bytes(CARD))
        (target / f"{name}.json").write_bytes(json_text(record))
