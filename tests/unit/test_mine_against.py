"""How two versions of mining are compared."""

from __future__ import annotations

import pytest

from benchmarks.mine_against import compared


def test_medians_of_rounds_by_stage_without_idle_time() -> None:
    before = [{"samples": 2, "seconds": {"conquer": s, "features": 2.0, "idle": 50.0}} for s in (4.0, 6.0, 90.0)]
    after = [{"samples": 2, "seconds": {"conquer": 2.0, "features": s, "idle": 9.0}} for s in (2.0, 2.0, 1.0)]
    rows = compared(before, after)
    assert set(rows) == {"conquer", "features", "all"}
    assert rows["conquer"] == {"before_s": 3.0, "after_s": 1.0, "times": 3.0}
    assert rows["features"] == {"before_s": 1.0, "after_s": 1.0, "times": 1.0}
    assert rows["all"]["before_s"] == pytest.approx(4.0)
    assert rows["all"]["times"] == pytest.approx(2.0)
