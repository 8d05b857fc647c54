"""The feature pyramid, added up in place."""

from detectron2.modeling.backbone import FPN
from torch import Tensor

from point_rend.acceleration.inference import is_accelerated


class FastFPN(FPN):
    """Detectron2's FPN, which adds a coarser level to the finer one without copies of them."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (N, 3, H, W) to levels (N, C, H_l, W_l) by name, the finest first."""
        if not is_accelerated(self, x):
            return super().forward(x)
        maps = self.bottom_up(x)
        levels: list[Tensor] = []
        coarser: Tensor | None = None
        convs = zip(self.in_features[::-1], self.lateral_convs, self.output_convs, strict=True)
        for name, lateral, output in convs:
            level = lateral(maps[name])
            if coarser is not None:
                add_doubled(level, coarser)
                if self._fuse_type == "avg":
                    level /= 2
            levels.insert(0, output(level))
            coarser = level
        if self.top_block is not None:
            name = self.top_block.in_feature
            source = maps[name] if name in maps else levels[self._out_features.index(name)]
            levels += self.top_block(source)
        return dict(zip(self._out_features, levels, strict=True))


def add_doubled(level: Tensor, coarser: Tensor) -> None:
    """Add maps (N, C, H, W) to (N, C, 2·H, 2·W) in place, each position to the four it covers."""
    height, width = coarser.shape[2:]
    pairs = level.unflatten(3, (width, 2)).unflatten(2, (height, 2))
    pairs += coarser[:, :, :, None, :, None]
