"""A start for models that train from scratch: clicks find their place before anything is learned.

SAM's tokens and pixels carry the same positional code (random Fourier features, whose dot product falls with distance).
With independent random projections in the cross-attentions that is lost, and finding the clicked place again takes most
of a short training. Tying the key's projection to the query's at the start makes each cross-attention a soft look at
where the click is: q . k = |P (pe(click)) . P (pe(pixel))|, a kernel of about 0.08 of the image's side. Nothing is tied
afterwards.
"""

from __future__ import annotations

from typing import Any, Final

import torch

SHARPNESS: Final = 2.0
"""Length of the projections' rows; the attention's logit at the clicked place is about its square."""


@torch.no_grad()
def tie_cross_attention(transformer: Any, *, sharpness: float = SHARPNESS) -> int:
    """Sets q and k projections of every attention between tokens and image to one random orthonormal map per head.

    Args:
        transformer: sam2's two-way transformer, fresh.
        sharpness: length of the map's rows.

    Returns:
        How many attentions were set.
    """
    found = 0
    for name, module in transformer.named_modules():
        if not (name.endswith(("token_to_image", "image_to_token"))):
            continue
        rows = []
        for _ in range(module.num_heads):
            per_head = module.internal_dim // module.num_heads
            basis, _ = torch.linalg.qr(torch.randn(module.embedding_dim, per_head))
            rows.append(basis.T * sharpness)
        weight = torch.cat(rows)
        for projection in (module.q_proj, module.k_proj):
            projection.weight.copy_(weight)
            projection.bias.zero_()
        found += 1
    return found
