"""Any model of timm (`pip install timm`) that gives feature maps, as a backbone of Detectron2."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.modeling import Backbone
from torch import Tensor, nn

from point_rend.config.timm_models import import_timm

LEVELS = {4: "res2", 8: "res3", 16: "res4", 32: "res5"}  # names by stride, as in ResNets
# Arguments by which models that were made for images of one size take others.
ANY_SIZE: tuple[dict[str, Any], ...] = ({}, {"strict_img_size": False}, {"dynamic_img_size": True})
TRIAL_SIZES = ((128, 224), (192, 160))  # no multiples of a common window


class TimmBackbone(Backbone):
    """A model of timm whose feature maps have the names of a ResNet's, by their strides.

    The maps of a stride are those after the last layer with this stride. Parts behind the last
    requested one are left out.

    Args:
        name: Name in timm, with the tag of pretrained weights or without; nothing is downloaded.
        out_features: Names of the maps: of res2 to res5, strides 4 to 32.
        in_channels: Channels of an image.
        freeze_at: 1 freezes what precedes res2; 2 to 5 also freeze res2 to res5, each with what
            precedes it; 0 freezes nothing. Batch normalization of frozen parts is constant.
        norm: "BN" keeps the model's batch normalization, "FrozenBN" makes it constant, "SyncBN"
            shares its statistics among GPUs. Other normalization stays.
        drop_path_rate: Rate of stochastic depth of the last block, 0 to 1; it grows linearly.

    Raises:
        ValueError: If timm is not installed, the model lacks a map, takes images of one size only,
            or has no stochastic depth.
    """

    def __init__(
        self,
        name: str,
        out_features: Sequence[str],
        *,
        in_channels: int = 3,
        freeze_at: int = 0,
        norm: str = "BN",
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        timm = import_timm()
        options: dict[str, Any] = {"in_chans": in_channels}
        if drop_path_rate:
            options["drop_path_rate"] = drop_path_rate
        trial = _create_trial(timm, name, options)
        info = trial.model.feature_info
        last = {LEVELS.get(x["reduction"]): i for i, x in enumerate(info)}
        if lacking := [level for level in out_features if level not in last]:
            strides = ", ".join(
                f"{x}{f' ({LEVELS[x]})' if x in LEVELS else ''}"
                for x in sorted({x["reduction"] for x in info})
            )
            raise ValueError(
                f"MODEL.TIMM.NAME {name} has maps of the strides {strides}, but no "
                f"{', '.join(lacking)}, which MODEL.FPN.IN_FEATURES names"
            )
        chosen = [last[level] for level in out_features]
        if trial.model.pretrained_cfg.get("fixed_input_size"):
            options |= _any_size(timm, name, options | {"out_indices": chosen})
        net = _create(timm, name, options | {"out_indices": chosen})
        self.timm = net.model
        self.indices = list(net.out_indices)
        self._out_features = list(out_features)
        self._out_feature_channels = {
            level: info[index]["num_chs"] for level, index in zip(out_features, chosen, strict=True)
        }
        self._out_feature_strides = {level: stride for stride, level in LEVELS.items()}
        frozen = _modules_before(self.timm, info, {x: last[x] for x in out_features}, freeze_at)
        for parameter in _parameters_of(frozen):
            parameter.requires_grad_(False)
        self._set_norms(timm, norm, set(frozen))

    def _set_norms(self, timm: Any, norm: str, frozen: set[nn.Module]) -> None:
        """Make batch normalization constant in frozen modules; elsewhere what `norm` names."""
        for name, module in list(self.timm.named_modules()):
            if not isinstance(module, nn.modules.batchnorm._BatchNorm):
                continue
            if module in frozen or norm == "FrozenBN":
                replaced = timm.layers.freeze_batch_norm_2d(module)
            elif norm == "SyncBN":
                replaced = timm.layers.convert_sync_batchnorm(module)
            else:
                continue
            parent, _, child = name.rpartition(".")
            setattr(self.timm.get_submodule(parent), child, replaced)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (N, C, H, W) to maps (N, D, H / stride, W / stride) by name."""
        maps = self.timm.forward_intermediates(
            x, indices=self.indices, norm=False, output_fmt="NCHW", intermediates_only=True
        )
        return dict(zip(self._out_features, maps, strict=True))


def _create(timm: Any, name: str, options: Mapping[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of models that have been renamed
        return timm.create_model(
            name, pretrained=False, features_only=True, feature_cls="getter", **options
        )


def _create_trial(timm: Any, name: str, options: Mapping[str, Any]) -> Any:
    """Create a model without memory, with all of its maps."""
    try:
        with torch.device("meta"):
            return _create(timm, name, options)
    except (TypeError, RuntimeError, AttributeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"MODEL.TIMM.NAME {name} is no backbone: timm cannot build its feature maps ({reason})"
        ) from error


def _any_size(timm: Any, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments by which a model takes images of any size.

    Raises:
        ValueError: If there are none.
    """
    reason = ""
    for further in ANY_SIZE:
        try:
            with torch.device("meta"), torch.no_grad():
                net = _create(timm, name, {**options, **further}).eval()
                for height, width in TRIAL_SIZES:
                    net(torch.zeros(1, options["in_chans"], height, width))
        except (TypeError, RuntimeError, AssertionError) as error:
            reason = reason or str(error)
            continue
        return further
    raise ValueError(
        f"MODEL.TIMM.NAME {name} takes images of one size only ({reason}): expected a model for "
        "images of any size"
    )


def _modules_before(
    net: nn.Module, info: Sequence[Mapping[str, Any]], last: Mapping[Any, int], freeze_at: int
) -> list[nn.Module]:
    """List the modules of a model up to a level, in the order in which they were registered.

    Args:
        net: The model.
        info: Its feature maps.
        last: Index of the last map of each level in the model.
        freeze_at: As of :class:`TimmBackbone`.

    Raises:
        ValueError: If timm does not name the level's module.
    """
    if freeze_at < 1:
        return []
    modules = list(net.named_modules())  # the model itself, with parameters of its own, first
    frozen = [level for level in last if int(level[3:]) <= freeze_at]
    place = info[last[frozen[-1] if frozen else min(last)]]["module"]
    of_level = [f"{name}.".startswith(f"{place}.") for name, _ in modules]
    if True not in of_level:
        raise ValueError(
            f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, but timm does not name the parts of "
            f"{type(net).__name__}: expected 0"
        )
    end = of_level.index(True) + (sum(of_level) if frozen else 0)
    return [module for _, module in modules[:end]]


def _parameters_of(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    return [x for module in modules for x in module.parameters(recurse=False)]
