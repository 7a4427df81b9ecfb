"""Settings are read as they are typed, and what cannot be a setting is one sentence."""

from __future__ import annotations

import random

import pytest

from lossmix_det.config import load_config, save_config
from lossmix_det.errors import UserError

AWKWARD = [
    "yes",
    "No",
    "on",
    "007",
    "1e5",
    "12:30",
    "2024_01",
    "2024-11-24",
    "0x1F",
    "1_000",
    "True",
    ".5",
]
NOTHING = ["null", "~"]
ODD = [
    "#1",
    "a #b",
    "a: b",
    "- a",
    "[v2]",
    "{x}",
    "*a",
    "&a",
    "!x",
    "%d",
    "@x",
    "`x`",
    "a, b",
    "$x",
    "交通灯",
    "a\\b",
    "=",
]


@pytest.mark.parametrize("text", [*AWKWARD, *NOTHING, *ODD, " a ", "c'est"])
def test_a_text_on_the_command_line_stays_as_it_is_typed(text):
    assert load_config(None, [f"output_dir={text}"]).output_dir == text
    assert load_config(None, [f"datasets.a.split={text}"]).datasets["a"].split == text


@pytest.mark.parametrize(("typed", "text"), [("''", ""), ('""', ""), ("'a #b'", "a #b"), ('"007"', "007")])
def test_quotes_around_a_text_are_taken_off(typed, text):
    assert load_config(None, [f"model.weights={typed}"]).model.weights == text


@pytest.mark.parametrize("text", AWKWARD)
def test_names_in_lists_and_files_stay_as_they_are_written(tmp_path, text):
    assert load_config(None, [f"data.classes=[{text}, car]"]).data.classes == [text, "car"]
    path = tmp_path / "a.yaml"
    path.write_text(
        f"output_dir: {text}\ndata:\n  classes:\n    - {text}\n    - car\n  train: [{text}]\n"
        f"datasets:\n  {text}: {{root: /x, split: {text}, ignore_classes: [{text}]}}\n"
    )
    config = load_config(path)
    assert (config.output_dir, config.data.classes, config.data.train) == (text, [text, "car"], [text])
    assert (config.datasets[text].split, config.datasets[text].ignore_classes) == (text, [text])
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


@pytest.mark.parametrize("empty", ["null", "~", "", "Null"])
def test_an_empty_class_name_is_told_by_its_place(tmp_path, empty):
    (tmp_path / "a.yaml").write_text(f"data:\n  classes:\n    - car\n    - {empty}\n")
    with pytest.raises(
        UserError, match=r"a.yaml: data.classes\[1\] is empty; put names that YAML takes for nothing in"
    ):
        load_config(tmp_path / "a.yaml")
    assert load_config(None, ["data.classes=[car, 'null']"]).data.classes == ["car", "null"]


@pytest.mark.parametrize(
    ("override", "name", "score"),
    [
        ("pseudo_labels.class_scores.st. bernard=0.5", "st. bernard", 0.5),
        ("pseudo_labels.class_scores.a.b.c=1", "a.b.c", 1.0),
        ("pseudo_labels.class_scores={st. bernard: 0.5}", "st. bernard", 0.5),
        ("pseudo_labels.class_scores.007=0.25", "007", 0.25),
        ("pseudo_labels.class_scores.car [small]=.5", "car [small]", 0.5),
    ],
)
def test_a_score_is_set_for_any_class_name(override, name, score):
    config = load_config(None, [override, "pseudo_labels.threshold=per_class"])
    assert config.pseudo_labels.class_scores == {name: score}


def test_a_data_set_may_have_dots_in_its_name():
    config = load_config(None, ["datasets.street.v2.root=/x", "datasets.b={root: /y}", "datasets.street.v2.split=root"])
    assert {name: entry.root for name, entry in config.datasets.items()} == {"street.v2": "/x", "b": "/y"}
    assert config.datasets["street.v2"].split == "root"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasets: [{name: a}]", r"datasets: takes a table by name, for example {mine: {format: voc, .*found a list"),
        ("datasets: mine", "datasets: takes a table by name, .*found a text"),
        (
            "datasets: {a: [voc, /x]}",
            "datasets.a: is a group of settings; .*for example datasets.a.format; found a list",
        ),
        (
            "pseudo_labels: {class_scores: [0.5]}",
            r"class_scores: takes a table by name, for example {car: 0.5}; found a",
        ),
        ("data: {classes: {car: 1}}", r"data.classes: takes a list, for example \[a, b\]; found a table"),
        ("data: {classes: [[1]]}", r"data.classes\[0\]: takes a text, found a list"),
        ("data: {classes: '${data.train}'}", r"data.classes: takes a list, for example \[a, b\]; found a text"),
        (
            "data: {augment: {min_sizes: 64}}",
            r"data.augment.min_sizes: takes a list, for example \[1, 2\]; found a text",
        ),
        ("train: [steps]", "train: is a group of settings; .*for example train.steps; found a list"),
        ("train: {steps: [1]}", "train.steps: takes one whole number, found a list"),
        ("optimizer: {lr: {a: 1}}", "optimizer.lr: takes one number, found a table"),
        ("output_dir: [a]", "output_dir: takes a text, found a list"),
        ('output_dir: "a\\0b"', r"output_dir='a\\x00b' holds '\\x00', which no name or path here may have"),
        ('data: {classes: ["a\\nb"]}', r"data.classes\[0\]=.* holds '\\n'"),
        ('datasets: {"a\\ud800": {root: x}}', r"a name in datasets=.* holds '\\ud800'"),
        ("? [a]\n: 3", "the name of a setting: takes a text, found a list"),
        ("data: {classes: &x [*x]}", "anchors and aliases stand for more than"),
        ("train: {steps: 1, steps: 2}", "train.steps is given twice"),
        ("pseudo_labels: {class_scores: {null: 1}}", "a name in pseudo_labels.class_scores is empty; put names"),
        ("train: {<<: 3}", "not valid YAML"),
        ("just words", "expected 'key: value' lines, found a text"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("data: {train: null}", "data.train: takes neither null nor nothing; to empty a text"),
    ],
)
def test_a_value_of_another_kind_is_told_what_was_expected(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text + "\n")
    with pytest.raises(UserError, match=message) as error:
        load_config(tmp_path / "a.yaml")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{tmp_path / 'a.yaml'}: ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pseudo_labels.class_scores.car.truck=much", "class_scores.car.truck.*could not be converted to Float"),
        ("train.steps.more=1", "unknown key 'train.steps.more'; train.steps has no settings below it"),
        ("datasets.=1", "datasets"),
        ("output_dir=a\tb", r"output_dir='a\\tb' holds '\\t'"),
        ("output_dir='a", "override"),
        ("data.train=", "data.train: takes neither null nor nothing"),
    ],
)
def test_a_wrong_place_or_value_of_an_override_is_one_sentence(override, message):
    with pytest.raises(UserError, match=message) as error:
        load_config(None, [override])
    assert "\n" not in str(error.value)


def bomb(levels: int) -> str:
    """Each level repeats the one before nine times."""
    lines = ["data:", "  train: &a0 [x]"]
    lines += [f"  k{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, levels + 1)]
    return "\n".join(lines) + "\n"


def merging(levels: int) -> str:
    lines = ["k0: &a0 {x: 1, y: 2}"]
    lines += [f"k{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 9)}]}}" for level in range(1, levels + 1)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("text", [bomb(30), merging(30)], ids=["lists", "tables"])
def test_aliases_that_repeat_one_another_are_refused_before_they_are_repeated(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match="a.yaml: its anchors and aliases stand for more than 100000 values"):
        load_config(tmp_path / "a.yaml")


def test_anchors_aliases_and_merges_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "datasets:\n  a: &a {format: coco, root: /x, annotations: a.json}\n"
        "  b: {<<: *a, annotations: b.json}\ndata: {train: &t [a], test: *t}\n"
    )
    config = load_config(tmp_path / "a.yaml")
    assert config.datasets["b"].root == "/x"
    assert (config.datasets["b"].annotations, config.data.test) == ("b.json", ["a"])


WORDS = [
    *AWKWARD,
    *ODD,
    "[",
    "]",
    "{",
    "}",
    ":",
    ": ",
    ", ",
    "\n",
    "\n  ",
    "- ",
    "'",
    '"',
    "<<",
    "|",
    ">",
    "\x00",
    "\ud800",
]
WORDS += [
    "train",
    "data",
    "classes",
    "datasets",
    "output_dir",
    "steps",
    "a",
    "_BASE_",
    "${data.train}",
    "${",
    "&x ",
    "*x",
]
VALID = "output_dir: x\ndata: {train: [a], classes: [b, c]}\ndatasets:\n  a: {root: /x}\ntrain:\n  steps: 3\n"
KEYS = ["output_dir", "data.train", "data.classes", "datasets", "datasets.a", "datasets.a.root", "train", "train.steps"]
KEYS += ["pseudo_labels.class_scores", "model.trainable_layers", "optimizer.lr", "ema.warmup", "mixing.lam_range"]


def disturbed(rng: random.Random) -> str:
    """A valid file in which a few pieces are replaced by what means something in YAML."""
    text = VALID
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(text) + 1)
        text = text[:start] + rng.choice(WORDS) + text[start + rng.choice([0, 0, 1, 5]) :]
    return text


def test_no_file_and_no_override_ends_in_anything_but_a_sentence(tmp_path):
    """500 at random; each is read, or refused by a `UserError` of one line."""
    rng, path, refused = random.Random(0), tmp_path / "a.yaml", 0
    for number in range(500):
        overrides = []
        if number % 2:
            path.write_bytes(disturbed(rng).encode(errors="surrogatepass"))
        else:
            words = "".join(rng.choice(WORDS) for _ in range(rng.randint(1, 4)))
            overrides = [rng.choice(KEYS) + rng.choice(["=", "=", ".", "="]) + words]
        try:
            load_config(path if number % 2 else None, overrides)
        except UserError as error:
            refused += "\n" not in str(error)
            continue
        refused += 0
    assert 100 < refused < 480


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["pseudo_labels.class_scores={cat: 0.5}"],
            "has no effect with .*=global; set .*=per_class",
        ),
        (["pseudo_labels.floor=0.3"], "floor=0.3 has no effect .*; set pseudo_labels.threshold=adaptive or rising"),
        (["pseudo_labels.threshold=rising", "pseudo_labels.memory=0.5"], "memory=0.5 has no effect with .*=rising"),
        (["model.engine=detectron2", "model.architecture=resnet50_fpn"], "set model.detectron2_config instead"),
    ],
)
def test_settings_that_nothing_reads_are_refused(words, said):
    with pytest.raises(UserError, match=said):
        load_config(None, words)
