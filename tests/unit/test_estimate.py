"""Capacity planning: hand-computed cases, and what must always hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import cli
from pipeline.errors import InputError
from pipeline.executors.estimate import Cluster, Profile, estimate

PROFILE = Profile(
    seconds_per_image={"decode": 0.02, "features": 0.10, "conquer": 0.06},
    image_bytes=100_000,
    label_bytes=20_000,
    masks_per_image=100,
    startup_s=0.0,
)


def test_cores_alone_by_hand() -> None:
    answer = estimate(
        images=1000,
        profile=PROFILE,
        cluster=Cluster(nodes=2, cores_per_node=9, efficiency=1.0),
        samples_per_shard=100,
        with_images=True,
    )
    assert answer.images_per_second == pytest.approx(2 * 9 / 0.18)
    assert answer.hours == pytest.approx(1000 / 100 / 3600)
    assert (answer.units, answer.put_requests, answer.get_requests) == (10, 50, 1020)
    assert answer.storage_gb == pytest.approx(1000 * 120_000 * 1.01 / 1e9)
    assert answer.bottleneck == "CPU: features"


def test_with_gpus_the_slower_side_limits() -> None:
    few_cores = Cluster(nodes=1, gpus_per_node=4, cores_per_node=1, efficiency=1.0)
    many_cores = Cluster(nodes=1, gpus_per_node=4, cores_per_node=64, efficiency=1.0)
    slow = estimate(images=100, profile=PROFILE, cluster=few_cores, samples_per_shard=10, with_images=False)
    fast = estimate(images=100, profile=PROFILE, cluster=many_cores, samples_per_shard=10, with_images=False)
    assert slow.images_per_second == pytest.approx(1 / 0.08)
    assert slow.bottleneck.startswith("CPU")
    assert fast.images_per_second == pytest.approx(4 / 0.10)
    assert fast.bottleneck.startswith("GPU")


@given(st.integers(1, 10**8), st.integers(1, 500), st.integers(1, 500))
def test_more_nodes_never_take_longer(images: int, nodes: int, more: int) -> None:
    def hours(count: int) -> float:
        cluster = Cluster(nodes=count)
        return estimate(images=images, profile=PROFILE, cluster=cluster, samples_per_shard=256, with_images=True).hours

    assert hours(nodes + more) <= hours(nodes)


@pytest.mark.parametrize("broken", [{}, {"profile": {"seconds_per_image": {}}}, {"seconds_per_image": {"read": "x"}}])
def test_a_wrong_profile_is_one_clear_error(broken: dict[str, object]) -> None:
    with pytest.raises(InputError, match="grainmill stats DIR --json"):
        Profile.from_json(broken, where="profile.json")


def test_the_command_prints_its_assumptions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = {
        "seconds_per_image": {"read": 0.01, "features": 0.5},
        "image_bytes": 1e5,
        "label_bytes": 2e4,
        "masks_per_image": 112,
    }
    (tmp_path / "profile.json").write_text(json.dumps({"profile": body}), encoding="utf-8")
    arguments = ["plan", "--images", "11000000", "--profile", str(tmp_path / "profile.json"), "--nodes", "8"]
    assert cli.main(arguments) == 0
    assert "assuming" in capsys.readouterr().out
    assert cli.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["units"] == 42969
    assert cli.main(["plan", "--images", "5", "--profile", str(tmp_path / "none.json")]) == 2
