"""Every published protocol runs, on a miniature of its data sets in their real layout and naming."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import voc_object, voc_xml, write_image
from runs import ROOT, trainer

from lossmix_det.commands import prepare_cityscapes, prepare_kitti
from lossmix_det.commands.options import run_tool
from lossmix_det.config import as_dict, flat, load_config
from lossmix_det.data import cityscapes
from lossmix_det.data.builtin import CITYSCAPES_CLASSES, PAINTED_CLASSES, VOC_CLASSES

CONFIGS = ROOT / "configs"
ADAPTING = [
    *("voc_to_clipart", "voc_to_clipart_1000", "voc_to_watercolor", "voc_to_comic"),
    *("cityscapes_to_foggy", "cityscapes_to_foggy_all", "cityscapes_to_foggy_r50_fpn"),
    *("cityscapes_to_foggy_all_r50_fpn", "sim10k_to_cityscapes", "kitti_to_cityscapes"),
]
TLLIB = ["voc0712_to_clipart", "voc0712_to_watercolor", "voc0712_to_comic"]  # meant for one GPU as they are
ALDI = "cityscapes_to_foggy_all_aldi"
METHODS = {
    "source_only": {"data.target", "alignment.parts"},
    "oracle": {"data.train", "data.target", "alignment.parts"},
    "adaptive_teacher": set(),
    "adaptive_teacher_noise": {"mixing.probability", "mixing.rule", "mixing.lam_range"},
    "adaptive_teacher_union": {"mixing.probability", "mixing.rule"},
    "adaptive_teacher_lossmix": {"mixing.probability"},
}
PLAIN = ["voc", "coco"]
PATHS = [CONFIGS / folder / f"{method}.yaml" for folder in ADAPTING for method in METHODS]
PATHS += [
    CONFIGS / folder / f"{method}.yaml" for folder in PLAIN for method in ("baseline", "noise", "union", "lossmix")
]
# The others of these folders run the same code as those above.
ALONE = [CONFIGS / folder / f"{method}.yaml" for folder in TLLIB for method in ("oracle", "adaptive_teacher_lossmix")]
ALONE += [CONFIGS / ALDI / f"{method}.yaml" for method in ("aldi_pp", "aldi_pp_lossmix")]
RUN = [*PATHS, *ALONE]
NARROW = [
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "8", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "32"),
]
SMALLER = {  # networks by the Detectron2 configuration that they take the place of
    "r101_c4_2fc": ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"],
    "r50_fpn": ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.FPN.OUT_CHANNELS", "16"],
    "r50_c4": NARROW,
    "r101_c4_tllib": ["MODEL.RESNETS.DEPTH", "50", *NARROW],
    "vgg16": [
        *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", "18"),
        *("MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.RPN.IN_FEATURES", '("res4",)'),
        *("MODEL.ROI_HEADS.IN_FEATURES", '("res4",)'),
    ],
}
WHOLE = CONFIGS / "cityscapes_to_foggy" / "adaptive_teacher_lossmix.yaml"  # with its own VGG16
TINY = [
    *("model.weights=''", "data.batch_size=2", "data.workers=0", "data.augment.min_sizes=[48]"),
    *("data.augment.max_size=96", "data.augment.test_size=48", "optimizer.lr=0.0001", "optimizer.warmup_steps=2"),
    *("adaptation.burn_in_steps=3", "adaptation.unsupervised_weight=1.0", "pseudo_labels.score=0.06"),
    *("train.steps=6", "train.eval_every=0", "train.device=cpu", "train.precision='32'"),
]


def tiny(path: Path) -> list[str]:
    """Overrides that shrink a protocol without touching what it compares."""
    network = Path(load_config(path).model.detectron2_config).stem
    options = ["MODEL.ROI_BOX_HEAD.FC_DIM", "16", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16"]
    options += ["MODEL.RPN.POST_NMS_TOPK_TRAIN", "30", "MODEL.RPN.POST_NMS_TOPK_TEST", "30"]
    if path.stem.removesuffix("_b4") != WHOLE.stem or path.parent != WHOLE.parent:
        options += SMALLER[network]
    return [*TINY, "model.detectron2_options=[" + ",".join(f"'{word}'" for word in options) + "]"]


def write_voc(root: Path, splits: dict[str, list[str]], classes: list[str], suffix: str = ".jpg") -> None:
    """Images of every class, so that none is missing in training."""
    objects = "".join(
        voc_object(name, 2 + index % 5 * 8, 2 + index // 5 * 8, 16 + index % 5 * 8, 16 + index // 5 * 8)
        for index, name in enumerate(classes)
    )
    for split, names in splits.items():
        for seed, name in enumerate(names):
            write_image(root / "JPEGImages" / f"{name}{suffix}", 64, 48, seed=seed)
            (root / "Annotations").mkdir(exist_ok=True)
            (root / "Annotations" / f"{name}.xml").write_text(voc_xml(objects, 64, 48))
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def write_cityscapes(root: Path) -> None:
    objects = [
        {"label": name, "polygon": [[2 + 6 * i, 4], [18 + 6 * i, 6], [10 + 6 * i, 30]]}
        for i, name in enumerate(CITYSCAPES_CLASSES)
    ]
    for split, city in (("train", "aachen"), ("val", "frankfurt")):
        for frame in (19, 20):
            stem = f"{city}/{city}_000000_{frame:06d}"
            path = root / "gtFine" / split / f"{stem}_gtFine_polygons.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"imgWidth": 64, "imgHeight": 48, "objects": objects}))
            fog = [("leftImg8bit_foggy", f"_foggy_beta_{level}") for level in cityscapes.FOG_LEVELS]
            for folder, suffix in (("leftImg8bit", ""), *fog):
                write_image(root / folder / split / f"{stem}_leftImg8bit{suffix}.png", 64, 48, seed=frame)


def write_kitti(root: Path) -> None:
    for number in range(3):
        write_image(root / "training" / "image_2" / f"{number:06d}.png", 80, 40, seed=number)
        label = root / "training" / "label_2" / f"{number:06d}.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text(f"Car 0.00 0 -1.57 {5 + number}.0 6.0 40.0 30.0 1.5 1.6 3.7 1.0 1.7 20.0 -1.5\n")


def write_coco(root: Path) -> None:
    for split, first in (("train2017", 9), ("val2017", 139)):
        names = [f"{first + index:012d}.jpg" for index in range(3)]
        images = [{"id": first + i, "file_name": name, "width": 64, "height": 48} for i, name in enumerate(names)]
        boxes = [
            {"id": i * 10 + k, "image_id": first + i, "category_id": k, "bbox": [k % 8 * 6, 4, 14, 20], "area": 280}
            for i in range(3)
            for k in (1, 18, 90)
        ]
        boxes = [{**box, "iscrowd": 0, "segmentation": [[0, 0, 5, 0, 5, 5]]} for box in boxes]
        categories = [{"id": k, "name": name} for k, name in ((1, "person"), (18, "dog"), (90, "toothbrush"))]
        for seed, name in enumerate(names):
            write_image(root / split / name, 64, 48, seed=seed)
        content = {"images": images, "annotations": boxes, "categories": categories}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("miniatures")
    write_voc(root / "VOCdevkit/VOC2007", {"trainval": ["000005", "000007"], "test": ["000001", "000002"]}, VOC_CLASSES)
    write_voc(root / "VOCdevkit/VOC2012", {"trainval": ["2007_000027", "2007_000032", "2008_000008"]}, VOC_CLASSES)
    write_voc(root / "clipart", {"train": ["100160833", "11110239"], "test": ["119236637", "124563837"]}, VOC_CLASSES)
    for name in ("watercolor", "comic"):
        write_voc(root / name, {"train": ["4025567541", "4098741"], "test": ["4123987", "4155555"]}, PAINTED_CLASSES)
    write_voc(root / "sim10k", {"trainval10k": ["3384645", "3384828"]}, ["car", "motorbike", "person"])
    write_cityscapes(root / "cityscapes")
    write_kitti(root / "kitti")
    write_coco(root / "coco")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOSSMIX_DATASETS", str(root))
        for main in (prepare_cityscapes.main, prepare_kitti.main):
            patch.setattr(sys, "argv", ["prepare"])
            assert run_tool(main) == 0
    return root


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN, ids=[f"{path.parent.name}-{path.stem}" for path in RUN])
def test_it_burns_in_adapts_and_evaluates(path, miniatures, tmp_path, monkeypatch):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    monkeypatch.setenv("LOSSMIX_DATASETS", str(miniatures))
    monkeypatch.chdir(ROOT)
    config = load_config(path, [*tiny(path), f"output_dir={tmp_path}"])
    it = trainer(tmp_path, config=config)
    assert it.train()
    assert it.state.skipped_steps == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results)[-1] == ("teacher" if config.data.target else "ema" if config.ema.decay else "student")
    (scores,) = list(results.values())[-1].values()
    assert 0 <= scores["VOC_AP50"] <= 100
    scored = {name for name, values in scores["classes"].items() if values["VOC_AP50"] is not None}
    assert scored == expected_classes(path, config)


def expected_classes(path: Path, config) -> set[str]:
    """Those that are scored."""
    folder = path.parent.name
    if "watercolor" in folder or "comic" in folder:
        return set(PAINTED_CLASSES)
    if folder == "coco":
        return {"person", "dog", "toothbrush"}
    return set(config.data.classes or (CITYSCAPES_CLASSES if "cityscapes" in folder else VOC_CLASSES))


def settings(path: Path) -> dict[str, object]:
    found = flat(as_dict(load_config(path)))
    assert found.pop("output_dir") == f"runs/{path.parent.name}/{path.stem}"
    return found


@pytest.mark.parametrize("folder", ADAPTING)
def test_methods_of_a_protocol_differ_in_what_makes_them_alone(folder):
    assert {path.stem for path in (CONFIGS / folder).glob("*.yaml")} == {
        name + variant for name in METHODS for variant in ("", "_b4")
    }
    for variant in ("", "_b4"):
        base = settings(CONFIGS / folder / f"adaptive_teacher{variant}.yaml")
        assert base["data.target"]
        assert base["mixing.probability"] == 0
        for method, allowed in METHODS.items():
            own = settings(CONFIGS / folder / f"{method}{variant}.yaml")
            assert {key for key in base if base[key] != own[key]} == allowed
        if variant:
            parent = settings(CONFIGS / folder / "adaptive_teacher.yaml")
            changed = {key for key in base if base[key] != parent[key]}
            allowed = {"data.batch_size", "optimizer.lr", "train.steps", "train.eval_every"}
            assert changed <= allowed | {"adaptation.burn_in_steps", "adaptation.unsupervised_weight"}
            assert base["data.batch_size"] == 4
    source = settings(CONFIGS / folder / "source_only.yaml")
    oracle = settings(CONFIGS / folder / "oracle.yaml")
    target = settings(CONFIGS / folder / "adaptive_teacher.yaml")["data.target"]
    assert (source["data.target"], oracle["data.train"]) == ([], target)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=[f"{path.parent.name}-{path.stem}" for path in PATHS])
def test_the_variant_for_one_gpu_runs_the_same_code(path):
    """Shrunk for the test above, both are one configuration, so that what holds there holds for it."""
    small = path.with_stem(path.stem + "_b4")
    one, other = (flat(as_dict(load_config(each, [*tiny(each), "output_dir=x"]))) for each in (path, small))
    assert one == other


@pytest.mark.parametrize("folder", TLLIB)
def test_methods_of_tllibs_protocol_differ_in_what_makes_them_alone(folder):
    assert {path.stem for path in (CONFIGS / folder).glob("*.yaml")} == set(METHODS)
    base = settings(CONFIGS / folder / "adaptive_teacher.yaml")
    for method, allowed in METHODS.items():
        own = settings(CONFIGS / folder / f"{method}.yaml")
        assert {key for key in base if base[key] != own[key]} == allowed
    assert base["data.train"] == ["voc_2007_trainval", "voc_2012_trainval"]
    assert (base["data.augment.test_size"], base["train.best_metric"]) == (608, "VOC07_AP50")
    assert base["optimizer.backbone_lr_factor"] == 0.1
    assert base["data.classes"] == (None if "clipart" in folder else PAINTED_CLASSES)
    assert (base["data.target"] == base["data.test"] == ["clipart1k_all"]) == ("clipart" in folder)
    oracle = settings(CONFIGS / folder / "oracle.yaml")
    assert (oracle["data.train"], oracle["data.target"]) == (base["data.target"], [])


def test_aldi_pp_is_what_was_published():
    config = load_config(CONFIGS / ALDI / "aldi_pp.yaml")
    masking = config.data.augment.masking
    assert (masking.ratio, masking.block, config.data.augment.of_target().erasing) == (0.5, 32, [])
    assert config.data.augment.of_source().masking.ratio == 0
    assert config.data.augment.of_source().erasing == [0.7, 0.5, 0.3]
    assert (config.pseudo_labels.kind, config.pseudo_labels.score, config.pseudo_labels.temperature) == ("soft", 0.8, 1)
    assert (config.ema.start, config.ema.decay, config.alignment.parts) == ("restart", 0.9996, [])
    assert (config.data.views, config.mixing.probability) == (["strong"], 0)
    burn_in, steps = config.adaptation.burn_in_steps, config.train.steps
    assert burn_in * config.data.batch_size == 10_000 * 48  # images that burn-in sees
    assert (steps - burn_in, 2 * config.data.batch_size) == (15_000, 48)
    # Published: 0.06 times half the loss of either domain. Here: the sum of both losses.
    assert config.optimizer.restart_lr * (1 + config.adaptation.unsupervised_weight) == 0.06 * (0.5 + 0.5)
    base = settings(CONFIGS / ALDI / "aldi_pp.yaml")
    changed = {"aldi_pp_lossmix": {"mixing.probability"}, "source_only": {"data.target"}}
    changed["oracle"] = {"data.train", "data.target"}
    assert {path.stem for path in (CONFIGS / ALDI).glob("*.yaml")} == {"aldi_pp", *changed}
    for method, allowed in changed.items():
        own = settings(CONFIGS / ALDI / f"{method}.yaml")
        assert {key for key in base if base[key] != own[key]} == allowed


FOLDERS = [*ADAPTING, *TLLIB, ALDI, *PLAIN]


@pytest.mark.parametrize("path", sorted(p for folder in FOLDERS for p in (CONFIGS / folder).glob("*.yaml")))
def test_the_head_says_how_to_run_it_and_what_to_expect(path):
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(head)
    gpus = " --num-gpus 8" if "meant for 8 GPUs" in text else ""
    assert head[0] == f"# python tools/train_net.py --config-file {path.relative_to(ROOT)}{gpus}"
    for word in ("Data: ", "ested on " if path.parent.name not in PLAIN else "Data: ", "Evaluator: ", "Hardware: "):
        assert word in text
    assert re.search(r"Expected: ([\d.]+ .*\(.+\); ours )?not yet run\.", text)


def test_numbers_of_images_of_the_miniatures_are_told_from_the_published_ones(miniatures):
    content = json.loads((miniatures / "cityscapes/annotations/foggy_cityscapes_all_train.json").read_text())
    assert len(content["images"]) == 2 * 3
    boxes = np.array([entry["bbox"] for entry in content["annotations"]])
    assert (boxes[:, 2:] > 0).all()
