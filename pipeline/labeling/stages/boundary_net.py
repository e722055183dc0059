"""A small network that says where regions end: maps of a frozen backbone and the image -> a probability of each pixel.

It is trained on merge trees of mined images and on no human mask: what it predicts of a pixel is the share of an
image's trees in which its border still stands when few regions are left, for five such numbers, and how dear the merge
across it was. Averaged over many images, what trees get right by the content outweighs what they get wrong by accident.

Maps of each stride are normalised and brought to a few channels; from the coarsest on they are enlarged (bilinear),
added to the next finer ones and mixed; a branch from the image itself joins at the end. Without a backbone (`PlainNet`)
the image is all there is. The answer has half the resolution of the image. It is the mean over the image and its
mirror; the backbone's maps are mirrored, not computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import InputError
from ..boundary_file import FLAG, BoundaryRecord, read_record
from ..regions import FeatureMaps, Rgb

REGIONS_LEFT: Final = (6, 16, 48, 150, 500)
"""A border that stands when at most so many regions are left: the first five outputs."""
OUTPUTS: Final = len(REGIONS_LEFT) + 1
"""And 1 - exp(-height) of the merge across it."""
STRIDE: Final = 4
"""Of the answer, in pixels of the backbone's input."""
LATERAL: Final = (32, 48, 48, 48)
"""Channels to which maps are brought, at strides up to 4, 8, 16 and above."""
IMAGE_MEAN: Final = 0.45
IMAGE_DEVIATION: Final = 0.25


class _Mix(nn.Sequential):
    """Convolution of 3 x 3, BatchNorm, ReLU."""

    def __init__(self, channels: int, out: int, *, size: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels, out, size, stride=stride, padding=size // 2, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
        )


class BoundaryNet(nn.Module):
    """The network: 91,366 parameters on EfficientNet-lite0's four maps.

    Args:
        strides: of the maps, finest first.
        channels: likewise.
    """

    def __init__(self, strides: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        self.levels = [sum(stride > limit for limit in (4, 8, 16)) for stride in strides]
        """Of each map: 0 at strides up to 4, then 8, 16 and above."""
        self.norms = nn.ModuleList(nn.BatchNorm2d(each) for each in channels)
        self.drop = nn.Dropout2d(0.1)
        self.laterals = nn.ModuleList(
            nn.Conv2d(each, LATERAL[level], 1) for each, level in zip(channels, self.levels, strict=True)
        )
        self.mix_coarse = _Mix(48, 48)
        self.wide = nn.Sequential(nn.Conv2d(48, 48, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(48))
        self.mix_middle = _Mix(48, 32)
        self.image = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            _Mix(16, 16),
            nn.Conv2d(16, 32, 1),
        )
        self.mix_fine = _Mix(32, 24)
        self.answer = nn.Conv2d(24, OUTPUTS, 1)

    def forward(self, maps: Sequence[Tensor], image_B3HW: Tensor) -> Tensor:
        """Logits (B, OUTPUTS, H / 2, W / 2).

        Args:
            maps: each (B, C, h, w), finest first.
            image_B3HW: in [0, 1], at twice the size of the answer.
        """
        sums: list[Tensor | None] = [None] * len(LATERAL)
        for norm, lateral, level, each in zip(self.norms, self.laterals, self.levels, maps, strict=True):
            brought = lateral(self.drop(norm(each)))
            before = sums[level]
            sums[level] = brought if before is None else _enlarged(before, brought) + brought
        coarse = _joined(sums[3], sums[2])
        if coarse is not None:
            coarse = self.mix_coarse(coarse)
            coarse = F.relu(coarse + self.wide(coarse))
        middle = _joined(coarse, sums[1])
        image = self.image((image_B3HW - IMAGE_MEAN) / IMAGE_DEVIATION)
        fine = image if sums[0] is None else image + _enlarged(sums[0], image)
        if middle is not None:
            fine = fine + _enlarged(self.mix_middle(middle), image)
        answer: Tensor = self.answer(self.mix_fine(F.relu(fine)))
        return answer


class _Residual(nn.Module):
    """A convolution of 3 x 3 added to what goes in."""

    def __init__(self, channels: int, *, dilation: int = 1) -> None:
        super().__init__()
        self.mix = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, values: Tensor) -> Tensor:
        return F.relu(values + self.mix(values))


class PlainNet(nn.Module):
    """The network that sees the image alone: 217,750 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.at_half = nn.Sequential(_Mix(3, 24, size=5, stride=2), _Mix(24, 24))
        self.at_quarter = nn.Sequential(_Mix(24, 40, stride=2), _Residual(40))
        self.at_eighth = nn.Sequential(_Mix(40, 64, stride=2), *(_Residual(64, dilation=each) for each in (1, 2, 4, 8)))
        self.laterals = nn.ModuleList([nn.Conv2d(24, 24, 1), nn.Conv2d(40, 32, 1), nn.Conv2d(64, 32, 1)])
        self.mix_middle = _Mix(32, 24)
        self.mix_fine = _Mix(24, 24)
        self.answer = nn.Conv2d(24, OUTPUTS, 1)

    def forward(self, maps: Sequence[Tensor], image_B3HW: Tensor) -> Tensor:
        """As `BoundaryNet.forward`, without maps."""
        half = self.at_half((image_B3HW - IMAGE_MEAN) / IMAGE_DEVIATION)
        quarter = self.at_quarter(half)
        fine, middle, coarse = (
            lateral(each) for lateral, each in zip(self.laterals, (half, quarter, self.at_eighth(quarter)), strict=True)
        )
        joined = self.mix_middle(_enlarged(coarse, middle) + middle)
        answer: Tensor = self.answer(self.mix_fine(_enlarged(joined, fine) + fine))
        return answer


def make_net(strides: Sequence[int], channels: Sequence[int]) -> BoundaryNet | PlainNet:
    """With random weights: on a backbone's maps, finest first; on none of them."""
    return BoundaryNet(strides, channels) if strides else PlainNet()


def _enlarged(small: Tensor, like: Tensor) -> Tensor:
    if small.shape[-2:] == like.shape[-2:]:
        return small
    return F.interpolate(small, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _joined(coarse: Tensor | None, fine: Tensor | None) -> Tensor | None:
    if coarse is None or fine is None:
        return fine if coarse is None else coarse
    return _enlarged(coarse, fine) + fine


def image_for(rgb: Rgb, maps: FeatureMaps | None) -> Rgb:
    """The image as the net sees it: half the size that the backbone saw, of even sides; its own size without one, of
    sides that three halvings leave whole."""
    if maps is None:
        rows, columns = (max(round(side / 8), 1) * 8 for side in rgb.shape[:2])
    else:
        rows, columns = (max(side * maps.strides[0] // STRIDE, 1) * 2 for side in maps.grids[0].shape[:2])
    return cv2.resize(rgb, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


class Boundaries:
    """A boundary net in use.

    Args:
        path: of a file that `grainmill boundaries` wrote.
        device: of torch; None takes a GPU if there is one.

    Raises:
        InputError: no such file, or its tensors are not those of its record.
    """

    def __init__(self, path: str | Path, *, device: str | None = None) -> None:
        from safetensors.torch import load_file

        self.record = read_record(path)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        net = make_net(self.record.strides, self.record.channels)
        try:
            net.load_state_dict({name: each.float() for name, each in load_file(path).items()})
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"{FLAG} {path}: its tensors are not those of a boundary net ({reason})") from error
        self.net = net.eval().requires_grad_(False).to(self.device)

    @torch.inference_mode()
    def __call__(self, rgb: Rgb, maps: FeatureMaps | None) -> NDArray[np.float32]:
        """(h, w, 3) and the backbone's maps of it -> (h, w) float32 in [0, 1], the mean of the five probabilities.

        Without a backbone maps are None.

        Raises:
            InputError: maps of another network than the net was trained on.
        """
        grids_seen, strides = ((), ()) if maps is None else (maps.grids, maps.strides)
        channels = tuple(each.shape[2] for each in grids_seen)
        if (strides, channels) != (self.record.strides, self.record.channels):
            raise InputError(
                f"{FLAG}: the net sees {self.record.backbone}'s maps of {self.record.channels} channels at strides "
                f"{self.record.strides}, found {channels} at {strides}"
            )
        image = torch.from_numpy(image_for(rgb, maps)).to(self.device).permute(2, 0, 1)[None].float() / 255.0
        grids = [torch.from_numpy(each).to(self.device).permute(2, 0, 1)[None] for each in grids_seen]
        logits = self.net([_and_mirror(each) for each in grids], _and_mirror(image))
        told = logits[:, : len(REGIONS_LEFT)].sigmoid().mean(dim=1)
        mean = (0.5 * (told[0] + told[1].flip(-1))).float().cpu().numpy()
        height, width = rgb.shape[:2]
        return cv2.resize(mean, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32, copy=False)


def _and_mirror(batch: Tensor) -> Tensor:
    return torch.cat([batch, batch.flip(-1)])


def save_boundaries(path: Path, net: BoundaryNet | PlainNet, record: BoundaryRecord) -> None:
    """Writes a net and its record, matrices in half precision, whole or not at all."""
    from safetensors.torch import save

    tensors = {
        name: (value.half() if value.ndim > 1 else value).contiguous().cpu() for name, value in net.state_dict().items()
    }
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(save(tensors, record.to_metadata()))
    temporary.replace(path)
