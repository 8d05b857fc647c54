"""From images to Detectron2's results."""

import copy
import itertools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, overload

import torch
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from detectron2.data.transforms import AugInput, AugmentationList
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

from point_rend.acceleration.prepare import prepare_for_inference
from point_rend.checkpoint.class_metadata import read_metadata
from point_rend.checkpoint.complete_model import CompleteModelCheckpointer
from point_rend.config.checks import check_config, check_test_time_augmentation
from point_rend.config.defaults import pixel_format
from point_rend.config.tasks import reads_proposals
from point_rend.config.trial import check_model
from point_rend.data.augmentation import as_input, build_augmentations
from point_rend.engine.preflight import check_machine
from point_rend.evaluation.postprocessing import UnpastedMasks
from point_rend.evaluation.tta import build_test_time_augmentation
from point_rend.inference.classes import build_metadata
from point_rend.inference.folder import Metrics, save_folder
from point_rend.inference.given_boxes import (
    as_boxes,
    as_classes,
    as_scores,
    check_given_boxes,
    render_given_boxes,
)
from point_rend.inference.images import ImageLike, to_pixels
from point_rend.inference.settings import (
    load_exported_settings,
    load_folder_settings,
    load_settings,
    load_stored_settings,
)
from point_rend.rendering.box_masks import BoxMasks
from point_rend.runtime.exported_model import ExportedModel, build_exported_model
from point_rend.runtime.hub import find_folder, push_folder
from point_rend.tiling.grid import DEFAULT_OVERLAP
from point_rend.tiling.tiled import TiledPredictor

Output = dict[str, Any]  # as Detectron2's models return it


class Predictor:
    """A trained model that takes images.

        predictor = Predictor.from_checkpoint("output/model_final.pth")
        instances = predictor("photo.jpg")["instances"]

    The results are those of Detectron2's `DefaultPredictor` with the same config. In addition,
    checkpoints are loaded safely, test-time augmentation works (TEST.AUG), and weights that leave
    part of the model random are an error.

    A file of `pointrend export` is run in the same way: `Predictor("model.onnx")`.

    A predictor can be pickled, such as for the workers of a cluster: the pickle holds the model,
    its config and its classes, and gives the same results wherever this package is installed. As
    every pickle, it is only for those who trust its origin.

    Args:
        cfg: Config of the model and its weights; they are random if MODEL.WEIGHTS is empty. Or the
            path of a file .onnx, .pt2 or .ts, as of :meth:`from_exported`.
        metadata: Names and colors of the classes; by default those of the checkpoint, or else of
            the data sets of the config.
        allow_unsafe: Whether to load a checkpoint that executes code.
        paste_masks: Whether `pred_masks` are a tensor (N, H, W), as Detectron2's. Otherwise they
            may be :class:`~point_rend.rendering.box_masks.BoxMasks`, which are faster to encode and
            take less memory.
        model: A loaded model in place of one that is built from the config.

    Attributes:
        cfg: The config.
        pixel_format: Pixels that the model expects.
        metadata: Detectron2's metadata of the classes, for its `Visualizer`: `thing_classes`,
            `thing_colors`, `stuff_classes`, …
        model: The model, in evaluation mode, prepared by :func:`prepare_for_inference`.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If config, checkpoint and machine do not fit together.
    """

    def __init__(
        self,
        cfg: CfgNode | str | os.PathLike[str],
        *,
        metadata: Metadata | None = None,
        allow_unsafe: bool = False,
        paste_masks: bool = True,
        model: nn.Module | None = None,
    ) -> None:
        if not isinstance(cfg, CfgNode):
            settings = load_exported_settings(cfg)
            model = build_exported_model(settings.cfg, cfg, allow_unsafe=allow_unsafe)
            cfg, metadata = settings.cfg, metadata or settings.metadata
        check_config(cfg, training=False)
        check_test_time_augmentation(cfg)
        if model is None:
            check_model(cfg, training=False)
        check_machine(cfg, 1)
        if reads_proposals(cfg):
            raise ValueError(
                "MODEL.PROPOSAL_GENERATOR.NAME is PrecomputedProposals, but an image alone has no "
                "proposals: expected a model that generates them, such as with RPN"
            )
        self.cfg = cfg.clone()
        self.metadata = metadata or build_metadata(
            cfg, read_metadata(cfg.MODEL.WEIGHTS, allow_unsafe=allow_unsafe)
        )
        if model is None:
            model = build_model(cfg)
            CompleteModelCheckpointer(model, allow_unsafe=allow_unsafe).load(cfg.MODEL.WEIGHTS)
        self.model = prepare_for_inference(model.eval())
        self._paste_masks = paste_masks
        self._build_around_the_model()

    def _build_around_the_model(self) -> None:
        """Build the preparation of images and the completion of results."""
        cfg, paste_masks = self.cfg, self._paste_masks
        self.pixel_format = pixel_format(cfg)
        self._forward = self.model
        if cfg.TEST.AUG.ENABLED:
            self._forward = build_test_time_augmentation(cfg, self.model, paste_masks=paste_masks)
        elif not paste_masks:
            self._forward = UnpastedMasks(self.model)
        self._augmentations = AugmentationList(build_augmentations(cfg, is_train=False))

    def __getstate__(self) -> dict[str, Any]:
        model = self.model
        if not _is_on_the_cpu(model):
            model = copy.deepcopy(model).cpu()
        return {
            "cfg": self.cfg,
            "metadata": self.metadata,
            "model": model,
            "paste_masks": self._paste_masks,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.cfg, self.metadata = state["cfg"], state["metadata"]
        self.model, self._paste_masks = state["model"], state["paste_masks"]
        check_machine(self.cfg, 1)
        self.model.to(self.cfg.MODEL.DEVICE)
        self._build_around_the_model()

    def to(self, device: str) -> Self:
        """Move the model to another device.

        Args:
            device: "cpu", "cuda" or "cuda:N".

        Returns:
            This predictor.

        Raises:
            ValueError: If this machine has no such device, or the model is an exported one, which
                runs on the CPU.
        """
        if isinstance(self.model, ExportedModel) and device != "cpu":
            raise ValueError(f"{self.model.session.path} runs on the CPU, not on {device}")
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = device
        check_machine(cfg, 1)
        cfg.freeze()
        self.cfg = cfg
        self.model.to(device)
        self._build_around_the_model()
        return self

    @classmethod
    def from_config_file(
        cls,
        config_file: str,
        opts: Sequence[str] = (),
        *,
        weights: str | os.PathLike[str] | None = None,
        device: str | None = None,
        allow_unsafe: bool = False,
    ) -> Self:
        """Build a predictor from a config file.

        Args:
            config_file: Path, URL, or the name of a config of this package, such as
                "InstanceSegmentation/pointrend_rcnn_R_50_FPN_3x_coco.yaml".
            opts: Config keys and values in turn; they override the file.
            weights: File, URL or `zoo://` name, such as "zoo://pointrend_rcnn_R_50_FPN_3x_coco"; by
                default MODEL.WEIGHTS.
            device: "cpu", "cuda" or "cuda:N"; by default MODEL.DEVICE, or the CPU if the file asks
                for CUDA and this machine has none.
            allow_unsafe: Whether to load a checkpoint that executes code.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If something does not fit.
        """
        settings = load_settings(
            config_file, opts, weights=weights, device=device, allow_unsafe=allow_unsafe
        )
        return cls(settings.cfg, metadata=settings.metadata, allow_unsafe=allow_unsafe)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str | os.PathLike[str],
        opts: Sequence[str] = (),
        *,
        device: str | None = None,
        allow_unsafe: bool = False,
    ) -> Self:
        """Build a predictor from a checkpoint that `pointrend train` has written.

        The config is the one that is stored in the file, or else `config.yaml` in its folder.

        Args:
            checkpoint: The file.
            opts, device, allow_unsafe: As of :meth:`from_config_file`.

        Raises:
            FileNotFoundError: If there is no such checkpoint, or no config in either place.
            ValueError: If something does not fit.
        """
        settings = load_stored_settings(checkpoint, opts, device=device, allow_unsafe=allow_unsafe)
        return cls(settings.cfg, metadata=settings.metadata, allow_unsafe=allow_unsafe)

    @classmethod
    def from_exported(
        cls,
        path: str | os.PathLike[str],
        opts: Sequence[str] = (),
        *,
        backend: str | None = None,
        threads: int = 0,
        allow_unsafe: bool = False,
    ) -> Self:
        """Load a file of `pointrend export`, which runs on the CPU.

        Args:
            path: The file.
            opts: Config keys and values in turn, such as INPUT.MIN_SIZE_TEST; keys of the model
                are part of the file.
            backend, threads: As of `point_rend.runtime.sessions.open_session`.
            allow_unsafe: Whether to load a .pt2 or .ts file, which can execute code.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no such file or damaged, the library that runs it is not installed,
                or an option does not fit.
        """
        settings = load_exported_settings(path, opts)
        model = build_exported_model(
            settings.cfg, path, backend=backend, threads=threads, allow_unsafe=allow_unsafe
        )
        return cls(settings.cfg, metadata=settings.metadata, model=model)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        device: str | None = None,
        opts: Sequence[str] = (),
    ) -> Self:
        """Build a predictor from a folder of :meth:`save_pretrained`, local or on the Hub.

        Nothing in the folder is executed, and only the files that are needed are downloaded.

        Args:
            name: The folder; or a repository of Hugging Face's Hub, such as "user/model", for which
                the package huggingface_hub is needed.
            revision: Branch, tag or commit of the repository; by default its main branch.
            token: Access token for a private repository; by default that of the user's login.
            device, opts: As of :meth:`from_config_file`.

        Raises:
            FileNotFoundError: If there is no such folder, or it lacks a file.
            OSError: If there is no such repository, or it cannot be reached.
            ValueError: If something does not fit, or huggingface_hub is not installed.
        """
        folder = find_folder(name, revision=revision, token=token)
        settings = load_folder_settings(folder, opts, device=device)
        return cls(settings.cfg, metadata=settings.metadata)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        license: str = "",
        metrics: Metrics | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write the model into a folder: parameters, config, classes and a card.

        Args:
            folder: The folder, which is created.
            license, metrics, overwrite: As of
                :func:`point_rend.inference.folder.save_folder`.

        Returns:
            The folder.

        Raises:
            NotSavedError: If it cannot be written.
            ValueError: If it is not empty, or the model is an exported one.
        """
        return save_folder(
            folder,
            self.model,
            self.cfg,
            self.metadata,
            license=license,
            metrics=metrics,
            overwrite=overwrite,
        )

    def push_to_hub(
        self,
        repository: str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        private: bool | None = None,
        license: str = "",
        metrics: Metrics | None = None,
    ) -> str:
        """Upload the model to Hugging Face's Hub; needs the package huggingface_hub.

        Args:
            repository: Its name, such as "user/model"; it is created if it does not exist.
            revision: Branch; by default the main branch.
            token: Access token; by default that of the user's login.
            private: Whether a new repository is private.
            license, metrics: As of :meth:`save_pretrained`.

        Returns:
            URL of the commit.

        Raises:
            OSError: If the repository cannot be written or reached.
            ValueError: As of :meth:`save_pretrained`, or if huggingface_hub is not installed.
        """
        with tempfile.TemporaryDirectory() as parent:
            folder = save_folder(
                Path(parent, "model"),
                self.model,
                self.cfg,
                self.metadata,
                license=license,
                metrics=metrics,
                name=repository,
            )
            return push_folder(folder, repository, revision=revision, token=token, private=private)

    def inputs(
        self, image: ImageLike, output_size: tuple[int, int] | None = None
    ) -> dict[str, Any]:
        """Prepare an image for the model; arguments as of :meth:`__call__`."""
        pixels = to_pixels(image, self.pixel_format)
        height, width = output_size or pixels.shape[:2]
        augmented = AugInput(pixels)
        self._augmentations(augmented)
        return {"image": as_input(augmented.image), "height": height, "width": width}

    @overload
    def __call__(
        self,
        images: list[Any] | tuple[Any, ...],
        *,
        batch_size: int = ...,
        output_size: tuple[int, int] | None = ...,
        tile: int | None = ...,
        overlap: float = ...,
    ) -> list[Output]: ...

    @overload
    def __call__(
        self,
        images: ImageLike,
        *,
        batch_size: int = ...,
        output_size: tuple[int, int] | None = ...,
        tile: int | None = ...,
        overlap: float = ...,
    ) -> Output: ...

    @torch.no_grad()
    def __call__(
        self,
        images: Any,
        *,
        batch_size: int = 1,
        output_size: tuple[int, int] | None = None,
        tile: int | None = None,
        overlap: float = DEFAULT_OVERLAP,
    ) -> Output | list[Output]:
        """Segment one image or several.

        Args:
            images: An array (H, W, 3) of type uint8 in BGR order, as OpenCV reads it, or as the
                model expects it (:func:`~point_rend.inference.images.to_pixels`); a PIL image; a
                path; or a list or tuple of these.
            batch_size: Largest number of images that the model sees at a time. Only images that
                it pads to one size share a batch: padding beyond that of a single image would
                change the results.
            output_size: Height and width at which masks and labels are rendered; by default those
                of the image.
            tile: Side in pixels of the tiles in which larger images are segmented, `batch_size`
                tiles at a time; see :class:`~point_rend.tiling.tiled.TiledPredictor`.
            overlap: Share of a tile that it has in common with the next one.

        Returns:
            Detectron2's results on the model's device, such as `{"instances": Instances}` or
            `{"sem_seg": logits}`; for several images a list of them. An image in tiles has masks
            that are read one by one, or `{"labels": labels}` instead of logits.

        Raises:
            FileNotFoundError: If there is no such image.
            TypeError, ValueError: If an image is of another kind or cannot be read, or the list is
                empty.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: expected 1 or more, got {batch_size}")
        if tile is not None:
            if output_size is not None:
                raise ValueError("output_size: images in tiles keep their size")
            tiled = TiledPredictor(self, tile, overlap, batch_size=batch_size)
            return tiled.many(images) if isinstance(images, list | tuple) else tiled(images)
        if not isinstance(images, list | tuple):
            return self._forward([self.inputs(images, output_size)])[0]
        if not images:
            raise ValueError("expected one image or more, got an empty list")
        outputs: list[Output] = []
        for start in range(0, len(images), batch_size):
            batch = [self.inputs(x, output_size) for x in images[start : start + batch_size]]
            outputs += self._forward_by_size(batch)
        return outputs

    def masks_for(
        self, image: ImageLike, boxes: Any, classes: Any = None, scores: Any = None
    ) -> Instances:
        """Render masks for boxes of an image that come from elsewhere, such as another detector.

        The masks are those that the model renders for its own detections with these boxes and
        classes. The part of a box outside the image is ignored; a box without area inside has an
        empty mask. The memory at work is that of 256 boxes; a mask takes 4·S² bytes, and H·W if
        `paste_masks` is true.

        Args:
            image: As of :meth:`__call__`.
            boxes: (N, 4) numbers, x0, y0, x1, y1 in pixels of the image: an array, a tensor, a
                nested list or Detectron2's `Boxes`.
            classes: (N,) indices of the model's classes, as in `metadata.thing_classes`. Not needed
                if there is one class only, or one mask for all (CLS_AGNOSTIC_MASK).
            scores: (N,) numbers that are passed on.

        Returns:
            The boxes in their order, on the model's device: `pred_boxes` as given, `pred_classes`,
            `pred_masks` of the size of the image and, if given, `scores`.

        Raises:
            FileNotFoundError, TypeError: As :meth:`__call__`.
            ValueError: As :meth:`__call__`, or if boxes, classes or scores do not fit, or the model
                is exported, panoptic or semantic, or one with test-time augmentation.
        """
        check_given_boxes(self.cfg, self.model)
        given = as_boxes(boxes)
        indices = as_classes(classes, len(given), self.cfg)
        inputs = self.inputs(image)
        size = inputs["height"], inputs["width"]
        model: Any = self.model
        device = model.device
        fields: dict[str, Any] = {
            "pred_boxes": Boxes(given.float().to(device)),
            "pred_classes": indices.to(device),
        }
        if scores is not None:
            fields["scores"] = as_scores(scores, len(given)).to(device)
        chunks = list(render_given_boxes(model, inputs, given, indices))
        nothing = BoxMasks(torch.zeros(0, 1, 1, device=device), torch.zeros(0, 4), size)
        masks = BoxMasks.cat(chunks) if chunks else nothing
        fields["pred_masks"] = masks.tensor() if self._paste_masks else masks
        return Instances(size, **fields)

    def unpasted(self) -> "Predictor":
        """Return a predictor of the same model whose masks may be :class:`BoxMasks`."""
        if not self._paste_masks:
            return self
        other = object.__new__(type(self))  # a copy would have its model on the CPU, as a pickle
        other.__dict__.update(self.__dict__)
        other._paste_masks = False
        other._build_around_the_model()
        return other

    def _forward_by_size(self, batch: list[dict[str, Any]]) -> list[Output]:
        """Run the model on images of one padded size at a time; return the results in order."""
        model: Any = self.model
        if isinstance(model, ExportedModel):
            divisor = model.description.divisor
        else:
            divisor = max(1, model.backbone.size_divisibility)
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, item in enumerate(batch):
            padded = tuple(-(-side // divisor) for side in item["image"].shape[1:])
            groups.setdefault(padded, []).append(i)
        outputs: dict[int, Output] = {}
        for group in groups.values():
            found = self._forward([batch[i] for i in group])
            outputs |= dict(zip(group, found, strict=True))
        return [outputs[i] for i in range(len(batch))]


def _is_on_the_cpu(model: nn.Module) -> bool:
    return all(x.device.type == "cpu" for x in itertools.chain(model.parameters(), model.buffers()))
