"""Shared inference for the evaluators of several data sets."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from torch import nn

from point_rend.evaluation.shared_inference import evaluate_with_shared_inference, group_by_images
from tests.tiny_datasets import process_state_restored


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    with process_state_restored():
        yield


class Doubling(nn.Module):
    """Doubles image ids and records the images it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, inputs: Sequence[dict[str, Any]]) -> list[int]:
        self.seen += [record["image_id"] for record in inputs]
        return [2 * record["image_id"] for record in inputs]


class Recording(DatasetEvaluator):
    """Returns the outputs it receives."""

    def reset(self) -> None:
        self.given: dict[int, int] = {}
        self.files: list[str] = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[int]) -> None:
        assert len(inputs) == len(outputs)
        self.files += [record["file_name"] for record in inputs]
        self.given |= {record["image_id"]: out for record, out in zip(inputs, outputs, strict=True)}

    def evaluate(self) -> dict[str, Any]:
        return {"task": {f"image {k}": float(v) for k, v in self.given.items()}}


def record(number: int, folder: str = "a", **changes: Any) -> dict[str, Any]:
    sides = {"height": 40, "width": 60}
    return {"file_name": f"{folder}/{number}.png", "image_id": number} | sides | changes


def run(**sets: list[dict[str, Any]]) -> tuple[dict[str, Any], list[int]]:
    """Evaluate data sets; return the results and the images that the model saw."""
    for name, records in sets.items():
        DatasetCatalog.register(name, lambda records=records: records)
    model = Doubling()

    def loader(name: str) -> list[list[dict[str, Any]]]:
        return [sets[name][start : start + 2] for start in range(0, len(sets[name]), 2)]

    # Detectron2's loop needs some warm-up batches and the length.
    results = evaluate_with_shared_inference(model, list(sets), loader, lambda _name: Recording())
    return results, model.seen


def expected(*numbers: int) -> dict[str, Any]:
    return {"task": {f"image {number}": 2.0 * number for number in numbers}}


def test_a_data_set_contained_in_another_shares_its_inference() -> None:
    some, more = [record(4), record(2)], [record(number) for number in range(1, 6)]
    results, seen = run(some=some, more=more)
    assert seen == [1, 2, 3, 4, 5]
    assert list(results) == ["some", "more"]
    assert results["some"] == expected(2, 4)
    assert results["more"] == expected(1, 2, 3, 4, 5)


def test_data_sets_that_overlap_only_partly_do_not_share_inference() -> None:
    results, seen = run(first=[record(1), record(2)], second=[record(2), record(3)])
    assert sorted(seen) == [1, 2, 2, 3]
    assert results == {"first": expected(1, 2), "second": expected(2, 3)}


@pytest.mark.parametrize(
    "change", [{"image_id": 7}, {"file_name": "b/1.png"}, {"height": 80}, {"width": 30}]
)
def test_another_file_id_or_size_is_another_image(change: dict[str, Any]) -> None:
    results, seen = run(first=[record(1), record(2)], second=[record(1) | change])
    assert len(seen) == 3
    assert results["second"] == expected(change.get("image_id", 1))


def test_two_paths_of_a_folder_are_the_same_folder() -> None:
    _, seen = run(first=[record(1)], second=[record(1, folder="b/../a")])
    assert seen == [1]


@pytest.mark.parametrize("shared", [False, True])
def test_data_sets_without_sizes_are_evaluated_on_all_their_images(shared: bool) -> None:
    def unsized(*numbers: int, folder: str = "a") -> list[dict[str, Any]]:
        return [{"file_name": f"{folder}/{n}.png", "image_id": n} for n in numbers]

    first, second = unsized(1, 2), unsized(*((2,) if shared else (3,)), folder="b/../a")
    sets = {"first": first, "second": second}
    evaluators = {name: Recording() for name in sets}
    for name, records in sets.items():
        DatasetCatalog.register(name, lambda records=records: records)

    def loader(name: str) -> list[list[dict[str, Any]]]:  # mappers add the sizes of the images
        return [[entry | {"height": 40, "width": 60} for entry in sets[name]]]

    model = Doubling()
    results = evaluate_with_shared_inference(model, list(sets), loader, evaluators.__getitem__)
    assert results == {"first": expected(1, 2), "second": expected(*((2,) if shared else (3,)))}
    assert model.seen == ([1, 2] if shared else [1, 2, 3])
    for name, records in sets.items():  # under the names that the sets themselves use
        assert evaluators[name].files == [entry["file_name"] for entry in records]


def test_the_largest_data_set_of_a_group_comes_first() -> None:
    keys = [(name, 0, 0, 0) for name in "abc"]
    sets = {"a": keys[:1], "c": keys[2:], "abc": keys, "none": []}
    groups = group_by_images({name: frozenset(content) for name, content in sets.items()})
    assert groups == [["abc", "a", "c", "none"]]


def test_evaluation_needs_no_gradients_and_restores_the_mode_of_the_model() -> None:
    model = Doubling().train()
    flags = []
    model.register_forward_pre_hook(
        lambda module, _args: flags.append((module.training, torch.is_grad_enabled()))
    )
    DatasetCatalog.register("one", lambda: [record(1)])
    evaluate_with_shared_inference(
        model, ["one"], lambda _name: [[record(1)]], lambda _name: Recording()
    )
    assert flags == [(False, False)]
    assert model.training
