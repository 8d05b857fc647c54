"""Samples at stream positions, and their packing."""

import pickle
import random
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from point_rend.data.loader.order import StreamPosition
from point_rend.data.loader.samples import Sample, Samples
from point_rend.data.loader.transport import pack, unpack
from point_rend.ground_truth.shared_masks import SharedMasks
from tests.runs import files_limited_to

SEED = 3


class Noise:
    """A mapper with random samples that refuses some records."""

    def __init__(self, *refused: int) -> None:
        self.refused = refused

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        if record["id"] in self.refused:
            raise ValueError(f"image {record['id']} cannot be used")
        noise = random.random(), float(np.random.rand()), float(torch.rand(()))
        return record | {"noise": noise}


def records(count: int = 5) -> Any:
    return [{"id": number} for number in range(count)]


def test_a_sample_is_a_function_of_seed_and_position() -> None:
    samples = Samples(records(), Noise(), seed=SEED)
    wanted = [StreamPosition(position, position % 5) for position in range(8)]
    once = {position: samples[position] for position in wanted}
    again = {position: samples[position] for position in reversed(wanted)}
    assert once == again
    assert len({sample.data["noise"] for sample in once.values()}) == len(wanted)
    others = Samples(records(), Noise(), seed=SEED + 1)
    assert all(
        others[position].data["noise"] != once[position].data["noise"] for position in wanted
    )


def test_drawing_a_sample_does_not_change_the_generators_of_the_process() -> None:
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    Samples(records(), Noise(0), seed=SEED, attempts=2)[StreamPosition(0, 0)]
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


def test_an_unusable_record_is_reported_and_not_raised() -> None:
    sample = Samples(records(), Noise(2), seed=SEED)[StreamPosition(9, 2)]
    assert sample == Sample(StreamPosition(9, 2), None, ("image 2 cannot be used",))


def test_the_next_records_replace_unusable_ones() -> None:
    samples = Samples(records(), Noise(3, 4), seed=SEED, attempts=3)
    sample = samples[StreamPosition(9, 3)]
    assert sample.data is not None
    assert sample.data["id"] == 0
    assert sample.faults == ("image 3 cannot be used", "image 4 cannot be used")
    assert Samples(records(), Noise(3, 4), seed=SEED, attempts=2)[StreamPosition(9, 3)].data is None


def test_a_bug_of_the_mapper_is_raised() -> None:
    with pytest.raises(KeyError):
        Samples([{}], Noise(), seed=SEED)[StreamPosition(0, 0)]  # type: ignore[arg-type]


# Packing


def content() -> dict[str, Any]:
    instances = Instances((40, 50))
    instances.gt_boxes = Boxes(torch.rand(3, 4))
    instances.gt_masks = BitMasks(torch.rand(3, 40, 50) > 0.5)
    return {"image": torch.rand(3, 40, 50), "instances": instances, "image_id": 7, "none": None}


def tensors(given: dict[str, Any]) -> list[torch.Tensor]:
    instances = given["instances"]
    return [given["image"], instances.gt_boxes.tensor, instances.gt_masks.tensor]


def test_tensors_are_moved_to_shared_memory_wherever_they_are() -> None:
    given = content()
    expected = [tensor.clone() for tensor in tensors(given)]
    received = unpack(pack(given))
    assert received["image_id"] == 7
    assert all(tensor.is_shared() for tensor in tensors(received))
    assert all(one is other for one, other in zip(tensors(received), tensors(given), strict=True))
    assert all(map(torch.equal, tensors(received), expected))


def test_a_packed_sample_needs_no_more_shared_memory() -> None:
    given = content()
    masks = SharedMasks.of(given["instances"].gt_masks, (40, 50))  # pickling makes its tensors
    parcel = pack(masks)
    with files_limited_to(0):
        sent = ForkingPickler.dumps(parcel)
    received = unpack(pickle.loads(sent))
    assert torch.equal(received.tensor, masks.tensor)


@pytest.mark.parametrize("limit", [0, 10_000])  # nothing fits, the image does not
def test_without_room_in_shared_memory_everything_is_pickled(limit: int) -> None:
    given = content()
    expected = [tensor.clone() for tensor in tensors(given)]
    with files_limited_to(limit):
        parcel = pack(given)
    assert isinstance(parcel, bytes)
    received = unpack(parcel)
    assert received["image_id"] == 7
    assert all(map(torch.equal, tensors(received), expected))
