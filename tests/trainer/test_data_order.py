"""The order of training: what every restart, world size and platform must agree on."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pytest

from trainer.data import sampler


def test_the_order_never_changes_between_versions_and_platforms():
    """A change of these values breaks the resume of every run under way."""
    assert sampler.keyed(1, 2, 3) == 16914669369030367833
    assert sampler.epoch_order(0, 0, 8).tolist() == [0, 5, 3, 1, 6, 2, 7, 4]
    big = sampler.epoch_order(42, 7, 100_000).astype("<i8").tobytes()
    assert hashlib.sha256(big).hexdigest()[:16] == "417d9da86d02cf3e"
    draws = sampler.KeyedRandom(sampler.AUGMENTATION, 0, 0, 5)
    assert [draws.uniform(), draws.uniform()] == [0.23479360714534037, 0.8197043651009015]


def test_the_array_hash_is_the_scalar_one():
    """Rows sorted by the hash of plain integers: the same order without numpy's arithmetic."""
    by_scalar = sorted(range(500), key=lambda row: sampler.keyed(sampler.ORDER, -3, 9, row))
    assert sampler.epoch_order(-3, 9, 500).tolist() == by_scalar


def test_every_epoch_goes_through_all_rows_in_another_order():
    orders = [sampler.epoch_order(seed, epoch, 1000) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(o) == list(range(1000)) for o in orders)
    assert len({o.tobytes() for o in orders}) == 4


def test_every_row_comes_at_every_place():
    places = np.array([np.argsort(sampler.epoch_order(3, epoch, 20)) for epoch in range(2000)])
    counts = np.array([np.bincount(places[:, row], minlength=20) for row in range(20)])
    expected = 2000 / 20
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 361 + 5 * np.sqrt(2 * 361)  # 19 x 19 degrees of freedom


def test_shares_of_any_world_size_join_to_the_global_batch():
    batch = sampler.global_batch(sampler.epoch_order(0, 0, 100), 2, 10)
    for world in (1, 2, 3, 4, 7, 10):
        shares = [sampler.share(batch, rank, world) for rank in range(world)]
        assert np.concatenate(shares).tolist() == batch.tolist()
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_an_epoch_is_its_whole_batches():
    assert sampler.steps_per_epoch(103, 10) == 10
    with pytest.raises(ValueError, match="smaller batch size"):
        sampler.steps_per_epoch(9, 10)


def test_drawn_numbers_are_even_and_independent_of_each_other():
    streams = (sampler.KeyedRandom(sampler.AUGMENTATION, 0, epoch, 7) for epoch in range(4000))
    first = np.array([stream.uniform() for stream in streams])
    assert abs(first.mean() - 0.5) < 0.02
    draws = sampler.KeyedRandom(1)
    both = np.array([[draws.uniform(), draws.uniform()] for _ in range(4000)])
    assert abs(np.corrcoef(both.T)[0, 1]) < 0.05
    assert {draws.below(3) for _ in range(100)} == {0, 1, 2}


def test_the_digest_is_that_of_the_contract():
    keys = ["a_000001_000011", "b_000002_000012"]
    assert sampler.digest(keys) == hashlib.sha256(b"a_000001_000011\nb_000002_000012").hexdigest()[:16]


def test_ordering_all_of_kinetics_takes_no_time():
    begin = time.process_time()
    sampler.epoch_order(0, 0, 650_000)
    assert time.process_time() - begin < 1.0
