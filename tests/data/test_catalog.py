import pytest
from conftest import write_image

from lossmix_det.config import load_config
from lossmix_det.data import catalog
from lossmix_det.data.builtin import builtin_datasets, datasets_root
from lossmix_det.data.catalog import find, load, load_sets, load_target
from lossmix_det.errors import UserError


def test_the_root_follows_our_variable_then_detectron2s_then_the_folder(monkeypatch):
    monkeypatch.setenv("LOSSMIX_DATASETS", "/a")
    monkeypatch.setenv("DETECTRON2_DATASETS", "/b")
    assert str(datasets_root()) == "/a"
    monkeypatch.delenv("LOSSMIX_DATASETS")
    assert str(datasets_root()) == "/b"
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert str(datasets_root()) == "datasets"


@pytest.mark.parametrize(
    ("name", "folder", "classes"),
    [
        ("voc_2007_trainval", "VOC2007", 20),
        ("voc_2012_train", "VOC2012", 20),
        ("clipart1k_test", "clipart", 20),
        ("watercolor2k_train", "watercolor", 6),
        ("comic2k_test", "comic", 6),
        ("cityscapes_train", "cityscapes", 8),
        ("foggy_cityscapes_val", "cityscapes", 8),
    ],
)
def test_builtin_names_have_their_folder_and_classes(name, folder, classes, datasets_root):
    (datasets_root / folder).mkdir(exist_ok=True)
    entry = find(name, load_config())
    assert entry.root == str(datasets_root / folder)
    assert len(entry.classes) == classes


def test_a_builtin_data_set_is_found_below_vocdevkit_too(tmp_path, monkeypatch):
    monkeypatch.setenv("LOSSMIX_DATASETS", str(tmp_path))
    (tmp_path / "VOCdevkit" / "VOC2007").mkdir(parents=True)
    assert find("voc_2007_test", load_config()).root == str(tmp_path / "VOCdevkit" / "VOC2007")


def test_a_builtin_data_set_that_is_not_there_points_to_the_notes(tmp_path, monkeypatch):
    monkeypatch.setenv("LOSSMIX_DATASETS", str(tmp_path))
    with pytest.raises(UserError, match=r"folder .*VOC2007 does not exist; see datasets/README.md"):
        find("voc_2007_test", load_config())


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match="unknown data set 'voc_2007_tset' .did you mean 'voc_2007_test'"):
        find("voc_2007_tset", load_config())


def test_a_declared_name_needs_a_root():
    with pytest.raises(UserError, match="datasets.mine.root is empty"):
        find("mine", load_config(None, ["datasets.mine.format=voc"]))


KNOWN = "is not one of auto, voc, coco, yolo, huggingface, folder"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cityscapes", f"datasets.mine.format='cityscapes' {KNOWN}"),
        ("cocoa", rf"datasets.mine.format='cocoa' {KNOWN} \(did you mean 'coco'\?\)"),
        ("detectron2", f"datasets.mine.format='detectron2' {KNOWN}"),
    ],
)
def test_an_unknown_format_names_those_there_are(tmp_path, name, message):
    config = load_config(None, [f"datasets.mine.format={name}", f"datasets.mine.root={tmp_path}"])
    for read in (find, load):
        with pytest.raises(UserError, match=message):
            read("mine", config)
    with pytest.raises(UserError, match=message):
        load_target("mine", config, ["cat"])


def test_every_builtin_class_list_is_free_of_repeats():
    lists = [entry.classes for entry in builtin_datasets().values() if entry.classes]  # COCO's are in its files
    assert all(len(set(classes)) == len(classes) for classes in lists)


def test_a_bare_folder_lists_images_in_sub_folders_and_has_no_truth(tmp_path):
    for name in ("b.jpg", "a/c.PNG", "a/notes.txt", "a/._c.jpg"):
        write_image(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("x")
    config = load_config(None, ["datasets.mine.format=folder", f"datasets.mine.root={tmp_path}"])
    found = load("mine", config, ["cat"])
    assert [record.path.name for record in found.records] == ["c.PNG", "b.jpg"]
    assert not found.labelled
    assert found.classes == ["cat"]


def test_an_empty_folder_is_refused(tmp_path):
    config = load_config(None, ["datasets.mine.format=folder", f"datasets.mine.root={tmp_path}"])
    with pytest.raises(UserError, match="holds no image"):
        load("mine", config, ["cat"])


def test_test_sets_take_the_classes_of_the_first_training_set(voc_folder):
    overrides = [f"datasets.a.root={voc_folder}", "datasets.a.classes=[dog,cat]", "data.train=[a,a]", "data.test=[a]"]
    train, test = load_sets(load_config(None, overrides))
    assert [image_set.classes for image_set in (*train, *test)] == [["dog", "cat"]] * 3


def test_training_needs_a_data_set():
    with pytest.raises(UserError, match="data.train is empty"):
        load_sets(load_config(None, ["data.train=[]"]))


def test_every_format_of_the_configuration_is_read(tmp_path):
    with pytest.raises(UserError, match="no such folder of images"):
        catalog.load(
            "x", load_config(None, ["datasets.x.format=folder", f"datasets.x.root={tmp_path}", "datasets.x.images=no"])
        )
