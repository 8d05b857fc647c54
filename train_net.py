#!/usr/bin/env python
"""Train and evaluate PointRend, and the baseline that it is compared with.

    configs=configs/InstanceSegmentation
    python train_net.py --config-file $configs/pointrend_rcnn_R_50_FPN_1x_coco.yaml

Without a GPU add `MODEL.DEVICE cpu`. A data set of one's own in COCO format needs no code:
`--register-coco NAME JSON IMAGE_ROOT` makes it known under a name for DATASETS.TRAIN and
DATASETS.TEST, and the class count follows from the file. `--register-sem-seg NAME IMAGES LABELS
CLASSES` does so for images and label maps of semantic segmentation.

Several processes share a run if `--num-gpus` and `--num-machines` ask for them, or if torchrun,
srun or another launcher has started them; with `MODEL.DEVICE cpu` they are processes without a GPU.
"""

from point_rend.cli.train import main
from point_rend.engine.arguments import build_parser
from point_rend.engine.run import run
from point_rend.engine.setup import setup
from point_rend.engine.trainer import Trainer

__all__ = ["Trainer", "build_parser", "main", "run", "setup"]

if __name__ == "__main__":
    main()
