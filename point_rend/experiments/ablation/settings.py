"""Settings that the ablations compare."""

from collections.abc import Mapping
from typing import NamedTuple

# Table 3 of the paper: sides of the rendered masks, and square roots of the points per step.
SIDES = (28, 56, 112, 224)
POINT_SIDES = (14, 28, 56, 112)
# Points per step in a map.
ALL_PIXELS = 10_000_000  # the most points that a config allows
MAP_POINTS = (0, 512, 2048, 8192, ALL_PIXELS)


class SamplingSetting(NamedTuple):
    """A way to choose the training points.

    Attributes:
        title: Title in the table.
        k: Candidates for each point.
        beta: Share of the points, from 0 to 1, that are the most uncertain candidates.
        on_regular_grid: Whether the points are a fixed grid instead.
    """

    title: str
    k: int = 1
    beta: float = 0.0
    on_regular_grid: bool = False

    @property
    def options(self) -> list[str]:
        """Keys and values of the config."""
        values = {
            "TRAIN_ON_REGULAR_GRID": self.on_regular_grid,
            "OVERSAMPLE_RATIO": self.k,
            "IMPORTANCE_SAMPLE_RATIO": self.beta,
        }
        return as_options({f"MODEL.POINT_HEAD.{key}": value for key, value in values.items()})


def as_options(values: Mapping[str, object]) -> list[str]:
    """Return keys of a config and their values as words of a command line."""
    return [word for key, value in values.items() for word in (key, str(value))]


# Table 4 of the paper.
SAMPLING_SETTINGS = {
    "regular": SamplingSetting("regular grid", on_regular_grid=True),
    "uniform": SamplingSetting("uniform (k = 1, β = 0)"),
    "mild": SamplingSetting("mildly biased (k = 3, β = 0.75)", k=3, beta=0.75),
    "heavy": SamplingSetting("heavily biased (k = 10, β = 1)", k=10, beta=1.0),
}
SEEDS = (1, 2, 3)
# Heads of one model; the first three by default.
HEADS = ("baseline", "standard", "residual", "implicit")
