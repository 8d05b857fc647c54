"""Pretended CUDA tensors: they refuse what CUDA refuses, and count what a GPU would do."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from point_rend import point_sample
from tests.pretended_cuda import DeviceMixUpError, Record, pretended_cuda

CUDA = torch.device("cuda:0")


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)
    )


def train(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Take two steps and return the loss and the weights."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        loss = network(images).square().sum()
        loss.backward()
        optimizer.step()
    return [loss.detach(), *network.state_dict().values()]


def test_a_training_gives_the_values_of_the_cpu():
    images = torch.randn(4, 2, 4, 4)
    expected = train(small_network(), images)
    with pretended_cuda():
        got = train(small_network().to("cuda"), images.to("cuda"))
        assert all(x.device == CUDA and x.is_cuda for x in got)
        for a, b in zip(got, expected, strict=True):
            assert torch.equal(a.cpu(), b)


@pytest.mark.parametrize(
    "mix_up",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.cat((x, torch.ones(3))),
        lambda x: torch.stack((x[0], torch.ones(()))),
        lambda x: torch.zeros(3, 3)[x.long()],
        lambda x: x.index_put_((x.long(),), torch.ones(3)),
        lambda x: nn.Linear(3, 2)(x),
        lambda x: torch.where(x > 0, x, torch.ones(3)),
    ],
)
def test_a_mix_up_of_devices_is_an_error_that_names_operation_and_line(
    mix_up: Callable[[Tensor], Tensor], cuda: Record
):
    with pytest.raises(DeviceMixUpError, match=r"aten\.\w+.* in tests/test_pretended_cuda\.py:\d+"):
        mix_up(torch.zeros(3, device="cuda"))
    assert cuda.num_waits == 0, cuda


@pytest.mark.parametrize(
    "crossing",
    [
        lambda x: x + torch.ones(()),
        lambda x: x * 2,
        lambda x: torch.where(x > 0, x, torch.ones(())),
        lambda x: x.masked_fill(x > 0, 1.0),
        lambda x: torch.zeros(3).copy_(x),
        lambda x: x[torch.tensor([0, 1])],
    ],
)
def test_what_cuda_allows_between_devices_is_allowed(crossing: Callable, cuda: Record):
    assert crossing(torch.zeros(3, device="cuda")).shape[0] in (2, 3)
    assert cuda.num_waits <= 1


def test_another_device_than_the_first_does_not_exist(cuda: Record):
    with pytest.raises(RuntimeError, match="cuda:1"):
        torch.zeros(3, device="cuda:1")
    assert torch.cuda.device_count() == 1
    assert not cuda.operations


def test_numpy_cannot_read_the_device(cuda: Record):
    tensor = torch.zeros(3, device="cuda")
    for convert in (lambda x: x.numpy(), np.asarray, np.array):
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            convert(tensor)
    assert cuda.num_waits == 0


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x[0].item(),
        lambda x: bool(x[0]),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x.nonzero(),
        lambda x: x[x > 1],
        lambda x: torch.where(x > 1),
        lambda x: x.unique(),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: x[torch.tensor([0])],
        lambda x: torch.equal(x, x),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: torch.ones(3).to(x.device),
        lambda x: torch.ones(3).to(x.device, non_blocking=False),
        lambda _: torch.cuda.synchronize(),
    ],
)
def test_a_wait_is_counted_once_at_its_line(wait: Callable, cuda: Record):
    tensor = torch.arange(3.0, device="cuda")
    cuda.clear()
    wait(tensor)
    ((line, kind),) = cuda.waits
    assert line.startswith("tests/test_pretended_cuda.py:"), line
    assert cuda.num_waits == 1, cuda
    assert kind in str(cuda)


@pytest.mark.parametrize(
    "operate",
    [
        lambda x: x.masked_fill(x > 1, 0.0),
        lambda x: x[1:].view(2, 1).expand(2, 4)[None],
        lambda x: x.repeat_interleave(x.long(), output_size=3),
        lambda x: x[x.long()],
        lambda x: torch.zeros(4, device=x.device),
        lambda x: x.to("cuda"),
        lambda x: x.sort().values.cumsum(0),
    ],
)
def test_other_operations_do_not_wait(operate: Callable, cuda: Record):
    tensor = torch.arange(3.0, device="cuda")
    cuda.clear()
    assert operate(tensor).device == CUDA
    assert cuda.num_waits == 0, cuda


def test_operations_are_counted_without_views_and_allocations(cuda: Record):
    tensor = torch.zeros(2, 3, device="cuda")
    cuda.clear()
    torch.empty_like(tensor.view(3, 2).t()[None, :, 1:])
    assert cuda.num_operations == 0, cuda
    (tensor * 2 + 1).sum()
    assert cuda.names == {"mul": 1, "add": 1, "sum": 1}
    (line,) = cuda.operations
    assert line.endswith("test_operations_are_counted_without_views_and_allocations")
    assert cuda.num_operations == 3


def test_copies_are_recorded_with_their_memory(cuda: Record):
    pageable = torch.ones(3)
    pinned = pageable.pin_memory()
    assert pinned.is_pinned()
    assert not pageable.is_pinned()
    for source in (pageable, pinned[1:]):
        source.to("cuda", non_blocking=True)
    pageable.to("cuda")
    copies = [(x.to_device, x.non_blocking, x.pinned) for x in cuda.copies.elements()]
    assert copies == [(True, True, False), (True, True, True), (True, False, False)]
    assert cuda.num_waits == 1, cuda


def test_lines_are_those_of_the_package(cuda: Record):
    features, coords = torch.zeros(2, 3, 4, 4, device="cuda"), torch.zeros(2, 5, 2)
    with pytest.raises(
        DeviceMixUpError, match=r"point_rend/rendering/sampling\.py:\d+ point_sample"
    ):
        point_sample(features, coords)
    cuda.clear()
    point_sample(features.cpu(), coords)
    assert not cuda.operations
    point_sample(features, coords.to("cuda"))
    assert cuda.num_operations > 0
    assert all(line.startswith("point_rend/rendering/sampling.py:") for line in cuda.operations)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_training_in_mixed_precision_runs_in_it(dtype: torch.dtype, cuda: Record):
    network, images = small_network().to("cuda"), torch.randn(4, 2, 4, 4).to("cuda")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    cuda.clear()
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype):
            output = network(images)
            assert output.dtype == dtype
            assert network[0](images).dtype == network[0](images.detach()).dtype == dtype
            assert output.sum().dtype == output.softmax(1).dtype == torch.float32
        scaler.scale(output.float().square().mean()).backward()
        assert {x.grad.dtype for x in network.parameters()} == {torch.float32}
        scaler.step(optimizer)
        scaler.update()
    with torch.no_grad(), torch.autocast("cuda", dtype):
        assert network(images).dtype == dtype
    assert network(images).dtype == torch.float32
    waits = {wait.kind: number for wait, number in cuda.waits.items()}
    assert waits == ({"_local_scalar_dense": 3} if dtype == torch.float16 else {})


def test_copies_of_a_module_stay_on_the_device(cuda: Record):
    network = copy.deepcopy(small_network().to("cuda"))
    assert {x.device for x in network.state_dict().values()} == {CUDA}
    assert cuda.num_operations > 0


def test_nothing_is_left_of_it():
    before = torch.cuda.is_available(), torch.cuda.device_count()
    with pretended_cuda():
        tensor = torch.ones(3, device="cuda")
        assert torch.cuda.is_available()
    assert (torch.cuda.is_available(), torch.cuda.device_count()) == before
    assert "1., 1., 1." in repr(tensor)
    loss = nn.Linear(2, 1)(torch.ones(1, 2)).sum()
    loss.backward()
    assert loss.device.type == "cpu"
