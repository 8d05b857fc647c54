"""The mapper from a record of a data set to the input of a model."""

from typing import Any

from detectron2.data import DatasetMapper


class NamingDatasetMapper(DatasetMapper):
    """Detectron2's mapper, whose errors name the image that they are about."""

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
