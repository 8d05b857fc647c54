"""3×3 convolutions with a quarter of the multiplications, by Winograd's minimal filtering.

The map is cut into tiles of 4×4 outputs, which read 6×6 inputs. Tiles and weights are evaluated at
the points 0, ±3/4, ±3/2 and ∞ along both axes, multiplied there, and interpolated back: 36
multiplications per tile, input and output channel instead of 144. At these points, the rounding
errors are within a small factor of those of a direct convolution; at the usual ones (0, ±1, ±2, ∞)
they are twice as large as here.

Shapes: I and O channels of the input and the output, H and W rows and columns of a map. Maps are
in channels-last order here, (H, W, channels).

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

TILE = 4  # outputs of a tile along an axis
READ = TILE + 2  # inputs of a tile along an axis, and points
POINTS = (0.75, 1.5)  # with both signs, besides 0 and infinity
TILES_AT_A_TIME = 320  # their values fit the cache of a processor


def winograd_kernel(weight: Tensor) -> Tensor:
    """Evaluate the weights (O, I, 3, 3) of a convolution at all points: (36, I, O)."""
    finite = torch.tensor([0.0, *(sign * p for p in POINTS for sign in (1, -1))]).double()
    differences = finite[:, None] - finite
    differences.fill_diagonal_(1)
    rows = torch.stack([torch.ones_like(finite), finite, finite**2], dim=1)
    infinite = torch.tensor([[0.0, 0.0, 1.0]]).double()
    evaluate = torch.cat((rows / differences.prod(dim=1, keepdim=True), infinite))  # (6, 3)
    values = torch.einsum("xa,oiba,yb->xyio", evaluate, weight.double(), evaluate)
    return values.to(weight.dtype).flatten(0, 1).contiguous()


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve maps with a 3×3 kernel, with stride 1 and one row of zeros on each side.

    Args:
        x: (N, I, H, W) in channels-last format.
        kernel: (36, I, O) of :func:`winograd_kernel`.
        bias: (O,).

    Returns:
        (N, O, H, W) in channels-last format.
    """
    height, width = x.shape[2:]
    rows, columns = -(-height // TILE), -(-width // TILE)  # of tiles
    y = x.new_empty(x.shape[0], TILE * rows, TILE * columns, kernel.shape[2])
    for image, output in zip(x.permute(0, 2, 3, 1), y, strict=True):
        _convolve_image(image, kernel, bias, output)
    return y[:, :height, :width].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _convolve_image(image: Tensor, kernel: Tensor, bias: Tensor | None, output: Tensor) -> None:
    """Write the convolution of an image (H, W, I) into whole tiles (4·rows, 4·columns, O)."""
    height, width, channels = image.shape
    rows, columns = (side // TILE for side in output.shape[:2])
    at_a_time = min(max(1, TILES_AT_A_TIME // columns), rows)
    inputs = image.new_zeros(TILE * at_a_time + 2, TILE * columns + 2, channels)
    halves = image.new_empty(READ, at_a_time, TILE * columns + 2, channels)
    values = image.new_empty(READ, READ, at_a_time, columns, channels)
    products = image.new_empty(*values.shape[:-1], kernel.shape[2])
    for first in range(0, rows, at_a_time):
        count = min(at_a_time, rows - first)
        # The rows from top to bottom of the image are read, and one more on each side.
        top = TILE * first - 1
        start, stop = max(top, 0), min(top + TILE * count + 2, height)
        inputs[: start - top] = 0
        inputs[start - top : stop - top, 1 : width + 1] = image[start:stop]
        inputs[stop - top :] = 0
        if count < at_a_time:
            halves, values, products = (
                halves[:, :count],
                values[:, :, :count].contiguous(),
                products[:, :, :count].contiguous(),
            )
        last = TILE * (count - 1) + 1
        _evaluate([inputs[i : i + last : TILE] for i in range(READ)], halves)
        last = TILE * (columns - 1) + 1
        _evaluate([halves[:, :, i : i + last : TILE] for i in range(READ)], values)
        torch.bmm(
            values.view(READ**2, count * columns, channels),
            kernel,
            out=products.view(READ**2, count * columns, -1),
        )
        across = products.new_empty(TILE, *products.shape[1:])
        _interpolate(products, across)
        tiles = output[TILE * first : TILE * (first + count)]
        cells = tiles.view(count, TILE, columns, TILE, -1)
        for i, column in enumerate(across):
            _interpolate(column, [cells[:, j, :, i] for j in range(TILE)])
        if bias is not None:
            tiles += bias


def _evaluate(inputs: Sequence[Tensor], values: Tensor) -> None:
    """Write the values of 6 inputs at the 6 points: at 0, a, −a, b, −b and ∞."""
    x0, x1, x2, x3, x4, x5 = inputs
    a, b = POINTS
    squares, product = a**2 + b**2, (a * b) ** 2
    torch.add(x4, x2, alpha=-squares, out=values[0]).add_(x0, alpha=product)
    torch.add(x5, x3, alpha=-squares, out=values[5]).add_(x1, alpha=product)
    for number, (point, other) in enumerate(((a, b), (b, a))):
        even = torch.sub(x4, x2, alpha=other**2)
        odd = torch.sub(x3, x1, alpha=other**2)
        torch.add(even, odd, alpha=point, out=values[2 * number + 1])
        torch.add(even, odd, alpha=-point, out=values[2 * number + 2])


def _interpolate(values: Tensor, outputs: Tensor | Sequence[Tensor]) -> None:
    """Write the 4 outputs that follow from products at the 6 points."""
    at_zero, plus_a, minus_a, plus_b, minus_b, at_infinity = values
    a, b = POINTS
    even_a, odd_a = plus_a + minus_a, plus_a - minus_a
    even_b, odd_b = plus_b + minus_b, plus_b - minus_b
    torch.add(at_zero, even_a, out=outputs[0]).add_(even_b)
    torch.mul(odd_a, a, out=outputs[1]).add_(odd_b, alpha=b)
    torch.mul(even_a, a**2, out=outputs[2]).add_(even_b, alpha=b**2)
    torch.add(at_infinity, odd_a, alpha=a**3, out=outputs[3]).add_(odd_b, alpha=b**3)
