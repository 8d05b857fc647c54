"""Mask outlines as SVG paths."""

from collections import defaultdict

import numpy as np


def outline_path(mask: np.ndarray, corner: tuple[int, int] = (0, 0)) -> str:
    """Return the outline of a mask along its pixel edges, as an SVG path.

    Args:
        mask: (H, W) bool.
        corner: x and y of the upper left corner of the mask.

    Returns:
        Closed loops of horizontal and vertical lines, to be filled by the even-odd rule; "" for an
        empty mask.
    """
    padded = np.pad(mask, 1)
    # For each direction, the pixels with an edge that has the mask on its right, and the start of
    # this edge relative to the pixel.
    sides = [
        (mask & ~padded[:-2, 1:-1], (0, 0)),  # to the right, along the top
        (mask & ~padded[1:-1, 2:], (1, 0)),  # down
        (mask & ~padded[2:, 1:-1], (1, 1)),  # to the left, along the bottom
        (mask & ~padded[1:-1, :-2], (0, 1)),  # up
    ]
    ahead: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for direction, (edges, (right, down)) in enumerate(sides):
        for y, x in np.argwhere(edges).tolist():
            ahead[x + right, y + down].append(direction)
    moves = ((1, 0), (0, 1), (-1, 0), (0, -1))
    loops = []
    while ahead:
        x, y = next(iter(ahead))
        loop = f"M{x + corner[0]} {y + corner[1]}"
        last, length = -1, 0
        while (x, y) in ahead:
            direction = ahead[x, y].pop()
            if not ahead[x, y]:
                del ahead[x, y]
            if direction != last:
                loop += _straight(last, length)
                last, length = direction, 0
            length += 1
            x, y = x + moves[direction][0], y + moves[direction][1]
        loops.append(f"{loop}{_straight(last, length)}z")
    return "".join(loops)


def _straight(direction: int, length: int) -> str:
    if not length:
        return ""
    return f"{'hv'[direction % 2]}{length if direction < 2 else -length}"
