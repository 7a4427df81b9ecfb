import numpy as np
import pytest
from conftest import voc_object, voc_xml, write_image

from lossmix_det.config import load_config
from lossmix_det.data.catalog import load, load_target
from lossmix_det.errors import UserError


def load_voc(root, *overrides):
    return load("mine", load_config(None, [f"datasets.mine.root={root}", "datasets.mine.split=train", *overrides]))


def rewrite(root, text, name="one"):
    (root / "Annotations" / f"{name}.xml").write_text(text)


def test_pixels_count_from_one_and_include_the_last(voc_folder):
    first = load_voc(voc_folder).records[0]
    np.testing.assert_array_equal(first.boxes, [[0, 0, 30, 20], [10, 5, 60, 40]])
    assert first.size == (40, 60)


def test_pixel_origin_zero_takes_coordinates_as_they_are(voc_folder):
    rewrite(voc_folder, voc_xml(voc_object("cat", 0, 0.5, 30.25, 20)))
    boxes = load_voc(voc_folder, "datasets.mine.pixel_origin=0").records[0].boxes
    np.testing.assert_array_equal(boxes, [[0, 0.5, 30.25, 20]])


def test_difficult_objects_are_marked_and_classes_sorted(voc_folder):
    found = load_voc(voc_folder)
    assert found.classes == ["cat", "dog"]
    assert found.records[0].difficult.tolist() == [False, True]
    assert found.records[0].classes.tolist() == [0, 1]
    assert len(found.records[1].boxes) == 0


def test_classes_are_matched_by_name_whatever_their_order(voc_folder):
    found = load_voc(voc_folder, "data.classes=[zebra,dog,cat]")
    assert found.records[0].classes.tolist() == [2, 1]


def test_declared_classes_that_are_not_learned_are_left_out_and_counted(voc_folder):
    found = load_voc(voc_folder, "datasets.mine.classes=[cat,dog]", "data.classes=[dog]")
    assert found.records[0].classes.tolist() == [0]
    assert "mine: boxes left out because their class is not in data.classes: 1 cat" in found.problems.notes[0]


def test_ignored_classes_are_left_out_without_complaint(voc_folder):
    found = load_voc(voc_folder, "data.classes=[dog]", "datasets.mine.ignore_classes=[cat]")
    assert found.records[0].classes.tolist() == [0]
    assert found.problems.notes == []


def test_without_a_split_every_annotation_is_taken(voc_folder):
    assert len(load("mine", load_config(None, [f"datasets.mine.root={voc_folder}"]))) == 2


def test_lists_per_class_with_flags_and_byte_order_marks_are_read(voc_folder):
    (voc_folder / "ImageSets" / "Main" / "train.txt").write_text("\ufeffone  1\n\ntwo -1\n", encoding="utf-8")
    assert [record.path.stem for record in load_voc(voc_folder).records] == ["one", "two"]


def test_a_box_that_reaches_out_is_clipped_and_noted(voc_folder):
    rewrite(voc_folder, voc_xml(voc_object("cat", -9, 1, 90, 20)))
    found = load_voc(voc_folder)
    np.testing.assert_array_equal(found.records[0].boxes, [[0, 0, 60, 20]])
    assert "one.xml:3" in found.problems.notes[0]
    assert "was clipped" in found.problems.notes[0]


def test_one_pixel_too_far_is_rounding_and_not_noted(voc_folder):
    rewrite(voc_folder, voc_xml(voc_object("cat", 0, 0, 61, 41)))
    assert load_voc(voc_folder).problems.notes == []


BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bomb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'

BAD_OBJECTS = [
    # what the file says, what the message says
    pytest.param(voc_object("cat", 10, 5, 10, 20), "one.xml:3: object 1 .cat. has a box without area", id="zero width"),
    pytest.param(voc_object("cat", 10, 25, 20, 20), "has a box without area: xmin 10, ymin 25", id="turned round"),
    pytest.param(voc_object("cat", 100, 5, 120, 20), "lies outside of the 60×40 image", id="outside"),
    pytest.param(voc_object("cat", "nan", 5, 20, 20), "is not finite", id="nan"),
    pytest.param(voc_object("cat", "", 5, 20, 20), "object 1 .cat. has no number for xmin", id="no number"),
    pytest.param(voc_object("cat", 1, 1, 9, 9).replace("bndbox", "box"), "object 1 .cat. has no bndbox", id="no box"),
    pytest.param(voc_object("", 1, 1, 9, 9), "one.xml:3: object 1 has no name", id="no name"),
    pytest.param(voc_object("catt", 1, 1, 9, 9), r"one.xml:3: unknown class 'catt' .did you mean 'cat'", id="class"),
]


@pytest.mark.parametrize(("objects", "message"), BAD_OBJECTS)
def test_a_bad_object_is_one_message_naming_file_and_line(voc_folder, objects, message):
    rewrite(voc_folder, voc_xml(objects))
    with pytest.raises(UserError, match=message) as error:
        load_voc(voc_folder, "datasets.mine.classes=[cat,dog]")
    assert "data.on_error=skip" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("objects", "message"), BAD_OBJECTS)
def test_a_bad_object_is_skipped_alone_and_listed(voc_folder, objects, message):
    rewrite(voc_folder, voc_xml(voc_object("dog", 2, 2, 30, 30) + objects))
    found = load_voc(voc_folder, "datasets.mine.classes=[cat,dog]", "data.on_error=skip")
    assert found.records[0].classes.tolist() == [1]
    assert len(found.problems.skipped) == 1


BAD_FILES = [
    pytest.param("<annotation>\n<object>", r"one.xml:2: malformed XML", id="malformed"),
    pytest.param(BOMB, "one.xml: refused, because it declares entities", id="entity bomb"),
    pytest.param(voc_xml("", 600, 594), r"says 600×594 pixels, but one.png has 60×40", id="size"),
    pytest.param("", "one.xml:1: malformed XML", id="empty"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES)
def test_a_bad_file_is_one_message(voc_folder, text, message):
    rewrite(voc_folder, text)
    with pytest.raises(UserError, match=message):
        load_voc(voc_folder, "data.classes=[cat,dog]")


@pytest.mark.parametrize(("text", "message"), BAD_FILES)
def test_a_bad_file_is_skipped_with_its_image(voc_folder, text, message):
    rewrite(voc_folder, text)
    found = load_voc(voc_folder, "data.on_error=skip", "data.classes=[cat,dog]")
    assert [record.path.stem for record in found.records] == ["two"]
    assert len(found.problems.skipped) == 1


@pytest.mark.parametrize("declared", [voc_xml("", 0, 0), "<annotation/>", voc_xml("").replace("<width>60", "<width>?")])
def test_a_size_that_is_not_declared_is_taken_from_the_file(voc_folder, declared):
    rewrite(voc_folder, declared)
    assert load_voc(voc_folder, "data.classes=[cat]").records[0].size == (40, 60)


def test_a_missing_image_is_named(voc_folder):
    (voc_folder / "JPEGImages" / "two.png").unlink()
    with pytest.raises(UserError, match=r"two.xml: image .*two.jpg is missing"):
        load_voc(voc_folder)


def test_an_unreadable_image_is_named(voc_folder):
    (voc_folder / "JPEGImages" / "two.png").write_text("text")
    with pytest.raises(UserError, match=r"two.png cannot be read"):
        load_voc(voc_folder)


def test_a_missing_annotation_is_named_with_the_line_that_lists_it(voc_folder):
    (voc_folder / "ImageSets" / "Main" / "train.txt").write_text("one\nthree\n")
    with pytest.raises(UserError, match=r"train.txt:2: annotation .*three.xml is missing"):
        load_voc(voc_folder)


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "a/../../../b", "..\\..\\x"])
def test_a_path_that_climbs_out_is_refused(voc_folder, name):
    (voc_folder / "ImageSets" / "Main" / "train.txt").write_text(f"one\n{name}\n")
    with pytest.raises(UserError, match=r"train.txt:2: path .* leads out of"):
        load_voc(voc_folder)
    assert len(load_voc(voc_folder, "data.on_error=skip")) == 1


def test_a_missing_split_lists_those_there_are(voc_folder):
    with pytest.raises(UserError, match=r"val.txt: no such split \(found: train\)"):
        load("mine", load_config(None, [f"datasets.mine.root={voc_folder}", "datasets.mine.split=val"]))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="JPEGImages: no such folder"):
        load_voc(tmp_path, "datasets.mine.format=voc")


def test_other_folder_names_can_be_given(voc_folder):
    (voc_folder / "JPEGImages").rename(voc_folder / "pictures")
    assert len(load_voc(voc_folder, "datasets.mine.images=pictures")) == 2


def test_a_data_set_of_which_nothing_is_left_is_refused(voc_folder):
    (voc_folder / "ImageSets" / "Main" / "train.txt").write_text("\n")
    with pytest.raises(UserError, match="lists no image; check its split, 'train'"):
        load_voc(voc_folder, "data.classes=[cat]")


def test_the_fingerprint_follows_content_and_nothing_else(voc_folder, tmp_path):
    before = load_voc(voc_folder).fingerprint
    moved = tmp_path / "elsewhere"
    voc_folder.rename(moved)
    assert load_voc(moved).fingerprint == before
    rewrite(moved, voc_xml(voc_object("cat", 1, 1, 31, 20) + voc_object("dog", 11, 6, 60, 40, difficult=1)))
    assert load_voc(moved).fingerprint != before
    write_image(moved / "JPEGImages" / "one.png", seed=9)


def rename(root, old, new):
    for folder, suffix in (("JPEGImages", "png"), ("Annotations", "xml")):
        (root / folder / f"{old}.{suffix}").rename(root / folder / f"{new}.{suffix}")


def write_list(root, text):
    (root / "ImageSets" / "Main" / "train.txt").write_text(text)


def load_voc_target(root):
    config = load_config(None, [f"datasets.mine.root={root}", "datasets.mine.split=train"])
    return load_target("mine", config, ["cat", "dog"])


FLAGGED_NAMES = [
    # names of the two images, the list, which of them it names
    pytest.param("IMG 1", "two", "IMG 1\ntwo\n", ["IMG 1", "two"], id="a name like a flag"),
    pytest.param("IMG 1", "two", "IMG 1\ntwo 1\n", ["IMG 1", "two"], id="a name and a flag"),
    pytest.param("IMG 1", "two", "IMG 1  -1\ntwo  0\n", ["IMG 1", "two"], id="a flag behind a name like one"),
    pytest.param("frame 0", "frame -1", "frame 0\nframe -1\n", ["frame 0", "frame -1"], id="alike up to the end"),
    pytest.param("frame", "frame 0", "frame 0\nframe 1\n", ["frame 0", "frame"], id="one name begins the other"),
]


@pytest.mark.parametrize("labels", ["labelled", "without annotations", "without their folder"])
@pytest.mark.parametrize(("one", "two", "text", "expected"), FLAGGED_NAMES)
def test_a_flag_is_cut_off_only_where_the_whole_name_is_no_image(voc_folder, labels, one, two, text, expected):
    rename(voc_folder, "two", two)
    rename(voc_folder, "one", one)
    write_list(voc_folder, text)
    if labels == "labelled":
        assert [record.path.stem for record in load_voc(voc_folder).records] == expected
    else:
        for path in (voc_folder / "Annotations").iterdir():
            path.unlink()
    if labels == "without their folder":
        (voc_folder / "Annotations").rmdir()
    target = load_voc_target(voc_folder)
    assert [record.path.stem for record in target.records] == expected
    assert target.labelled == (labels == "labelled")


def test_an_image_without_annotation_keeps_its_name_that_ends_like_a_flag(voc_folder):
    rename(voc_folder, "one", "IMG 1")
    write_list(voc_folder, "IMG 1\n")
    (voc_folder / "Annotations" / "IMG 1.xml").unlink()
    with pytest.raises(UserError, match=r"train.txt:1: annotation .*IMG 1.xml is missing"):
        load_voc(voc_folder)


def test_an_annotation_without_image_keeps_its_name_that_ends_like_a_flag(voc_folder):
    rename(voc_folder, "one", "IMG 1")
    write_list(voc_folder, "IMG 1\n")
    (voc_folder / "JPEGImages" / "IMG 1.png").unlink()
    for read in (load_voc, load_voc_target):
        with pytest.raises(UserError, match=r"image .*IMG 1.jpg is missing"):
            read(voc_folder)


def test_difficult_may_be_written_as_a_word(voc_folder):
    objects = voc_object("cat", 1, 1, 30, 20).replace("<difficult>0", "<difficult>True")
    rewrite(voc_folder, voc_xml(objects))
    assert load_voc(voc_folder).records[0].difficult.tolist() == [True]


@pytest.mark.parametrize(
    ("content", "message"),
    [("Bäume\n".encode("latin-1"), "is not UTF-8 text"), (b"x" * 5000, "train.txt:1: 'x+' … is no name of an image")],
)
def test_a_list_that_is_none_is_refused(voc_folder, content, message):
    (voc_folder / "ImageSets" / "Main" / "train.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_voc(voc_folder)


def test_an_infinite_size_counts_as_not_declared(voc_folder):
    rewrite(voc_folder, voc_xml("").replace("<width>60", "<width>inf"))
    assert load_voc(voc_folder, "data.classes=[cat]").records[0].size == (40, 60)


def test_a_set_that_skipping_leaves_without_a_box_is_refused(voc_folder):
    """Scores of it would be blanks, and nothing would say why."""
    with pytest.raises(
        UserError, match="has no box of the classes zebra that could be used; the first: .*unknown class"
    ):
        load_voc(voc_folder, "data.on_error=skip", "data.classes=[zebra]")
