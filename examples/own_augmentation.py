"""Train with augmentations of your own, with all options of `pointrend train`.

python -m examples.own_augmentation --config-file FILE OUTPUT_DIR output/rotated
"""

import numpy as np
from detectron2.data import transforms as T

import point_rend
from point_rend.cli.train import main


class RandomShade(T.Augmentation):
    """Darkens one side of the image, as a shadow does."""

    def __init__(self, darkest):
        super().__init__()
        self.darkest = darkest

    def get_transform(self, image):  # noqa: ARG002
        """Draw the brightness of the left and of the right side, by NumPy's global generator."""
        return Shade(*np.random.uniform(self.darkest, 1, size=2))


class Shade(T.NoOpTransform):
    """Multiplies the columns of an image; masks, boxes and keypoints stay as they are."""

    def __init__(self, left, right):
        super().__init__()
        self.left, self.right = left, right

    def apply_image(self, img):
        """Shade an image (H, W, C)."""
        return (img * np.linspace(self.left, self.right, img.shape[1])[:, None]).astype(img.dtype)

    def apply_segmentation(self, segmentation):
        """Leave masks alone; by default they would be transformed as images are."""
        return segmentation


class MyTrainer(point_rend.Trainer):
    """A trainer that rotates and shades images, then crops, resizes and flips as configured."""

    @classmethod
    def build_train_loader(cls, cfg):
        """Build a loader of this package with a mapper of its own: it resumes exactly."""
        own = [T.RandomRotation([-15, 15], expand=False), RandomShade(0.4)]
        mapper = point_rend.NamingDatasetMapper(
            cfg,
            is_train=True,
            augmentations=[*own, *point_rend.build_augmentations(cfg, is_train=True)],
            recompute_boxes=cfg.MODEL.MASK_ON,  # from the rotated masks
        )
        return point_rend.build_train_loader(cfg, mapper)


if __name__ == "__main__":
    main(trainer=MyTrainer)
