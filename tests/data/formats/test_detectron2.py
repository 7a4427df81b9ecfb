"""Data sets both ways between our catalogue and Detectron2's."""

from __future__ import annotations

import pytest

from lossmix_det.data.catalog import load
from lossmix_det.errors import UserError

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import DatasetCatalog, MetadataCatalog  # noqa: E402

from lossmix_det.detectron2_plugin import register_datasets  # noqa: E402


def test_our_data_sets_become_detectron2s(small_shapes):
    assert "star" in register_datasets(["shapes_photo_train", "shapes_clipart_test"], small_shapes)
    register_datasets(["shapes_photo_train"], small_shapes)  # again is no error
    ours = load("shapes_photo_train", small_shapes)
    assert MetadataCatalog.get("shapes_photo_train").thing_classes == ours.classes
    dicts = DatasetCatalog.get("shapes_photo_train")
    assert len(dicts) == len(ours) == 6
    for entry, record in zip(dicts, ours.records, strict=True):
        assert (entry["height"], entry["width"]) == record.size
        assert [item["bbox"] for item in entry["annotations"]] == record.boxes.tolist()
        assert [item["category_id"] for item in entry["annotations"]] == record.classes.tolist()
    with pytest.raises(UserError, match="unknown data set 'nothing'"):
        register_datasets(["nothing"], small_shapes)
    with pytest.raises(UserError, match="'coco_2014_val' is registered with Detectron2 already"):
        register_datasets(["coco_2014_val"], small_shapes)
    assert "coco_2014_val" in DatasetCatalog.list()


@pytest.mark.parametrize(
    ("numbers", "expected"), [([7, 3], [7, 3]), (["x", 1], [1, 2]), ([5, 5], [1, 2]), ([None, 4], [1, 2])]
)
def test_images_keep_their_numbers_if_these_are_different_numbers(small_shapes, numbers, expected):
    paths = [str(record.path) for record in load("shapes_photo_train", small_shapes).records]
    boxes = [{"bbox": [10, 12, 20, 30], "bbox_mode": 0, "category_id": 0}]
    entries = [
        {"file_name": path, "image_id": number, "annotations": boxes}
        for path, number in zip(paths, numbers, strict=False)
    ]
    DatasetCatalog.register("mine_joined", lambda: entries)
    MetadataCatalog.get("mine_joined").thing_classes = ["cat"]
    assert [record.image_id for record in load("mine_joined", small_shapes).records] == expected


MODULE = """
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

def dicts():
    return [{{"file_name": {path!r}, "height": {h}, "width": {w}, "image_id": "a-name", "annotations": [
        {{"bbox": [10, 12, 20, 30], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 1}},
        {{"bbox": [1.5, 2, 20, 30], "bbox_mode": BoxMode.XYXY_ABS, "category_id": {number}}},
    ]}}]

def late():
    MetadataCatalog.get("mine_late").thing_classes = ["zebra", "cat", "dog"]
    return dicts()

DatasetCatalog.register("mine_late", late)
for name in ("mine_train", "mine_unnamed"):
    DatasetCatalog.register(name, dicts)
MetadataCatalog.get("mine_train").thing_classes = ["cat", "dog"]
"""


@pytest.fixture
def module(tmp_path, small_shapes, monkeypatch):
    """Writes a module that registers data sets, and gives its name."""
    record = load("shapes_photo_train", small_shapes).records[0]
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, number: int = 0) -> str:
        content = MODULE.format(path=str(record.path), h=record.size[0], w=record.size[1], number=number)
        (tmp_path / f"{name}.py").write_text(content)
        return name

    return write


def test_data_sets_registered_with_detectron2_are_known_here(small_shapes, module):
    small_shapes.data.imports = [module("registers_well")]
    found = load("mine_train", small_shapes)
    assert found.classes == ["cat", "dog"]
    assert found.records[0].boxes.tolist() == [[10, 12, 30, 42], [1.5, 2, 20, 30]]
    assert found.records[0].classes.tolist() == [1, 0]
    assert found.records[0].crowd.tolist() == [True, False]
    late = load("mine_late", small_shapes)  # says its classes only when it is read
    assert late.classes == ["zebra", "cat", "dog"]
    assert late.category_ids == [1, 2, 3]
    with pytest.raises(UserError, match=r"'mine_trian' \(did you mean 'mine_train'"):
        load("mine_trian", small_shapes)


def test_faults_of_registered_data_sets_are_said_in_one_sentence(small_shapes, module):
    small_shapes.data.imports = [module("registers_badly", number=7)]
    with pytest.raises(UserError, match=r"mine_train\[0\] .*annotations\[1\] .*category_id 7 is not among the 2"):
        load("mine_train", small_shapes)
    with pytest.raises(UserError, match="'mine_unnamed' has no thing_classes"):
        load("mine_unnamed", small_shapes)
    with pytest.raises(UserError, match="'coco_2014_val', registered with Detectron2, cannot be read"):
        load("coco_2014_val", small_shapes)
    small_shapes.data.imports = ["no_such_module_anywhere"]
    with pytest.raises(UserError, match="data.imports: no_such_module_anywhere cannot be imported"):
        load("mine_train", small_shapes)
