"""The actors of the Ray Data pipeline, and the rows that go through it.

Actors that decode images import neither PyTorch nor Detectron2.
"""

import pickle
import socket
from typing import Any, NamedTuple

from point_rend.batch_inference.decoding import Decoder
from point_rend.utils.pixel_format import PixelFormat


class Piece(NamedTuple):
    """Consecutive images of a block: positions in the manifest."""

    block: int
    start: int
    stop: int


def row_of(piece: Piece, value: object) -> Any:
    """Return a table of one row with a piece and its items, images or records, pickled.

    They never leave the processes of the run.
    """
    import pyarrow

    content = pickle.dumps((piece, value), protocol=5)
    return pyarrow.table({"content": pyarrow.array([content], pyarrow.large_binary())})


def content_of(table: Any, row: int = 0) -> tuple[Piece, Any]:
    """Return what :func:`row_of` was given."""
    return pickle.loads(table["content"][row].as_buffer())


class DecodingActor:
    """Reads the images of a piece, one ahead, in a process that may die of a file.

    Args:
        pixel_format: Pixels that the model expects.
    """

    def __init__(self, pixel_format: PixelFormat) -> None:
        self.decoder = Decoder(1, pixel_format)

    def __call__(self, table: Any) -> Any:
        """Map a row with items to a row with items and images, or with the reason of a fault."""
        piece, items = content_of(table)
        try:
            return row_of(piece, (items, list(self.decoder.images(items))))
        except (OSError, ValueError) as error:
            return row_of(piece, f"{socket.gethostname()}: {error}")


class ModelActor:
    """Segments the images of a piece.

    Args:
        model: Reference to a predictor.
        device, batch_size, tiles, threads: As of `ray_pipeline.Job`.
    """

    def __init__(
        self,
        model: Any,
        device: str,
        batch_size: int,
        tiles: tuple[int, float] | None,
        threads: int,
    ) -> None:
        import ray
        import torch

        from point_rend.batch_inference.records import RecordFormat
        from point_rend.batch_inference.run import records_of
        from point_rend.tiling.tiled import TiledPredictor

        torch.set_num_threads(threads)
        self.records_of = records_of
        self.fault = ""
        self.tiled = None
        self.batch_size = batch_size
        try:
            self.predictor = ray.get(model).to(device)
            self.format = RecordFormat(self.predictor.metadata)
            if tiles is not None:
                self.tiled = TiledPredictor(self.predictor, *tiles, batch_size=batch_size)
        except Exception as error:  # which Ray would only show as the death of the actor
            reason = " ".join(str(error).split()) or type(error).__name__
            self.fault = f"{socket.gethostname()} cannot run the model: {reason}"

    def __call__(self, table: Any) -> Any:
        """Map a row with items and images to a row with records, or with the reason of a fault."""
        piece, content = content_of(table)
        if self.fault or isinstance(content, str):
            return row_of(piece, self.fault or content)
        items, images = content
        try:
            records = self.records_of(
                items,
                images,
                self.predictor,
                self.format,
                tiled=self.tiled,
                batch_size=self.batch_size,
            )
        except (ValueError, OSError) as error:
            return row_of(piece, str(error) or type(error).__name__)
        return row_of(piece, records)
