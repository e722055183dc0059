"""What the scenarios of a failing cluster leave behind when they fail themselves, without a cluster: nothing."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks.failures import Arena


class Node:
    def __init__(self) -> None:
        self.told: list[str] = []

    def go_on(self) -> None:
        self.told.append("go on")

    def kill(self) -> None:
        self.told.append("kill")


class Cluster:
    """The part of a cluster that an arena sees. Its second node does not start."""

    address = "127.0.0.1:9"

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def add_node(self, **_: object) -> Node:
        self.nodes.append(Node())
        return self.nodes[-1]

    def wait_started(self, node: Node) -> Node:
        if node is not self.nodes[0]:
            raise RuntimeError("a node did not start")
        return node

    def driver_environment(self) -> dict[str, str]:
        return dict(os.environ)


def test_what_a_scenario_started_ends_with_it(tmp_path: Path) -> None:
    cluster: Any = Cluster()
    with Arena(tmp_path, "", tmp_path / "arena", random.Random(0)) as arena:
        driver = arena.driver(cluster)
        with pytest.raises(RuntimeError, match="did not start"):
            arena.nodes(cluster, {}, {})
    assert [node.told for node in cluster.nodes] == [["go on", "kill"]] * 2
    assert driver.process.poll() is not None
    assert driver.process.stdout is not None
    assert driver.process.stdout.closed


def test_a_wait_for_a_unit_ends_with_the_driver(tmp_path: Path) -> None:
    cluster: Any = Cluster()
    with Arena(tmp_path / "no such folder", "", tmp_path / "arena", random.Random(0)) as arena:
        driver = arena.driver(cluster)
        with pytest.raises(AssertionError, match=r"the driver ended before a unit waited:\n.*no such folder"):
            driver.wait_paused(tmp_path / "gate")
