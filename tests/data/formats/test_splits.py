"""Which of several files a split means."""

from pathlib import Path

import pytest

from lossmix_det.data.formats.splits import choose
from lossmix_det.errors import NoSuchSplit, UserError

COCO = ["annotations/instances_train2017.json", "annotations/instances_val2017.json"]
FOLDS = ["fold1.json", "fold10.json", "fold2.json"]
BRIGHT = ["bright_train.json", "dark_train.json"]
NESTED = ["train/metadata.jsonl", "pre_train/metadata.jsonl"]


@pytest.mark.parametrize(
    ("paths", "split", "meant"),
    [
        (COCO, "train", 0),
        (COCO, "train2017", 0),
        (COCO, "instances_val2017", 1),
        (COCO, "valid", 1),
        (FOLDS, "fold1", 0),
        (FOLDS, "Fold10", 1),
        (BRIGHT, "dark_train", 1),
        (["a.json", "Train.json"], "train", 1),
        (NESTED, "train", 0),
        (["données_été.json", "données_hiver.json"], "été", 0),
    ],
)
def test_a_split_means_the_file_that_holds_its_words_in_a_row(paths, split, meant):
    assert choose(Path("root"), paths, split, "annotations") == paths[meant]


@pytest.mark.parametrize(
    ("paths", "split"),
    [(BRIGHT, "train"), (COCO, "instances"), (["train_a.json", "train_b.json"], "train")],
)
def test_a_split_that_fits_several_files_is_not_guessed(paths, split):
    with pytest.raises(UserError, match="several of these"):
        choose(Path("root"), paths, split, "annotations")


@pytest.mark.parametrize("split", ["fol", "fold3", "1fold", "10", "_"])
def test_part_of_a_word_or_of_a_number_fits_nothing(split):
    with pytest.raises(NoSuchSplit, match="none of these: fold1.json, fold20.json"):
        choose(Path("root"), ["fold1.json", "fold20.json"], split, "annotations")
