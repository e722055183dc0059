"""Random numbers of a position: numpy's own Philox, in parts."""

from __future__ import annotations

import numpy as np
import pytest

from model.data.chance import uniforms


@pytest.mark.parametrize(
    ("seed", "position"), [(0, 0), (7, 12345), (-3, 2**63 + 5), (2**64 - 1, 2**64 - 1), (2**70 + 1, 4)]
)
def test_numbers_are_those_of_numpys_philox(seed: int, position: int) -> None:
    expected = np.random.Generator(np.random.Philox(key=[seed % 2**64, position])).random(130)
    parts = uniforms(seed, position, (8, 0, 117, 5))
    assert [len(part) for part in parts] == [8, 0, 117, 5]
    assert np.concatenate(parts).tolist() == expected.tolist()


def test_no_numbers_are_no_numbers() -> None:
    assert uniforms(1, 2, (0,))[0].tolist() == []
