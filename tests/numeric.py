"""How far apart two float32 results may lie that are the same sums in another order.

The width of a processor's vectors, the number of threads, the shape of a product and the library decide in which order
it adds, so a batch and single prompts, our call and a library's, one machine and the next agree but for rounding. Each
addition rounds by up to half a unit in the last place of the sum so far. A logit or a feature is a sum over hundreds of
channels through some ten layers, so the difference grows with the largest value, not with the one that is looked at:
where terms cancel out to nearly zero, it stays as large as anywhere else. Measured with AVX-512, AVX2 and SSE:
sam2's own answer to three prompts in one pass and its own answers one by one lie up to 7 units in the last place of the
largest logit apart, a small decoder with steep attention up to 16. A click half a pixel off moves logits by 50,000.
"""

from __future__ import annotations

from typing import Any

import numpy as np

UNITS = 64


def rounding(values: Any) -> float:
    """The absolute bound for float32 `values`: 64 units in the last place of the largest, or of 1 if all are smaller.

    Of 1, since behind each normalisation what is summed up has that size, also where the sums are faint.
    """
    return UNITS * float(np.finfo(np.float32).eps) * max(1.0, float(np.abs(np.asarray(values)).max(initial=0.0)))


def assert_same_sums(found: Any, expected: Any) -> None:
    """Arrays or tensors of one shape that differ by the order of summation at most."""
    found, expected = (np.asarray(each.detach() if hasattr(each, "detach") else each) for each in (found, expected))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=rounding(expected))


def assert_same_masks(found: Any, logits: Any) -> None:
    """Masks are where logits of the same sums are above 0; a logit within rounding of 0 may fall on either side."""
    found, logits = np.asarray(found), np.asarray(logits)
    assert found.shape == logits.shape
    sure = np.abs(logits) > rounding(logits)
    assert sure.mean() > 0.99, "hardly a logit is away from 0"
    np.testing.assert_array_equal(found[sure], (logits > 0)[sure])
