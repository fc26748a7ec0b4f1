"""Batches of like aspect ratio: the original's, and what ours promise besides."""

import itertools
import json

import numpy as np
import pytest

from glip_hf.data import samplers
from glip_hf.data.samplers import GroupedBatchSampler, aspect_groups, contiguous_shard

GROUPS = np.array([0, 1, 0, 1, 0, 0, 1, 1, 1, 0])


def grouped_batches(*arguments):
    return [batch[batch >= 0].tolist() for batch in samplers.grouped_batches(*arguments)]


def test_groups():
    assert aspect_groups(np.array([[10, 20], [20, 10], [5, 5]])).tolist() == [0, 1, 1]


def test_batches_by_hand():
    # An example of the original, data/transforms/samplers.json.
    order = [5, 6, 0, 2, 1, 4, 9, 7, 3, 8]
    assert grouped_batches(order, GROUPS, 2, "keep") == [[5, 0], [6, 1], [2, 4], [9], [7, 3], [8]]
    assert grouped_batches(order, GROUPS, 2, "drop") == [[5, 0], [6, 1], [2, 4], [7, 3]]
    assert grouped_batches(order, GROUPS, 2, "wrap") == [[5, 0], [6, 1], [2, 4], [9, 5], [7, 3], [8, 6]]
    assert grouped_batches([], GROUPS, 2) == []
    assert grouped_batches([3], GROUPS, 4, "wrap") == [[3, 3, 3, 3]]


def test_batches_of_the_original(shared):
    recorded = json.loads((shared / "data" / "transforms" / "samplers.json").read_text())
    for case in recorded["grouped_batch_sampler"]:
        how = "drop" if case["drop_uneven"] else "keep"
        groups = np.array(case["group_ids"])
        assert grouped_batches(case["sampler_order"], groups, case["batch_size"], how) == case["batches"]
    for case in recorded["distributed_sampler"]:
        order, world = np.arange(case["dataset_len"]), case["num_replicas"]
        shards = [contiguous_shard(order, rank, world).tolist() for rank in range(world)]
        assert shards == case["indices_per_rank"]
    for case in recorded["iteration_based"]:
        # The original begins the data anew when it resumes at iteration 3; ours goes on with batch 3.
        sampler = GroupedBatchSampler(4, 1, shuffle=False, num_batches=case["num_iterations"])
        sampler.advance(case["start_iter"])
        produced = [batch[0][1] for batch in sampler]
        assert len(produced) == len(case["produced"]) and len(sampler) == case["len"]
        assert produced == [i % 4 for i in range(case["start_iter"], case["num_iterations"])]


def take(sampler, count):
    return list(itertools.islice(iter(sampler), count))


def test_an_epoch_has_every_sample_once():
    sampler = GroupedBatchSampler(GROUPS, 1, seed=3)
    batches = take(sampler, 20)
    for epoch in (0, 1):
        keys = [key for [key] in batches[10 * epoch : 10 * epoch + 10]]
        assert sorted(keys) == [(epoch, index) for index in range(10)]
    assert [k[1] for [k] in batches[:10]] != [k[1] for [k] in batches[10:]]
    assert take(GroupedBatchSampler(GROUPS, 1, seed=4), 10) != batches[:10]


def test_batches_are_of_one_group():
    for batch in take(GroupedBatchSampler(GROUPS, 2), 30):
        assert len(batch) == 2 and len({GROUPS[index] for _, index in batch}) == 1


def test_two_processes_are_one_with_the_doubled_batch():
    groups = np.random.default_rng(0).integers(0, 2, 101)
    one = take(GroupedBatchSampler(groups, 6, seed=1), 40)
    two = [take(GroupedBatchSampler(groups, 3, seed=1, rank=rank, world_size=2), 40) for rank in range(2)]
    assert one == [a + b for a, b in zip(*two, strict=True)]


def test_contiguous_processes_have_equally_many_batches():
    groups = np.random.default_rng(0).integers(0, 2, 101)
    samplers = [
        GroupedBatchSampler(groups, 4, seed=1, rank=r, world_size=3, shard="contiguous", incomplete="drop")
        for r in range(3)
    ]
    epochs = [sampler.epoch_batches(5) for sampler in samplers]
    assert len({len(epoch) for epoch in epochs}) == 1
    seen = [set(itertools.chain(*epoch)) for epoch in epochs]
    assert len(seen[0] & seen[1]) <= 1 and len(seen[1] & seen[2]) <= 1  # the wrapped ones only


@pytest.mark.parametrize("used", [0, 1, 4, 5, 11, 23])
def test_resumed_equals_uninterrupted(used):
    whole = take(GroupedBatchSampler(GROUPS, 2, seed=7), 30)
    first = GroupedBatchSampler(GROUPS, 2, seed=7)
    take(first, used + 3)  # a loader reads ahead
    first.advance(used)
    again = GroupedBatchSampler(GROUPS, 2, seed=7)
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert take(again, 30 - used) == whole[used:]
    assert again.epoch == used // 4


def test_number_of_batches_in_all():
    sampler = GroupedBatchSampler(GROUPS, 2, num_batches=9)
    assert len(list(sampler)) == len(sampler) == 9
    sampler.advance(7)
    assert len(list(sampler)) == 2


def test_resume_with_another_run_is_refused():
    state = GroupedBatchSampler(GROUPS, 2, seed=7).state_dict()
    for changed in (
        GroupedBatchSampler(GROUPS, 2, seed=8),
        GroupedBatchSampler(GROUPS, 4, seed=7),
        GroupedBatchSampler(GROUPS[:8], 2, seed=7),
    ):
        with pytest.raises(ValueError, match="the order of samples differs"):
            changed.load_state_dict(state)
    # Another number of processes with the same batch in all is the same run.
    GroupedBatchSampler(GROUPS, 1, seed=7, rank=1, world_size=2).load_state_dict(state)


def test_impossible_settings():
    with pytest.raises(ValueError, match="no full batch of 8 for 1 processes"):
        take(GroupedBatchSampler(GROUPS, 8), 1)
    assert len(take(GroupedBatchSampler(GROUPS, 8, incomplete="wrap"), 1)[0]) == 8
    with pytest.raises(ValueError, match="rank=2"):
        GroupedBatchSampler(GROUPS, 1, rank=2, world_size=2)
    with pytest.raises(ValueError, match="'drop' or 'wrap'"):
        GroupedBatchSampler(GROUPS, 1, world_size=2, incomplete="keep")
    with pytest.raises(ValueError, match="incomplete='half'"):
        GroupedBatchSampler(GROUPS, 1, incomplete="half")


def test_resuming_in_a_late_epoch_draws_only_that_epoch(monkeypatch):
    drawn, draw = [], samplers.grouped_batches
    monkeypatch.setattr(samplers, "grouped_batches", lambda *arguments: drawn.append(1) or draw(*arguments))
    for incomplete in ("drop", "wrap", "keep"):
        fresh = GroupedBatchSampler(GROUPS, 3, seed=7, incomplete=incomplete)
        whole = take(fresh, 5 * len(fresh) + 1)
        drawn.clear()
        late = GroupedBatchSampler(GROUPS, 3, seed=7, incomplete=incomplete)
        late.advance(5 * len(late))
        assert late.epoch == 5 and not drawn
        assert take(late, 1) == whole[-1:] and len(drawn) == 1
    # Of groups that differ from epoch to epoch, each epoch counts its own.
    several = [np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])]
    sampler = GroupedBatchSampler(lambda epoch: several[epoch % 2], 2)
    assert [sampler.epoch_length(epoch) for epoch in range(3)] == [1, 2, 1]
    sampler.advance(4)
    assert {key: sampler.state_dict()[key] for key in ("epoch", "batch", "total")} == {
        "epoch": 3,
        "batch": 0,
        "total": 4,
    }


def test_the_batches_of_an_epoch_are_one_array():
    sampler = GroupedBatchSampler((np.arange(10_000) % 3 == 0).astype(np.int8), 2)
    batches = sampler.epoch_batches(0)
    assert isinstance(batches, np.ndarray) and batches.shape == (len(sampler), 2) == (5000, 2)
    part = GroupedBatchSampler(sampler.groups(0), 1, rank=1, world_size=2).epoch_batches(0)
    assert np.array_equal(part, batches[:, 1:]) and part.base is None  # the others' shares are not kept alive
