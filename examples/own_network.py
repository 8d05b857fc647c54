"""PointRend on your own network: plain PyTorch, no config, no Detectron2 model."""

import torch
from torch import Tensor, nn

import point_rend
from point_rend import foreground_uncertainty, point_sample, subdivide


class Network(nn.Module):
    """Features of stride 2, coarse logits of stride 8, and a point head that reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(1, 32, 5, 2, 2), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1))
        self.coarse = nn.Sequential(nn.ReLU(), nn.Conv2d(32, 1, 5, 4, 1))
        self.head = point_rend.StandardPointHead(in_channels=32, coarse_channels=1, num_classes=1)

    def loss(self, images: Tensor, masks: Tensor) -> Tensor:
        """Train the coarse logits everywhere, and the point head where they are uncertain."""
        coarse = self.coarse(fine := self.fine(images))
        points = point_rend.PointSampler(num_points=128).sample(coarse, foreground_uncertainty)
        logits = self.head(point_sample(fine, points), point_sample(coarse, points))
        loss = nn.BCEWithLogitsLoss()
        return loss(coarse, nn.AvgPool2d(8)(masks)) + loss(logits, point_sample(masks, points))

    @torch.no_grad()
    def render(self, images: Tensor) -> list[Tensor]:
        """Return coarse logits (N, 1, 8, 8) and the logits rendered from them, (N, 1, 64, 64)."""
        grid = self.coarse(fine := self.fine(images))
        features = point_rend.FineGrainedFeatures([fine], frames=[1.0])
        bound = point_rend.bind_point_head(self.head, features, len(images), 3 * 256).at(grid)
        return [grid, subdivide(grid, bound, foreground_uncertainty, steps=3, points_per_step=256)]


def draw_stars(count: int) -> tuple[Tensor, Tensor]:
    """Draw noisy images of rotated stars and their masks, (N, 1, 64, 64) each."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 64)] * 2, indexing="ij")
    outlines = 0.6 + 0.2 * torch.sin(7 * torch.atan2(y, x) + 7 * torch.rand(count, 1, 1, 1))
    masks = (torch.hypot(x, y) < outlines).float()
    return masks + 0.3 * torch.randn_like(masks), masks


def train(network: Network) -> None:
    """Train on 800 stars, and print the share of wrong pixels in 50 others."""
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(100):
        optimizer.zero_grad()
        network.loss(*draw_stars(8)).backward()
        optimizer.step()
    images, masks = draw_stars(50)
    for logits in network.render(images):
        wrong = (nn.Upsample(size=64, mode="bilinear")(logits) > 0) != masks
        print(f"{len(logits[0, 0])} cells per side: {wrong.float().mean():.1%} wrong")


if __name__ == "__main__":
    torch.manual_seed(0)
    train(Network())
