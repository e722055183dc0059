"""What a training run is asked for: the flags of `grainmill train`, each with its help and its default.

Light to import; `options.py` resolves them. A default of None is the recipe's value (`config.py`), or found out then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

import typer

LEARNED: Final = "What is learned (a run resumes only with the same values)"
RUN: Final = "How it runs (changes nothing that a step computes)"


@dataclass(frozen=True, kw_only=True)
class TrainFlags:
    """Shards, what is learned from them, and how the run is carried out."""

    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help="Committed or released shards, a path or a URL; given several times, they are trained on as one, in "
            "this order. No default; only --dry-run goes without.",
        ),
    ] = None
    output: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Where checkpoints and metrics go. No default; only --dry-run goes without."),
    ] = None
    init: Annotated[
        str | None,
        typer.Option(
            metavar="scratch|CKPT",
            help="Start from random weights; from SAM 2.1's, by path or by name (sam2.1_hiera_small, fetched from the "
            "hub); or from a run or checkpoint of `train` of the same --size and --adapter, to train on from its "
            "weights: micro and mini with --adapter full by the recipe from scratch, as they were trained. Default: "
            "scratch for micro and mini, which nobody publishes; the official name for the others.",
            rich_help_panel=LEARNED,
        ),
    ] = None
    size: Annotated[
        str,
        typer.Option(
            metavar="tiny|small|base_plus|large|micro|mini",
            help="Of the base. Default micro, which trains from scratch on two processor cores; mini has a decoder "
            "twice as wide, for longer training; the others want --init and a GPU.",
            rich_help_panel=LEARNED,
        ),
    ] = "micro"
    adapter: Annotated[
        str | None,
        typer.Option(
            metavar="paper|lite|full",
            help="What is trained: paper is arXiv 2511.13714's (345,760 parameters on small), lite at most 0.02 % of "
            "the base, full all of it. Default: full from scratch, else paper.",
            rich_help_panel=LEARNED,
        ),
    ] = None
    trunk: Annotated[
        str | None,
        typer.Option(
            metavar="hiera|lite0|timm:NAME[@FILE]",
            help="The image encoder's network, with --init scratch: any of timm's pyramids with strides 4, 8, 16 and "
            "32, its weights from a file (safetensors, or of torch.save) or from the hub; lite0 is EfficientNet-lite0 "
            "with the weights of the extra [lite], which brought 0.06 of IoU at the label's g on people's segments "
            "(measured, one seed). Checkpoints hold its weights. Default: the size's own Hiera.",
            rich_help_panel=LEARNED,
        ),
    ] = None
    trunk_rate: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of the learning rate at which --trunk is tuned. Default 0: frozen, which is cheaper.",
            rich_help_panel=LEARNED,
        ),
    ] = None
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Pixels a side, a multiple of 32. Default 1024, SAM 2.1's own; 256 for micro and mini.",
            rich_help_panel=LEARNED,
        ),
    ] = None
    coarse_images: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="So many images are seen at half the size first, at a quarter of the cost, but never in more than "
            "70 % of the steps. Default 0.",
            rich_help_panel=LEARNED,
        ),
    ] = None
    masks_per_image: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Prompts drawn in one view. Default 30, the paper's; 16 from scratch. Memory grows with it.",
            rich_help_panel=LEARNED,
        ),
    ] = None
    masks_per_click: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Masks drawn under one click, told apart by g alone. Default 1, the paper's; 2 from scratch, where "
            "the contrast teaches the dial sooner.",
            rich_help_panel=LEARNED,
        ),
    ] = None
    min_parts: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Parts that an instance must have for its parts to be drawn: the smallest of one or two parts has "
            "g 0.1, however large it is. Default 0; 10 from scratch, where such labels turn the dial around at its "
            "lower end (measured).",
            rich_help_panel=LEARNED,
        ),
    ] = None
    smallest_parts: Annotated[
        bool | None,
        typer.Option(
            "--smallest-parts/--no-smallest-parts",
            help="Draw masks with g exactly 0.1 too: the smallest part of each instance, however large it is. Default: "
            "off, for they turn the dial around at its lower end.",
            rich_help_panel=LEARNED,
        ),
    ] = None
    wholes_only: Annotated[
        bool | None,
        typer.Option(
            "--wholes-only/--all-instances",
            help="Draw masks only from instances that lie beside each other, so that a click belongs to one; the "
            "others join several and were kept for recall. Default: all instances: on what mine finds by default, a "
            "student of wholes alone is shown few large masks and is behind (measured).",
            rich_help_panel=LEARNED,
        ),
    ] = None
    click_features: Annotated[
        bool | None,
        typer.Option(
            "--click-features/--no-click-features",
            help="What the encoder's maps say at the click goes into the decoder's tokens, which hear the image "
            "in steps of 16 pixels otherwise. Default: on from scratch, else off.",
            rich_help_panel=LEARNED,
        ),
    ] = None
    similarity: Annotated[
        str | None,
        typer.Option(
            metavar="off|features|place",
            help="A term in the mask's logits that falls with the distance to the clicked place, in the features at "
            "stride 4 or also in the image, so that masks stop at edges. Beside a frozen base a few hundred "
            "parameters, without effect at the start. Default: place from scratch, else off.",
            rich_help_panel=LEARNED,
        ),
    ] = None
    unsamv2_tokens: Annotated[
        bool | None,
        typer.Option(
            "--unsamv2-tokens/--no-unsamv2-tokens",
            help="The granularity's mask token stands beside SAM's four, as in UnSAMv2's code, instead of in the place "
            "of the first; `merge --to unsamv2` writes such models for that code. Default: as in --init's checkpoint, "
            "else off.",
            rich_help_panel=LEARNED,
        ),
    ] = None
    dense_anchors: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Pairs of a place and a mask over it, in each view, on which the features are trained directly, at a "
            "fifteenth of the cost of a prompt; only where the whole model is trained. Default: 48 from scratch, else "
            "none.",
            rich_help_panel=LEARNED,
        ),
    ] = None
    dense_weight: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Of that loss beside the decoder's. Default 1: alike.",
            rich_help_panel=LEARNED,
        ),
    ] = None
    balance: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of masks drawn by granularity bin first, since most labels are small parts. Default 0.5; 0.25 "
            "from scratch.",
            rich_help_panel=LEARNED,
        ),
    ] = None
    clicks: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Decoder passes for each mask: a click and corrections. Default 4, the paper's; 1 from scratch, for "
            "its speed.",
            rich_help_panel=LEARNED,
        ),
    ] = None
    global_batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Images of a step over all ranks. Default 4, the paper's. The one value that may change on --resume.",
            rich_help_panel=LEARNED,
        ),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps in all, the length of the cosine. Default 15000, the paper's; 1600 from scratch, 17 minutes "
            "of one processor core.",
            rich_help_panel=LEARNED,
        ),
    ] = None
    learning_rate: Annotated[
        float | None,
        typer.Option(help="At its highest. Default 1e-4, the paper's; 1e-3 from scratch.", rich_help_panel=LEARNED),
    ] = None
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="paper|scratch",
            help="Weights of the losses' terms. paper: SAM-2's (focal 20, dice 1, IoU 1, object 1), for bases that "
            "were trained with them; scratch: cross-entropy 0.1, dice 1, IoU 0.2, object 0.05, for an adapter beside a "
            "base that was trained from scratch here. Default paper; scratch from scratch, and where a micro or mini "
            "is trained on whole (--adapter full).",
            rich_help_panel=LEARNED,
        ),
    ] = None
    loss_stride: Annotated[
        int | None,
        typer.Option(
            help="Losses on the view's grid divided by 1, 2 or 4. Default 2: half the memory of 1, little lost; 4 "
            "from scratch, a quarter of the cost.",
            rich_help_panel=LEARNED,
        ),
    ] = None
    augmentation: Annotated[
        str | None,
        typer.Option(
            metavar="none|crops|paper",
            help="How images are shown. none: whole, as they are; crops: flipped, cropped, colours changed; "
            "paper: also turned and sheared, as arXiv 2511.13714 does. Default paper; crops from scratch, whose "
            "figures were measured with it.",
            rich_help_panel=LEARNED,
        ),
    ] = None
    holdout: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=0.9,
            help="Share of the samples, by a hash of their key, kept for validation. Default 0: train on all.",
            rich_help_panel=LEARNED,
        ),
    ] = 0.0
    min_masks: Annotated[
        int,
        typer.Option(
            min=1, help="Leave out samples with fewer masks. Default 1: all that teach.", rich_help_panel=LEARNED
        ),
    ] = 1
    order: Annotated[
        str,
        typer.Option(
            metavar="full|block",
            help="Of the samples. full: one permutation of all. block: 256 samples that lie side by side are a block, "
            "and 16 blocks from anywhere are mixed at a time, so that requests fall into few shards at a time, for "
            "stores and caches that like it; each sample is still one request. Neighbours then lie 0.90 to 0.99 of "
            "chance apart (18 epochs of 40,000 samples). Default full.",
            rich_help_panel=LEARNED,
        ),
    ] = "full"
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="fp32|bf16",
            help="bf16 is autocast. Default: bf16 on a GPU, fp32 elsewhere, where bf16 is slow.",
            rich_help_panel=LEARNED,
        ),
    ] = None
    seed: Annotated[
        int, typer.Option(help="Of every random choice. Default 0: any number does.", rich_help_panel=LEARNED)
    ] = 0
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on from the newest checkpoint in --output, to the steps that the run began with. Default: off, "
            "and a run that lies there is refused.",
            rich_help_panel=RUN,
        ),
    ] = False
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N. Default: a GPU if there is one.", rich_help_panel=RUN)
    ] = None
    micro_batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Images of one forward pass of a rank; the rest of a step is accumulated. Default: at most 2, 4 "
            "from scratch, 64 of a micro or mini model of 256 pixels on a GPU; less needs less memory.",
            rich_help_panel=RUN,
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Loader processes of each rank. Default: 0, in the training process, which is right for two cores; 4 "
            "beside a GPU, which would wait otherwise.",
            rich_help_panel=RUN,
        ),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of torch. Default: torch's own choice, the cores. They sleep while they wait for each other "
            "(OMP_WAIT_POLICY=passive, unless the environment says otherwise): spinning cost a shared machine several "
            "times the time.",
            rich_help_panel=RUN,
        ),
    ] = None
    compile_encoder: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="torch.compile the image encoder. Default off: starting takes a minute and more, sums are rounded "
            "otherwise, on a processor a step takes longer (by 2 to 12 %), and a GPU was not measured.",
            rich_help_panel=RUN,
        ),
    ] = False
    save_every: Annotated[
        int,
        typer.Option(
            min=1, help="Steps between checkpoints. Default 500: minutes of work at most.", rich_help_panel=RUN
        ),
    ] = 500
    keep: Annotated[
        int,
        typer.Option(
            min=1,
            help="Newest checkpoints kept besides the best. Default 2: if the newest was damaged, remove it and "
            "--resume goes on from the one before.",
            rich_help_panel=RUN,
        ),
    ] = 2
    validate_every: Annotated[
        int,
        typer.Option(
            min=0,
            help="Steps between validations on the held-out share. Default 0: only at the end, if a share is held out.",
            rich_help_panel=RUN,
        ),
    ] = 0
    validation_images: Annotated[
        int, typer.Option(min=1, help="Images validated at most. Default 16: seconds.", rich_help_panel=RUN)
    ] = 16
    validation_data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Validate on these shards instead of a held-out share. Default: on the held-out share, if there is "
            "one.",
            rich_help_panel=RUN,
        ),
    ] = None
    log_every: Annotated[
        int, typer.Option(min=1, help="Steps between lines of metrics.jsonl. Default 10.", rich_help_panel=RUN)
    ] = 10
    time_limit_s: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Stop and save after this long. Default: when the steps are done.", rich_help_panel=RUN
        ),
    ] = None
    on_bad_sample: Annotated[
        str,
        typer.Option(
            metavar="stop|skip",
            help="A sample that cannot be read stops the run, or is counted and passed over. Default stop: shards that "
            "are not what their index says want a look.",
            rich_help_panel=RUN,
        ),
    ] = "stop"
    cache_features: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Keep what the frozen encoder says of each image in this local folder, and read it afterwards: "
            "the same numbers, sooner. Wants an adapter and --augmentation none. Disk space for each image: "
            "16 MiB at 1024 pixels (10 in bf16), 4 at 512 (2.5), 1 at 256 (0.63), alike for tiny, small, base_plus and "
            "large; micro a quarter of it. --dry-run tells the sum for --data. The last GiB that is free stays free. "
            "May be shared by runs. Default: off, for the space it takes.",
            rich_help_panel=RUN,
        ),
    ] = None
