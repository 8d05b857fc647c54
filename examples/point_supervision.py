"""Point supervision: a mask head that learns from ten labeled points of each object.

Objects with `gt_point_coords`, in pixels of the image, and `gt_point_labels` need no masks.
"""

import torch
from detectron2.layers import ShapeSpec, paste_masks_in_image
from detectron2.structures import Boxes, Instances

import point_rend


def draw_ellipse() -> tuple[dict[str, torch.Tensor], Instances, torch.Tensor]:
    """Return noisy features of an image with an ellipse, its box with ten labels, its pixels."""
    near, size = 24 * torch.rand(2), 16 + 24 * torch.rand(2)
    y, x = torch.meshgrid(*[torch.arange(64) + 0.5] * 2, indexing="ij")
    pixels = ((torch.stack((x, y), dim=2) - near) / size - 0.5).norm(dim=2) < 0.5
    coords = torch.rand(1, 10, 2)
    ellipse = Instances((64, 64), gt_point_coords=near + coords * size)
    ellipse.gt_point_labels = (coords - 0.5).norm(dim=2) < 0.5
    ellipse.gt_classes = ellipse.pred_classes = torch.tensor([0])
    ellipse.proposal_boxes = ellipse.pred_boxes = Boxes(torch.cat((near, near + size))[None])
    return {"p2": pixels + torch.randn(1, 8, 64, 64)}, ellipse, pixels


def main() -> point_rend.ImplicitPointRendMaskHead:
    """Train a small head, and compare the mask of another ellipse with its pixels."""
    torch.manual_seed(0)
    small = ["MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.ROI_MASK_HEAD.FC_DIM", "64"]
    small += ["MODEL.POINT_HEAD.FC_DIM", "16", "MODEL.ROI_HEADS.NUM_CLASSES", "1"]
    path = point_rend.get_config_file("implicit_pointrend_R_50_FPN_1x_coco")
    cfg = point_rend.load_config(path, small)
    head = point_rend.ImplicitPointRendMaskHead(cfg, {"p2": ShapeSpec(channels=8, stride=1)})
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    for _ in range(300):
        features, ellipse, _ = draw_ellipse()
        optimizer.zero_grad()
        sum(head(features, [ellipse]).values()).backward()
        optimizer.step()
    features, ellipse, pixels = draw_ellipse()
    (ellipse,) = head.eval()(features, [ellipse])
    mask = paste_masks_in_image(ellipse.pred_masks[:, 0], ellipse.pred_boxes, (64, 64))[0]
    print(f"IoU {(mask & pixels).sum() / (mask | pixels).sum():.0%}")
    return head


if __name__ == "__main__":
    main()
