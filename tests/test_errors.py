import pytest

from lossmix_det.errors import UserError, first_line, pick

TABLE = {"mixup": 1, "cutmix": 2}


def test_a_name_is_looked_up():
    assert pick(TABLE, "cutmix", "mixing.mixer") == 2


def test_an_unknown_name_is_told_with_the_known_ones_and_the_nearest():
    with pytest.raises(UserError) as error:
        pick(TABLE, "mixupp", "mixing.mixer")
    assert str(error.value) == "mixing.mixer='mixupp' is not one of mixup, cutmix (did you mean 'mixup'?)"


def test_nothing_is_guessed_where_nothing_is_near():
    with pytest.raises(UserError, match="is not one of mixup, cutmix$"):
        pick(TABLE, "zzz", "mixing.mixer")


def test_an_error_without_words_gives_its_kind():
    assert first_line(KeyError()) == "KeyError"
    assert first_line(ValueError("one\ntwo")) == "one"
