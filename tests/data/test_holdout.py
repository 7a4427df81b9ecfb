"""A part of a data set without splits is held out."""

from __future__ import annotations

import shutil

import pytest
from conftest import voc_object, voc_xml, write_image

from lossmix_det.config import load_config
from lossmix_det.data.catalog import load, load_target
from lossmix_det.errors import UserError


@pytest.fixture
def root(tmp_path):
    (tmp_path / "set" / "Annotations").mkdir(parents=True)
    for index in range(20):
        write_image(tmp_path / "set" / "JPEGImages" / f"{index}.png", seed=index)
        text = voc_xml(voc_object("cat", 1, 1, 30, 20))
        (tmp_path / "set" / "Annotations" / f"{index}.xml").write_text(text)
    return tmp_path / "set"


def names(root, *words, read=load):
    words = [f"datasets.mine.root={root}", *(f"datasets.mine.{word}" for word in words)]
    config = load_config(None, words)
    found = read("mine", config) if read is load else read("mine", config, ["cat"])
    return [record.path.name for record in found.records]


@pytest.mark.parametrize("read", [load, load_target])
@pytest.mark.parametrize(("share", "count"), [(0.1, 2), (0.25, 5), (0.001, 1), (0.99, 19)])
def test_the_two_parts_are_all_images_and_have_none_in_common(root, share, count, read):
    kept = names(root, f"holdout={share}", read=read)
    held_out = names(root, f"holdout={share}", "held_out=true", read=read)
    assert len(held_out) == count
    assert sorted(kept + held_out) == sorted(names(root))
    assert not set(kept) & set(held_out)


def test_the_same_images_are_held_out_wherever_the_data_lies(root, tmp_path):
    words = ("holdout=0.3", "held_out=true")
    before = names(root, *words)
    shutil.copytree(root, tmp_path / "elsewhere")
    assert names(tmp_path / "elsewhere", *words) == before
    assert set(before) != set(sorted(names(root))[:6])  # and not the first ones, which may be of one video


def test_more_is_held_out_by_a_larger_share_and_nothing_less(root):
    smaller, larger = (set(names(root, f"holdout={share}", "held_out=true")) for share in (0.2, 0.5))
    assert smaller < larger


@pytest.mark.parametrize(
    ("word", "said"), [("holdout=1", "leaves nothing"), ("held_out=true", "held_out needs holdout")]
)
def test_what_holds_out_nothing_or_all_is_refused(root, word, said):
    with pytest.raises(UserError, match=f"datasets.mine.{said}|{said}"):
        names(root, word)


@pytest.mark.parametrize("read", [load, load_target])
def test_a_single_image_cannot_be_parted(root, read):
    for path in [*root.rglob("*.png"), *root.rglob("*.xml")]:
        if path.stem != "7":
            path.unlink()
    for words in (["holdout=0.1"], ["holdout=0.1", "held_out=true"]):
        with pytest.raises(UserError, match=r"7.png is the only image, so that holdout=0.1 cannot part the data set"):
            names(root, *words, read=read)
