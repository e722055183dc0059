"""Any pyramid of timm as SAM-2's image encoder: its weights saw no mask, and often no label.

timm's `features_only` networks give maps at strides; those at 4, 8, 16 and 32 go to sam2's own neck, where Hiera's
would. Around the network, two affine maps: images come normalised as SAM-2 wants them and are given the mean and
deviation that the network's weights want; each level leaves with mean 0 and deviation 1 per channel over some training
images, so that the neck meets values of one size whatever the network. Both are buffers and lie in checkpoints,
as the network's weights do: a checkpoint needs no other file.

A trunk is frozen, or tuned at a share of the learning rate; its BatchNorm stays in evaluation mode either way. The
matrices of a frozen one are rounded to half precision when they are read, so that checkpoints hold them in half the
space and lose nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from pipeline.environment.timm_weights import (
    PREFIX,
    last_of_strides,
    load_pyramid,
    make_pyramid,
    named_weights,
    timm_package,
)
from pipeline.errors import InputError, SchemaError
from pipeline.storage.local import sha256_of_file

from .pixels import IMAGE_MEAN, IMAGE_STD

FLAG: Final = "--trunk"
OWN: Final = "hiera"
"""The value of `--trunk` for the size's own encoder."""
STRIDES: Final = (4, 8, 16, 32)
STANDARD_IMAGES: Final = 24
"""On which the levels' means and deviations are taken."""
LEAST_DEVIATION: Final = 0.05
"""Of a channel, as a share of its level's mean deviation: one that is nearly dead is not blown up."""
STATE_PREFIX: Final = "base.image_encoder.trunk."
"""Of the trunk's names in a model's state dict."""


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """Which network a model has instead of Hiera; part of configurations and checkpoints."""

    name: str
    """timm's, with its tag if it has one."""
    sha256: str
    """Of the file that its weights came from."""
    rate: float
    """Share of the learning rate; 0: frozen."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate <= 1.0:
            raise InputError(f"--trunk-rate {self.rate}: expected a share of the learning rate, 0 (frozen) to 1")

    @property
    def told(self) -> str:
        """For messages."""
        return f"{PREFIX}{self.name} (sha256 {self.sha256[:12]}…)"

    @classmethod
    def of_record(cls, record: Mapping[str, Any] | None) -> Trunk | None:
        """What a checkpoint says; None: the size's own encoder.

        Raises:
            SchemaError: something else.
        """
        if record is None:
            return None
        try:
            return cls(name=str(record["name"]), sha256=str(record["sha256"]), rate=float(record["rate"]))
        except (TypeError, KeyError, ValueError) as error:
            raise SchemaError(
                f"trunk is {record!r:.80}, expected name, sha256 and rate; was it written by another version?"
            ) from error


def trunk_of_flags(trunk: str | None, rate: float | None) -> tuple[Trunk | None, Path | None]:
    """What `--trunk` and `--trunk-rate` name, and the file of its weights.

    Raises:
        InputError: no such network or file, or a rate without a trunk.
    """
    if trunk in (None, OWN):
        if rate is not None:
            raise InputError(f"--trunk-rate {rate}: expected a --trunk to train at that share of the rate")
        return None, None
    assert trunk is not None
    name, path = named_weights(trunk, flag=FLAG, otherwise=OWN)
    return Trunk(name=name, sha256=sha256_of_file(path), rate=rate or 0.0), path


class TimmTrunk(nn.Module):
    """A pyramid of timm with random weights, in the place of sam2's Hiera.

    Args:
        name: timm's.
        image_size: pixels a side of the square images, for networks that are built for one size.

    Raises:
        InputError: timm has no such network, or it does not give the four strides.
    """

    input_scale: Tensor
    input_shift: Tensor

    def __init__(self, name: str, image_size: int) -> None:
        super().__init__()
        self.name = name
        self._more = _size_arguments(name, image_size)
        self.pyramid = make_pyramid(name, flag=FLAG, arguments=self._more)
        strides = list(self.pyramid.feature_info.reduction())
        channels = list(self.pyramid.feature_info.channels())
        if absent := [stride for stride in STRIDES if stride not in strides]:
            raise InputError(
                f"{FLAG} {PREFIX}{name}: expected levels at strides 4, 8, 16 and 32, found {strides}; without "
                f"{', '.join(map(str, absent))} it is no pyramid for SAM-2's neck"
            )
        self.levels = last_of_strides(strides, STRIDES)
        self.channel_list = [channels[level] for level in reversed(self.levels)]
        """Coarsest first, as sam2 wants it."""
        self._rows_last = getattr(self.pyramid, "output_fmt", "NCHW") == "NHWC"
        wanted = timm_package().data.resolve_model_data_config(self.pyramid)
        mean, std = (torch.tensor(each) for each in (IMAGE_MEAN, IMAGE_STD))
        mean_wanted, std_wanted = (torch.tensor(wanted[each]) for each in ("mean", "std"))
        self.register_buffer("input_scale", std / std_wanted)
        self.register_buffer("input_shift", (mean - mean_wanted) / std_wanted)
        for number, level in enumerate(self.levels):
            self.register_buffer(f"mean_{number}", torch.zeros(channels[level]))
            self.register_buffer(f"scale_{number}", torch.ones(channels[level]))
        # The layout that convolutions of GPUs want.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        """Images normalised as SAM-2's encoder expects them -> (B, C, H / s, W / s) at s = 4, 8, 16, 32."""
        return [
            (level - _of_channels(self.get_buffer(f"mean_{number}"))) * _of_channels(self.get_buffer(f"scale_{number}"))
            for number, level in enumerate(self.raw_levels(images_B3HW))
        ]

    def raw_levels(self, images_B3HW: Tensor) -> list[Tensor]:
        """As `forward`, before the levels are standardised."""
        pixels = images_B3HW * _of_channels(self.input_scale) + _of_channels(self.input_shift)
        found = self.pyramid(pixels.contiguous(memory_format=torch.channels_last))
        chosen = [found[level] for level in self.levels]
        return [level.permute(0, 3, 1, 2) for level in chosen] if self._rows_last else chosen

    @torch.no_grad()
    def load(self, path: Path, trunk: Trunk) -> None:
        """Fills the network from a file.

        Raises:
            InputError: a file that is not read safely, or of another network.
        """
        if (found := sha256_of_file(path)) != trunk.sha256:
            raise InputError(f"{path}: it changed meanwhile: sha256 is {found[:16]}…, expected {trunk.sha256[:16]}…")
        load_pyramid(self.pyramid, path, name=self.name, arguments=self._more)

    @torch.no_grad()
    def round_matrices(self) -> None:
        """Rounds them to half precision, as the checkpoints of a frozen trunk hold them."""
        for value in self.pyramid.state_dict().values():
            if halved(value):
                value.copy_(value.half())

    @torch.no_grad()
    def statistics(self, images: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Mean and 1 / deviation of each level's channels, (C,) float64 on the CPU, over images (1, 3, H, W)."""
        sums: list[list[Tensor]] = [[] for _ in STRIDES]
        for image in images:
            for level, found in zip(self.checked_levels(image), sums, strict=True):
                values = level[0].flatten(1).double()
                found.append(torch.stack([values.mean(1), values.square().mean(1)]).cpu())
        told = []
        for found in sums:
            mean, square = torch.stack(found).mean(0)
            deviation = (square - mean.square()).clamp(min=0.0).sqrt()
            floor = (LEAST_DEVIATION * deviation.mean()).clamp(min=1e-6)
            told.append((mean, 1.0 / torch.maximum(deviation, floor)))
        return told

    def standardise(self, statistics: list[tuple[Tensor, Tensor]]) -> None:
        """Sets what `statistics` found."""
        for number, (mean, scale) in enumerate(statistics):
            self.get_buffer(f"mean_{number}").copy_(mean)
            self.get_buffer(f"scale_{number}").copy_(scale)

    @torch.no_grad()
    def checked_levels(self, image: Tensor) -> list[Tensor]:
        """As `raw_levels`.

        Raises:
            InputError: the network does not take images of this size, or its levels have other sizes than expected.
        """
        side = image.shape[-1]
        try:
            levels = self.raw_levels(image)
        except (AssertionError, RuntimeError) as error:
            raise InputError(
                f"{FLAG} {PREFIX}{self.name}: it does not take images of {side} px "
                f"({' '.join(str(error).split())[:200]})"
            ) from error
        for stride, level in zip(STRIDES, levels, strict=True):
            if tuple(level.shape[-2:]) != (side // stride, side // stride):
                raise InputError(
                    f"{FLAG} {PREFIX}{self.name}: expected {side // stride} cells a side at stride {stride} for images "
                    f"of {side} px, found {tuple(level.shape[-2:])}"
                )
        return levels


def _of_channels(values_C: Tensor) -> Tensor:
    return values_C.view(-1, 1, 1)


def _size_arguments(name: str, image_size: int) -> dict[str, Any]:
    """For timm: networks with windows or tables of positions are built for one size."""
    timm = timm_package()
    if not timm.is_model(name.partition(".")[0]):
        raise InputError(f"{FLAG} {PREFIX}{name}: timm {timm.__version__} has no such model")
    settings = timm.models.get_pretrained_cfg(name)
    return {"img_size": image_size} if getattr(settings, "fixed_input_size", False) else {}


def build_encoder(config: Any, name: str, image_size: int) -> Any:
    """sam2's `ImageEncoder` around a trunk of timm.

    Args:
        config: sam2's configuration of its own encoder, whose neck is used. All levels of the neck get what the coarser
            ones say, bilinear: a classifier's fine levels know little of things (sam2's neck does so at strides 16 and
            32 alone).
        name: timm's.
        image_size: pixels a side.
    """
    from hydra.utils import instantiate
    from sam2.modeling.backbones.image_encoder import ImageEncoder

    trunk = TimmTrunk(name, image_size)
    neck = instantiate(
        config.neck,
        backbone_channel_list=trunk.channel_list,
        fpn_top_down_levels=list(range(len(STRIDES))),
        fpn_interp_model="bilinear",
    )
    return ImageEncoder(trunk=trunk, neck=neck, scalp=config.scalp)


def halved(value: Tensor) -> bool:
    """Whether a tensor is one of those that half precision serves: matrices are; of vectors, BatchNorm's variances and
    the levels' means can leave its range, and they take little space."""
    return value.ndim > 1 and value.dtype == torch.float32


def in_checkpoint(state: dict[str, Tensor], trunk: Trunk | None) -> dict[str, Tensor]:
    """A whole model's state as its checkpoint holds it: a frozen trunk's rounded matrices in half precision."""
    if trunk is None or trunk.rate:
        return state
    pyramid = f"{STATE_PREFIX}pyramid."
    return {key: value.half() if key.startswith(pyramid) and halved(value) else value for key, value in state.items()}
