"""Batch norms of regions, whose number only the data decide."""

import copy

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

from point_rend.export.normalization import make_norms_exportable


class Chosen(nn.Module):
    """Normalizes those of its inputs that are wanted."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, wanted: Tensor) -> Tensor:
        return self.norm(x.index_select(0, wanted.nonzero()[:, 0]))


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, FrozenBatchNorm2d])
@torch.no_grad()
def test_an_export_normalizes_any_number_of_regions_as_the_model(kind: type[nn.Module]):
    original = Chosen(kind(3)).eval()
    generator = torch.Generator().manual_seed(0)
    for value in original.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(3, generator=generator) + 0.5)
    model = copy.deepcopy(original)
    make_norms_exportable(model)
    assert isinstance(model.norm, kind)
    assert list(model.state_dict()) == list(original.state_dict())
    x, all_of_them = torch.randn(4, 3, 2, 2, generator=generator), torch.ones(4)
    assert torch.equal(model(x, all_of_them), original(x, all_of_them))
    program = torch.export.export(model, (x, all_of_them)).module()
    for wanted in (torch.zeros(4), torch.tensor([0.0, 1, 0, 0]), all_of_them):
        torch.testing.assert_close(program(x, wanted), original(x, wanted))
