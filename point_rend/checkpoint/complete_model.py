"""A checkpointer for a finished model: the file must be a checkpoint of this very model."""

from typing import Any

from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer
from point_rend.checkpoint.completeness import check_complete


class CompleteModelCheckpointer(SafeDetectionCheckpointer):
    """Refuses a checkpoint of another model, which would leave parts random or out of use."""

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        check_complete(self.source, self.model, incompatible)
        return incompatible
