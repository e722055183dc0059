"""What a training run is: everything that its numbers depend on, and two recipes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from pipeline.errors import ConfigMismatchError, InputError

from ..data.augmentation import NO_AUGMENTATION, Augmentation
from ..data.sampler import Order
from ..data.shards import Locations
from ..data.stream import ExampleSettings
from ..network.adapters import ADAPTERS, Adapter
from ..network.click_features import Sight
from ..network.sam2_base import DEFAULT_IMAGE_SIZE, IMAGE_SIZE_STEP, SCRATCH_WIDTH, SIZES, Size, expect_image_size
from ..network.trunks import Trunk
from .flags import TrainFlags
from .losses import LossWeights

T = TypeVar("T")
SCRATCH: Final = "scratch"

AUGMENTATIONS: Final[dict[str, Augmentation]] = {
    "none": NO_AUGMENTATION,
    "crops": Augmentation(),
    "paper": Augmentation(rotation_deg=25.0, shear_deg=20.0),
}
"""The whole image as it is; flips, crops and colours; these with turns and shears, as arXiv 2511.13714's
configuration has them."""


LOSSES: Final[dict[str, LossWeights]] = {
    "paper": LossWeights(),
    "scratch": LossWeights(focal=0.0, cross_entropy=0.1, dice=1.0, iou=0.2, object_score=0.05),
}
"""SAM-2's own weights, which arXiv 2511.13714 keeps; and those of the recipe from scratch."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The resolved configuration; it stands in every checkpoint. A run resumes only with an equal one."""

    size: Size
    adapter: Adapter
    init: str
    """`scratch`, or where the base's weights come from."""
    image_size: int
    coarse_images: int
    """So many images are seen at half the size first, which costs a quarter; where clicks lie and what g means is
    learned there."""
    masks_per_image: int
    """Prompts drawn in one view of one image."""
    masks_per_click: int
    """Masks drawn under the same click, so that only g tells them apart."""
    min_parts: int
    """Parts that an instance must have for its parts to be drawn; see `LoadedSample.with_scale`."""
    smallest_parts: bool
    """Draw masks with g exactly 0.1 too; see `LoadedSample.drawable`."""
    wholes_only: bool
    """Draw only from instances that lie beside each other; see `LoadedSample.alone`."""
    balance: float
    """Share of masks drawn by granularity bin first; see `prompts.draw_prompts`."""
    clicks: int
    """Decoder passes for each prompt: the first click and the corrections."""
    global_batch_size: int
    """Images of one step, over all ranks."""
    steps: int
    learning_rate: float
    final_learning_rate: float
    """At the end of the cosine."""
    warmup_steps: int
    weight_decay: float
    gradient_norm_limit: float
    loss: LossWeights
    sight: Sight
    """What the decoder hears where it is clicked."""
    dense_anchors: int
    """Pairs of a cell and a mask over it in each view, for the dense loss; see `dense_loss.py`. 0: without."""
    dense_weight: float
    """Of its mean over the step's anchors, beside the mean over prompts."""
    loss_stride: int
    """Losses are taken on the view's grid divided by this; 1: at full resolution."""
    augmentation: Augmentation
    order: Order
    seed: int
    min_masks: int
    holdout: float
    precision: str
    """fp32 or bf16 (autocast)."""
    trunk: Trunk | None = None
    """The network in Hiera's place; None: Hiera."""
    unsamv2_tokens: bool = False
    """The granularity's mask token stands beside SAM's four; see `GranularSam2`."""

    def __post_init__(self) -> None:
        for name, allowed in (("size", SIZES), ("adapter", ADAPTERS), ("precision", ("fp32", "bf16"))):
            if getattr(self, name) not in allowed:
                raise InputError(f"--{name} {getattr(self, name)}: expected one of {', '.join(allowed)}")
        if self.init == SCRATCH and self.adapter != "full":
            raise InputError("--init scratch trains the whole model: leave --adapter out (or say full)")
        if self.trunk is not None and self.adapter != "full":
            raise InputError(f"--trunk is trained with --adapter full, found {self.adapter}; add it")
        if self.unsamv2_tokens and self.adapter == "lite":
            raise InputError("--unsamv2-tokens goes with --adapter paper or full, which UnSAMv2's code has; found lite")
        for name in ("masks_per_image", "masks_per_click", "clicks", "global_batch_size", "steps"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected at least 1")
        if self.dense_anchors and self.adapter != "full":
            raise InputError(
                f"--dense-anchors {self.dense_anchors}: it trains the encoder's features, which "
                f"--adapter {self.adapter} leaves as they are; leave it out"
            )
        if min(self.dense_anchors, self.dense_weight) < 0:
            raise InputError(
                f"--dense-anchors {self.dense_anchors} and --dense-weight {self.dense_weight}: expected 0 or above"
            )
        if self.loss_stride not in (1, 2, 4):
            raise InputError(f"--loss-stride {self.loss_stride}: expected 1, 2 or 4, the grids between view and logits")
        expect_image_size(self.image_size)
        if self.coarse_images and self.image_size % (2 * IMAGE_SIZE_STEP):
            raise InputError(
                f"--coarse-images {self.coarse_images}: half of --image-size {self.image_size} is no multiple of "
                f"{IMAGE_SIZE_STEP}; pass 0"
            )
        if not 0.0 <= self.balance <= 1.0 or not 0.0 <= self.holdout < 1.0:
            raise InputError(f"--balance {self.balance} and --holdout {self.holdout}: expected shares in [0, 1]")
        if not 0.0 <= self.final_learning_rate <= self.learning_rate or self.learning_rate <= 0:
            raise InputError(f"--learning-rate {self.learning_rate}: expected above 0 and not below the final one")

    def example_settings(self) -> ExampleSettings:
        return ExampleSettings(
            image_size=self.image_size,
            masks_per_image=self.masks_per_image,
            masks_per_click=self.masks_per_click,
            balance=self.balance,
            min_parts=self.min_parts,
            smallest_parts=self.smallest_parts,
            wholes_only=self.wholes_only,
            dense_anchors=self.dense_anchors,
            clicks=self.clicks,
            augmentation=self.augmentation,
            coarse_images=self.coarse_images,
        )

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is carried out; none of it changes what one step computes."""

    data: Locations
    """Shards; several directories count as one."""
    output: str
    resume: bool = TrainFlags.resume
    workers: int = 0
    """Loader processes of each rank."""
    micro_batch_size: int | None = TrainFlags.micro_batch_size
    """Images in one forward pass of a rank; None: as many as the recipe says."""
    device: str | None = TrainFlags.device
    save_every: int = TrainFlags.save_every
    keep: int = TrainFlags.keep
    """Newest checkpoints that stay, besides the best."""
    validate_every: int = TrainFlags.validate_every
    """Steps between validations on the held-out share; 0: none."""
    validation_images: int = TrainFlags.validation_images
    validation_data: str | None = TrainFlags.validation_data
    """Shards to validate on instead of a held-out share."""
    log_every: int = TrainFlags.log_every
    time_limit_s: float | None = TrainFlags.time_limit_s
    """Stop after this long, saving; None: when the steps are done."""
    on_bad_sample: str = TrainFlags.on_bad_sample
    cache_features: str | None = TrainFlags.cache_features
    """A folder for the features of a frozen encoder; None: they are computed each time."""
    threads: int | None = TrainFlags.threads
    compile_encoder: bool = TrainFlags.compile_encoder
    """`torch.compile` for the image encoder; the same function, rounded otherwise."""
    trunk_file: Path | None = None
    """Weights of the configuration's trunk; `new_model` says when they are read."""


LOADER_PROCESSES_OF_A_GPU: Final = 4
COARSE_SHARE: Final = 0.7
"""Of the steps, at most, at half the size: the rest learns what it cannot show."""


def paper_recipe(size: Size) -> dict[str, Any]:
    """Fine-tuning as in arXiv 2511.13714: 15,000 steps of 4 images, 30 masks each, 1 click and 3 corrections.

    Ours differ: a gradient norm limit, a short warm-up, prompts drawn click first, losses at half the resolution.
    """
    return {
        "image_size": DEFAULT_IMAGE_SIZE[size],
        "coarse_images": 0,
        "masks_per_image": 30,
        "masks_per_click": 1,
        "min_parts": 0,
        "smallest_parts": False,
        "wholes_only": False,
        "balance": 0.5,
        "clicks": 4,
        "global_batch_size": 4,
        "steps": 15_000,
        "learning_rate": 1e-4,
        "final_learning_rate": 1e-5,
        "warmup_steps": 100,
        "weight_decay": 1e-5,
        "gradient_norm_limit": 1.0,
        "loss": LOSSES["paper"],
        "sight": Sight(),
        "dense_anchors": 0,
        "dense_weight": 1.0,
        "loss_stride": 2,
        "augmentation": AUGMENTATIONS["paper"],
    }


def micro_recipe(size: Size) -> dict[str, Any]:
    """From scratch on two processor cores, in minutes."""
    return {
        "image_size": DEFAULT_IMAGE_SIZE[size],
        "coarse_images": 0,
        "masks_per_image": 16,
        "masks_per_click": 2,
        "min_parts": 10,
        "smallest_parts": False,
        "wholes_only": False,
        "balance": 0.25,
        "clicks": 1,
        "global_batch_size": 4,
        "steps": 1_600,
        "learning_rate": 1e-3,
        "final_learning_rate": 1e-5,
        "warmup_steps": 30,
        "weight_decay": 0.01,
        "gradient_norm_limit": 1.0,
        "loss": LOSSES["scratch"],
        "sight": Sight(click_features=True, similarity="place"),
        "dense_anchors": 48,
        "dense_weight": 1.0,
        "loss_stride": 4,
        "augmentation": AUGMENTATIONS["crops"],
    }


def loader_processes(asked: int | None, *, on_gpu: bool) -> int:
    """Of each rank: as asked; else none beside a CPU, whose cores train, and enough beside a GPU.

    An example of the paper's recipe takes a processor core 25 ms on small images (`grainmill bench load`).
    """
    if asked is not None:
        return asked
    return LOADER_PROCESSES_OF_A_GPU if on_gpu else 0


def expect_usable(config: TrainConfig, options: RunOptions) -> None:
    """Checks what flags say together, before anything is loaded.

    Raises:
        InputError: an output that is no local folder, or validations of nothing.
    """
    if "://" in options.output:
        raise InputError(
            f"--output {options.output}: expected a local folder; checkpoints are written with a rename, which stores "
            "of objects do not have. Copy the folder there afterwards"
        )
    if options.validate_every and not (config.holdout or options.validation_data):
        raise InputError(
            f"--validate-every {options.validate_every}: there is nothing to validate on; add --holdout SHARE or "
            "--validation-data DIR"
        )


def images_per_pass(config: TrainConfig, share: int, *, on_gpu: bool) -> int:
    """Of one forward pass by default: as many as the recipe says, or the next fewer that divide a rank's share.

    A micro or mini model takes 64 of 256 pixels at once on a GPU, which waits for the processor in smaller passes.
    """
    most = 4 if config.adapter == "full" else 2
    if on_gpu and config.size in SCRATCH_WIDTH:
        most = max(most, 64 * 256**2 // config.image_size**2)
    most = min(share, most)
    return max(each for each in range(1, most + 1) if share % each == 0)


def value_named(flag: str, name: str | None, values: Mapping[str, T]) -> T | None:
    """What a flag names among `AUGMENTATIONS` or `LOSSES`; None stays None, the recipe's.

    Raises:
        InputError: another name.
    """
    if name is not None and name not in values:
        raise InputError(f"{flag} {name}: expected one of {', '.join(values)}")
    return None if name is None else values[name]


def make_config(size: Size, init: str, adapter: Adapter | None, **given: Any) -> TrainConfig:
    """The recipe for size, init and adapter, with the given values over it (None: the recipe's).

    Micro and mini, which only training from scratch makes, are trained on with `full` as they were trained. The two
    fields of `sight`, `click_features` and `similarity`, are given by their own names.

    Raises:
        InputError: values that do not go together.
    """
    if size not in SIZES:
        raise InputError(f"--size {size}: expected one of {', '.join(SIZES)}")
    chosen = adapter or ("full" if init == SCRATCH else "paper")
    alone = init == SCRATCH or (size in SCRATCH_WIDTH and chosen == "full")
    recipe = micro_recipe(size) if alone else paper_recipe(size)
    values = {**recipe, **{name: value for name, value in given.items() if value is not None}}
    parts = {name: values.pop(name) for name in ("click_features", "similarity") if name in values}
    values["sight"] = dataclasses.replace(values["sight"], **parts)
    # A learning rate given below the recipe's final one, or a short run, must still make a schedule.
    values["final_learning_rate"] = min(values["final_learning_rate"], values["learning_rate"])
    values["warmup_steps"] = min(values["warmup_steps"], max(1, values["steps"] // 10))
    steps_at_half_size = min(
        values["coarse_images"] // values["global_batch_size"], int(COARSE_SHARE * values["steps"])
    )
    values["coarse_images"] = steps_at_half_size * values["global_batch_size"]
    return TrainConfig(size=size, init=init, adapter=chosen, **values)


_BEFORE_THEY_WERE_THERE: Final = {
    "smallest_parts": True,
    "wholes_only": False,
    "sight": dataclasses.asdict(Sight()),
    "dense_anchors": 0,
    "dense_weight": 1.0,
    "unsamv2_tokens": False,
}
"""What runs did whose checkpoints do not say it."""


def resumed_config(saved: dict[str, Any], now: TrainConfig, *, where: str) -> TrainConfig:
    """Checks that a run goes on as it began. Only the batch size may change: the order of samples does not hang on it.

    Returns:
        `now`; after a change of the batch size with the images at half size that the run began with.

    Raises:
        ConfigMismatchError: with the values that differ.
    """
    saved = {**_BEFORE_THEY_WERE_THERE, **saved}
    if saved.get("global_batch_size") != now.global_batch_size:
        now = dataclasses.replace(now, coarse_images=int(saved["coarse_images"]))
    current = now.to_json()
    different = [
        f"{name}: {saved.get(name)!r} there, {current[name]!r} now"
        for name in current
        if name != "global_batch_size" and saved.get(name) != current[name]
    ]
    if different:
        raise ConfigMismatchError(f"{where}: it holds a run with another configuration ({'; '.join(different)})")
    return now
