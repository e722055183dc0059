"""The order of samples: a permutation in every epoch, the same wherever it is asked, and how well it mixes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.sampler import KeyedPermutation, LoaderState, Order, Sampler, batch_positions, generator_at, mixing
from pipeline.errors import InputError, SchemaError


@given(n=st.integers(1, 700), key=st.text(max_size=8))
@settings(max_examples=60)
def test_a_keyed_permutation_is_one(n: int, key: str) -> None:
    permutation = KeyedPermutation(n, key)
    assert sorted(permutation(index) for index in range(n)) == list(range(n))


@given(n=st.integers(1, 300), block=st.integers(1, 40), window=st.integers(1, 5), seed=st.integers(0, 5))
@settings(max_examples=60)
def test_blocks_in_windows_are_a_permutation_in_every_epoch(n: int, block: int, window: int, seed: int) -> None:
    sampler = Sampler(n, seed=seed, order=Order(kind="block", block=block, window=window))
    for epoch in range(2):
        assert sorted(sampler.sample(epoch * n + index) for index in range(n)) == list(range(n))


def test_epochs_and_seeds_differ() -> None:
    first = [Sampler(500, seed=0).sample(position) for position in range(500)]
    assert first != [Sampler(500, seed=0).sample(500 + position) for position in range(500)]
    assert first != [Sampler(500, seed=1).sample(position) for position in range(500)]
    assert first == [Sampler(500, seed=0).sample(position) for position in range(500)]


def test_ten_thousand_million_samples_cost_no_memory() -> None:
    sampler = Sampler(10**10, seed=3)
    positions = [0, 1, 10**10 - 1, 10**10, 7 * 10**12]
    found = [sampler.sample(position) for position in positions]
    assert all(0 <= sample < 10**10 for sample in found)
    assert len(set(found)) == len(found)


def test_a_full_permutation_looks_random() -> None:
    n = 4096
    order = np.array([Sampler(n, seed=5).sample(position) for position in range(n)])
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.06  # 1 / sqrt(n) is 0.016
    fixed = int((order == np.arange(n)).sum())
    assert fixed <= 6  # one is expected


def test_shuffle_quality_is_one_for_a_full_order_and_stated_for_blocks() -> None:
    n = 40_000
    full = mixing(Sampler(n, seed=0))
    blocks = mixing(Sampler(n, seed=0, order=Order(kind="block", block=256, window=16)))
    in_order = mixing(Sampler(n, seed=0, order=Order(kind="block", block=n, window=1)))
    assert full > 0.97
    assert blocks > 0.85  # `train --help`: 0.90 to 0.99; a window holds 16 blocks from anywhere in the data
    one_block = mixing(Sampler(n, seed=0, order=Order(kind="block", block=256, window=1)))
    assert one_block < 0.1 < blocks
    assert in_order > 0.97  # one block of everything is a full shuffle


def test_block_order_reads_few_blocks_at_a_time() -> None:
    n, order = 40_000, Order(kind="block", block=256, window=16)
    sampler = Sampler(n, seed=0, order=order)
    window = [sampler.sample(position) for position in range(order.block * order.window)]
    blocks = {sample // order.block for sample in window}
    assert len(blocks) <= 2 * order.window + 2  # the turn makes a block straddle two


def test_slices_of_ranks_make_up_the_batch() -> None:
    whole = [p for rank in range(4) for p in batch_positions(24, global_batch_size=8, rank=rank, ranks=4)]
    assert whole == list(range(24, 32))
    with pytest.raises(InputError, match="does not divide by 3 ranks"):
        batch_positions(0, global_batch_size=8, rank=0, ranks=3)


def state(**changes: object) -> LoaderState:
    values: dict[str, object] = {
        "dataset_digest": "a" * 64,
        "n": 7,
        "filter_sha256": "b" * 64,
        "seed": 0,
        "order": Order(),
        "next_position": 12,
    }
    return LoaderState(**{**values, **changes})  # type: ignore[arg-type]


def test_a_state_comes_back_from_json() -> None:
    assert LoaderState.from_json(state().to_json(), where="here") == state()


@pytest.mark.parametrize(
    "changes",
    [{"dataset_digest": "c" * 64}, {"n": 8}, {"filter_sha256": "d" * 64}, {"seed": 1}, {"order": Order(kind="block")}],
)
def test_a_state_of_other_data_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"of other data: {next(iter(changes))}"):
        state().expect_same_data(state(**changes), where="here")
    state().expect_same_data(state(next_position=99), where="here")


@pytest.mark.parametrize("record", [None, {}, {"format": "other/1"}, {"format": "grainmill-loader/1", "n": "x"}])
def test_a_missing_or_foreign_state_is_refused(record: object) -> None:
    with pytest.raises(SchemaError, match="loader state"):
        LoaderState.from_json(record, where="here")


def test_orders_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="expected full or block"):
        Order(kind="random")
    with pytest.raises(InputError, match="at least 1"):
        Order(block=0)


@pytest.mark.parametrize(
    ("seed", "position"), [(0, 0), (7, 12345), (-1, 3), (-2, 3), (2**63 + 1, 3), (2**64 - 1, 2**64 - 1), (2**70 + 1, 4)]
)
def test_the_numbers_of_a_position_depend_on_every_bit_of_the_seed(seed: int, position: int) -> None:
    key = generator_at(seed, position).bit_generator.state["state"]["key"]
    assert [int(each) for each in key] == [seed % 2**64, position]
