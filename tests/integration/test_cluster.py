"""A real cluster of several raylets on one machine: whatever fails, the digest is that of an undisturbed local run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import failures
from benchmarks.failures import Arena, Outcome
from benchmarks.raylets import RayCluster

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A head without room for workers; every test brings nodes of its own."""
    with RayCluster() as made:
        made.start_head()
        yield made


@pytest.fixture(scope="module")
def expected(small_photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return failures.undisturbed_digest(small_photographs, tmp_path_factory.mktemp("local") / "out")


@pytest.fixture
def arena(small_photographs: Path, expected: str, tmp_path: Path) -> Iterator[Arena]:
    with Arena(small_photographs, expected, tmp_path / "arena", random.Random(0)) as made:
        yield made


def said(outcome: Outcome, words: str) -> bool:
    return any(words in line for line in outcome.notes)


def test_nodes_join_late(arena: Arena, cluster: RayCluster) -> None:
    outcome = failures.nodes_join_late(arena, cluster)
    assert outcome.equal
    assert len({event["node"] for event in outcome.events}) >= 1


def test_a_raylet_is_killed_in_the_middle_of_a_unit(arena: Arena, cluster: RayCluster) -> None:
    outcome = failures.raylet_killed(arena, cluster)
    assert outcome.equal
    assert outcome.again >= 1
    assert said(outcome, "a worker died")


def test_a_stopped_node_comes_back_with_a_stale_attempt(arena: Arena, cluster: RayCluster) -> None:
    outcome = failures.node_stopped(arena, cluster)
    assert outcome.equal
    assert outcome.again >= 1


def test_the_head_is_killed_and_the_same_command_goes_on(arena: Arena, cluster: RayCluster) -> None:
    assert failures.head_killed(arena, cluster).equal


def test_a_node_that_fails_again_and_again_is_left_out(arena: Arena, cluster: RayCluster) -> None:
    outcome = failures.node_that_kills(arena, cluster)
    assert outcome.equal
    assert said(outcome, "is left out: 3 workers died there")


def test_a_unit_that_never_ends_is_started_again_elsewhere(arena: Arena, cluster: RayCluster) -> None:
    outcome = failures.unit_that_hangs(arena, cluster)
    assert outcome.equal
    assert said(outcome, "takes far longer than others; started again elsewhere")
    assert outcome.again >= 1
