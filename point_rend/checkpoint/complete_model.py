"""A checkpointer for a finished model: the file must be a checkpoint of this very model."""

from typing import Any

from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer
from point_rend.checkpoint.completeness import check_complete
from point_rend.checkpoint.safetensors_file import SUFFIX
from point_rend.checkpoint.sealed_file import without_query


class CompleteModelCheckpointer(SafeDetectionCheckpointer):
    """Refuses a checkpoint of another model, which would leave parts random or out of use.

    A `.safetensors` has exactly the parameters of the model. Older formats may have further ones,
    as files of the model zoo do.
    """

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        exactly = without_query(self.source).endswith(SUFFIX)
        check_complete(self.source, self.model, incompatible, exactly=exactly)
        return incompatible
