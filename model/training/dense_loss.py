"""Similarity learned at many places at once: an auxiliary loss on the features at stride 4, for training from scratch.

An anchor is a cell of the stride-4 grid with one of the mined masks over it. A small network reads the mask's g and the
features at the anchor and says how far, in features and in the image, the mask may reach; every cell is answered
for. It costs a fifteenth of a decoder's prompt, so a step sees many more pairs of place and mask, and it presses the
features, which the decoder's similarity term reads too, to tell regions apart. The network is thrown away afterwards.
Legend: B views, K anchors of a view, E channels, h w cells, L = h w.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.prompts import Prompts
from ..network.click_features import likeness
from .losses import LossWeights, shape_losses

HIDDEN = 64


class DenseHead(nn.Module):
    """(alpha, beta, gamma) = MLP(g, e(c)) of each anchor c, and with them a logit for every cell p:

        alpha - softplus(beta) |e(p) - e(c)|^2 - 10 softplus(gamma) |x_p - x_c|^2

    x in units of the side. At the start alpha = 1, beta = 0, gamma = 2 for all: a disc.

    Args:
        channels: E.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(1 + channels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 3)
        )
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(torch.tensor([1.0, 0.0, 2.0]))

    def forward(self, features_BEHW: Tensor, cells_BK: Tensor, granularity_BK: Tensor) -> Tensor:
        """Logits (B, K, L) float32.

        Args:
            features_BEHW: of each view.
            cells_BK: int64, y w + x.
            granularity_BK: float32.
        """
        height, width = features_BEHW.shape[-2:]
        with torch.autocast(features_BEHW.device.type, enabled=False):
            flat = features_BEHW.float().flatten(2)
            anchors = flat.gather(2, cells_BK[:, None].expand(-1, flat.shape[1], -1)).transpose(1, 2)
            asked = self.mlp(torch.cat([granularity_BK[..., None], anchors], dim=2))
            asked = torch.cat([asked[..., :1], F.softplus(asked[..., 1:])], dim=2)
            places = torch.stack([(cells_BK % width + 0.5) / width, (cells_BK // width + 0.5) / height], dim=2)
            return likeness(asked, anchors, places, features_BEHW.float())


def padded(anchors: Sequence[Prompts]) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.uint8]]:
    """Anchors of B views side by side: cells (B, K), g (B, K), targets (B K, h, w / 8); cell -1 where there are fewer.

    Args:
        anchors: of each view, on the stride-4 grid; at least one.
    """
    most, side = (max(each.masks_packed.shape[axis] for each in anchors) for axis in (0, 1))
    cells = np.full((len(anchors), most), -1, dtype=np.int64)
    granularity = np.ones(cells.shape, dtype=np.float32)
    masks = np.zeros((*cells.shape, side, side // 8), dtype=np.uint8)
    for view, each in enumerate(anchors):
        count = len(each.points)
        if not count:
            continue
        cells[view, :count] = each.points[:, 1].astype(np.int64) * side + each.points[:, 0].astype(np.int64)
        granularity[view, :count], masks[view, :count] = each.granularity, each.masks_packed
    return cells, granularity, masks.reshape(-1, side, side // 8)


def dense_loss(
    head: DenseHead,
    features_BEHW: Tensor,
    cells_BK: Tensor,
    granularity_BK: Tensor,
    target_BKL: Tensor,
    weights: LossWeights,
) -> Tensor:
    """The mask's own losses (see `LossWeights`), summed over anchors.

    Args:
        head: on the features' device.
        features_BEHW: of each view.
        cells_BK: int64, -1 for no anchor.
        granularity_BK: float32.
        target_BKL: bool.
        weights: of focal loss, cross-entropy and dice.
    """
    logits = head(features_BEHW, cells_BK.clamp(min=0), granularity_BK)
    losses = shape_losses(logits.flatten(0, 1), target_BKL.flatten(0, 1).float(), weights)
    return ((losses.mask_N + weights.dice * losses.dice_N) * (cells_BK.flatten() >= 0)).sum()
