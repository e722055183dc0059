"""What a call of `mine` is asked for: the flags of `grainmill mine`, each with its help and its default.

Light to import: the command is parsed before numpy is loaded. `options.py` checks and resolves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

import typer

from ..executors.scheduler import STRAGGLER_FLOOR_S

MINED: Final = "What is mined (part of the configuration: a run with other values is another run)"
RUN: Final = "How it runs (changes when it ends, not what it writes)"
REPEAT: Final = "Failures and repeats"


@dataclass(frozen=True, kw_only=True)
class MineFlags:
    """What is mined, where the output goes, how it runs, and what becomes of failures."""

    input: Annotated[
        list[str],
        typer.Option(
            metavar="[LABEL=]SRC",
            help="Folder, glob, image file (JPEG, PNG, WebP, TIFF, BMP; without a usual ending by its first bytes), "
            "WebDataset or SA-1B tar or folder, parquet with an image column, a run or a release (its shards); a path "
            "or a URL. Passed over, and counted: hidden files, links to folders, GIF, AVIF, HEIC, JPEG 2000 and raw "
            "files, archives, outputs of Grainmill. Repeat it for several sources. No default: there is nothing to "
            "guess.",
        ),
    ]
    output: Annotated[
        str,
        typer.Option(metavar="DIR", help="Where shards and commits go. No default: it is the run's identity."),
    ]
    recipe: Annotated[
        str,
        typer.Option(
            help="default, default-1000, leaves, learned or unsamv2. Default `default`: of those without weights it "
            "measures best on people's segments at 300 masks an image; default-1000 finds more with up to 1,000; "
            "leaves hears a backbone's features too; learned a small classifier (the extra [lite]); unsamv2 is the "
            "paper's constants and scope.",
            rich_help_panel=MINED,
        ),
    ] = "default"
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="descriptor|lite0|timm:NAME[@CHECKPOINT]",
            help="Features. Default: the recipe's: `descriptor` for default, because it needs no weights; lite0 "
            "(EfficientNet-lite0, the extra [lite]) for learned, DINO for leaves and unsamv2. leaves and learned take "
            "any timm transformer or pyramid (ConvNeXt, EfficientNet), unsamv2 transformers and descriptor. CHECKPOINT "
            "is timm's file or the authors' own (.safetensors, .pth); without it timm's comes from the hub or its "
            "cache.",
            rich_help_panel=MINED,
        ),
    ] = None
    boundaries: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="A boundary net, which was trained on mined images' own trees: its probabilities join the merge cost. "
            "For leaves and learned, with the backbone that it was trained on; for default, if that was none. Default: "
            "none; learned then merges without it, and says so.",
            rich_help_panel=MINED,
        ),
    ] = None
    divide: Annotated[
        str | None,
        typer.Option(
            metavar="maskcut|proposals|union",
            help="Where instances come from: cut from the image itself, the masks of --proposals, or both those and "
            "the sample's own annotations (SA-1B). Default: the recipe's, maskcut, because it needs no other input.",
            rich_help_panel=MINED,
        ),
    ] = None
    wholes: Annotated[
        str | None,
        typer.Option(
            metavar="adaptive|flat|stable",
            help="Which regions of the first merge tree are instances: those that stand when six are left (flat), "
            "those that survive merging longest (stable), or the six unless others stand out (adaptive), which finds "
            "more of people's wholes than stable and still 23 of 24 coins on a table. Default: the recipe's: flat for "
            "learned, stable for leaves, else adaptive. For recipes that merge superpixels (all but unsamv2).",
            rich_help_panel=MINED,
        ),
    ] = None
    max_masks: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Best candidates of an image that are kept; instances are kept besides. Default: the recipe's: 300, "
            "1,000 for default-1000 and unsamv2.",
            rich_help_panel=MINED,
        ),
    ] = None
    ranking: Annotated[
        str | None,
        typer.Option(
            metavar="trees|consistency",
            help="Which candidates come first, of which the best are kept: those absorbed last in the merge trees, or "
            "those that a second mining of the mirrored, resized and recoloured image finds again, for about 0.45 s "
            "more an image (0.1 s in learned, which shows it smaller). Default: the recipe's: consistency for learned, "
            "else trees. For recipes that merge superpixels.",
            rich_help_panel=MINED,
        ),
    ] = None
    proposals: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|DIR",
            help="COCO-style masks of a detector or of people, RLE or polygons, found by file name, or a folder with "
            "annotations.json (`grainmill annotate`); for --divide proposals or union. Those with a score must be "
            "above 0.3, the paper's limit, but for masks that people accepted. Default: for --divide proposals that of "
            "the --input folder that holds one, else none.",
            rich_help_panel=MINED,
        ),
    ] = None
    refine: Annotated[
        str | None,
        typer.Option(
            metavar="guided|none",
            help="Sharpen masks of a patch grid, and proposals, to the image's edges; masks of leaves are there "
            "already. Default: the recipe's, guided: it has no learned part and helps.",
            rich_help_panel=MINED,
        ),
    ] = None
    granularity: Annotated[
        str | None,
        typer.Option(
            metavar="instance-minmax|instance-relative",
            help="How areas become g. Default: the recipe's, instance-minmax, the paper's equation 3.",
            rich_help_panel=MINED,
        ),
    ] = None
    samples_per_shard: Annotated[
        int,
        typer.Option(
            min=1,
            help="Input samples of one unit of work. Default 256: shards of tens of MB, and a crash costs minutes.",
            rich_help_panel=MINED,
        ),
    ] = 256
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Only the first N samples of the plan. Default: all.", rich_help_panel=MINED),
    ] = None
    seed: Annotated[
        int,
        typer.Option(help="Of every random choice. Default 0: any fixed number does.", rich_help_panel=MINED),
    ] = 0
    max_image_pixels: Annotated[
        int,
        typer.Option(
            min=1,
            help="Larger images fail as too_large before they are decoded. Default 100 million: above any camera, "
            "below what decoding could fill memory with.",
            rich_help_panel=MINED,
        ),
    ] = 100_000_000
    license: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=LICENSE",
            help="Terms of a source, as an SPDX identifier, LicenseRef-NAME or `other`; it stands in each of its "
            "samples, and `release` heeds it. Repeat it for several. Default: none declared.",
            rich_help_panel=MINED,
        ),
    ] = None
    image_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Column of parquet files that holds the images. Default: the only one with bytes, else the one with a "
            "usual name (image, jpg, png and others).",
            rich_help_panel=MINED,
        ),
    ] = None
    no_images: Annotated[
        bool,
        typer.Option(
            "--no-images",
            help="Leave image bytes out of the shards. Default: in, so that a shard is all that training needs.",
            rich_help_panel=MINED,
        ),
    ] = False
    executor: Annotated[
        str,
        typer.Option(
            metavar="ray|local|inline",
            help="Default ray: the same command runs on a laptop and on a cluster. local: processes without Ray. "
            "inline: in this process, for debugging, unprotected.",
            rich_help_panel=RUN,
        ),
    ] = "ray"
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Of a running cluster (`auto`, HOST:PORT). Default: none, a private Ray on this machine.",
            rich_help_panel=RUN,
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Default: one for each processor core (a worker uses one thread), or for each share of a GPU; with "
            "--ray-address those of the whole cluster, also when it grows.",
            rich_help_panel=RUN,
        ),
    ] = None
    gpus_per_worker: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="GPUs an actor reserves; below 1 shares one, memory too. Default 0: the default recipe uses none.",
            rich_help_panel=RUN,
        ),
    ] = 0.0
    cpus_per_worker: Annotated[
        int,
        typer.Option(
            min=1,
            help="Cores on which a worker decodes, conquers and encodes while its GPU works. Default 1: without a GPU "
            "more workers gain more.",
            rich_help_panel=RUN,
        ),
    ] = 1
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Samples a worker mines at once. Default: by the device, 1 without a GPU, where more gains nothing.",
            rich_help_panel=RUN,
        ),
    ] = None
    sample_timeout_s: Annotated[
        float,
        typer.Option(
            min=0.001,
            help="A sample that takes longer, alone and twice, fails as timeout. Default 300: a hundred times a large "
            "image's need.",
            rich_help_panel=RUN,
        ),
    ] = 300.0
    unit_timeout_s: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="A unit in a worker's hands for longer goes to another worker. Default: off, since samples have "
            "their own limit and machines that vanish are noticed; without it a unit that hangs on two workers is "
            "waited for.",
            rich_help_panel=RUN,
        ),
    ] = None
    straggler_after_s: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Near the end a unit that takes three times the median, and at least this long, is started a second "
            "time elsewhere; the first commit wins. Default 10: below, starting again costs more than waiting.",
            rich_help_panel=RUN,
        ),
    ] = STRAGGLER_FLOOR_S
    worker_memory_gib: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help="A worker that outgrows it is stopped; a sample that does it alone and twice fails as out_of_memory. "
            "Default: 80 % of this machine's memory divided by the workers, at most 16. The default recipe took 1.1 "
            "for an image of 60 megapixels (measured) and 0.4 for one of 480 x 320.",
            rich_help_panel=RUN,
        ),
    ] = None
    max_failed_fraction: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="More failed samples (no_masks not counted) end with exit code 4. Default 1: failures are rows to "
            "look at, not a reason to stop; a run in which no sample is left ends with 4 whatever this is.",
            rich_help_panel=REPEAT,
        ),
    ] = 1.0
    retry_failed: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REASON",
            help="Do those units again in which a sample failed for this reason. Default: none, failures stand.",
            rich_help_panel=REPEAT,
        ),
    ] = None
    extend: Annotated[
        bool,
        typer.Option(
            "--extend",
            help="Plan files that are new in the sources as further units. Default: off, a plan is frozen.",
            rich_help_panel=REPEAT,
        ),
    ] = False
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Move away and delete the run that the output holds. Default: off, nothing is ever lost unasked.",
            rich_help_panel=REPEAT,
        ),
    ] = False
