"""The benchmark: what it measures, compares and reports, on heads and images of tiny size."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from point_rend.cli import benchmark
from point_rend.experiments.benchmark import case as case_module
from point_rend.experiments.benchmark import instance_cases as benchmark_cases
from point_rend.experiments.benchmark import measuring, random_inputs, report, semantic_cases
from point_rend.experiments.benchmark import training_cases as benchmark_training
from point_rend.experiments.benchmark.case import (
    Agreement,
    Case,
    Contest,
    Run,
    Settings,
    label_agreement,
    mask_agreement,
)
from tests.tiny_datasets import TINY_MODEL

pytest.importorskip("detectron2.projects.point_rend")

MIB = 2**20


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every case small: its image, its pyramid and its models, on both sides."""
    monkeypatch.setattr(random_inputs, "INSTANCE_IMAGE", (64, 96))
    monkeypatch.setattr(semantic_cases, "SEMANTIC_IMAGE", (64, 128))
    monkeypatch.setattr(random_inputs, "PYRAMID_CHANNELS", 16)
    for name, value in {"IMAGE": (64, 96), "NUM_OBJECTS": 3, "NUM_PROPOSALS": 40}.items():
        monkeypatch.setattr(benchmark_training, name, value)
    semantic = ["MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS"]
    for name, more in (("instance_config", []), ("semantic_config", [*semantic, "256"])):
        read = getattr(benchmark_cases, name)

        def read_tiny(*args: Any, read: Callable = read, more: list[str] = more) -> Any:
            *before, opts = args if isinstance(args[-1], (list, tuple)) else (*args, ())
            return read(*before, [*TINY_MODEL, *more, *opts])

        monkeypatch.setattr(benchmark_cases, name, read_tiny)


def contest(**changes: Any) -> Contest:
    equal = {"ours": lambda: torch.zeros(1, 1, 4, 4), "rival": lambda: torch.zeros(1, 1, 4, 4)}
    return Contest(**{**equal, "compare": mask_agreement, **changes})


def case(rival_bytes: int = 0) -> Case:
    return Case("planted", {"boxes": 1}, "stock", lambda _: contest(), rival_bytes)


# Time


def test_the_sides_run_in_turn_and_the_first_round_is_not_timed() -> None:
    order: list[str] = []
    ticks = iter(range(100))

    def clock() -> float:
        return float(next(ticks))

    runs = [lambda: order.append("ours"), lambda: order.append("rival")]
    seconds = measuring.interleaved_seconds(runs, 3, "cpu", clock=clock)
    assert order == ["ours", "rival"] * 4
    assert seconds == [(1.0,) * 3, (1.0,) * 3]


def test_a_side_is_charged_for_its_own_time_only() -> None:
    now = [0.0]

    def spend(seconds: float) -> Callable[[], None]:
        def run() -> None:
            now[0] += seconds

        return run

    seconds = measuring.interleaved_seconds([spend(2), spend(5)], 2, "cpu", clock=lambda: now[0])
    assert seconds == [(2.0, 2.0), (5.0, 5.0)]


def test_both_sides_get_the_same_time_in_a_round_and_the_median_counts() -> None:
    now, order = [0.0], []
    # The first run is the warm-up; the first of each turn is slow.
    quick = iter([2.0, 4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 5.0, 2.0, 3.0])

    def ours() -> None:
        order.append("ours")
        now[0] += next(quick)

    def rival() -> None:
        order.append("rival")
        now[0] += 10

    seconds = measuring.interleaved_seconds([ours, rival], 2, "cpu", clock=lambda: now[0])
    assert order == ["ours", "rival", *["ours"] * 6, "rival", *["ours"] * 3, "rival"]
    assert seconds == [(1.0, 3.0), (10.0, 10.0)]


def test_a_side_that_takes_no_time_ends_its_turn() -> None:
    assert measuring.interleaved_seconds([int, int], 2, "cpu", clock=lambda: 0.0) == [(0, 0)] * 2


def test_the_time_of_a_side_is_the_median_of_its_runs() -> None:
    assert measuring.Measurement(seconds=(9.0, 1.0, 2.0), peak_bytes=None).median == 2.0


def test_the_share_of_a_head_is_its_time_over_that_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    head = torch.nn.Identity()

    class Clock:
        @staticmethod
        def perf_counter() -> float:
            return now[0]

    def run() -> None:
        now[0] += 3
        head(torch.zeros(1))
        now[0] += 4

    monkeypatch.setattr(benchmark, "time", Clock)
    inside = head.register_forward_hook(lambda *_: now.__setitem__(0, now[0] + 1))
    assert measuring.share_of_time(run, head, 2, "cpu") == 1 / 8
    inside.remove()
    assert not head._forward_hooks
    assert not head._forward_pre_hooks


# Memory


def peak_of_second_run(run: Run) -> int:
    """The first one loads code, whose pages count like any other memory."""
    run()
    peak = measuring.peak_memory(run, "cpu")
    assert peak is not None
    return peak


def test_the_meter_sees_a_large_allocation_that_is_free_again_at_the_end() -> None:
    peak = peak_of_second_run(lambda: torch.ones(48 * MIB // 4).sum())
    assert abs(peak - 48 * MIB) < 2 * MIB


def test_the_meter_sees_what_the_allocator_could_serve_from_freed_memory() -> None:
    def many_small() -> list[torch.Tensor]:
        return [torch.ones(MIB // 16) for _ in range(160)]  # 40 MiB

    assert abs(peak_of_second_run(many_small) - 40 * MIB) < 2 * MIB


def test_the_meter_leaves_out_what_was_held_before() -> None:
    held = torch.ones(48 * MIB // 4)
    assert peak_of_second_run(lambda: held.add_(1)) < 2 * MIB


def test_a_system_without_the_files_of_linux_tells_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError

    monkeypatch.setattr(benchmark.Path, "write_text", refuse)
    assert measuring.peak_memory(lambda: None, "cpu") is None


def test_available_memory_is_part_of_the_machines() -> None:
    pages = benchmark.os.sysconf("SC_PHYS_PAGES") * benchmark.os.sysconf("SC_PAGE_SIZE")
    assert 0 < measuring.available_memory("cpu") <= pages


@pytest.mark.parametrize(("limit", "available"), [("90", 55), ("30", 0), ("max", None)])
def test_available_memory_is_what_a_container_leaves_and_cached_files_give_way(
    limit: str, available: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = "anon 35\nactive_file 10\ninactive_file 15\nslab 0"
    for name, text in {"max": limit, "current": "60", "stat": stat}.items():
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    monkeypatch.setattr(measuring, "CGROUP", tmp_path)
    of_machine = measuring.available_memory("cpu") > 90
    assert of_machine if available is None else measuring.available_memory("cpu") == available


# Agreement


def masks(seed: int = 0) -> torch.Tensor:
    return torch.rand(3, 1, 20, 20, generator=torch.Generator().manual_seed(seed))


def test_equal_masks_agree() -> None:
    agreement = mask_agreement(masks(), masks())
    assert (agreement.differing, agreement.largest) == (0.0, 0.0)


def test_a_planted_difference_of_masks_is_found_exactly() -> None:
    theirs = masks() * 0.25  # all below 0.5
    ours = theirs.clone()
    ours.view(-1)[[5, 77, 400]] += 0.5
    agreement = mask_agreement(ours, theirs)
    assert agreement.differing == 3 / 1200
    assert agreement.largest == pytest.approx(0.5)


def test_a_difference_that_crosses_no_threshold_shows_in_the_probability_only() -> None:
    agreement = mask_agreement(masks() * 0.25 + 0.125, masks() * 0.25)
    assert agreement.differing == 0.0
    assert agreement.largest == pytest.approx(0.125)


def test_masks_of_another_side_are_resized_to_the_rivals() -> None:
    halves = torch.cat((torch.zeros(1, 1, 8, 4), torch.ones(1, 1, 8, 4)), dim=3)
    agreement = mask_agreement(halves[..., ::2, ::2], halves)
    assert agreement.differing == 0.0
    assert agreement.largest == 0.25  # half a cell beside the edge


def test_the_boundary_is_the_share_of_neighbors_that_differ() -> None:
    halves = torch.cat((torch.zeros(1, 1, 8, 4), torch.ones(1, 1, 8, 4)), dim=3)
    assert mask_agreement(halves, halves).boundary == 1 / 7


def test_a_planted_difference_of_label_maps_is_found_exactly() -> None:
    logits = torch.zeros(2, 4, 5)
    logits[0] = 40.0
    changed = logits.clone()
    changed[:, 1, 2] = torch.tensor([0.0, 40.0])
    agreement = label_agreement((changed, changed.argmax(dim=0)), (logits, logits.argmax(dim=0)))
    assert agreement.differing == 1 / 20
    assert agreement.largest == pytest.approx(1.0)


# Inputs


def test_features_vary_slowly_and_have_a_standard_deviation_of_one() -> None:
    noise = random_inputs.smooth_noise(3, (64, 96), torch.Generator().manual_seed(0))
    assert noise.shape == (1, 3, 64, 96)
    assert noise.std().item() == pytest.approx(1.0, abs=1e-5)
    assert (noise[..., 1:] - noise[..., :-1]).std() < 0.6  # √2 if they were independent


def test_boxes_lie_in_the_image_and_range_from_small_to_its_short_side() -> None:
    boxes = random_inputs.random_boxes(500, (800, 1216), torch.Generator().manual_seed(0))
    assert boxes.shape == (500, 4)
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([1216, 800, 1216, 800])).all()
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    assert sides.min() < 30
    assert sides.max() > 600


@pytest.mark.usefixtures("tiny")
def test_both_sides_have_the_same_weights() -> None:
    ours, stock = benchmark_cases.mask_head_pair(benchmark_cases.POINTREND, 4, Settings())
    assert type(ours).__module__.startswith("point_rend.")
    assert type(stock).__module__.startswith("detectron2.projects.point_rend")
    theirs = stock.state_dict()
    assert theirs
    assert ours.state_dict().keys() == theirs.keys()
    for name, value in ours.state_dict().items():
        assert value.data_ptr() == theirs[name].data_ptr(), name


# Cases


def run(*words: str) -> list[measuring.Record]:
    return benchmark.main([*words, "--repeat", "1"])


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("kind", ["masks", "implicit"])
def test_masks_equal_the_stock_heads_and_are_not_flat(kind: str) -> None:
    records = run(kind, "--boxes", "1", "6", "--classes", "1", "5")
    shapes = [{"boxes": n, "classes": k} for n in (1, 6) for k in (1, 5)]
    assert [record.parameters for record in records] == shapes
    for record in records:
        assert record.theirs is not None
        assert record.agreement is not None
        assert record.agreement.differing is not None
        assert record.agreement.differing <= 1e-5
    assert max(record.agreement.boundary for record in records if record.agreement) > 0.005


@pytest.mark.usefixtures("tiny")
def test_the_convolutional_head_is_measured_without_a_comparison() -> None:
    (record,) = run("conv", "--boxes", "3", "--classes", "5")
    assert record.rival == "4×conv 28×28"
    assert record.theirs is not None
    assert record.agreement is None


@pytest.mark.usefixtures("tiny")
def test_label_maps_equal_the_stock_heads_at_both_strides() -> None:
    records = run("semantic")
    assert [record.parameters["stride"] for record in records] == [16, 4]
    for record in records:
        assert record.agreement is not None
        assert record.agreement.differing is not None
        assert record.agreement.differing <= 1e-3  # eight pixels
        assert record.agreement.boundary > 0.005


@pytest.mark.usefixtures("tiny")
def test_whole_models_agree_on_the_given_number_of_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    compare = mask_agreement

    def note(ours: torch.Tensor, theirs: torch.Tensor) -> Agreement:
        sizes.append((len(ours), len(theirs)))
        return compare(ours, theirs)

    monkeypatch.setattr(case_module, "mask_agreement", note)
    records = run("model", "--boxes", "7", "--classes", "5")
    assert sizes == [(7, 7)]
    assert len(records) == 2
    for record in records:
        assert record.agreement is not None
        assert record.agreement.differing is not None
        assert record.agreement.differing <= 1e-3  # eight pixels
        assert record.agreement.boundary > 0.005
        for side in (record.ours, record.theirs):
            assert side is not None
            assert side.head_share is not None
            assert 0 < side.head_share < 1


@pytest.mark.usefixtures("tiny")
def test_training_labels_losses_and_gradients_equal_the_stock_projects() -> None:
    labels, roi_heads, model = run("train", "--classes", "5")
    assert labels.agreement is not None
    assert labels.agreement.differing == 0.0
    assert labels.agreement.largest <= 1e-5
    for record in (roi_heads, model):
        assert record.agreement is not None
        assert record.agreement.largest <= 1e-3


@pytest.mark.usefixtures("tiny")
def test_training_labels_are_neither_all_on_nor_all_off() -> None:
    settings = Settings()
    contest = benchmark_training.train_cases(settings)[0].build(settings)
    cells, points = contest.ours()
    assert cells.dtype == torch.bool
    assert cells.shape[1:] == (7, 7)
    assert points.shape == (len(cells), 196)
    for labels in (cells.float(), points):
        assert 0.05 < labels.mean().item() < 0.95


def test_a_planted_difference_of_training_labels_is_found_exactly() -> None:
    cells, points = torch.ones(2, 3, 3, dtype=torch.bool), torch.zeros(2, 6)
    changed = points.clone()
    changed[0, 4], changed[1, 1] = 0.75, 0.25
    agreement = benchmark_training.training_label_agreement((cells, changed), (cells, points))
    assert agreement.differing == 1 / 30
    assert agreement.largest == 0.75


def step_of(weight: float) -> dict[str, torch.Tensor]:
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(module.weight, weight)
    x = torch.ones(1, requires_grad=True)

    def losses() -> dict[str, torch.Tensor]:
        return {"square": module(x)[0] ** 2}

    figures = benchmark_training.training_step(module, losses, [x], Settings())
    assert module.weight.grad is None
    assert x.grad is None
    return figures


def test_a_step_tells_losses_and_norms_of_gradients_and_leaves_none_behind() -> None:
    figures = {name: value.item() for name, value in step_of(-2.0).items()}
    assert figures == {"square": 4.0, "gradient of weight": 4.0}


def test_equal_steps_agree() -> None:
    assert benchmark_training.step_agreement(step_of(3.0), step_of(3.0)).largest == 0.0


def test_the_largest_relative_difference_of_losses_and_gradients_is_found() -> None:
    agreement = benchmark_training.step_agreement(step_of(4.0), step_of(2.0))
    assert agreement.largest == 3.0  # 16 against 4; the gradients are 8 and 4


def test_a_loss_that_one_side_lacks_is_an_error() -> None:
    other = step_of(2.0) | {"more": torch.zeros(())}
    with pytest.raises(ValueError, match=r"the sides differ in \['more'\]"):
        benchmark_training.step_agreement(step_of(2.0), other)


@pytest.mark.usefixtures("tiny")
def test_mixed_precision_is_for_both_sides() -> None:
    half, full = Settings(amp="bfloat16"), Settings()
    x = torch.ones(2, 2)
    assert measuring.as_asked(lambda: x @ x, half, training=False)().dtype == torch.bfloat16
    assert measuring.as_asked(lambda: x @ x, full, training=False)().dtype == torch.float32
    (record,) = run("masks", "--boxes", "2", "--classes", "3", "--amp", "bfloat16")
    assert record.agreement is not None
    assert record.agreement.differing < 0.05


@pytest.mark.usefixtures("tiny")
def test_options_are_for_our_side_only() -> None:
    opts = ["--opts", "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", "49"]
    (record,) = run("masks", "--boxes", "4", "--classes", "3", *opts)
    assert record.agreement is not None
    assert record.agreement.differing > 0


def test_a_case_that_does_not_fit_is_reported_and_not_run_with_the_rival() -> None:
    def must_not_run() -> None:
        raise AssertionError("the rival was run")

    record = measuring.measure(
        case(rival_bytes=2**60), contest(rival=must_not_run), Settings(repeat=2)
    )
    assert record.theirs is None
    assert len(record.ours.seconds) == 2
    row = dict(zip(report.HEADINGS, report.table_row(record), strict=True))
    assert row["time rival"] == "does not fit (≈ 1073741824.0 GiB)"
    assert row["time ours"].endswith("ms")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("Tried to allocate 67 GiB"), "does not fit"),
        (RuntimeError("scatter(): Float | Half\nmore"), "fails: scatter(): Float / Half"),
    ],
)
def test_a_rival_that_fails_is_reported_and_ours_is_measured(error: Exception, told: str) -> None:
    def fail() -> None:
        raise error

    record = measuring.measure(case(), contest(rival=fail), Settings(repeat=2))
    assert record.theirs is None
    assert len(record.ours.seconds) == 2
    row = dict(zip(report.HEADINGS, report.table_row(record), strict=True))
    assert row["time rival"] == told


@pytest.mark.usefixtures("tiny")
def test_a_step_that_breaks_off_leaves_no_gradients_and_gradients_are_no_half_precision() -> None:
    layer = torch.nn.Linear(3, 3)
    in_backward = []

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
            in_backward.append(torch.is_autocast_enabled("cpu"))
            if len(in_backward) > 1:
                layer.weight.grad = torch.ones(3, 3)
                raise torch.OutOfMemoryError("out of memory")
            return gradient

    def losses() -> dict[str, torch.Tensor]:
        assert torch.is_autocast_enabled("cpu")
        return {"loss": Backward.apply(layer(torch.ones(2, 3)).float()).sum()}

    settings = Settings(amp="bfloat16")
    figures = benchmark_training.training_step(layer, losses, [], settings)
    assert figures.keys() == {"loss", "gradient of weight", "gradient of bias"}
    with pytest.raises(torch.OutOfMemoryError):
        benchmark_training.training_step(layer, losses, [], settings)
    assert in_backward == [False, False]
    assert layer.weight.grad is None


def test_a_weight_is_converted_in_each_run_anew() -> None:
    weight, converted = torch.ones(2, 2, requires_grad=True), []

    class Conversions(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._to_copy.default and args[0] is weight:
                converted.append(1)
            return function(*args, **(kwargs or {}))

    settings = Settings(amp="bfloat16")
    run = measuring.as_asked(lambda: weight @ weight @ weight, settings, training=False)
    with Conversions():
        run()
        once = len(converted)
        run()
    assert once >= 1
    assert len(converted) == 2 * once


def test_the_stock_head_is_expected_to_hold_masks_of_every_class() -> None:
    (large,) = benchmark_cases.masks_cases(Settings(boxes=(300,), classes=(1203,)))
    assert large.rival_bytes > 300 * 1203 * 224**2 * 4


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 37, 64])
def test_the_largest_batch_is_the_last_that_does_not_run_out_of_memory(limit: int) -> None:
    tried = []

    def step(count: int) -> None:
        tried.append(count)
        if count > limit:
            raise torch.OutOfMemoryError("out of memory")

    assert measuring.largest_batch(step) == limit
    assert len(tried) <= 2 * len(f"{limit:b}") + 1
    assert len(set(tried)) == len(tried)


def test_another_error_of_a_batch_is_not_taken_for_a_lack_of_memory() -> None:
    def step(_: int) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        measuring.largest_batch(step)


@pytest.mark.usefixtures("tiny")
def test_steps_of_the_model_take_any_number_of_images() -> None:
    settings = Settings(classes=(5,))
    contest = benchmark_training.train_cases(settings)[2].build(settings)
    assert contest.of_images is not None
    ours, stock = contest.of_images
    for count in (1, 3):
        figures = ours(count)
        assert benchmark_training.step_agreement(figures, stock(count)).largest <= 1e-3
        assert figures.keys() == contest.ours().keys()


# Report


def record(ours: float, theirs: float | None) -> measuring.Record:
    sides = [
        None if seconds is None else measuring.Measurement((seconds,) * 3, int(seconds * MIB))
        for seconds in (ours, theirs)
    ]
    assert sides[0] is not None
    agreement = Agreement(differing=1e-6, largest=0.25, boundary=0.1)
    return measuring.Record("a head", {"boxes": 2}, "stock", sides[0], sides[1], 5, agreement)


def test_the_largest_batches_stand_below_the_table() -> None:
    measured = benchmark.dataclasses.replace(record(1, 2), largest_batches=(40, 28))
    text = report.markdown([measured, record(1, 2)], WHERE, Settings())
    assert text.splitlines()[-1] == "a head: 40 images fit, with stock 28."


WHERE = {"cpu": "a CPU", "threads": 2, "gpu": None, "torch": "1", "detectron2": "0", "python": "3"}


def test_a_row_has_the_ratios_of_rival_to_ours() -> None:
    row = report.table_row(record(2.0, 16.0))
    assert len(row) == len(report.HEADINGS)
    assert row[2:8] == ["2000 ms", "16000 ms", "8.0", "2 MiB", "16 MiB", "8.0"]
    assert row[8:10] == ["1.0e-06", "2.5e-01"]


def test_the_ratio_is_that_of_the_rounds_and_not_of_the_medians() -> None:
    sides = [
        measuring.Measurement(seconds, peak_bytes=None)
        for seconds in ((1.0, 2.0, 3.0), (8.0, 10.0, 30.0))  # 8, 5 and 10 times
    ]
    measured = measuring.Record("a head", {}, "stock", sides[0], sides[1], 5, None)
    assert report.table_row(measured)[2:5] == ["2000 ms", "10000 ms", "8.0"]


def test_the_table_is_markdown_and_names_the_machine() -> None:
    text = report.markdown([record(1.0, 2.0)] * 2, WHERE, Settings(repeat=3))
    notes, empty, *rows = text.splitlines()
    assert notes.startswith("a CPU, 2 thread(s), torch 1, Detectron2 0, medians of 3 turns")
    assert empty == ""
    assert len(rows) == 4
    assert len({row.count("|") for row in rows}) == 1


def test_this_machine_is_named() -> None:
    where = report.machine("cpu")
    assert where.keys() == WHERE.keys()
    assert where["torch"] == torch.__version__
    assert where["threads"] == torch.get_num_threads()
    assert where["cpu"]


@pytest.mark.usefixtures("tiny")
def test_the_output_holds_every_time_the_table_and_a_picture(tmp_path: Path) -> None:
    flags = ["masks", "--boxes", "1", "2", "--classes", "3", "--output", str(tmp_path / "new")]
    records = benchmark.main([*flags, "--repeat", "3", "--seed", "5"])
    names = {"benchmark_masks.json", "benchmark_masks.md", "benchmark_masks.png"}
    assert {file.name for file in (tmp_path / "new").iterdir()} == names

    content = json.loads((tmp_path / "new" / "benchmark_masks.json").read_text())
    assert content.keys() == {"machine", "settings", "records"}
    assert content["settings"]["seed"] == 5
    assert len(content["records"]) == len(records) == 2
    for entry, measured in zip(content["records"], records, strict=True):
        assert entry.keys() >= {"name", "parameters", "rival", "ours", "theirs", "agreement"}
        assert measured.theirs is not None
        for key, side in (("ours", measured.ours), ("theirs", measured.theirs)):
            assert entry[key]["seconds"] == list(side.seconds)
            assert len(side.seconds) == 3
            assert entry[key]["median"] == side.median
            assert entry[key]["peak_bytes"] == side.peak_bytes
        assert entry["agreement"].keys() == {"differing", "largest", "boundary"}

    table = (tmp_path / "new" / "benchmark_masks.md").read_text()
    assert all(f"| {record.name} | stock |" in table for record in records)
    picture = cv2.imread(str(tmp_path / "new" / "benchmark_masks.png"))
    assert picture is not None
    assert picture.std() > 0


def test_a_rival_that_was_not_run_leaves_a_gap_in_the_report(tmp_path: Path) -> None:
    settings = Settings()
    records = [record(1.0, None)]
    data = report.as_json(records, WHERE, settings)
    assert json.loads(data)["records"][0]["theirs"] is None
    report.save_report(tmp_path, "gap", records, "table", data)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("theirs", [None, 0.0])
def test_what_took_no_measurable_memory_is_drawn_as_nothing(
    tmp_path: Path, theirs: float | None
) -> None:
    report.save_report(tmp_path, "nothing", [record(0.0, theirs)], "table", "{}")
    assert cv2.imread(str(tmp_path / "nothing.png")).std() > 0


def test_a_difference_that_is_not_a_number_is_none_in_json() -> None:
    agreement = Agreement(largest=float("nan"), differing=float("inf"))
    measured = benchmark.dataclasses.replace(record(1, 2), agreement=agreement)
    data = report.as_json([measured], WHERE, Settings())
    written = json.loads(data, parse_constant=lambda name: pytest.fail(name))["records"][0]
    assert written["agreement"] == {"largest": None, "differing": None, "boundary": None}


def test_what_was_measured_is_kept_when_a_later_case_breaks_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("out of memory")

    made = [contest(), contest(ours=fail)]
    cases = [Case(f"case {n}", {}, "stock", lambda _, it=it: it) for n, it in enumerate(made)]
    monkeypatch.setitem(benchmark.CASES, "masks", lambda _: cases)
    with pytest.raises(torch.OutOfMemoryError):
        benchmark.main(["masks", "--repeat", "1", "--output", str(tmp_path)])
    (entry,) = json.loads((tmp_path / "benchmark_masks.json").read_text())["records"]
    assert entry["name"] == "case 0"


def test_what_cannot_be_written_whole_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.png").write_text("old")

    def fail(_: Any, file: BinaryIO, **__: Any) -> None:
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="no space left"):
        report.save_report(tmp_path, "x", [], "", "")
    assert (tmp_path / "x.png").read_text() == "old"


# Errors


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["everything"], "invalid choice: 'everything'"),
        (["masks", "--boxes", "0"], "expected a whole number of 1 or more, got '0'"),
        (["masks", "--repeat", "-1"], "expected a whole number of 1 or more, got '-1'"),
        (["masks", "--amp", "float8"], "invalid choice: 'float8'"),
        (["masks", "--device", "abacus"], "--device abacus"),
        (["masks", "--opts", "MODEL.NONE", "1"], "unknown config key MODEL.NONE"),
        (["masks", "--opts", "MODEL.MASK_ON"], "expected pairs KEY VALUE"),
        (
            ["masks", "--output", f"{__file__}/folder"],
            f"--output {__file__}/folder cannot be written: ",
        ),
        (
            ["masks", "--boxes", "1", "--opts", "MODEL.POINT_HEAD.NUM_FC", "2"],
            "--opts change the weights, e.g. point_head.fc3.bias",
        ),
    ],
)
def test_a_wrong_word_is_one_clear_error(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(words)
    assert stopped.value.code == 2
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in last_line
    assert message in last_line


def test_a_gpu_that_is_not_there_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        benchmark.main(["masks", "--device", "cuda"])
    assert "--device cuda: torch finds no GPU here" in capsys.readouterr().err


def test_a_failure_of_a_head_is_not_taken_for_a_wrong_word() -> None:
    def fail() -> None:
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        measuring.measure(case(), contest(ours=fail), Settings(repeat=1))
