"""A checkpointer for inference: every parameter of the model must be in the file."""

from typing import Any

from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer


class CompleteModelCheckpointer(SafeDetectionCheckpointer):
    """Refuses a checkpoint that leaves part of the model random, such as that of another model."""

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        state = self.model.state_dict(keep_vars=True)
        lacking = set(incompatible.missing_keys)
        loaded = {id(tensor) for key, tensor in state.items() if key not in lacking}
        # A parameter that the model has under several names may be loaded under one of them.
        missing = [key for key in state if key in lacking and id(state[key]) not in loaded]
        if missing:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise ValueError(
                f"{self.source} lacks {len(missing)} ({shown}) of the {len(state)} parameters: "
                "expected weights of this model"
            )
        return incompatible
