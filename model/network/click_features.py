"""How the decoder hears the image exactly where it was clicked; SAM-2's own hears it in steps of 16 pixels.

Both additions read the decoder's own maps (the embedding at stride 16, its finer levels at strides 8 and 4) and speak
only where a granularity is asked for: `granularity=None` stays SAM-2's answer.

- `ClickFeatures`: what all three maps say at a click goes into that click's token and into the mask token.
- `SimilarityTerm`: a pixel's logit rises with its likeness to the clicked place, on the features at stride 4.

Positions are (x, y) in pixels of the model's input, counted from pixel centres; distances are taken in float32.
Legend: N prompts, P points of a prompt, C channels, E channels at stride 4, h w cells at stride 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import InputError

Similarity = Literal["off", "features", "place"]
SIMILARITIES: Final[tuple[Similarity, ...]] = get_args(Similarity)

PLACE_SCALE: Final = 10.0
"""Of squared distances in units of the image's side, so that numbers of ordinary size set how round a mask is."""
_ABSENT: Final = -1e4
"""A logit below all that occur, for points that are not there."""


@dataclass(frozen=True, kw_only=True)
class Sight:
    """Which of the two additions a model has; neither: SAM-2's own way."""

    click_features: bool = False
    similarity: Similarity = "off"
    """`features`: by the features' distance; `place`: and by the distance in the image."""

    def __post_init__(self) -> None:
        if self.similarity not in SIMILARITIES:
            raise InputError(f"--similarity {self.similarity}: expected one of {', '.join(SIMILARITIES)}")


@dataclass(frozen=True, kw_only=True)
class Clicks:
    """The points of N prompts, as sam2's prompt encoder is told them."""

    points_NP2: Tensor
    labels_NP: Tensor
    """1 inside, 0 outside; 2, 3 (a box's corners) and -1 (padding) are no clicks."""
    side: int
    """Pixels a side of the input that they lie in."""
    counts: tuple[int, ...] | None = None
    """Prompts of each image, where maps come once for an image; None: each prompt has a map of its own."""


def at_clicks(level_NCHW: Tensor, clicks: Clicks) -> Tensor:
    """A map at each point, bilinear between its cells' centres, borders continued: (N, P, C) float32.

    With `clicks.counts` there are as many maps as images, each read at the points of all its prompts.
    """
    grid = (2 * (clicks.points_NP2 + 0.5) / clicks.side - 1).float()[:, :, None]
    if clicks.counts is not None:
        parts = zip(level_NCHW.split(1), grid.split(clicks.counts), strict=True)
        return torch.cat([_sampled(level, each.view(1, -1, 1, 2)).view(*each.shape[:2], -1) for level, each in parts])
    return _sampled(level_NCHW, grid)


def _sampled(level_NCHW: Tensor, grid_NP12: Tensor) -> Tensor:
    found = F.grid_sample(level_NCHW.float(), grid_NP12, mode="bilinear", padding_mode="border", align_corners=False)
    return found[..., 0].transpose(1, 2)


def likeness(
    asked_NPA: Tensor,
    clicked_NPE: Tensor,
    places_NP2: Tensor,
    features_NEHW: Tensor,
    counts: Sequence[int] | None = None,
) -> Tensor:
    """a - b |e(c) - e(p)|^2 - 10 d |x_c - x_p|^2 of each of P places c to all h w cells p: (N, P, L) float32.

    Squares written out, both terms are products of a row for each place and a column for each cell, without maps of
    distances in between.

    Args:
        asked_NPA: (a, b, d) of each place; (a, b): without the distance in the image.
        clicked_NPE: e(c).
        places_NP2: x_c in units of the side.
        features_NEHW: e(p), float32; of each image alone if `counts` says how many of the rows are an image's.
        counts: see above.
    """
    height, width = features_NEHW.shape[-2:]
    flat = features_NEHW.flatten(2)
    near = asked_NPA[..., 1:2]
    constant = asked_NPA[..., :1] - near * clicked_NPE.square().sum(dim=2, keepdim=True)
    own, cells = (
        torch.cat([2 * near * clicked_NPE, -near], dim=2),
        torch.cat([flat, flat.square().sum(dim=1, keepdim=True)], dim=1),
    )
    if counts is None:
        like = own @ cells
    else:
        like = torch.cat([each @ cell for each, cell in zip(own.split(tuple(counts)), cells, strict=True)])
    if asked_NPA.shape[2] == 2:
        return like + constant
    across, down = ((torch.arange(side, device=flat.device) + 0.5) / side for side in (width, height))
    grid = torch.stack([across.expand(height, -1), down[:, None].expand(-1, width)]).flatten(1)
    grid = torch.cat([torch.ones_like(grid[:1]), grid, grid.square().sum(dim=0, keepdim=True)])
    wide = PLACE_SCALE * asked_NPA[..., 2:]
    constant = constant - wide * places_NP2.square().sum(dim=2, keepdim=True)
    return like + torch.cat([constant, 2 * wide * places_NP2, -wide], dim=2) @ grid


class ClickFeatures(nn.Module):
    """What the decoder's maps say at a click, h = [embedding; stride 4; stride 8], in two tokens.

    `to_prompt(h)` is added to the click's own prompt token, the mean of `to_mask(h)` over a prompt's clicks to the
    mask token behind the transformer. Clicks inside only; a prompt without one is left as it is.

    Args:
        inputs: channels of the three maps together.
        width: C of the tokens.
        silent: both maps start at zero: beside a base that is not trained from scratch.
    """

    def __init__(self, inputs: int, width: int, *, silent: bool) -> None:
        super().__init__()
        self.to_prompt, self.to_mask = nn.Linear(inputs, width), nn.Linear(inputs, width)
        for layer in (self.to_prompt, self.to_mask):
            nn.init.zeros_(layer.bias)
            if silent:
                nn.init.zeros_(layer.weight)

    def forward(self, maps: Sequence[Tensor], clicks: Clicks) -> tuple[Tensor, Tensor]:
        """Additions to P prompt tokens, (N, P, C), and to the mask token, (N, C)."""
        heard = torch.cat([at_clicks(each, clicks) for each in maps], dim=2)
        inside = (clicks.labels_NP == 1)[..., None]
        share = inside / inside.sum(dim=1, keepdim=True).clamp(min=1)
        return self.to_prompt(heard) * inside, (self.to_mask(heard) * share).sum(dim=1)


class SimilarityTerm(nn.Module):
    """The term in the mask's logits that says how like the clicked place each cell is.

    With e the features at stride 4, t the mask token behind the transformer, (a, b, d) = A [t; e(c)] for each click c:

        s_c(p) = a - softplus(b) |e(p) - e(c)|^2 - 10 softplus(d) |x_p - x_c|^2
        term(p) = gate * (max of s_c(p) over clicks inside - softplus(max of s_c(p) over clicks outside))

    The last summand of s is there with `place` alone; x is in units of the side. So the nearest click inside counts,
    less the nearest one outside; the softplus keeps a click outside from raising the logits far away from it. A kind
    of click that a prompt does not have adds nothing: one with a box or a mask alone has no term at all.

    A starts at zero weights, so that every click asks alike (a = 0.5, b = 0, d = -3). The gate starts at 1, or at 0
    where the model must start as the base it stands beside.

    Args:
        width: C of the token.
        channels: E.
        place: with the distance in the image.
        silent: the gate starts at 0.
    """

    def __init__(self, width: int, channels: int, *, place: bool, silent: bool) -> None:
        super().__init__()
        self.place = place
        self.ask = nn.Linear(width + channels, 3 if place else 2)
        self.gate = nn.Parameter(torch.full((1,), 0.0 if silent else 1.0))
        nn.init.zeros_(self.ask.weight)
        with torch.no_grad():
            self.ask.bias.copy_(torch.tensor([0.5, 0.0, -3.0][: len(self.ask.bias)]))

    def forward(self, token_NC: Tensor, features_NEHW: Tensor, clicks: Clicks) -> Tensor:
        """The term, (N, h, w) float32; maps as `at_clicks` takes them."""
        height, width = features_NEHW.shape[-2:]
        with torch.autocast(features_NEHW.device.type, enabled=False):
            clicked = at_clicks(features_NEHW, clicks)
            token = token_NC.float()[:, None].expand(-1, clicked.shape[1], -1)
            asked = self.ask(torch.cat([token, clicked], dim=2))
            asked = torch.cat([asked[..., :1], F.softplus(asked[..., 1:])], dim=2)
            places = (clicks.points_NP2.float() + 0.5) / clicks.side
            like = likeness(asked, clicked, places, features_NEHW.float(), clicks.counts)
            labels = clicks.labels_NP[..., None]
            inside = like.masked_fill(labels != 1, _ABSENT).amax(dim=1)
            outside = like.masked_fill(labels != 0, _ABSENT).amax(dim=1)
            inside = torch.where((labels == 1).any(dim=1), inside, 0.0)
            term = self.gate * (inside - F.softplus(outside))
        return term.view(-1, height, width)
