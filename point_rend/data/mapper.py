"""The mapper from a record of a data set to the input of a model."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper

from point_rend.data.augmentation import build_augmentations


class NamingDatasetMapper(DatasetMapper):
    """Detectron2's mapper with our augmentation; its errors name the image that they are about."""

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Read the arguments from a config."""
        arguments = super().from_config(cfg, is_train)
        return arguments | {"augmentations": build_augmentations(cfg, is_train=is_train)}

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Read and transform one record.

        Args:
            dataset_dict: A record in Detectron2's standard format.

        Returns:
            What Detectron2's `DatasetMapper` returns.

        Raises:
            ValueError: If the image cannot be decoded, or it or its annotations do not fit the
                record.
        """
        try:
            return super().__call__(dataset_dict)
        # Pillow reports a broken file as any of these, by format.
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(
                f"image {dataset_dict.get('image_id')!r}, file {dataset_dict['file_name']}, "
                f"cannot be used: {error}"
            ) from error
