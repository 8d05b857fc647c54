"""Cases of inference, tiny: equal to the stock project where both compute the same."""

from dataclasses import replace

import pytest
import torch

from point_rend.experiments.benchmark import model_cases
from point_rend.experiments.benchmark.case import Agreement, Case, mask_agreement
from point_rend.experiments.benchmark.instance_cases import (
    POINTREND,
    conv_cases,
    implicit_cases,
    mask_head_pair,
    masks_cases,
)
from point_rend.experiments.benchmark.measuring import Record, measure
from point_rend.experiments.benchmark.pasting_cases import pasting_cases
from point_rend.experiments.benchmark.residual_cases import residual_cases
from point_rend.experiments.benchmark.semantic_cases import semantic_cases
from point_rend.experiments.benchmark.settings import Settings
from tests.experiments.benchmark.planted import TINY, TINY_SEMANTIC

pytest.importorskip("detectron2.projects.point_rend")


def measured(case: Case, settings: Settings) -> Record:
    torch.manual_seed(settings.seed)
    return measure(case, case.build(settings), settings)


def agreement_of(record: Record) -> tuple[float, float]:
    """Differing pixels and boundary of a case whose sides compare pixels."""
    assert record.baseline is not None
    assert record.agreement is not None
    assert record.agreement.differing is not None
    assert record.agreement.boundary is not None
    return record.agreement.differing, record.agreement.boundary


def test_both_sides_have_the_same_weights() -> None:
    ours, stock = mask_head_pair(POINTREND, 4, TINY)
    assert type(ours).__module__.startswith("point_rend.")
    assert type(stock).__module__.startswith("detectron2.projects.point_rend")
    stock_state = stock.state_dict()
    assert stock_state
    assert ours.state_dict().keys() == stock_state.keys()
    for name, value in ours.state_dict().items():
        assert value.data_ptr() == stock_state[name].data_ptr(), name


def test_cases_are_a_grid_of_boxes_and_classes() -> None:
    cases = masks_cases(replace(TINY, boxes=(1, 6), classes=(1, 5)))
    grid = [{"boxes": n, "classes": k} for n in (1, 6) for k in (1, 5)]
    assert [case.parameters for case in cases] == grid
    assert len(masks_cases(TINY)) == 4 * 4


def test_masks_equal_the_stock_heads_and_are_not_flat() -> None:
    boundaries = {masks_cases: 0.0, implicit_cases: 0.0}
    pairwise = [
        *((masks_cases, 1, 5), (masks_cases, 6, 1)),
        *((implicit_cases, 1, 1), (implicit_cases, 6, 5)),
    ]
    for cases, boxes, classes in pairwise:
        (case,) = cases(replace(TINY, boxes=(boxes,), classes=(classes,)))
        differing, boundary = agreement_of(measured(case, TINY))
        assert differing <= 1e-5, case.name
        boundaries[cases] = max(boundaries[cases], boundary)
    assert min(boundaries.values()) > 0.005


def test_the_convolutional_head_is_measured_without_a_comparison() -> None:
    settings = replace(TINY, boxes=(3,), classes=(5,))
    (case,) = conv_cases(settings)
    record = measured(case, settings)
    assert record.baseline_name == "4×conv 28×28"
    assert record.baseline is not None
    assert record.agreement is None


def test_encoded_masks_are_exactly_those_of_detectron2() -> None:
    (case,) = pasting_cases(replace(TINY, boxes=(7,)))
    record = measured(case, TINY)
    assert record.baseline_name == "Detectron2"
    differing, boundary = agreement_of(record)
    assert differing == 0
    assert boundary > 0.005
    assert len(pasting_cases(TINY)) == 2


def test_label_maps_equal_the_stock_heads_at_both_strides() -> None:
    records = [measured(case, TINY_SEMANTIC) for case in semantic_cases(TINY_SEMANTIC)]
    assert [record.parameters["stride"] for record in records] == [16, 4]
    for differing, boundary in map(agreement_of, records):
        assert differing <= 1e-3  # eight pixels
        assert boundary > 0.005


def test_the_residual_head_is_measured_with_the_weights_of_the_standard_head() -> None:
    settings = replace(TINY_SEMANTIC, boxes=(3,), classes=(5,))
    cases = residual_cases(settings)
    assert [case.baseline for case in cases] == ["standard"] * 3
    for case in (cases[0], cases[2]):
        comparison = case.build(settings)
        with torch.no_grad():
            residual, standard = (run() for run in (comparison.ours, comparison.baseline))
        pairs = zip(residual, standard, strict=True)
        assert all(a.shape == b.shape and not torch.equal(a, b) for a, b in pairs)


def test_whole_models_agree_on_the_given_number_of_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def record_sizes(ours: torch.Tensor, baseline: torch.Tensor) -> Agreement:
        sizes.append((len(ours), len(baseline)))
        return mask_agreement(ours, baseline)

    monkeypatch.setattr(model_cases, "mask_agreement", record_sizes)
    settings = replace(TINY_SEMANTIC, boxes=(7,), classes=(5,))
    records = [measured(case, settings) for case in model_cases.model_cases(settings)]
    assert sizes == [(7, 7)]
    assert len(records) == 2
    for record in records:
        differing, boundary = agreement_of(record)
        assert differing <= 1e-3  # eight pixels
        assert boundary > 0.005
        for side in (record.ours, record.baseline):
            assert side is not None
            assert side.head_share is not None
            assert 0 < side.head_share < 1


def test_mixed_precision_is_for_both_sides() -> None:
    settings = replace(TINY, boxes=(2,), classes=(3,), amp="bfloat16")
    (case,) = masks_cases(settings)
    assert agreement_of(measured(case, settings))[0] < 0.05


def test_options_are_for_our_side_only() -> None:
    opts = ("MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", "49")
    settings = replace(TINY, boxes=(4,), classes=(3,), opts=opts)
    (case,) = masks_cases(settings)
    assert agreement_of(measured(case, settings))[0] > 0


def test_the_stock_head_is_expected_to_keep_masks_of_every_class() -> None:
    (large,) = masks_cases(Settings(boxes=(300,), classes=(1203,)))
    assert large.baseline_bytes > 300 * 1203 * 224**2 * 4
