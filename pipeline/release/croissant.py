"""Croissant 1.1 JSON-LD: files with sha256, records of images and masks, provenance (PROV-O), responsible-AI fields.

Written by hand rather than by `mlcroissant`, which is a reader's tool; the tests let it validate and iterate.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from ..format.licenses import OTHER
from ..format.records import FileRecord, ReleaseManifest
from ..format.release_tables import RELEASED_SAMPLES_SCHEMA
from ..format.schema import MASKS_SCHEMA
from .records import SUMS, judged_images

MAX_LISTED_SHARDS: Final = 2000
"""Beyond this the shards are one FileSet, and their sha256 stand in SHA256SUMS, whose own is given."""

CITE_AS: Final = (
    "@article{unsamv2_2025, title={UnSAMv2: Self-Supervised Learning Enables Segment Anything at Any Granularity}, "
    "author={Yu, Junwei and Darrell, Trevor and Wang, XuDong}, journal={arXiv preprint arXiv:2511.13714}, "
    "year={2025}}"
)

CONTEXT: Final[dict[str, object]] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "prov": "http://www.w3.org/ns/prov#",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}

DESCRIPTIONS: Final = {
    "key": "identifies the image; equal in both tables and in the shards",
    "shard": "file that holds the image and its masks",
    "image_offset": "first byte of the image in the shard; null if it is not contained",
    "image_size": "bytes of the image",
    "json_offset": "first byte of the masks' record in the shard",
    "json_size": "bytes of the masks' record",
    "json_sha256": "sha256 of the masks' record",
    "ext": "extension of the image: jpg, png, webp, tif or bmp",
    "width": "pixels, after the EXIF orientation",
    "height": "pixels, after the EXIF orientation",
    "exif_orientation": "1 to 8, as stored in the image",
    "num_masks": "masks of the image",
    "num_instances": "wholes among them",
    "source_uri": "label and path of the source",
    "member": "name inside a tar, or row of a table; null for plain files",
    "license": "of the source, as declared when it was mined",
    "source_sha256": "sha256 of the image's bytes",
    "run": "id of the run that mined it",
    "split": "null if in none",
    "source_license": "of the source, as declared by the publisher",
    "source_terms": "address or words of the source's terms",
    "perceptual_hash": "64 bits, hexadecimal; near-equal images differ in few of them",
    "colour_grid": "mean RGB of a 4 x 4 grid, hexadecimal",
    "mask_id": "position of the mask in its image's record",
    "area_px": "pixels",
    "area_fraction": "share of the image",
    "bbox_x": "pixels from the left",
    "bbox_y": "pixels from the top",
    "bbox_w": "pixels",
    "bbox_h": "pixels",
    "granularity": "0.1 to 1.0; 1.0 is a whole",
    "instance_id": "mask_id of the whole that the mask belongs to",
    "parent_id": "mask_id of the next larger mask around it; null for a whole",
    "depth": "steps below the whole",
    "level": "merge step at which the region first appeared, 0 the coarsest; null if it did not come from merging",
    "origin": "annotation, proposal, divide, remainder or conquer",
    "score": "larger is better, within one origin; null where the origin gives none",
}


def croissant(manifest: ReleaseManifest) -> dict[str, object]:
    """The JSON-LD object of a release; its list of files is not looked at.

    Args:
        manifest: as written, or the draft of it.
    """
    name, samples, masks = manifest["name"], manifest["samples"], manifest["masks"]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"],
        "name": name,
        "description": (
            f"{samples:,} images with {masks:,} segmentation masks, each with its granularity and its place in a tree "
            "of "
            "parts, mined from the images alone by divide-and-conquer (after UnSAMv2, arXiv 2511.13714)."
        ),
        "version": manifest["version"],
        "license": manifest.get("license_link") or license_url(manifest["license"]),
        "datePublished": manifest["date"],
        "dateModified": manifest["date"],
        "isLiveDataset": False,
        "keywords": ["segmentation", "masks", "granularity", "part hierarchy", "unsupervised"],
        "creator": {"@type": "sc:Organization", "name": f"The publishers of {name}"},
        "publisher": {"@type": "sc:Organization", "name": f"The publishers of {name}"},
        "url": f"https://huggingface.co/datasets/{name}" if manifest["hub"] is None else manifest["hub"],
        "citeAs": CITE_AS,
        **provenance(manifest),
        **responsible_ai(manifest),
        "distribution": _distribution(manifest),
        "recordSet": [
            _record_set(
                "samples", "One row for each image.", RELEASED_SAMPLES_SCHEMA, key=["key"], file="samples-index"
            ),
            _record_set("masks", "One row for each mask.", MASKS_SCHEMA, key=["key", "mask_id"], file="masks-index"),
        ],
    }


def license_url(spdx: str) -> str:
    """An address for a licence; that of the list for what is not on it."""
    listed = spdx.lower() != OTHER and not spdx.startswith("LicenseRef-")
    return f"https://spdx.org/licenses/{spdx}.html" if listed else "https://spdx.org/licenses/"


# ---------------------------------------------------------------------------------------------------------------------
# Files and records


def _distribution(manifest: ReleaseManifest) -> list[dict[str, object]]:
    index, shards = manifest["index"], manifest["shards"]
    files = [
        _file("samples-index", index["samples"], "application/x-parquet", "One row for each image."),
        _file("masks-index", index["masks"], "application/x-parquet", "One row for each mask."),
    ]
    if len(shards) <= MAX_LISTED_SHARDS:
        return files + [
            _file(shard["name"], shard, "application/x-tar", f"{shard['samples']:,} images, {shard['masks']:,} masks.")
            for shard in shards
        ]
    return [
        *files,
        {
            "@type": "cr:FileObject",
            "@id": "folder",
            "name": "folder",
            "description": f"The release's folder. The sha256 of each shard stands in {SUMS}.",
            "contentUrl": ".",
            "encodingFormat": "local_directory",
            "sha256": manifest["digest"],
        },
        {
            "@type": "cr:FileSet",
            "@id": "shards",
            "name": "shards",
            "description": f"{len(shards):,} WebDataset shards.",
            "containedIn": {"@id": "folder"},
            "encodingFormat": "application/x-tar",
            "includes": "shards/*.tar",
        },
    ]


def _file(name: str, record: FileRecord, encoding: str, description: str) -> dict[str, object]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "description": description,
        "contentUrl": record["name"],
        "contentSize": f"{record['size']} B",
        "encodingFormat": encoding,
        "sha256": record["sha256"],
    }


_TYPES: Final = {"string": "sc:Text", "double": "sc:Float", "bool": "sc:Boolean"}


def _record_set(name: str, description: str, schema: pa.Schema, *, key: list[str], file: str) -> dict[str, object]:
    fields = []
    for column in schema:
        field = {
            "@type": "cr:Field",
            "@id": f"{name}/{column.name}",
            "name": column.name,
            "description": DESCRIPTIONS[column.name],
            "dataType": _TYPES.get(str(column.type), "sc:Integer"),
            "source": {"fileObject": {"@id": file}, "extract": {"column": column.name}},
        }
        if name == "masks" and column.name == "key":
            field["references"] = {"field": {"@id": "samples/key"}}
        fields.append(field)
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": description,
        "key": [{"@id": f"{name}/{column}"} for column in key],
        "field": fields,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Provenance and responsible AI


def provenance(manifest: ReleaseManifest) -> dict[str, object]:
    """PROV-O: from which sources, by which program with which configuration and weights."""
    sources = [
        {
            "@type": "prov:Entity",
            "@id": f"source/{source['label']}",
            "name": source["label"],
            "description": f"{source['samples']:,} images. {source['terms'] or ''}".strip(),
            **({} if source["license"] is None else {"license": license_url(source["license"])}),
        }
        for source in manifest["sources"]
    ]
    activities = []
    for run in manifest["runs"]:
        features = run["config"].get("features", {})
        used: list[dict[str, str | None]] = [{"@id": f"source/{label}"} for label in run["sources"]]
        used.append({"@type": "prov:Entity", "@id": f"configuration/{run['config_hash']}", "name": "configuration"})
        if features.get("weights_sha256") is not None:
            used.append({
                "@type": "prov:Entity", "@id": f"weights/{features['weights_sha256']}", "name": features["backbone"],
            })  # fmt: skip
        if features.get("boundaries_sha256") is not None:
            net = f"weights/{features['boundaries_sha256']}"
            used.append({"@type": "prov:Entity", "@id": net, "name": "boundary net"})
        activities.append(
            {
                "@type": "prov:Activity",
                "@id": f"run/{run['id']}",
                "name": f"grainmill mine, run {run['id']}",
                "description": (
                    f"Recipe {run['config'].get('recipe')}, features {features.get('backbone')}, labels version "
                    f"{run['config'].get('labels_version')}, seed {run['seed']}, configuration sha256 "
                    f"{run['config_hash']}."
                ),
                "prov:used": used,
                "prov:wasAssociatedWith": {
                    "@type": "prov:SoftwareAgent",
                    "@id": f"software/grainmill-{run['code_version']}",
                    "name": "grainmill",
                    "version": run["code_version"],
                },
                "prov:endedAtTime": run["date"],
            }
        )
    return {"prov:wasDerivedFrom": sources, "prov:wasGeneratedBy": activities}


def _judged(manifest: ReleaseManifest) -> str:
    if judged_images(manifest):
        return "People then judged masks; README.md says what they changed."
    return "Nobody drew, corrected or named a mask."


def responsible_ai(manifest: ReleaseManifest) -> dict[str, object]:
    """The fields of Croissant's RAI vocabulary that apply."""
    labels = ", ".join(source["label"] for source in manifest["sources"])
    told = manifest["card"]["people"] or "Nothing is known about people in the images; assume that some show people."
    return {
        "rai:dataCollection": f"Images were taken as they are from: {labels}. Nothing was photographed for it.",
        "rai:dataCollectionType": ["Existing datasets or image collections"],
        "rai:dataCollectionMissingData": (
            f"{manifest['failures']:,} input images are in no shard; each has a row with the reason."
        ),
        "rai:dataPreprocessingProtocol": [
            "Image bytes are unchanged; masks are on the grid after the EXIF orientation.",
        ],
        "rai:dataAnnotationProtocol": [
            "Masks were mined without labels: normalised cuts find wholes, merging finds their parts, granularity is "
            f"computed from areas. {_judged(manifest)}",
        ],
        "rai:machineAnnotationTools": sorted({f"grainmill {run['code_version']}" for run in manifest["runs"]}),
        "rai:annotationsPerItem": f"{manifest['masks'] / manifest['samples']:.1f} masks on average",
        "rai:dataLimitations": [
            "Masks follow colour and texture; shadows, reflections and printed patterns become regions.",
            "Masks have no names, and are no ground truth.",
        ],
        "rai:dataBiases": ["The choice of images is that of the sources; whatever they over-represent, so does this."],
        "rai:dataUseCases": ["Training and measuring models that segment at a granularity given as a number."],
        "rai:dataSocialImpact": (
            "Better segmentation without labels lowers the cost of both useful and harmful image analysis; the dataset "
            "must "
            "not be used to identify, count or judge people."
        ),
        "rai:personalSensitiveInformation": [told, "Faces and camera data are neither looked for nor removed."],
        "rai:dataReleaseMaintenancePlan": (
            "Versions are numbered and old ones stay readable; images are taken out on request in a new version."
        ),
    }  # fmt: skip
