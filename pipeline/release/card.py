"""The dataset card: a Hub header and a datasheet in prose, every number of which comes from manifest and statistics.

`card_text` is a function of those two alone, so `verify` recomputes both and renders the card again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import pyarrow as pa

from ..dataset.viewer import template_text
from ..format.licenses import OTHER
from ..format.records import ConfigRecord, DuplicatesRecord, ReleaseManifest, ReleaseStatistics
from ..format.release_tables import RELEASED_SAMPLES_SCHEMA
from ..format.schema import EXTENSIONS, MASKS_SCHEMA, ORIGINS, sha256_of
from .duplicates import MAX_BITS, MAX_COLOUR
from .records import judged_images

TEMPLATE: Final = "dataset_card.md"
HUB_LICENSES: Final = frozenset({
    "apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5",
    "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "gpl-3.0", "odc-by", "odbl", "pddl",
    "unlicense", "other", "unknown",
})  # fmt: skip
"""Identifiers that the Hub knows for datasets; anything else becomes `other` with its name."""
SIZES: Final = (
    (10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**12, "1B<n<10B"),
)  # fmt: skip


def card_text(manifest: ReleaseManifest, statistics: ReleaseStatistics) -> str:
    """README.md.

    Args:
        manifest: of the release; its list of files is not looked at.
        statistics: as in `statistics.json`.
    """
    first, last = manifest["runs"][0], manifest["runs"][-1]
    index, license, images = manifest["index"], manifest["license"], manifest["images"]
    values = {
        "yaml": to_yaml(header(manifest)),
        "title": manifest["title"],
        "summary": _summary(manifest),
        "description": manifest["card"]["description"] or "",
        "version": manifest["version"],
        "date": manifest["date"],
        "images": f"{manifest['samples']:,}" + ("" if images else " (referenced, not contained)"),
        "masks": f"{manifest['masks']:,}",
        "instances": f"{statistics['instances']:,}",
        "masks_per_image": f"{statistics['masks_per_image']:.1f}",
        "quantiles": _quantiles(statistics),
        "license": license,
        "digest": manifest["digest"],
        "digest_short": manifest["digest"][:16],
        "granularity_rule": _granularity_rule(last["config"]),
        "examples": _examples(manifest),
        "shards_line": _shards_line(manifest),
        "samples_index": index["samples"]["name"],
        "masks_index": index["masks"]["name"],
        "more_files": _more_files(manifest),
        "members": "`KEY.jpg` (or .png, .webp, .tif, .bmp; the source's bytes, unchanged) and `KEY.json`"
        if images
        else "not contained, only `KEY.json`: join the images with `grainmill join . --images FOLDER --output WITH`",
        "first_split": next((name for name, _ in manifest["splits"]["shares"]), "train"),
        "numbers": _numbers(manifest, statistics),
        "made": _made(manifest),
        "sources": _sources(manifest),
        "license_note": _license_note(license, manifest.get("license_link"), images),
        "splits": _splits(manifest),
        "duplicates": _duplicates(manifest["duplicates"]),
        "limits": _limits(manifest),
        "people": _people(manifest),
        "versions": _versions(manifest),
        "citation_key": re.sub(r"[^a-z0-9]+", "_", f"{manifest['name']}_{manifest['version']}".lower()),
        "citation_title": manifest["title"],
        "code_version": first["code_version"],
        "year": manifest["date"][:4],
    }
    text = re.sub(r"\{\{([a-z_]+)\}\}", lambda match: values[match[1]], template_text(TEMPLATE))
    return re.sub(r"\n{3,}", "\n\n", text)


def template_sha256() -> str:
    """Of this version's template: a card of another one is checked by its numbers."""
    return sha256_of(template_text(TEMPLATE).encode())


# ---------------------------------------------------------------------------------------------------------------------
# The Hub's header


def header(manifest: ReleaseManifest) -> dict[str, object]:
    """The YAML header: what the Hub shows, and the type of every column, so that no reader has to guess."""
    hub_license = manifest["license"].lower()
    fields: dict[str, object] = {"pretty_name": manifest["title"], "license": hub_license}
    link = manifest.get("license_link")
    if hub_license not in HUB_LICENSES:
        fields |= {"license": OTHER, "license_name": hub_license}
        if not hub_license.startswith("licenseref-"):
            link = f"https://spdx.org/licenses/{manifest['license']}.html"
    if link is not None:
        fields["license_link"] = link
    return fields | {
        "task_categories": ["image-segmentation", "mask-generation"],
        "annotations_creators": ["machine-generated"],
        "source_datasets": ["original"],
        "size_categories": [next(name for limit, name in SIZES if manifest["samples"] < limit)],
        "tags": [
            "segmentation", "masks", "granularity", "part-hierarchy", "unsupervised", "webdataset", "croissant",
            "grainmill",
        ],
        "configs": [
            {"config_name": "samples", "default": True, "data_files": _data_files(manifest, "samples")},
            {"config_name": "masks", "data_files": _data_files(manifest, "masks")},
        ],
        "dataset_info": [
            {"config_name": "samples", "features": parquet_features(RELEASED_SAMPLES_SCHEMA)},
            {"config_name": "masks", "features": parquet_features(MASKS_SCHEMA)},
            {"config_name": "webdataset", "features": shard_features(images=manifest["images"])},
        ],
    }  # fmt: skip


def shards_card_text(manifest: ReleaseManifest) -> str:
    """shards/README.md: the header that lets `datasets` read the shards with the type of every column."""
    fields = {
        "configs": [{"config_name": "webdataset", "data_files": [{"split": "train", "path": "*.tar"}]}],
        "dataset_info": [{"config_name": "webdataset", "features": shard_features(images=manifest["images"])}],
    }
    return (
        f"---\n{to_yaml(fields)}---\n\nThe shards of {manifest['title']}; the card lies one folder above. "
        "With `datasets`:\n"
        '`load_dataset("shards", split="train")`, in this folder\'s parent.\n'
    )


def _data_files(manifest: ReleaseManifest, table: Literal["samples", "masks"]) -> list[dict[str, str]]:
    files = manifest["splits"]["files"]
    if files:
        return [{"split": name, "path": files[name][table]["name"]} for name, _ in manifest["splits"]["shares"]]
    return [{"split": "train", "path": manifest["index"][table]["name"]}]


_DTYPES: Final = {pa.string(): "string", pa.bool_(): "bool", pa.float64(): "float64"}


def parquet_features(schema: pa.Schema) -> list[dict[str, str]]:
    """Columns of a table as the Hub's `features`."""
    return [{"name": field.name, "dtype": _DTYPES.get(field.type, str(field.type))} for field in schema]


def shard_features(*, images: bool) -> list[dict[str, object]]:
    """Columns of the shards as `datasets` reads them: one for each extension an image can have, and the record."""

    def typed(**dtypes: str) -> list[dict[str, object]]:
        return [{"name": name, "dtype": dtype} for name, dtype in dtypes.items()]

    annotation: list[dict[str, object]] = [
        *typed(id="int64", category_id="int64", iscrowd="int64"),
        {"name": "segmentation", "struct": [{"name": "size", "list": "int64"}, *typed(counts="string")]},
        {"name": "bbox", "list": "int64"},
        *typed(
            area="int64", granularity="float64", instance_id="int64", parent_id="int64", level="int64",
            origin="string", score="float64",
        ),
    ]  # fmt: skip
    record = [
        *typed(format="string", key="string"),
        {"name": "source", "struct": typed(uri="string", member="string", sha256="string", license="string")},
        {
            "name": "image",
            "struct": typed(width="int64", height="int64", exif_orientation="int64", file_name="string"),
        },
        {"name": "annotations", "list": annotation},
    ]
    pictures: list[dict[str, object]] = (
        [{"name": extension, "dtype": "image"} for extension in EXTENSIONS] if images else []
    )
    return [*pictures, {"name": "json", "struct": record}, *typed(__key__="string", __url__="string")]


# ---------------------------------------------------------------------------------------------------------------------
# Prose


def _summary(manifest: ReleaseManifest) -> str:
    contained = "photographs" if manifest["images"] else "references to photographs"
    judged = judged_images(manifest)
    people = f"People judged masks of {judged:,} images" if judged else "No person drew or named a mask"
    return (
        f"{manifest['samples']:,} {contained} with {manifest['masks']:,} segmentation masks, each with its granularity "
        "and "
        f"its place in a tree of parts. {people}: they were mined from the images alone by "
        "divide-and-conquer (after UnSAMv2, arXiv 2511.13714) with Grainmill."
    )


def _quantiles(statistics: ReleaseStatistics) -> str:
    names = {"min": "least", "p10": "10th percentile", "median": "median", "p90": "90th percentile", "max": "most"}
    found = statistics["masks_per_image_quantiles"]
    return ", ".join(f"{label} {found[name]:,}" for name, label in names.items() if found[name] is not None)


def _granularity_rule(config: ConfigRecord) -> str:
    if config.get("granularity", {}).get("method") == "instance-relative":
        return "Here g = 0.1 + 0.9 sqrt(A / A_whole), with areas A in pixels."
    return (
        "Here g = 0.1 + 0.9 (sqrt A - sqrt A_min) / (sqrt A_max - sqrt A_min), with areas A in pixels, A_max that of "
        "the "
        "whole and A_min that of its smallest part (arXiv 2511.13714, eq. 3)."
    )


def _examples(manifest: ReleaseManifest) -> str:
    return "\n\n".join(
        f"![{each['key']}: the photograph, its wholes, their parts]({each['name']})\n\n"
        f"`{each['key']}`: {each['instances']:,} wholes, {each['masks'] - each['instances']:,} parts"
        for each in manifest["examples"]
    )


def _shards_line(manifest: ReleaseManifest) -> str:
    size = sum(shard["size"] for shard in manifest["shards"])
    return f"{len(manifest['shards']):,} WebDataset shards, {_bytes(size)}, as they were mined"


def _more_files(manifest: ReleaseManifest) -> str:
    lines = []
    if manifest["splits"]["files"]:
        lines.append("| `index/*-SPLIT-*.parquet` | the same rows, one pair of files for each split |")
    if manifest["failures_table"] is not None:
        rows = manifest["failures"]
        lines.append(
            f"| `{manifest['failures_table']['name']}` | the {rows:,} input images that are in no shard, and why |"
        )
    if manifest["duplicates"]["table"] is not None:
        lines.append(f"| `{manifest['duplicates']['table']['name']}` | pairs of equal and near-equal images |")
    if manifest["removed_table"] is not None:
        lines.append(f"| `{manifest['removed_table']['name']}` | images that left, by version and reason |")
    if manifest["gallery"]:
        lines.append("| `gallery.html` | browse it: click an image, click a point, move the dial |")
    return "".join(f"{line}\n" for line in lines)


def _numbers(manifest: ReleaseManifest, statistics: ReleaseStatistics) -> str:
    blocks = []
    for name in manifest["charts"]:
        title = name.replace("_", " ")
        blocks.append(f"![{title}](figures/{name}.svg)")
    grain = statistics["granularity_histogram"]
    rows = [
        f"| {low:.1f} to {high:.1f} | {count:,} | {percent:.1f} % | {published:g} % |"
        for low, high, count, percent, published in zip(
            grain["edges"],
            grain["edges"][1:],
            grain["counts"],
            grain["percent"],
            grain["published_percent"],
            strict=False,
        )
    ]
    blocks.append("\n".join(["| granularity | masks | share | UnSAMv2's own masks |", "|---|---|---|---|", *rows]))
    blocks.append(
        "The last column is what the paper reports for its own masks (arXiv 2511.13714, Fig. 4), on other images than "
        "these."
    )
    origins = [f"| {name} | {count:,} |" for name in ORIGINS if (count := statistics["origins"][name])]
    blocks.append("\n".join(["| origin | masks |", "|---|---|", *origins]))
    blocks.append(
        "`divide`: found as a whole; `remainder`: a coherent region that no whole claimed; `conquer`: a part, by "
        "merging; "
        "`proposal`: from a file of masks; `annotation`: came with the image."
    )
    reasons = statistics["failures_by_reason"]
    if reasons:
        rows = [f"| {reason} | {count:,} |" for reason, count in reasons.items()]
        total = manifest["samples"] + manifest["failures"]
        blocks.append(
            f"Of {total:,} input images {manifest['failures']:,} are in no shard:\n\n"
            + "\n".join(["| reason | images |", "|---|---|", *rows])
        )
    else:
        blocks.append("Every input image is in a shard.")
    return "\n\n".join(blocks)


def _made(manifest: ReleaseManifest) -> str:
    lines = [
        "Each photograph went through five steps: features, *divide* (which regions are wholes), *conquer* (merging "
        "regions "
        "into a tree of parts), refinement at the image's edges, and the granularity of each mask. "
        + (
            "Then people judged masks, see below."
            if judged_images(manifest)
            else "Nothing was drawn, corrected or chosen by hand."
        ),
        "",
        "| run | images | masks | recipe | features | weights' sha256 | labels version | Grainmill | seed | "
        "configuration |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in manifest["runs"]:
        config = run["config"]
        features = config.get("features", {})
        weights = features.get("weights_sha256")
        boundaries = features.get("boundaries_sha256")
        net = f" and the boundary net `{boundaries[:16]}`" if boundaries else ""
        lines.append(
            f"| `{run['id']}` | {run['samples']:,} | {run['masks']:,} | {config.get('recipe')} | "
            f"{features.get('backbone')}{net} | "
            f"{'none' if weights is None else f'`{weights[:16]}`'} | {config.get('labels_version')} | "
            f"{run['code_version']} | "
            f"{run['seed']} | `{run['config_hash'][:16]}` |"
        )
    lines += [
        "",
        "Every setting stands in `manifest.json` under `runs`; where it was mined and how fast, in `machines.json`.",
    ]
    if judged_images(manifest):
        lines += ["", *_judged(manifest)]
    return "\n".join(lines)


_JUDGED: Final = ("dropped", "unjudged", "merged", "split", "edited", "made")


def _judged(manifest: ReleaseManifest) -> list[str]:
    """What people decided about masks, by version."""
    lines = [
        "People judged mined masks at the page of `grainmill annotate`. Masks that went, by reason, and what stands in "
        "the place of merged, split and edited ones (`origin` annotation); a part whose whole went is a whole, and "
        "granularity was computed again where a whole lost or got a mask:",
        "",
        "| version | images | dropped | not judged | merged | split | edited | in their place | images without a mask "
        "left | list's sha256 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in manifest["versions"]:
        curated = each["changes"].get("curated")
        if curated is not None:
            counts = " | ".join(f"{curated['masks'].get(name, 0):,}" for name in _JUDGED)
            lines.append(
                f"| {each['version']} | {curated['images']:,} | {counts} | "
                f"{each['changes']['left'].get('no_masks', 0):,} | `{curated['list_sha256'][:16]}` |"
            )
    return lines


def _sources(manifest: ReleaseManifest) -> str:
    lines = ["| source | images | licence | terms |", "|---|---|---|---|"]
    for source in manifest["sources"]:
        license = source["license"] or "not declared"
        lines.append(
            f"| {_cell(source['label'])} | {source['samples']:,} | {_cell(license)} | {_cell(source['terms'] or '')} |"
        )
    if manifest["proposals_license"] is not None:
        lines.append(f"| proposals | | {_cell(manifest['proposals_license'])} | |")
    return "\n".join(lines)


def _license_note(license: str, link: str | None, images: bool) -> str:
    what = "The images keep the licence of their source" if images else "No image is contained; each keeps its licence"
    terms = license if link is None else f"{license} (<{link}>)"
    text = (
        f"The whole is released under {terms}. {what}, which stands with each sample (`source.license` in the shard, "
    )
    text += "`source_license` and `source_terms` in the index)."
    if license.lower() == OTHER:
        text += " `other` means: the terms of each sample's source hold, the strictest of them for the whole."
    return text


def _splits(manifest: ReleaseManifest) -> str:
    splits = manifest["splits"]
    if not splits["shares"]:
        return "None: `split` is null in the index. Loaders show everything as `train`."
    rows = [f"| {name} | {share:g} | {splits['counts'].get(name, 0):,} |" for name, share in splits["shares"]]
    table = "\n".join(["| split | share asked | images |", "|---|---|---|", *rows])
    return (
        f"{table}\n\nAn image's split is a hash of its bytes, keyed by `{splits['key']}`; near-equal images go "
        "together, so no "
        f"split leaks into another, and adding data moves nobody. {splits['none']:,} images look like images of two "
        "splits "
        "and are in none (`split` null). Shards hold all splits: take the rows of a split from the index."
    )


def _duplicates(found: DuplicatesRecord) -> str:
    if not found["searched"]:
        return "Not looked for in this release."
    counts, removed = found["counts"], found["removed"]
    lines = [
        f"Within the release: {counts['exact']:,} images whose bytes equal an earlier image's, {counts['near']:,} that "
        "look like "
        f"one (perceptual hashes of 64 bits at most {MAX_BITS} apart, mean colours of a 4 x 4 grid at most "
        f"{MAX_COLOUR:g} of 255 "
        f"apart). Crops, rotations and mirror images are not found this way. Left out: {removed['exact']:,} and "
        f"{removed['near']:,}."
    ]
    if found["unsigned"]:
        lines.append(f"{found['unsigned']:,} images were not at hand, only their sha256 was compared.")
    for each in found["against"]:
        lines.append(
            f"Against {_cell(each['label'])} ({each['images']:,} images): {each['exact']:,} equal, {each['near']:,} "
            "look alike, "
            f"{each['removed']:,} left out."
        )
    if not found["against"]:
        lines.append("No evaluation set was compared.")
    return "\n\n".join(lines)


def _limits(manifest: ReleaseManifest) -> str:
    lines = [
        "The masks are a machine's guess. Borders follow colour and texture: shadows, reflections and printed patterns "
        "become "
        "regions, and things that look like their surroundings are missed.",
        "A whole is what the cut found to hold together, which is not always what a person would call a thing; masks "
        "have no "
        "names.",
        "Granularity compares sizes within one whole. Equal numbers in different wholes or images do not mean equal "
        "kinds of "
        "part.",
        "A mask's `score` cannot be compared between origins.",
        "The choice of photographs is that of the sources; whatever they over-represent, so does this.",
    ]
    if not manifest["images"]:
        lines.append(
            "Images must be fetched from their sources; some may be gone or changed, which the join names by sha256."
        )
    if any(run["config"].get("limit") is not None for run in manifest["runs"]):
        lines.append("Only the first images of the sources were mined (`limit` in the configuration).")
    return "\n".join(f"- {line}" for line in lines)


def _people(manifest: ReleaseManifest) -> str:
    told = manifest["card"]["people"]
    start = told or "The publishers say nothing about people in these photographs: assume that some show people."
    return (
        f"{start} Nobody was asked to appear in this dataset, faces and other personal details were neither looked for "
        "nor "
        "blurred, and masks may outline people or parts of them without saying so. No names, places or dates were "
        "added; "
        "images keep whatever their files carry (camera data and positions among it), unchanged."
    )


def _versions(manifest: ReleaseManifest) -> str:
    lines = ["| version | date | images | masks | digest |", "|---|---|---|---|---|"]
    for each in reversed(manifest["versions"]):
        lines.append(
            f"| {each['version']} | {each['date']} | {each['samples']:,} | {each['masks']:,} | `{each['digest'][:16]}` "
            "|"
        )
    lines += ["", "Older ones are read at `versions/VERSION` in this folder."] if len(manifest["versions"]) > 1 else []
    return "\n".join(lines)


def changelog_text(manifest: ReleaseManifest) -> str:
    """CHANGELOG.md: what each version added and what left."""
    lines = [f"# Changes of {manifest['title']}", ""]
    for each in reversed(manifest["versions"]):
        changes = each["changes"]
        lines += [f"## {each['version']}, {each['date']}", ""]
        lines.append(f"- {each['samples']:,} images, {each['masks']:,} masks; digest `{each['digest']}`")
        lines.append(
            f"- added: {changes['added']:,} images from {changes['runs']:,} run{'' if changes['runs'] == 1 else 's'}"
        )
        if changes["present"]:
            lines.append(f"- not added again: {changes['present']:,} images that were here already")
        for why, text in (
            ("excluded", "taken down"), ("unlisted", "not in the list of what is kept"),
            ("no_masks", "left out because none of their masks was kept"),
            ("exact", "left out as equal images"),
            ("near", "left out as near-equal images"),
            ("evaluation", "left out because they are in an evaluation set"),
        ):  # fmt: skip
            if changes["left"].get(why):
                lines.append(f"- {text}: {changes['left'][why]:,} images")
        lines += [f"  - `{key}`" for key in changes["excluded_keys"]]
        curated = changes.get("curated")
        if curated is not None:
            counts = ", ".join(f"{name} {count:,}" for name, count in curated["masks"].items())
            lines.append(f"- masks judged by people, in {curated['images']:,} images: {counts or 'all were kept'}")
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text from outside in one cell of a Markdown table: no markup, no line ends, no column marks."""
    plain = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", plain)


def _bytes(size: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


# ---------------------------------------------------------------------------------------------------------------------
# YAML: a few kinds of values, as the Hub's parser reads them and in the style people expect

_PLAIN: Final = re.compile(r"[A-Za-z_/][A-Za-z0-9_./+<>*-]*")
_WORDS: Final = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def to_yaml(value: Mapping[str, object]) -> str:
    """A mapping of strings, numbers, booleans, null, lists and mappings, in their order, one `name:` a line."""
    return "\n".join(_mapping(value, 0)) + "\n"


def _mapping(value: Mapping[str, object], depth: int) -> list[str]:
    lines = []
    for name, each in value.items():
        lines += _entry(f"{'  ' * depth}{_scalar(name)}:", each, depth)
    return lines


def _entry(start: str, value: object, depth: int) -> list[str]:
    if isinstance(value, Mapping) and value:
        return [start, *_mapping(value, depth + 1)]
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        return [start, *(line for each in value for line in _item(each, depth))]
    return [f"{start} {_scalar(value)}"]


def _item(value: object, depth: int) -> list[str]:
    dash = f"{'  ' * depth}- "
    if isinstance(value, Mapping) and value:
        first, *rest = _mapping(value, depth + 1)
        return [dash + first.lstrip(), *rest]
    return [dash + _scalar(value)]


def _scalar(value: object) -> str:
    """Plain where it cannot be read as anything else, else as JSON, which YAML reads too."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
