import os
import shutil
import threading
import warnings
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import yaml
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_mask_head

import point_rend.config.files
import point_rend.config.loading
from point_rend.config.checks import check_config
from point_rend.config.defaults import add_pointrend_config, point_head_num_classes
from point_rend.config.files import config_file_option, get_config_file
from point_rend.config.loading import (
    COMMAND_LINE,
    load_config,
    merge_from_file_safely,
    parse_config,
)

ZOO = Path(model_zoo.__file__).parent / "configs"
# Keys that the stock project lacks, besides those of DeepLab.
OWN_POINT_HEAD_KEYS = {
    "TRAIN_ON_REGULAR_GRID": False,
    "SUBDIVISION_BOXES_PER_CHUNK": None,
    "SUBDIVISION_CELLS_PER_PIXEL": 0.0,
}
OWN_KEYS = {
    "INPUT.CHANNELS": -1,
    "INPUT.BITS": 8,
    "INPUT.CROP.AFTER_RESIZE": False,
    "INPUT.LSJ.ENABLED": False,
    "INPUT.LSJ.MIN_SCALE": 0.1,
    "INPUT.LSJ.MAX_SCALE": 2.0,
    "INPUT.LSJ.SIZE": [1024, 1024],
    "INPUT.POINT_SUP": False,
    "INPUT.SAMPLE_POINTS": 0,
    "DATALOADER.ON_CORRUPT_IMAGE": "stop",
    "SOLVER.AMP.DTYPE": "float16",
    "TEST.BOUNDARY_METRICS": False,
    "TEST.MAX_DETS_PER_IMAGE": -1,
    "TEST.MIXED_PRECISION": False,
    "TEST.VALIDATION_LOSS": False,
    "TEST.BEST_METRIC": "",
    "SOLVER.PATIENCE": 0,
    "SOLVER.ACCUMULATION_STEPS": 1,
    "MODEL_EMA.ENABLED": False,
    "MODEL_EMA.DECAY": 0.999,
    "LOGGING.WANDB": False,
    "LOGGING.MLFLOW": False,
    "LOGGING.PROJECT": "point_rend",
    "LOGGING.NAME": "",
    "LOGGING.PICTURES": 4,
    "MODEL.TIMM.NAME": "",
    "MODEL.TIMM.NORM": "BN",
    "MODEL.TIMM.DROP_PATH_RATE": 0.0,
    "MODEL.VIT.IMAGE_SIZE": 1024,
    "MODEL.VIT.EMBED_DIM": 768,
    "MODEL.VIT.DEPTH": 12,
    "MODEL.VIT.NUM_HEADS": 12,
    "MODEL.VIT.GLOBAL_BLOCKS": [2, 5, 8, 11],
    "MODEL.VIT.DROP_PATH_RATE": 0.1,
    "MODEL.SWIN.EMBED_DIM": 96,
    "MODEL.SWIN.DEPTHS": [2, 2, 6, 2],
    "MODEL.SWIN.NUM_HEADS": [3, 6, 12, 24],
    "MODEL.SWIN.WINDOW_SIZE": 7,
    "MODEL.SWIN.DROP_PATH_RATE": 0.2,
    "MODEL.MVIT.EMBED_DIM": 96,
    "MODEL.MVIT.LAST_BLOCKS": [0, 2, 7, 9],
    "MODEL.MVIT.DROP_PATH_RATE": 0.2,
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.LAYER_DECAY": 1.0,
    "SOLVER.NO_WEIGHT_DECAY": (),
}
COCO_1X = "InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml"


def set_in(cfg: CfgNode, settings: dict[str, str]) -> None:
    """Set keys, whether they are there or not."""
    for key, value in settings.items():
        *sections, name = key.split(".")
        node = cfg
        for section in sections:
            node = node.setdefault(section, CfgNode())
        node[name] = value


def our_cfg() -> CfgNode:
    cfg = get_cfg()
    add_pointrend_config(cfg)
    return cfg


def stock_cfg() -> CfgNode:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from detectron2.projects.point_rend import add_pointrend_config as add_stock_config
    cfg = get_cfg()
    add_stock_config(cfg)
    return cfg


def stock_cfg_with_deeplab() -> CfgNode:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from detectron2.projects.deeplab import add_deeplab_config
    cfg = stock_cfg()
    add_deeplab_config(cfg)
    return cfg


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


class TestKeys:
    def test_keys_and_defaults_are_those_of_the_stock_projects_but_for_the_class_count(self):
        ours, stock = our_cfg(), stock_cfg_with_deeplab()
        del ours.MODEL.SEM_SEG_HEAD["POINT_HEAD"]
        assert ours.MODEL.POINT_HEAD.NUM_CLASSES == -1
        ours.MODEL.POINT_HEAD.NUM_CLASSES = stock.MODEL.POINT_HEAD.NUM_CLASSES
        for name, default in OWN_POINT_HEAD_KEYS.items():
            assert ours.MODEL.POINT_HEAD.pop(name) == default
        set_in(stock, OWN_KEYS)
        assert ours == stock

    def test_the_semantic_head_has_a_point_head_of_its_own_with_the_same_keys_and_no_name(self):
        model = our_cfg().MODEL
        assert model.POINT_HEAD.pop("NAME") == "StandardPointHead"
        assert model.SEM_SEG_HEAD.POINT_HEAD.pop("NAME") == ""
        assert model.SEM_SEG_HEAD.POINT_HEAD == model.POINT_HEAD

    def test_values_that_are_already_there_stay(self):
        cfg = stock_cfg_with_deeplab()
        cfg.MODEL.POINT_HEAD.SUBDIVISION_STEPS = 2
        cfg.MODEL.ROI_MASK_HEAD.POINT_HEAD_ON = True
        cfg.MODEL.RESNETS.RES5_MULTI_GRID = [1, 1, 1]
        before = cfg.clone()
        add_pointrend_config(cfg)
        set_in(before, OWN_KEYS)
        before.MODEL.POINT_HEAD.update(OWN_POINT_HEAD_KEYS)
        before.MODEL.SEM_SEG_HEAD.POINT_HEAD = our_cfg().MODEL.SEM_SEG_HEAD.POINT_HEAD
        assert cfg == before

    def test_configs_share_no_lists(self):
        our_cfg().MODEL.SEM_SEG_HEAD.ASPP_DILATIONS.append(24)
        assert our_cfg().MODEL.SEM_SEG_HEAD.ASPP_DILATIONS == [6, 12, 18]

    def test_adding_twice_changes_nothing(self):
        cfg = our_cfg()
        add_pointrend_config(cfg)
        assert cfg == our_cfg()

    def test_a_key_missing_in_a_section_is_added(self):
        cfg = stock_cfg()
        del cfg.MODEL.POINT_HEAD["NUM_FC"]
        add_pointrend_config(cfg)
        assert cfg.MODEL.POINT_HEAD.NUM_FC == 3


def test_the_package_of_configs_exports_what_the_stock_project_and_users_import():
    for name in point_rend.config.__all__:
        assert getattr(point_rend.config, name) is getattr(point_rend, name)


class TestShippedFiles:
    def test_a_shipped_file_is_found(self):
        path = get_config_file(COCO_1X)
        assert isinstance(path, str)
        assert os.path.isfile(path)

    def test_an_unknown_name_is_answered_with_the_nearest_ones(self):
        with pytest.raises(FileNotFoundError, match=r"1x_coc.yaml.*did you mean .*1x_coco.yam"):
            get_config_file("InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coc.yaml")

    @pytest.mark.parametrize(
        "name",
        [
            f"configs/{COCO_1X}",
            COCO_1X.removesuffix(".yaml"),
            "pointrend_rcnn_R_50_FPN_1x_coco.yaml",
            "pointrend_rcnn_R_50_FPN_1x_coco",
        ],
    )
    def test_the_folder_and_the_suffix_may_be_left_out(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert get_config_file(name) == get_config_file(COCO_1X)
        assert load_config(name) == load_config(get_config_file(COCO_1X))

    def test_a_name_in_several_folders_is_refused(self):
        with pytest.raises(ValueError, match=r"Base-Cityscapes could be Inst.* or Semantic.*: "):
            get_config_file("Base-Cityscapes")

    def test_a_file_that_exists_takes_precedence(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write(tmp_path / COCO_1X, "SEED: 7")
        assert load_config(COCO_1X).SEED == 7
        assert config_file_option(COCO_1X) == COCO_1X

    def test_a_path_that_leads_elsewhere_is_no_name(self, tmp_path):
        for folder in ("output", str(tmp_path)):
            name = f"{folder}/pointrend_rcnn_R_50_FPN_1x_coco.yaml"
            with pytest.raises(FileNotFoundError, match=f"config file {name} does not exist, and"):
                load_config(name)

    @pytest.mark.parametrize(
        ("name", "nearest"),
        [
            ("pointrend_rcnn_R_50_FPN_2x_coco.yaml", "pointrend_rcnn_R_50_FPN_1x_coco.yaml or "),
            (COCO_1X.replace("Instance", "Instanec"), COCO_1X),
        ],
    )
    def test_an_option_of_an_unknown_name_fails_with_the_nearest_names(self, name, nearest):
        assert config_file_option(name) == name
        with pytest.raises(FileNotFoundError, match=rf"{name} does .*; did you mean .*{nearest}"):
            load_config(config_file_option(name))

    def test_an_installed_package_uses_the_files_that_travel_inside_it(self, tmp_path, monkeypatch):
        inside = write(tmp_path / "point_rend" / "configs" / "a.yaml", "VERSION: 2")
        write(tmp_path / "configs" / "a.yaml", "VERSION: 2")
        module = write(tmp_path / "point_rend" / "config" / "files.py", "")
        monkeypatch.setattr(point_rend.config.files, "__file__", module)
        assert get_config_file("a.yaml") == inside


def merged_by_detectron2(path: str) -> CfgNode:
    cfg = our_cfg()
    cfg.merge_from_file(path, allow_unsafe=False)
    return cfg


class TestSameResultAsDetectron2:
    def test_for_every_file_of_the_model_zoo(self):
        refused = set()
        for path in sorted(ZOO.rglob("*.yaml")):
            cfg = our_cfg()
            try:
                expected = merged_by_detectron2(str(path))
            except yaml.constructor.ConstructorError:
                with pytest.raises(ValueError, match=r"Base-RetinaNet.yaml.*!!python"):
                    merge_from_file_safely(cfg, str(path))
                refused.add(path.name.split("_")[0])
            else:
                merge_from_file_safely(cfg, str(path))
                assert cfg == expected, path
                check_config(cfg, training=True)
        # Their base computes the anchors with `eval`.
        assert refused == {"Base-RetinaNet.yaml", "retinanet"}

    def test_for_a_file_of_an_old_version(self, tmp_path):
        text = "MODEL: {WEIGHT: w.pkl, RPN: {ANCHOR_SIZES: [[16, 32]]}}\nTEST: {AUG_ON: True}\n"
        for header in ("", "VERSION: 1\n"):
            path = write(tmp_path / "old.yaml", header + text)
            cfg = our_cfg()
            merge_from_file_safely(cfg, path)
            assert cfg.MODEL.WEIGHTS == "w.pkl"
            assert cfg.TEST.AUG.ENABLED is True
            assert cfg.VERSION == 2
            assert cfg == merged_by_detectron2(path)

    def test_for_a_list_of_bases(self, tmp_path):
        write(tmp_path / "one.yaml", "SOLVER: {BASE_LR: 0.1, MAX_ITER: 1, GAMMA: 0.5}\nSEED: 1")
        write(tmp_path / "two.yaml", "SOLVER: {BASE_LR: 0.2, MAX_ITER: 2}")
        path = write(tmp_path / "leaf.yaml", "_BASE_: [one.yaml, two.yaml]\nSOLVER: {BASE_LR: 0.3}")
        cfg = our_cfg()
        merge_from_file_safely(cfg, path)
        assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.GAMMA) == (0.3, 2, 0.5)
        assert cfg == merged_by_detectron2(path)

    @pytest.mark.parametrize("base", ["../base.yaml", "{root}/base.yaml", "~/base.yaml"])
    def test_wherever_the_base_lies(self, tmp_path, monkeypatch, base):
        monkeypatch.setenv("HOME", str(tmp_path))
        write(tmp_path / "base.yaml", "SEED: 7")
        path = write(tmp_path / "sub" / "leaf.yaml", f"_BASE_: {base.format(root=tmp_path)}")
        cfg = our_cfg()
        merge_from_file_safely(cfg, path)
        assert cfg.SEED == 7
        assert cfg == merged_by_detectron2(path)

    @pytest.mark.parametrize("value", ["(1, 2)", "[1, 2]", "'(1, 2)'", "'[1, 2]'"])
    def test_for_a_tuple_however_it_is_written(self, tmp_path, value):
        path = write(tmp_path / "steps.yaml", f"SOLVER: {{STEPS: {value}}}")
        if value == "(1, 2)":  # a comma ends a value inside YAML's braces
            path = write(tmp_path / "steps.yaml", f"SOLVER:\n  STEPS: {value}")
        cfg = our_cfg()
        merge_from_file_safely(cfg, path)
        assert cfg.SOLVER.STEPS == (1, 2)
        assert cfg == merged_by_detectron2(path)

    def test_for_the_config_that_a_training_writes(self, tmp_path):
        written = load_config(get_config_file(COCO_1X), ["SOLVER.STEPS", "(1, 2)", "SEED", "3"])
        path = write(tmp_path / "config.yaml", written.dump())
        cfg = our_cfg()
        merge_from_file_safely(cfg, path)
        assert yaml.safe_load(cfg.dump()) == yaml.safe_load(written.dump())
        assert cfg == merged_by_detectron2(path)


class TestRemoteFiles:
    @pytest.fixture
    def url(self, tmp_path, monkeypatch):
        """Serve leaf.yaml with its base; return the folder's URL."""
        write(tmp_path / "served" / "sub" / "leaf.yaml", "_BASE_: ../base.yaml\nSEED: 8")
        write(tmp_path / "served" / "base.yaml", "OUTPUT_DIR: elsewhere")
        monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
        folder = str(tmp_path / "served")
        server = HTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder))
        monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        server.server_close()

    def test_are_refused_unless_asked_for(self, tmp_path, monkeypatch, url):
        monkeypatch.delenv("POINT_REND_REMOTE_CONFIGS", raising=False)
        leaf = write(tmp_path / "leaf.yaml", f"_BASE_: {url}/base.yaml")
        for path in (f"{url}/base.yaml", f"{url.upper()}/base.yaml", leaf):
            with pytest.raises(ValueError, match=r"is remote .*POINT_REND_REMOTE_CONFIGS=1$"):
                load_config(path)
        assert not (tmp_path / "cache").exists()

    def test_are_read_with_their_bases_if_asked_for(self, tmp_path, monkeypatch, url):
        leaf = write(tmp_path / "leaf.yaml", f"_BASE_: {url}/sub/leaf.yaml")
        cfg = load_config(leaf, allow_remote=True)
        assert (cfg.SEED, cfg.OUTPUT_DIR) == (8, "elsewhere")
        monkeypatch.setenv("POINT_REND_REMOTE_CONFIGS", "1")
        assert load_config(leaf) == cfg
        with pytest.raises(ValueError, match="is remote"):
            load_config(leaf, allow_remote=False)

    def test_are_small(self, tmp_path, url):
        write(tmp_path / "served" / "large.yaml", "#" * (1 << 21) + "\nSEED: 1")
        with pytest.raises(OSError, match=r"more than \d+ bytes, the limit"):
            load_config(f"{url}/large.yaml", allow_remote=True)

    def test_of_detectron2_are_read_in_any_case(self, tmp_path, monkeypatch):
        base = write(tmp_path / "base.yaml", "SEED: 7")
        monkeypatch.setattr(
            point_rend.config.loading,
            "local_path",
            lambda path, **_: base if path == "detectron2://some/base.yaml" else path,
        )
        assert (
            load_config(write(tmp_path / "leaf.yaml", "_BASE_: detectron2://some/base.yaml")).SEED
            == 7
        )

    @pytest.mark.parametrize("dots", ["..", "%2e%2e", "%2E."])
    def test_do_not_lead_upward(self, tmp_path, dots):
        address = f"detectron2://a/{dots}/{dots}/b.yaml"
        leaf = write(tmp_path / "leaf.yaml", f"_BASE_: {address}")
        for config_file in (leaf, address):
            with pytest.raises(ValueError, match=r"expected a URL without `\.\.` in its path"):
                load_config(config_file)


class TestNothingIsExecuted:
    def hostile(self, tmp_path: Path) -> tuple[str, Path]:
        sentinel = tmp_path / "sentinel"
        text = f"SEED: 1\nOUTPUT_DIR: !!python/object/apply:os.mkdir ['{sentinel}']\n"
        return write(tmp_path / "hostile.yaml", text), sentinel

    def test_the_planted_code_runs_under_detectron2(self, tmp_path):
        path, sentinel = self.hostile(tmp_path)
        our_cfg().merge_from_file(path)
        assert sentinel.is_dir()

    @pytest.mark.parametrize(
        "leaf",
        [
            "SEED: 2",
            "_BASE_: hostile.yaml",
            "_BASE_: [harmless.yaml, hostile.yaml]",
            "_BASE_: middle.yaml",
        ],
    )
    def test_a_hostile_file_is_named_and_not_executed(self, tmp_path, leaf):
        hostile, sentinel = self.hostile(tmp_path)
        write(tmp_path / "harmless.yaml", "SEED: 3")
        write(tmp_path / "middle.yaml", "_BASE_: hostile.yaml")
        path = write(tmp_path / "leaf.yaml", leaf) if "_BASE_" in leaf else hostile
        cfg = our_cfg()
        before = cfg.clone()
        with pytest.raises(ValueError, match=r"hostile.yaml.*line 2:.*!!python/object/apply"):
            merge_from_file_safely(cfg, path)
        assert not sentinel.exists()
        assert cfg == before

    @pytest.mark.parametrize(
        "value",
        [
            "!!python/object/new:pathlib.PurePath [a]",
            "!!python/object:pathlib.PurePath {}",
            "!!python/name:os.getcwd ''",
            "!!python/module:os ''",
            "!!python/tuple [1, 2]",
            "!own 3",
        ],
    )
    def test_every_tag_beyond_plain_yaml_is_refused(self, tmp_path, value):
        path = write(tmp_path / "tagged.yaml", f"OUTPUT_DIR: {value}")
        with pytest.raises(ValueError, match=r"tagged.yaml, line 1: .*tag"):
            load_config(path)

    def test_the_command_line_is_data_too(self, tmp_path):
        sentinel = tmp_path / "sentinel"
        attack = f"__import__('os').mkdir('{sentinel}')"
        cfg = load_config(get_config_file(COCO_1X), ["OUTPUT_DIR", attack])
        assert attack == cfg.OUTPUT_DIR
        assert not sentinel.exists()


class TestBadFiles:
    def test_a_cycle_is_shown(self, tmp_path):
        for name, base in [("a", "b"), ("b", "sub/../c"), ("c", "a")]:
            write(tmp_path / f"{name}.yaml", f"_BASE_: {base}.yaml")
        (tmp_path / "sub").mkdir()
        with pytest.raises(ValueError, match=r"cycle: .*a.yaml -> .*b.yaml -> .*c.yaml -> .*a.yam"):
            load_config(str(tmp_path / "a.yaml"))

    def test_the_same_base_twice_is_no_cycle(self, tmp_path):
        write(tmp_path / "root.yaml", "SEED: 5")
        for name in ("a", "b"):
            write(tmp_path / f"{name}.yaml", "_BASE_: root.yaml")
        path = write(tmp_path / "leaf.yaml", "_BASE_: [a.yaml, b.yaml]")
        assert load_config(path).SEED == 5

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"config file .*absent.yaml does not exist"):
            load_config(str(tmp_path / "absent.yaml"))

    def test_a_missing_base_and_the_file_that_wants_it_are_named(self, tmp_path):
        path = write(tmp_path / "leaf.yaml", "_BASE_: absent.yaml")
        with pytest.raises(FileNotFoundError, match=r"absent.yaml \(_BASE_ of .*leaf.yaml\) does"):
            load_config(path)

    def test_a_folder_is_no_config(self, tmp_path):
        with pytest.raises(ValueError, match=f"config file {tmp_path}: a folder, expected a file"):
            load_config(str(tmp_path))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("SEED: 1\nSOLVER: [1, 2", "broken.yaml, line 2: expected ',' or ']'"),
            ("SEED: 1\nSEED: 2: 3", "broken.yaml, line 2: mapping values are not allowed"),
            ("", "broken.yaml: expected config keys and values, got None"),
            ("- SEED", r"broken.yaml: expected config keys and values, got \['SEED'\]"),
            ("SEED: \0", "broken.yaml is not valid YAML"),
            ("SEED: 2026-13-45", "broken.yaml is not valid YAML: month must be"),
            ("_BASE_: 3", "broken.yaml: _BASE_ must be a file or a list of files, got 3"),
            ("_BASE_: [{}]", "broken.yaml: _BASE_ must be a file or a list of files"),
            ("VERSION: 3", "broken.yaml: VERSION must be a number from 0 to 2, got 3"),
            ("VERSION: two", "broken.yaml: VERSION must be a number from 0 to 2, got 'two'"),
        ],
    )
    def test_a_malformed_file_is_named_with_its_fault(self, tmp_path, text, message):
        path = write(tmp_path / "broken.yaml", text)
        with pytest.raises(ValueError, match=message):
            load_config(path)

    def test_binary_files_are_refused(self, tmp_path):
        (tmp_path / "binary.yaml").write_bytes(b"SEED: \xff\xfe\x00")
        with pytest.raises(ValueError, match=r"binary.yaml is not valid YAML"):
            load_config(str(tmp_path / "binary.yaml"))


class TestBadKeysAndValues:
    def test_an_unknown_key_is_named_with_its_file_and_the_nearest_key(self, tmp_path):
        write(tmp_path / "base.yaml", "MODEL: {POINT_HEAD: {SUBDIVISION_STEP: 3}}")
        path = write(tmp_path / "leaf.yaml", "_BASE_: base.yaml\nSEED: 1")
        message = (
            "^[^ ]*base.yaml: unknown config key MODEL.POINT_HEAD.SUBDIVISION_STEP; "
            "did you mean MODEL.POINT_HEAD.SUBDIVISION_STEPS"
        )
        with pytest.raises(ValueError, match=message):
            load_config(path)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("MODEL: {DEVICE: {NAME: cpu}}", "unknown config key MODEL.DEVICE.NAME"),
            ("MODEL.DEVICE: cpu", "unknown config key MODEL.DEVICE"),
            ("1: 2", "unknown config key 1"),
            ("MODEL: 5", "MODEL must be a section of keys, got int 5"),
            ("MODEL:", "MODEL must be a section of keys, got NoneType None"),
            ("SOLVER: {BASE_LR: 1}", "SOLVER.BASE_LR must be float such as 0.001, got int 1"),
            ("SEED: 2026-01-02", "SEED must be int such as -1, got date 2026-01-02"),
            ("OUTPUT_DIR: '5'", "OUTPUT_DIR must be str .* got int 5; quote it twice"),
        ],
    )
    def test_a_misfit_in_a_file_is_named(self, tmp_path, text, message):
        path = write(tmp_path / "misfit.yaml", text)
        with pytest.raises(ValueError, match=f"^[^ ]*misfit.yaml: {message}"):
            load_config(path)

    @pytest.mark.parametrize(
        ("opts", "message"),
        [
            (["solver.base_lr", "0.1"], "unknown .* solver.base_lr; did you mean SOLVER.BASE_LR"),
            (["SEED=1", "MODEL.DEVICE=cpu"], "unknown config key SEED=1; write KEY VALUE"),
            (
                ["SEED=1"],
                "expected pairs KEY VALUE separated by a space, got an odd number of words: SEED=1",
            ),
            (
                ["SEED", "1", "--num-gpus", "2"],
                "--num-gpus stands among .*; options that start with - must",
            ),
            (["SEED", "1", "--resume"], "--resume stands among .*; options that start with - must"),
            (["_BASE_", "x.yaml"], "unknown config key _BASE_"),
            (["MODEL", "{'DEVICE': 'cpu'}"], "MODEL must be a section of keys, got dict"),
            (["INPUT.MIN_SIZE_TRAIN", "(800)"], "INPUT.MIN_SIZE_TRAIN must be tuple .* int 800"),
            (["OUTPUT_DIR", "{{}}"], "OUTPUT_DIR must be str such as './output'"),
        ],
    )
    def test_a_misfit_on_the_command_line_is_named(self, opts, message):
        with pytest.raises(ValueError, match=f"^command line: .*{message}"):
            load_config(get_config_file(COCO_1X), opts, opts_source=COMMAND_LINE)

    @pytest.mark.parametrize(
        ("opts", "message"),
        [
            (["SEED=1"], "expected keys and values in turn, got an odd number of items: SEED=1"),
            (["SEED=1", "SEED=2"], "unknown config key SEED=1; pass a key and its value as two"),
            (["--num-gpus", "2"], "unknown config key --num-gpus"),
        ],
    )
    def test_a_misfit_in_a_call_from_python_is_named_by_its_argument(self, opts, message):
        with pytest.raises(ValueError, match=f"^opts: {message}"):
            load_config(get_config_file(COCO_1X), opts)

    def test_a_failed_merge_leaves_the_config_as_it_was(self, tmp_path):
        write(tmp_path / "base.yaml", "SEED: 5")
        path = write(tmp_path / "leaf.yaml", "_BASE_: base.yaml\nMODEL: {NO_SUCH_KEY: 1}")
        cfg = our_cfg()
        with pytest.raises(ValueError, match="NO_SUCH_KEY"):
            merge_from_file_safely(cfg, path)
        assert cfg == our_cfg()

    def test_the_advice_to_quote_twice_works(self):
        assert load_config(get_config_file(COCO_1X), ["OUTPUT_DIR", "'5'"]).OUTPUT_DIR == "5"


class TestLoadConfig:
    def test_the_command_line_comes_last(self):
        cfg = load_config(get_config_file(COCO_1X), ["SOLVER.BASE_LR", "0.5"])
        assert cfg.SOLVER.BASE_LR == 0.5
        assert cfg.SOLVER.MAX_ITER == 90000

    def test_the_result_can_be_changed(self):
        cfg = load_config(get_config_file(COCO_1X))
        assert not cfg.is_frozen()
        cfg.SEED = 4
        assert cfg.SEED == 4

    def test_a_copy_of_the_files_elsewhere_loads_alike(self, tmp_path):
        shutil.copytree(Path(get_config_file(COCO_1X)).parent, tmp_path / "copy")
        copied = load_config(str(tmp_path / "copy" / Path(COCO_1X).name))
        assert copied == load_config(get_config_file(COCO_1X))


class TestParseConfig:
    def test_the_dump_of_a_config_gives_the_config(self):
        cfg = load_config(COCO_1X, ["SEED", "3"])
        again = parse_config(cfg.dump(), "here")
        assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())
        assert parse_config(cfg.dump(), "here", ["SEED", "4"]).SEED == 4

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("SEED: !!python/name:os.getcwd ''", "^here, line 1: .*!!python/name"),
            ("SED: 1", "^here: unknown config key SED; did you mean SEED"),
            ("_BASE_: /etc/passwd", "^here: unknown config key _BASE_"),
            ("SEED", "^here: expected config keys and values"),
        ],
    )
    def test_text_is_read_as_safely_as_a_file(self, text, message):
        with pytest.raises(ValueError, match=message):
            parse_config(text, "here")


class TestClassCounts:
    def test_the_default_takes_the_count_of_the_head(self):
        assert point_head_num_classes(our_cfg(), 17, "MODEL.ROI_HEADS.NUM_CLASSES") == 17

    def test_an_equal_count_is_accepted(self):
        cfg = our_cfg()
        cfg.MODEL.POINT_HEAD.NUM_CLASSES = 17
        assert point_head_num_classes(cfg, 17, "MODEL.ROI_HEADS.NUM_CLASSES") == 17

    @pytest.mark.parametrize("count", [80, 0, -2])
    def test_another_count_is_refused_with_both_keys_and_values(self, count):
        cfg = our_cfg()
        cfg.MODEL.POINT_HEAD.NUM_CLASSES = count
        message = f"MODEL.POINT_HEAD.NUM_CLASSES is {count}, but MODEL.X.NUM_CLASSES is 17"
        with pytest.raises(ValueError, match=message):
            point_head_num_classes(cfg, 17, "MODEL.X.NUM_CLASSES")


CONTRADICTIONS = [
    (
        ["MODEL.POINT_HEAD.NUM_CLASSES", "81"],
        "MODEL.POINT_HEAD.NUM_CLASSES is 81, but MODEL.ROI_HEADS.NUM_CLASSES is 80",
    ),
    (
        ["MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2"],
        "MODEL.ROI_MASK_HEAD.POOLER_TYPE must be \"\", got 'ROIAlignV2'",
    ),
]


def build_mask_head_of(name: str, opts: list[str]) -> None:
    narrow = ["MODEL.DEVICE", "cpu", "MODEL.ROI_MASK_HEAD.FC_DIM", "8"]
    cfg = load_config(get_config_file(f"InstanceSegmentation/{name}"), [*narrow, *opts])
    levels = {f"p{n}": ShapeSpec(channels=256, stride=2**n) for n in range(2, 6)}
    build_mask_head(cfg, levels)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("POINT_HEAD.SUBDIVISION_STEPS", "-1", "SUBDIVISION_STEPS: .* got -1"),
        ("POINT_HEAD.SUBDIVISION_NUM_POINTS", "0", "SUBDIVISION_NUM_POINTS: .* got 0"),
        ("POINT_HEAD.TRAIN_NUM_POINTS", "0", "TRAIN_NUM_POINTS: .* got 0"),
        ("POINT_HEAD.OVERSAMPLE_RATIO", "0", "OVERSAMPLE_RATIO .* got 0"),
        ("POINT_HEAD.IMPORTANCE_SAMPLE_RATIO", "1.5", "IMPORTANCE_SAMPLE_RATIO .* got 1.5"),
        ("POINT_HEAD.IN_FEATURES", "['res2']", "MODEL.POINT_HEAD.IN_FEATURES .*'res2'"),
        ("POINT_HEAD.NUM_CLASSES", "7", "MODEL.POINT_HEAD.NUM_CLASSES is 7, but .* is 80"),
        ("ROI_MASK_HEAD.IN_FEATURES", "['p6']", "MODEL.ROI_MASK_HEAD.IN_FEATURES .*'p6'"),
        ("ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION", "0", "MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION"),
        ("ROI_MASK_HEAD.POOLER_RESOLUTION", "13", "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION.* 13x13"),
    ],
)
def test_a_number_that_cannot_work_is_named_when_the_head_is_built(key, value, message):
    with pytest.raises(ValueError, match=message):
        build_mask_head_of("pointrend_rcnn_R_50_FPN_1x_coco.yaml", [f"MODEL.{key}", value])


def test_the_implicit_head_wants_a_square_number_of_points():
    opts = ["MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", "700"]
    with pytest.raises(ValueError, match=r"SUBDIVISION_NUM_POINTS is 700.* square number"):
        build_mask_head_of("implicit_pointrend_R_50_FPN_1x_coco.yaml", opts)


class TestCheckConfig:
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize(("opts", "message"), CONTRADICTIONS)
    def test_a_contradiction_names_its_keys(self, opts, message, training):
        cfg = load_config(get_config_file(COCO_1X), opts)
        with pytest.raises(ValueError, match=message):
            check_config(cfg, training=training)

    @pytest.mark.parametrize(("opts", "message"), CONTRADICTIONS)
    def test_without_masks_nothing_contradicts(self, opts, message):  # noqa: ARG002
        cfg = load_config(get_config_file(COCO_1X), [*opts, "MODEL.MASK_ON", "False"])
        check_config(cfg, training=True)

    @pytest.mark.parametrize(
        ("opts", "message"),
        [
            (
                ["INPUT.MIN_SIZE_TRAIN_SAMPLING", "any"],
                "SAMPLING must be choice or range, got 'any",
            ),
            (["INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"], r"INPUT.MIN_SIZE_TRAIN must be .*\(640, "),
        ],
    )
    def test_short_sides_are_checked_in_training_alone(self, opts, message):
        cfg = load_config(get_config_file(COCO_1X), opts)
        check_config(cfg, training=False)
        with pytest.raises(ValueError, match=message):
            check_config(cfg, training=True)

    @pytest.mark.parametrize("precision", ["fp16", "float64"])
    def test_the_short_type_is_checked_where_it_is_used(self, precision):
        cfg = load_config(get_config_file(COCO_1X), ["SOLVER.AMP.DTYPE", precision])
        check_config(cfg, training=False)
        cfg.TEST.MIXED_PRECISION = True
        with pytest.raises(ValueError, match=f"must be float16 or bfloat16, got '{precision}'"):
            check_config(cfg, training=False)

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            (
                "ROI_BOX_CASCADE_HEAD.IOUS",
                "(0.5, 0.6, 1.7)",
                "IOUS must .* above 0, at most 1, ",
            ),
            ("ROI_BOX_CASCADE_HEAD.IOUS", "(0.5, 0.6)", "IOUS must be a list of 3 values"),
            ("ROI_BOX_CASCADE_HEAD.IOUS", "(0.6, 0.6, 0.7)", "IOUS must begin with MODEL.ROI_HE"),
            ("ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "False", "REG must be True, because a cascade"),
        ],
    )
    def test_a_cascade_that_cannot_learn_is_refused(self, key, value, message):
        file = get_config_file("pointrend_cascade_rcnn_R_50_FPN_1x_coco")
        cfg = load_config(file, [f"MODEL.{key}", value])
        with pytest.raises(ValueError, match=message):
            check_config(cfg, training=True)

    @pytest.mark.parametrize("prefix", ["", "pointrend_"])
    @pytest.mark.parametrize(
        ("opts", "message"),
        [
            (["INPUT.CROP.TYPE", "relative"], "INPUT.CROP.TYPE is 'relative', but DeepLabV3Head"),
            (["INPUT.CROP.SIZE", "[512, 1000]"], r"SIZE is \(512, 1000\), .* which is 16"),
        ],
    )
    def test_the_crop_fits_deeplab(self, prefix, opts, message):
        name = f"SemanticSegmentation/{prefix}deeplab_v3_R_103_os16_90k_cityscapes.yaml"
        cfg = load_config(get_config_file(name), opts)
        with pytest.raises(ValueError, match=message):
            check_config(cfg, training=True)
        cfg.INPUT.CROP.ENABLED = False
        check_config(cfg, training=True)

    def test_other_heads_take_any_crop(self):
        name = "SemanticSegmentation/pointrend_semantic_R_101_FPN_1x_cityscapes.yaml"
        opts = ["INPUT.CROP.TYPE", "relative", "INPUT.CROP.SIZE", "[0.5, 0.7]"]
        check_config(load_config(get_config_file(name), opts), training=True)

    @pytest.mark.parametrize("mask_head", ["PointRendMaskHead", "MaskRCNNConvUpsampleHead"])
    @pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
    def test_every_mask_head_may_train_on_either_format(self, mask_head, mask_format):
        opts = ["MODEL.ROI_MASK_HEAD.NAME", mask_head, "INPUT.MASK_FORMAT", mask_format]
        if mask_head == "MaskRCNNConvUpsampleHead":
            opts += ["MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2"]
        check_config(load_config(get_config_file(COCO_1X), opts), training=True)

    @pytest.mark.parametrize("mask_head", ["PointRendMaskHead", "MaskRCNNConvUpsampleHead"])
    def test_an_unknown_mask_format_is_refused_for_every_mask_head(self, mask_head):
        opts = ["MODEL.ROI_MASK_HEAD.NAME", mask_head, "INPUT.MASK_FORMAT", "bitmap"]
        cfg = load_config(get_config_file(COCO_1X), opts)
        with pytest.raises(ValueError, match="must be bitmask or polygon, got 'bitmap'"):
            check_config(cfg, training=True)

    def test_a_point_head_that_is_off_contradicts_nothing(self):
        opts = [
            *("MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", "False"),
            *("MODEL.POINT_HEAD.NUM_CLASSES", "81"),
        ]
        check_config(load_config(get_config_file(COCO_1X), opts), training=True)

    def test_the_implicit_head_always_uses_its_point_head(self):
        name = "InstanceSegmentation/implicit_pointrend_R_50_FPN_1x_coco.yaml"
        cfg = load_config(get_config_file(name), ["MODEL.POINT_HEAD.NUM_CLASSES", "81"])
        assert cfg.MODEL.ROI_MASK_HEAD.POINT_HEAD_ON is False
        with pytest.raises(ValueError, match=r"MODEL.POINT_HEAD.NUM_CLASSES is 81"):
            check_config(cfg, training=True)

    def test_the_oldest_names_are_accepted_as_they_were_written(self):
        opts = [
            *("MODEL.ROI_HEADS.NAME", "PointRendROIHeads"),
            *("MODEL.ROI_MASK_HEAD.NAME", "CoarseMaskHead"),
            *("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2"),
            *("MODEL.POINT_HEAD.NUM_CLASSES", "80"),
        ]
        cfg = load_config(get_config_file(COCO_1X), opts)
        check_config(cfg, training=True)

    def test_boundaries_are_measured_of_masks_only(self):
        opts = ["TEST.BOUNDARY_METRICS", "True"]
        check_config(load_config(get_config_file(COCO_1X), opts), training=False)
        semantic = "SemanticSegmentation/pointrend_semantic_R_101_FPN_1x_cityscapes.yaml"
        check_config(load_config(get_config_file(semantic), opts), training=False)
        cfg = load_config(get_config_file(COCO_1X), [*opts, "MODEL.MASK_ON", "False"])
        with pytest.raises(ValueError, match=r"BOUNDARY_METRICS is True, .*MASK_ON is False"):
            check_config(cfg, training=False)

    @pytest.mark.parametrize(
        ("number", "sigmas", "message"),
        [
            (2, "[]", r"OKS_SIGMAS is empty, which means 17 of COCO, but .*NUM_KEYPOINTS is 2"),
            (2, "[1.0]", r"OKS_SIGMAS has 1 numbers, but .*NUM_KEYPOINTS is 2: expected one sigma"),
        ],
    )
    def test_an_evaluation_needs_one_sigma_for_each_keypoint(self, number, sigmas, message):
        opts = ["MODEL.KEYPOINT_ON", "True", "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", str(number)]
        opts += ["TEST.KEYPOINT_OKS_SIGMAS", sigmas]
        with pytest.raises(ValueError, match=message):
            check_config(load_config(get_config_file(COCO_1X), opts), training=True)
        opts += ["DATASETS.TEST", "()"]
        check_config(load_config(get_config_file(COCO_1X), opts), training=True)

    def test_nothing_is_changed(self):
        cfg = load_config(get_config_file(COCO_1X))
        before = cfg.clone()
        check_config(cfg, training=True)
        assert cfg == before
