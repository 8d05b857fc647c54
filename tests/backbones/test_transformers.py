"""Vision transformers against Detectron2's own; their optimizer, sizes, weights, refusals."""

from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.modeling import MViT, SwinTransformer, build_backbone, build_model
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from torch import nn

from point_rend import SafeDetectionCheckpointer, get_config_file, load_config
from point_rend.backbones.transformers import mvit, swin
from point_rend.config.checks import check_config
from point_rend.solver import build_optimizer
from tests.config.test_backbone_configs import tiny

VITDET = "pointrend_rcnn_ViTDet_B_100ep_LSJ_coco"
SWIN = "pointrend_rcnn_Swin_T_FPN_3x_coco"
MVIT = "pointrend_rcnn_MViTv2_T_FPN_3x_coco"


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


# Models


def test_vitdet_is_that_of_detectron2_name_by_name() -> None:
    recipe = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
    cfg = load_config(
        get_config_file(VITDET), ["MODEL.VIT.DEPTH", "4", "MODEL.VIT.EMBED_DIM", "48"]
    )
    recipe.backbone.net.update(depth=4, embed_dim=48)
    ours, expected = build_backbone(cfg), instantiate(recipe.backbone)
    assert shapes(ours) == shapes(expected)
    assert [x.window_size for x in ours.net.blocks] == [x.window_size for x in expected.net.blocks]
    assert ours.padding_constraints == expected.padding_constraints
    assert ours.output_shape() == expected.output_shape()
    assert [x.norm1.eps for x in ours.net.blocks] == [x.norm1.eps for x in expected.net.blocks]


def test_swin_and_mvit_give_what_those_of_detectron2_give() -> None:
    blocks = {"embed_dim": 12, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 3, 6), "window_size": 4}
    stages = {"embed_dim": 8, "depth": 5, "last_block_indexes": (0, 2, 3, 4)}
    pairs = [
        (
            swin(**blocks, drop_path_rate=0.2, in_channels=3, freeze_at=0),
            SwinTransformer(**blocks, drop_path_rate=0.2),
        ),
        (
            mvit(
                embed_dim=8,
                last_blocks=(0, 2, 3, 4),
                drop_path_rate=0.2,
                in_channels=3,
                freeze_at=0,
            ),
            MViT(**stages, drop_path_rate=0.2, norm_layer=partial(nn.LayerNorm, eps=1e-6)),
        ),
    ]
    images = torch.rand(2, 3, 64, 96)
    for ours, expected in pairs:
        expected.load_state_dict(ours.state_dict())
        for mode in (True, False):  # the same rates of stochastic depth, drawn alike
            found = []
            for model in (ours, expected):
                torch.manual_seed(0)
                found.append(model.train(mode)(images))
            assert found[0].keys() == found[1].keys()
            for name, level in found[0].items():
                torch.testing.assert_close(level, found[1][name])


@pytest.mark.parametrize("name", [SWIN, MVIT])
@pytest.mark.parametrize("freeze_at", [1, 3])
def test_frozen_stages_and_nothing_else_keep_their_weights(name: str, freeze_at: int) -> None:
    cfg = tiny(name, "MODEL.BACKBONE.FREEZE_AT", str(freeze_at))
    bottom_up = build_backbone(cfg).bottom_up
    blocks = getattr(bottom_up, "layers", None) or bottom_up.blocks
    ends = [0, 1, 2, 3] if name == SWIN else [0, 1, 3, 4]
    frozen = {id(x) for x in bottom_up.patch_embed.parameters()}
    frozen |= {id(x) for x in blocks[: ends[freeze_at - 1]].parameters()}
    assert all(x.requires_grad != (id(x) in frozen) for x in bottom_up.parameters())


def test_the_pyramid_of_a_transformer_may_begin_at_any_level() -> None:
    cfg = tiny(SWIN, "MODEL.FPN.IN_FEATURES", "('res4', 'res5')")
    assert list(build_backbone(cfg)(torch.rand(1, 3, 64, 64))) == ["p4", "p5", "p6"]


# Optimizer


def settings_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, tuple]:
    """Learning rate and weight decay by the name of each parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_rates_and_decays_are_those_of_detectron2s_recipe() -> None:
    cfg = tiny(VITDET)
    model = build_model(cfg)
    config = model_zoo.get_config("common/optim.py").AdamW
    config.params.model = model
    config.params.lr_factor_func = partial(
        get_vit_lr_decay_rate, num_layers=cfg.MODEL.VIT.DEPTH, lr_decay_rate=0.7
    )
    config.params.overrides = {"pos_embed": {"weight_decay": 0.0}}
    ours, expected = build_optimizer(cfg, model), instantiate(config)
    assert type(ours) is type(expected)
    assert ours.defaults == expected.defaults
    found = settings_of(ours, model)
    assert found == settings_of(expected, model)
    # By hand: two blocks, three steps from the heads down to the embedding.
    assert found["backbone.net.pos_embed"] == (pytest.approx(1e-4 * 0.7**3), 0.0)
    assert found["backbone.net.blocks.1.attn.qkv.weight"] == (pytest.approx(1e-4 * 0.7), 0.1)
    assert found["roi_heads.mask_head.point_head.fc1.weight"] == (1e-4, 0.1)
    assert found["backbone.net.blocks.1.norm1.weight"] == (pytest.approx(1e-4 * 0.7), 0.0)


def test_parameters_without_decay_are_named_by_their_last_part() -> None:
    cfg = tiny(SWIN)
    model = build_model(cfg)
    decays = {
        key: decay for key, (_, decay) in settings_of(build_optimizer(cfg, model), model).items()
    }
    tables = {key for key in decays if key.endswith("relative_position_bias_table")}
    assert len(tables) == 5  # one a block
    assert {key for key, decay in decays.items() if decay == 0} - tables == {
        key for key in decays if ".norm" in key and "fpn" not in key
    }


# Weights


@pytest.mark.parametrize("name", [VITDET, SWIN, MVIT])
def test_a_file_with_the_names_of_the_backbone_alone_loads(name: str, tmp_path: Path) -> None:
    first, second = (build_model(tiny(name)) for _ in range(2))
    source = getattr(first.backbone, "net", None) or first.backbone.bottom_up
    state = {**source.state_dict(), "head.weight": torch.rand(10, 4)}
    path = str(tmp_path / "pretrained.pth")
    torch.save({"model": state}, path)
    SafeDetectionCheckpointer(second, strict_shapes=False).load(path)
    loaded = getattr(second.backbone, "net", None) or second.backbone.bottom_up
    assert all(torch.equal(x, loaded.state_dict()[key]) for key, x in source.state_dict().items())


# Refusals


@pytest.mark.parametrize(
    ("name", "opts", "reason"),
    [
        (
            VITDET,
            ["INPUT.MAX_SIZE_TEST", "129"],
            "INPUT.MAX_SIZE_TEST must be at most MODEL.VIT.IM",
        ),
        (VITDET, ["INPUT.MIN_SIZE_TEST", "0"], "INPUT.MIN_SIZE_TEST must be above 0"),
        (VITDET, ["INPUT.LSJ.SIZE", "[128, 160]"], "INPUT.LSJ.SIZE must be at most"),
        (VITDET, ["INPUT.LSJ.ENABLED", "False"], "INPUT.MAX_SIZE_TRAIN must be at most"),
        (VITDET, ["MODEL.VIT.IMAGE_SIZE", "130"], "must be a multiple of 32, got 130"),
        (VITDET, ["MODEL.VIT.NUM_HEADS", "3"], "a width of 16 is no multiple of NUM_HEADS, 3"),
        (VITDET, ["MODEL.VIT.GLOBAL_BLOCKS", "[2]"], "GLOBAL_BLOCKS must be less than MODEL.VIT.D"),
        (
            VITDET,
            ["MODEL.BACKBONE.FREEZE_AT", "2"],
            "FREEZE_AT must be 0 for build_vitdet_backbone",
        ),
        (VITDET, ["MODEL.FPN.NORM", ""], "MODEL.FPN.NORM must be LN or another one"),
        (SWIN, ["SOLVER.LAYER_DECAY", "0.7"], "needs the blocks of build_vitdet_backbone, but"),
        (SWIN, ["MODEL.SWIN.NUM_HEADS", "[1, 2, 3, 5]"], "a width of 96 is no multiple of NUM_HEA"),
        (SWIN, ["MODEL.FPN.IN_FEATURES", "('res2', 'res3')"], "must end with res5"),
        (MVIT, ["MODEL.MVIT.LAST_BLOCKS", "[0, 2, 2, 3]"], "MODEL.MVIT.LAST_BLOCKS must ascend"),
        (MVIT, ["SOLVER.OPTIMIZER", "ADAM"], "SOLVER.OPTIMIZER must be SGD or ADAMW, got 'ADAM'"),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_what_cannot_work_is_refused_in_one_line(name: str, opts: list[str], reason: str) -> None:
    cfg = tiny(name, *opts)
    with pytest.raises(ValueError, match=r"^.") as caught:
        check_config(cfg, training=True)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
