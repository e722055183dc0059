"""`grainmill train`: committed or released shards -> a SAM-2 with a granularity dial."""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

LEARNED = "What is learned (a run resumes only with the same values)"
RUN = "How it runs (changes nothing that a step computes)"
GOES_ON = "--resume goes on from the newest checkpoint"
"""What is said after an interruption."""


def command(
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help="Committed or released shards, a path or a URL; given several times, they are trained on as one, in "
            "this order. No default; only --dry-run goes without.",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Where checkpoints and metrics go. No default; only --dry-run goes without."),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="scratch|CKPT",
            help="Start from random weights; from SAM 2.1's, by path or by name (sam2.1_hiera_small, fetched from the "
            "hub); or from a run or checkpoint of `train` of the same --size and --adapter, to train on from its "
            "weights. Default: scratch for micro and mini, which nobody publishes; the official name for the others.",
            rich_help_panel=LEARNED,
        ),
    ] = None,
    size: Annotated[
        str,
        typer.Option(
            metavar="tiny|small|base_plus|large|micro|mini",
            help="Of the base. Default micro, which trains from scratch on two processor cores; mini has a decoder "
            "twice as wide, for longer training; the others want --init and a GPU.",
            rich_help_panel=LEARNED,
        ),
    ] = "micro",
    adapter: Annotated[
        str | None,
        typer.Option(
            metavar="paper|lite|full",
            help="What is trained: paper is arXiv 2511.13714's (345,760 parameters on small), lite at most 0.02 % of "
            "the base, full all of it. Default: full from scratch, else paper.",
            rich_help_panel=LEARNED,
        ),
    ] = None,
    trunk: Annotated[
        str | None,
        typer.Option(
            metavar="hiera|lite0|timm:NAME[@FILE]",
            help="The image encoder's network, with --init scratch: any of timm's pyramids with strides 4, 8, 16 and "
            "32, its weights from a file (safetensors, or of torch.save) or from the hub; lite0 is EfficientNet-lite0 "
            "with the weights of the extra [lite]. Checkpoints hold its weights. Default: the size's own Hiera.",
            rich_help_panel=LEARNED,
        ),
    ] = None,
    trunk_rate: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of the learning rate at which --trunk is tuned. Default 0: frozen, which is cheaper.",
            rich_help_panel=LEARNED,
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Pixels a side, a multiple of 32. Default 1024, SAM 2.1's own; 256 for micro and mini.",
            rich_help_panel=LEARNED,
        ),
    ] = None,
    coarse_images: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="So many photographs are seen at half the size first. Default 0; 2520 from scratch: 70 % of "
            "the steps (and never more of them), at a quarter of the cost.",
            rich_help_panel=LEARNED,
        ),
    ] = None,
    masks_per_image: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Prompts drawn in one view. Default 30, the paper's; 16 from scratch. Memory grows with it.",
            rich_help_panel=LEARNED,
        ),
    ] = None,
    masks_per_click: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Masks drawn under one click, told apart by g alone. Default 1, the paper's; 2 from scratch, where "
            "the contrast teaches the dial sooner.",
            rich_help_panel=LEARNED,
        ),
    ] = None,
    min_parts: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Parts that an instance must have for its parts to be drawn: the smallest of one or two parts has "
            "g 0.1, however large it is. Default 0; 10 from scratch, where such labels turn the dial around at its "
            "lower end (measured).",
            rich_help_panel=LEARNED,
        ),
    ] = None,
    smallest_parts: Annotated[
        bool | None,
        typer.Option(
            "--smallest-parts/--no-smallest-parts",
            help="Draw masks with g exactly 0.1 too: the smallest part of each instance, however large it is. Default: "
            "off, for they turn the dial around at its lower end.",
            rich_help_panel=LEARNED,
        ),
    ] = None,
    wholes_only: Annotated[
        bool | None,
        typer.Option(
            "--wholes-only/--all-instances",
            help="Draw masks only from instances that lie beside each other, so that a click belongs to one; the "
            "others join several and were kept for recall. Default: all instances (170 steps learned more from them).",
            rich_help_panel=LEARNED,
        ),
    ] = None,
    click_features: Annotated[
        bool | None,
        typer.Option(
            "--click-features/--no-click-features",
            help="What the encoder's maps say at the click goes into the decoder's tokens, which hear the photograph "
            "in steps of 16 pixels otherwise. Default: on from scratch, else off.",
            rich_help_panel=LEARNED,
        ),
    ] = None,
    similarity: Annotated[
        str | None,
        typer.Option(
            metavar="off|features|place",
            help="A term in the mask's logits that falls with the distance to the clicked place, in the features at "
            "stride 4 or also in the photograph, so that masks stop at edges. Beside a frozen base a few hundred "
            "parameters, without effect at the start. Default: place from scratch, else off.",
            rich_help_panel=LEARNED,
        ),
    ] = None,
    dense_anchors: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Pairs of a place and a mask over it, in each view, on which the features are trained directly, at a "
            "fifteenth of the cost of a prompt; only where the whole model is trained. Default: 48 from scratch, else "
            "none.",
            rich_help_panel=LEARNED,
        ),
    ] = None,
    dense_weight: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Of that loss beside the decoder's. Default 1: alike.",
            rich_help_panel=LEARNED,
        ),
    ] = None,
    balance: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of masks drawn by granularity bin first, since most labels are small parts. Default 0.5; 0.25 "
            "from scratch.",
            rich_help_panel=LEARNED,
        ),
    ] = None,
    clicks: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Decoder passes for each mask: a click and corrections. Default 4, the paper's; 1 from scratch, for "
            "its speed.",
            rich_help_panel=LEARNED,
        ),
    ] = None,
    global_batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Photographs of a step over all ranks. Default 4, the paper's. The one value that may change on "
            "--resume.",
            rich_help_panel=LEARNED,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps in all, the length of the cosine. Default 15000, the paper's; 900 from scratch.",
            rich_help_panel=LEARNED,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="At its highest. Default 1e-4, the paper's; 1e-3 from scratch.", rich_help_panel=LEARNED),
    ] = None,
    loss_stride: Annotated[
        int | None,
        typer.Option(
            help="Losses on the view's grid divided by 1, 2 or 4. Default 2: half the memory of 1, little lost; 4 "
            "from scratch, a quarter of the cost.",
            rich_help_panel=LEARNED,
        ),
    ] = None,
    augmentation: Annotated[
        str | None,
        typer.Option(
            metavar="none|crops|paper",
            help="How photographs are shown. none: whole, as they are; crops: flipped, cropped, colours changed; "
            "paper: also turned and sheared, as arXiv 2511.13714 does. Default paper; crops from scratch, whose "
            "figures were measured with it.",
            rich_help_panel=LEARNED,
        ),
    ] = None,
    holdout: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=0.9,
            help="Share of the samples, by a hash of their key, kept for validation. Default 0: train on all.",
            rich_help_panel=LEARNED,
        ),
    ] = 0.0,
    min_masks: Annotated[
        int,
        typer.Option(
            min=1, help="Leave out samples with fewer masks. Default 1: all that teach.", rich_help_panel=LEARNED
        ),
    ] = 1,
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
    ] = "full",
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="fp32|bf16",
            help="bf16 is autocast. Default: bf16 on a GPU, fp32 elsewhere, where bf16 is slow.",
            rich_help_panel=LEARNED,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of every random choice. Default 0: any number does.", rich_help_panel=LEARNED)
    ] = 0,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on from the newest checkpoint in --output, to the steps that the run began with. Default: off, "
            "and a run that lies there is refused.",
            rich_help_panel=RUN,
        ),
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N. Default: a GPU if there is one.", rich_help_panel=RUN)
    ] = None,
    micro_batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Photographs of one forward pass of a rank; the rest of a step is accumulated. Default: at most 2, 4 "
            "from scratch, 64 of a micro or mini model of 256 pixels on a GPU; less needs less memory.",
            rich_help_panel=RUN,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Loader processes of each rank. Default: 0, in the training process, which is right for two cores; 4 "
            "beside a GPU, which would wait otherwise.",
            rich_help_panel=RUN,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of torch. Default: torch's own choice, the cores. They sleep while they wait for each other "
            "(OMP_WAIT_POLICY=passive, unless the environment says otherwise): spinning cost a shared machine several "
            "times the time.",
            rich_help_panel=RUN,
        ),
    ] = None,
    compile_encoder: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="torch.compile the image encoder. Default off: starting takes a minute and more, sums are rounded "
            "otherwise, and what it brings on a GPU has not been measured.",
            rich_help_panel=RUN,
        ),
    ] = False,
    save_every: Annotated[
        int,
        typer.Option(
            min=1, help="Steps between checkpoints. Default 500: minutes of work at most.", rich_help_panel=RUN
        ),
    ] = 500,
    keep: Annotated[
        int,
        typer.Option(
            min=1,
            help="Newest checkpoints kept besides the best. Default 2: if the newest was damaged, remove it and "
            "--resume goes on from the one before.",
            rich_help_panel=RUN,
        ),
    ] = 2,
    validate_every: Annotated[
        int,
        typer.Option(
            min=0,
            help="Steps between validations on the held-out share. Default 0: only at the end, if a share is held out.",
            rich_help_panel=RUN,
        ),
    ] = 0,
    validation_images: Annotated[
        int, typer.Option(min=1, help="Images validated at most. Default 16: seconds.", rich_help_panel=RUN)
    ] = 16,
    validation_data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Validate on these shards instead of a held-out share. Default: on the held-out share, if there is "
            "one.",
            rich_help_panel=RUN,
        ),
    ] = None,
    log_every: Annotated[
        int, typer.Option(min=1, help="Steps between lines of metrics.jsonl. Default 10.", rich_help_panel=RUN)
    ] = 10,
    time_limit_s: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Stop and save after this long. Default: when the steps are done.", rich_help_panel=RUN
        ),
    ] = None,
    on_bad_sample: Annotated[
        str,
        typer.Option(
            metavar="stop|skip",
            help="A sample that cannot be read stops the run, or is counted and passed over. Default stop: shards that "
            "are not what their index says want a look.",
            rich_help_panel=RUN,
        ),
    ] = "stop",
    cache_features: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Keep what the frozen encoder says of each photograph in this local folder, and read it afterwards: "
            "the same numbers, sooner. Wants an adapter and --augmentation none. Disk space for each photograph: "
            "16 MiB at 1024 pixels (10 in bf16), 4 at 512 (2.5), 1 at 256 (0.63), alike for tiny, small, base_plus and "
            "large; micro a quarter of it. --dry-run tells the sum for --data. The last GiB that is free stays free. "
            "May be shared by runs. Default: off, for the space it takes.",
            rich_help_panel=RUN,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Build the model, open everything that training would open (base, data, validation data, the "
            "checkpoint to resume), count parameters and what --cache-features takes, and stop. Nothing is written or "
            "fetched. Default: off.",
        ),
    ] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output. Default: off, words for people.")
    ] = False,
) -> int | None:
    """Trains SAM-2 to select as large a part as one number says, from mined shards.

    Under torchrun for several processes:
    torchrun --nproc-per-node 2 -m pipeline train --data DIR --output RUN
    """
    from pipeline.errors import InputError

    if on_bad_sample not in ("stop", "skip"):
        raise InputError(f"--on-bad-sample {on_bad_sample}: expected stop or skip")
    if not dry_run and (not data or output is None):
        raise InputError("expected --data and --output (only --dry-run goes without)")

    from model.data.sampler import Order
    from model.network.load import sight_of, usable_device
    from model.network.sam2_base import SCRATCH_WIDTH
    from model.network.trunks import trunk_of_flags
    from model.training.config import RunOptions, augmentation_named, loader_processes, make_config
    from model.training.train import describe, interrupted, train

    on_gpu = usable_device(device).type == "cuda"
    chosen_trunk, trunk_file = trunk_of_flags(trunk, trunk_rate)
    if init is not None and click_features is None and similarity is None and (theirs := sight_of(init)) is not None:
        click_features, similarity = theirs.click_features, theirs.similarity
    config = make_config(
        cast(Any, size),  # checked there
        init or ("scratch" if size in SCRATCH_WIDTH or chosen_trunk else f"sam2.1_hiera_{size}"),
        cast(Any, adapter),
        image_size=image_size,
        coarse_images=coarse_images,
        masks_per_image=masks_per_image,
        masks_per_click=masks_per_click,
        min_parts=min_parts,
        smallest_parts=smallest_parts,
        wholes_only=wholes_only,
        click_features=click_features,
        similarity=similarity,
        dense_anchors=dense_anchors,
        dense_weight=dense_weight,
        balance=balance,
        clicks=clicks,
        global_batch_size=global_batch_size,
        steps=steps,
        learning_rate=learning_rate,
        loss_stride=loss_stride,
        augmentation=augmentation_named(augmentation),
        holdout=holdout,
        min_masks=min_masks,
        order=Order(kind=order),
        trunk=chosen_trunk,
        precision=precision or ("bf16" if on_gpu else "fp32"),
        seed=seed,
    )
    options = RunOptions(
        data=tuple(data or ()),  # only --dry-run goes without
        output=output or "",
        resume=resume,
        workers=loader_processes(workers, on_gpu=on_gpu),
        micro_batch_size=micro_batch_size,
        device=device,
        save_every=save_every,
        keep=keep,
        validate_every=validate_every,
        validation_images=validation_images,
        validation_data=validation_data,
        log_every=log_every,
        time_limit_s=time_limit_s,
        on_bad_sample=on_bad_sample,
        threads=threads,
        cache_features=cache_features,
        compile_encoder=compile_encoder,
        trunk_file=trunk_file,
    )
    if dry_run:
        _tell(describe(config, options), json_output)
        return None
    summary = train(config, options)
    if summary["rank"] == 0:
        _tell(summary, json_output)
    return interrupted(summary)


def _tell(found: dict[str, Any], json_output: bool) -> None:
    from pipeline.console import print_json

    if json_output:
        print_json(found)
        return
    if "trainable_parameters" in found:
        print(
            f"size {found['size']}, adapter {found['adapter']}, {found['image_size']} px: trains "
            f"{found['trainable_parameters']:,} parameters; adds {found['added_parameters']:,}, "
            f"{found['added_percent']} % of the base's {found['base_parameters']:,}"
            + (
                f"; and {found['training_only_parameters']:,} of the dense loss, which are left behind"
                if found["training_only_parameters"]
                else ""
            )
        )
        for line in found["opened"]:
            print(f"opened: {line}")
        for line in found["not_opened"]:
            print(f"not opened: {line}")
        if "features_bytes" in found:
            each = f"features: {found['features_bytes_per_image'] / 2**20:g} MiB an image"
            whole = (
                f", {found['features_bytes'] / 2**30:.2f} GiB for {found['images']} images" if found["images"] else ""
            )
            print(f"{each}{whole}; {found['free_bytes'] / 2**30:.2f} GiB may be used")
        return
    print(f"step {found['step']} of {found['steps']} on {found['samples']} images in {found['seconds']:.0f} s")
    if found["metrics"]:
        from model.training.feature_cache import told_features

        metrics = found["metrics"]
        print(f"loss {metrics['loss']:.4f}, IoU {metrics['iou']:.3f} on the last batch{told_features(metrics)}")
    if found["validation"]:
        held = found["validation"]
        print(
            f"held out: IoU {held['iou_label_g']:.3f} at the label's g, {held['iou_best_fixed_g']:.3f} at the best "
            f"fixed g ({held['best_fixed_g']}), {held['iou_shuffled_g']:.3f} with g shuffled, "
            f"{held['iou_best_of_10']:.3f} at the best of ten; area against g: spearman {held['area_spearman']:.2f}"
        )
    if found["skipped"]:
        print(f"skipped: {found['skipped']} samples that could not be read")
    print(f"checkpoint: {found['checkpoint']}")
