"""VOC data sets as labelling tools and file systems leave them."""

from __future__ import annotations

import os
import unicodedata

import numpy as np
import pytest
from conftest import voc_object, voc_xml, write_image
from PIL import Image

from lossmix_det.config import load_config
from lossmix_det.data.catalog import load, load_target
from lossmix_det.errors import UserError


def load_voc(root, *overrides):
    return load("mine", load_config(None, [f"datasets.mine.root={root}", "data.classes=[cat,dog]", *overrides]))


def rewrite(root, text, name="one"):
    (root / "Annotations" / f"{name}.xml").write_bytes(text if isinstance(text, bytes) else text.encode())


def write_list(root, text):
    (root / "ImageSets" / "Main" / "train.txt").write_text(text, encoding="utf-8")


def stems(image_set):
    return [record.path.stem for record in image_set.records]


SPLIT = "datasets.mine.split=train"
CAT = voc_object("cat", 1, 1, 30, 20)


# ------------------------------------------------------------------------------------------- which files are meant


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("overrides", [[], ["datasets.mine.split=nested"]])
def test_sub_folders_are_read_with_and_without_a_list(tmp_path, suffix, overrides):
    for name in ("left/a", "right/a"):
        write_image(tmp_path / "JPEGImages" / f"{name}.{suffix}")
        (tmp_path / "Annotations" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "Annotations" / f"{name}.xml").write_text(voc_xml(CAT))
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "nested.txt").write_text("left/a\nright/a\n")
    found = load_voc(tmp_path, *overrides)
    assert [found.file_name(record.path) for record in found.records] == [f"left/a.{suffix}", f"right/a.{suffix}"]


@pytest.mark.parametrize("folder", ["", "shots"])
def test_images_and_xml_may_lie_together(tmp_path, folder):
    for name in ("a", "b"):
        write_image(tmp_path / folder / f"{name}.png")
        (tmp_path / folder / f"{name}.xml").write_text(voc_xml(CAT))
    assert stems(load_voc(tmp_path)) == ["a", "b"]


def test_a_split_may_be_a_folder_with_images_and_xml(tmp_path):
    for split in ("train", "valid"):
        write_image(tmp_path / split / f"{split}.png")
        (tmp_path / split / f"{split}.xml").write_text(voc_xml(CAT))
    assert stems(load_voc(tmp_path, "datasets.mine.split=valid")) == ["valid"]


LINES = ["one.png\ntwo.png\n", "one.png 1\ntwo.png -1\n", "JPEGImages/one.png\nJPEGImages/two\n", "./one\ntwo\n"]


@pytest.mark.parametrize("lines", LINES)
def test_suffixes_and_folders_in_a_list_are_no_part_of_the_name(voc_folder, lines):
    write_list(voc_folder, lines)
    assert stems(load_voc(voc_folder, SPLIT)) == ["one", "two"]


def test_a_list_may_hold_absolute_paths_of_its_images(voc_folder):
    write_list(voc_folder, f"{voc_folder}/JPEGImages/two.png\n")
    assert stems(load_voc(voc_folder, SPLIT)) == ["two"]


def test_an_image_that_is_listed_again_is_taken_once_and_the_line_listed(voc_folder):
    write_list(voc_folder, "one\ntwo\none.png\none -1\n")
    found = load_voc(voc_folder, SPLIT)
    assert stems(found) == ["one", "two"]
    assert [line.rpartition("train.txt:")[2].split(":")[0] for line in found.problems.left_out] == ["3", "4"]


@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_match_however_they_are_stored(voc_folder, forms):
    in_list, in_folder = (unicodedata.normalize(form, "café") for form in forms)
    for folder, suffix in (("JPEGImages", "png"), ("Annotations", "xml")):
        (voc_folder / folder / f"one.{suffix}").rename(voc_folder / folder / f"{in_folder}.{suffix}")
    write_list(voc_folder, f"{in_list}\n")
    assert stems(load_voc(voc_folder, SPLIT)) == [in_folder]


@pytest.mark.parametrize(
    ("line", "how"),
    [("ONE", "only by letter case"), ("o ne", "only by blanks"), ("O NE", "only by letter case and blanks")],
)
def test_a_name_that_hardly_differs_is_shown_with_what_differs(voc_folder, line, how):
    write_list(voc_folder, f"{line}\n")
    with pytest.raises(UserError, match=rf"train.txt:1: annotation .* is missing; 'one' is there, which differs {how}"):
        load_voc(voc_folder, SPLIT)


def test_of_two_images_of_one_stem_the_file_name_decides(voc_folder):
    write_image(voc_folder / "JPEGImages" / "one.jpg", seed=5)
    rewrite(voc_folder, voc_xml("<filename>one.png</filename>" + CAT))
    for image_set in (
        load_voc(voc_folder),
        load_target("mine", load_config(None, [f"datasets.mine.root={voc_folder}", SPLIT]), ["cat"]),
    ):
        assert "one.png" in [record.path.name for record in image_set.records]
        assert "one.jpg" not in [record.path.name for record in image_set.records]


def test_two_images_of_one_stem_that_nothing_tells_apart_are_refused(voc_folder):
    write_image(voc_folder / "JPEGImages" / "one.jpg", seed=5)
    with pytest.raises(
        UserError, match=r"one.xml: one.jpg and one.png are both there, and its <filename> None is neither"
    ):
        load_voc(voc_folder)
    assert stems(load_voc(voc_folder, "data.on_error=skip", "data.drop_empty=false")) == ["two"]


def test_an_image_that_only_its_annotation_names_is_found_and_noted(voc_folder):
    (voc_folder / "JPEGImages" / "one.png").rename(voc_folder / "JPEGImages" / "IMG_77.png")
    rewrite(voc_folder, voc_xml("<filename>C:\\photos\\IMG_77.png</filename>" + CAT))
    found = load_voc(voc_folder)
    assert stems(found) == ["IMG_77", "two"]
    assert "1 images are called as <filename> says" in found.problems.notes[0]


def test_an_annotation_names_no_image_outside_of_the_folder(voc_folder, tmp_path):
    write_image(tmp_path / "secret.png")
    (voc_folder / "JPEGImages" / "one.png").unlink()
    rewrite(voc_folder, voc_xml("<filename>../../secret.png</filename>" + CAT))
    with pytest.raises(UserError, match=r"JPEGImages/secret.png is missing"):
        load_voc(voc_folder)


def test_what_is_hidden_or_without_a_partner_is_left_out_and_listed(voc_folder):
    (voc_folder / "Annotations" / "._one.xml").write_bytes(b"\0\5\26\7")
    (voc_folder / "JPEGImages" / ".thumbs").mkdir()
    write_image(voc_folder / "JPEGImages" / "three.png")
    found = load_voc(voc_folder)
    assert stems(found) == ["one", "two"]
    assert [line.replace(f"{voc_folder}/", "") for line in found.problems.left_out] == [
        "Annotations/._one.xml: hidden",
        "JPEGImages/.thumbs: hidden",
        "JPEGImages/three.png: not read, because it has no annotation",
    ]


def test_a_pipe_among_the_annotations_is_not_opened(voc_folder):
    os.mkfifo(voc_folder / "Annotations" / "pipe.xml")
    found = load_voc(voc_folder)
    assert stems(found) == ["one", "two"]
    assert "pipe.xml: no regular file" in found.problems.left_out[0]


# ----------------------------------------------------------------------------------------------- what an XML file says


def test_a_namespace_is_taken_off_and_noted(voc_folder):
    rewrite(voc_folder, voc_xml(CAT).replace("<annotation>", '<annotation xmlns="http://a.example/voc">'))
    found = load_voc(voc_folder)
    np.testing.assert_array_equal(found.records[0].boxes, [[0, 0, 30, 20]])
    assert "1 XML files are not quite VOC's" in found.problems.notes[0]


def test_a_prefix_is_taken_off_and_lines_are_counted_all_the_same(voc_folder):
    text = voc_xml(voc_object("lion", 1, 1, 30, 20)).replace("<", "<v:").replace("<v:/", "</v:")
    rewrite(voc_folder, text.replace("<v:annotation>", '<v:annotation xmlns:v="http://a.example/voc">'))
    with pytest.raises(UserError, match="one.xml:3: unknown class 'lion'"):
        load_voc(voc_folder)


def test_another_root_around_voc_objects_is_read_and_noted(voc_folder):
    rewrite(voc_folder, voc_xml(CAT).replace("annotation>", "doc>"))
    found = load_voc(voc_folder)
    assert len(found.records[0].boxes) == 1
    assert "begins with <doc>" in found.problems.notes[0]


def test_xml_of_another_kind_is_passed_over_and_listed(voc_folder):
    (voc_folder / "Annotations" / "workspace.xml").write_text("<project><module/></project>")
    found = load_voc(voc_folder)
    assert stems(found) == ["one", "two"]
    assert "workspace.xml: is no VOC annotation, because its first element is <project>" in found.problems.left_out[0]


def test_xml_of_another_kind_that_a_list_names_is_refused(voc_folder):
    rewrite(voc_folder, "<annotations><image/></annotations>")
    with pytest.raises(UserError, match="one.xml: is no VOC annotation, because its first element is <annotations>"):
        load_voc(voc_folder, SPLIT)


@pytest.mark.parametrize("encoding", ["GBK", "Shift_JIS", "EUC-KR", "utf-16", "iso-8859-1", "windows-1252"])
def test_declared_encodings_are_read(voc_folder, encoding):
    rewrite(voc_folder, (f'<?xml version="1.0" encoding="{encoding}"?>\n' + voc_xml(CAT)).encode(encoding))
    assert len(load_voc(voc_folder).records[0].boxes) == 1


def test_names_of_classes_are_read_in_their_encoding(voc_folder):
    text = '<?xml version="1.0" encoding="GB2312"?>\n' + voc_xml(voc_object("猫", 1, 1, 30, 20))
    rewrite(voc_folder, text.encode("gb2312"))
    assert load_voc(voc_folder, "data.classes=[猫]").classes == ["猫"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            b'<?xml version="1.0" encoding="klingon"?><annotation/>',
            "is not in an encoding that is known .*save it as UTF-8",
        ),
        (b"<annotation><filename>\xb0\xa1.jpg</filename></annotation>", "is not UTF-8: save it as UTF-8, or declare"),
        (b'<?xml version="1.0" encoding="GBK"?><annotation>\xff\xff</annotation>', "not in an encoding that is known"),
    ],
)
def test_other_encodings_are_one_sentence(voc_folder, text, message):
    rewrite(voc_folder, text)
    with pytest.raises(UserError, match=message):
        load_voc(voc_folder)


def test_entities_are_refused_in_every_encoding(voc_folder):
    bomb = '<?xml version="1.0" encoding="GBK"?><!DOCTYPE a [<!ENTITY b "bomb">]><annotation>&b;</annotation>'
    rewrite(voc_folder, bomb.encode("gbk"))
    with pytest.raises(UserError, match="refused, because it declares entities"):
        load_voc(voc_folder)


def test_lines_are_right_in_a_file_of_many_objects(voc_folder):
    text = voc_xml(voc_object("cat", 1, 1, 30, 20) * 20000 + voc_object("lion", 1, 1, 3, 3))
    rewrite(voc_folder, text)
    with pytest.raises(UserError, match=r"one.xml:60003: unknown class 'lion'"):
        load_voc(voc_folder)


def test_several_boxes_in_one_object_are_as_many_objects(voc_folder):
    extra = "<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>20</xmax><ymax>30</ymax></bndbox>\n</object>"
    rewrite(voc_folder, voc_xml(CAT.replace("</object>", extra)))
    np.testing.assert_array_equal(load_voc(voc_folder).records[0].boxes, [[0, 0, 30, 20], [4, 5, 20, 30]])


def test_a_part_of_an_object_is_no_object(voc_folder):
    box = "<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    rewrite(voc_folder, voc_xml(CAT.replace("</object>", f"<part><name>head</name>{box}</part></object>")))
    assert len(load_voc(voc_folder).records[0].boxes) == 1


SQUARE = "<cx>30</cx><cy>20</cy><w>10</w><h>20</h>"
OUTLINES = [
    # what stands in place of a bndbox, and the box around it by hand; files count from 1
    pytest.param(
        f"<robndbox>{SQUARE}<angle>1.5707963267948966</angle></robndbox>", [19, 14, 40, 25], id="a right angle"
    ),
    pytest.param(
        "<polygon><x1>5</x1><y1>8</y1><x2>20</x2><y2>4</y2><x3>9</x3><y3>30</y3></polygon>", [4, 3, 20, 30], id="x1, y1"
    ),
    pytest.param("<polygon><pt><x>5</x><y>8</y></pt><pt><x>20</x><y>4</y></pt></polygon>", [4, 3, 20, 8], id="LabelMe"),
    pytest.param(
        "<bndbox><x1>5</x1><y1>8</y1><x2>20</x2><y2>4</y2><x3>9</x3><y3>30</y3></bndbox>", [4, 3, 20, 30], id="corners"
    ),
]


@pytest.mark.parametrize(("outline", "box"), OUTLINES)
def test_what_is_no_upright_box_becomes_the_box_around_it_and_is_noted(voc_folder, outline, box):
    rewrite(voc_folder, voc_xml(f"<object><name>cat</name>{outline}</object>"))
    found = load_voc(voc_folder)
    np.testing.assert_allclose(found.records[0].boxes, [box], atol=1e-4)
    assert "1 rotated boxes or polygons became the upright box around them" in found.problems.notes[0]


def test_a_rotation_beside_a_box_is_applied(voc_folder):
    """CVAT writes the box before its rotation: 10×20 about (25, 20) becomes 20×10."""
    angle = "<attributes><attribute><name>rotation</name><value>90.0</value></attribute></attributes></object>"
    rewrite(voc_folder, voc_xml(voc_object("cat", 20, 10, 30, 30).replace("</object>", angle)))
    np.testing.assert_allclose(load_voc(voc_folder).records[0].boxes, [[14, 14, 35, 25]], atol=1e-4)


def test_a_rotation_without_measure_is_one_sentence(voc_folder):
    rewrite(voc_folder, voc_xml(f"<object><name>cat</name><robndbox>{SQUARE}<angle>inf</angle></robndbox></object>"))
    with pytest.raises(UserError, match="object 1 is rotated by inf degrees"):
        load_voc(voc_folder)


def test_files_that_seem_to_count_from_zero_are_noted_once(voc_folder):
    rewrite(voc_folder, voc_xml(voc_object("cat", 0, 0, 30, 20) + voc_object("cat", 4, 0, 30, 20)))
    found = load_voc(voc_folder)
    assert len(found.problems.notes) == 1
    assert "2 boxes begin at coordinate 0" in found.problems.notes[0]
    assert "set pixel_origin: 0" in found.problems.notes[0]
    assert load_voc(voc_folder, "datasets.mine.pixel_origin=0").problems.notes == []


# --------------------------------------------------------------------------------------------------------- sizes, EXIF


def turn(path, orientation, size=(60, 40)):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(path, exif=exif)


def test_an_annotation_made_without_exif_is_told_the_setting_that_reads_it(voc_folder):
    turn(voc_folder / "JPEGImages" / "one.png", 6)
    with pytest.raises(
        UserError,
        match=r"says 60×40 pixels, but one.png has 40×60: its EXIF orientation 6 turns .*"
        r"set datasets.mine.exif=ignore",
    ):
        load_voc(voc_folder)
    found = load_voc(voc_folder, "datasets.mine.exif=ignore")
    assert found.records[0].size == (40, 60)
    assert not found.records[0].exif


def test_an_annotation_made_with_exif_is_told_so_where_it_is_ignored(voc_folder):
    turn(voc_folder / "JPEGImages" / "one.png", 6)
    rewrite(voc_folder, voc_xml(CAT, 40, 60))
    with pytest.raises(UserError, match="set datasets.mine.exif=apply"):
        load_voc(voc_folder, "datasets.mine.exif=ignore")
    assert load_voc(voc_folder).records[0].size == (60, 40)


def test_exchanged_width_and_height_are_called_so(voc_folder):
    rewrite(voc_folder, voc_xml(CAT, 40, 60))
    with pytest.raises(
        UserError, match="says 40×60 pixels, but one.png has 60×40: width and height seem to be exchanged"
    ):
        load_voc(voc_folder)


@pytest.mark.parametrize(("orientation", "size"), [(3, (60, 40)), (6, (50, 50))])
def test_a_rotation_that_no_size_can_tell_is_noted(voc_folder, orientation, size):
    turn(voc_folder / "JPEGImages" / "one.png", orientation, size)
    rewrite(voc_folder, voc_xml(CAT, *size))
    assert (
        "1 images have an EXIF orientation, and boxes are taken to be those of the upright"
        in load_voc(voc_folder).problems.notes[0]
    )


def test_skipping_that_leaves_nothing_says_the_first_reason_and_how_many(voc_folder):
    for name in ("one", "two"):
        rewrite(voc_folder, voc_xml(CAT, 70, 70), name)
    with pytest.raises(
        UserError, match=r"has no usable image; 2 faults were skipped, the first: .*one.xml: says 70×70"
    ):
        load_voc(voc_folder, "data.on_error=skip")


def test_a_class_that_hardly_differs_is_shown_with_what_differs(voc_folder):
    rewrite(voc_folder, voc_xml(voc_object("Cat", 1, 1, 30, 20)))
    with pytest.raises(UserError, match="unknown class 'Cat'; 'cat' is there, which differs only by letter case"):
        load_voc(voc_folder)
