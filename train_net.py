#!/usr/bin/env python
"""Train and evaluate PointRend models and their baselines; the same as `pointrend train`.

    python train_net.py --num-gpus 8 \
        --config-file InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml

Evaluate a checkpoint, or resume an interrupted training:

    python train_net.py --config-file FILE --eval-only MODEL.WEIGHTS model_final.pth
    python train_net.py --config-file FILE --resume OUTPUT_DIR output/my_run

- Without a GPU, add `MODEL.DEVICE cpu` at the end.
- Your own data needs no code. `--register-coco NAME JSON IMAGE_ROOT` registers a data set in COCO
  format for DATASETS.TRAIN and DATASETS.TEST; the number of classes is read from the file.
  `--register-sem-seg NAME IMAGES LABELS CLASSES` registers images and label maps for semantic
  segmentation.
- `--num-gpus` and `--num-machines` start one process per GPU, as in Detectron2. Processes started
  by torchrun, srun or another launcher join each other. With `MODEL.DEVICE cpu`, the processes
  train without a GPU.

The functions are those of the package, and can be imported to build other trainings from them:

- `build_parser()`: the command line, Detectron2's options and our own;
- `setup(args)`: the checked config of a run, and its data sets, registered;
- `Trainer(cfg)`: Detectron2's DefaultTrainer with our mapper, loaders, checkpointer and evaluators;
- `run(args, cfg, ...)`: the training or the evaluation, executed by every process;
- `main(argv)`: all of this; `main(trainer=MyTrainer)` with a subclass of `Trainer`.
"""

from point_rend.cli.train import main
from point_rend.engine.arguments import build_parser
from point_rend.engine.run import run
from point_rend.engine.setup import setup
from point_rend.engine.trainer import Trainer

__all__ = ["Trainer", "build_parser", "main", "run", "setup"]

if __name__ == "__main__":
    main()
