import re

import pytest
from omegaconf import OmegaConf

from lossmix_det.config import Config, DatasetConfig, load_config, save_config
from lossmix_det.errors import UserError


def write(path, text):
    path.write_text(text)
    return path


def test_the_defaults_are_complete_and_valid():
    assert load_config() == Config()


def test_a_file_overrides_the_defaults_and_key_value_the_file(tmp_path):
    path = write(tmp_path / "a.yaml", "train: {steps: 7, seed: 3}\nmixing: {rule: union}\n")
    config = load_config(path, ["train.steps=9", "data.train=[a,b]", "optimizer.lr=1e-3"])
    assert (config.train.steps, config.train.seed, config.mixing.rule) == (9, 3, "union")
    assert config.data.train == ["a", "b"]
    assert config.optimizer.lr == 0.001


def test_a_choice_of_mixers_takes_the_place_of_that_of_the_base(tmp_path):
    (tmp_path / "base.yaml").write_text("mixing: {mixer: {mixup: 2, sage: 1}}\ntrain: {loss_weights: {source: 2}}\n")
    (tmp_path / "own.yaml").write_text(
        "_BASE_: base.yaml\nmixing: {mixer: {cutmix: 1}}\ntrain: {loss_weights: {mixed: 3}}\n"
    )
    config = load_config(tmp_path / "own.yaml")
    assert config.mixing.mixer == {"cutmix": 1}
    assert config.train.loss_weights == {"source": 2, "mixed": 3}  # by name: each is a setting of its own
    assert load_config(tmp_path / "base.yaml").mixing.mixer == {"mixup": 2, "sage": 1}
    for word, mixer in (("{fmix: 1}", {"fmix": 1}), ("mixup", "mixup")):
        assert load_config(tmp_path / "own.yaml", [f"mixing.mixer={word}"]).mixing.mixer == mixer


def test_bases_are_read_first_and_found_beside_the_file(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "root.yaml", "train: {steps: 1, seed: 1, log_every: 1}\n")
    write(tmp_path / "sub" / "middle.yaml", "_BASE_: ../root.yaml\ntrain: {seed: 2, log_every: 2}\n")
    path = write(tmp_path / "sub" / "leaf.yaml", "_BASE_: middle.yaml\ntrain: {log_every: 3}\n")
    config = load_config(path)
    assert (config.train.steps, config.train.seed, config.train.log_every) == (1, 2, 3)


def test_data_sets_are_declared_in_the_file(tmp_path):
    path = write(
        tmp_path / "a.yaml", "datasets:\n  mine: {format: coco, root: /x, annotations: a.json, classes: [a]}\n"
    )
    entry = load_config(path).datasets["mine"]
    assert entry == DatasetConfig(format="coco", root="/x", annotations="a.json", classes=["a"])


def test_what_is_saved_is_read_back_the_same(tmp_path):
    config = load_config(None, ["datasets.a.root=x", "data.classes=[a,b]", "ema.decay=0.9", "train.loss_weights.a=0.5"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepps=1", r"unknown key 'train.stepps' .did you mean 'train.steps'"),
        ("trian.steps=1", "unknown key 'trian'.*did you mean 'train'"),
        ("datasets.a.formt=voc", "unknown key 'datasets.a.formt' .did you mean 'datasets.a.format'"),
        ("train.steps=many", "train.steps: Value 'many' of type 'str' could not be converted to Integer"),
        ("model.weights=", "model.weights: takes neither null nor nothing; to empty a text, write ''"),
        ("train.steps=1.5", "train.steps: Value '1.5'"),
        ("data.train=5", r"data.train: takes a list, for example \[a, b\]"),
        ("data.train=a", "data.train: takes a list"),
        ("data.test=[../../x]", "data set name '../../x' must be without slashes"),
        ("model=3", "is a group of settings; give these one by one"),
        ("model.detectron2_config=x.yaml", "has no effect with model.engine=torchvision; set model.engine=detectron2"),
        ("ema.warmup=perhaps", "ema.warmup"),
        ("mixing.rule=lossmx", "not one of lossmix.*did you mean 'lossmix'"),
        ("train.steps=0", "train.steps=0 lies outside of 1"),
        ("mixing.alpha=0", "mixing.alpha=0.0 lies outside"),
        ("mixing.alpha=.nan", "mixing.alpha=nan lies outside"),
        ("optimizer.lr=-1", "optimizer.lr=-1.0 lies outside"),
        ("data.views=[]", r"data.views=\[\] must be"),
        ("data.views=[weak,weak]", "must be .weak., .strong. or"),
        ("data.augment.min_sizes=[]", "needs sizes of at least 32"),
        ("data.augment.erasing=[2]", "data.augment.erasing=.2.0. must lie within 0"),
        ("optimizer.milestones=[1.5]", "optimizer.milestones=.1.5. must lie within"),
        ("train.accumulate=3", "data.batch_size=. is no multiple of train.accumulate=3"),
        ("train.loss_weights.x=-1", "train.loss_weights.x=-1.0 must be a number of at least 0"),
        ("data.classes=[a,a]", "names a class twice"),
        ("data.test=[a,b,a]", "names a data set twice"),
        ("alignment.parts=[image]", "alignment.parts=.'image'. has no domain to align without data.target"),
        ("train.steps", "is not of the form KEY=VALUE"),
        ("=3", "is not of the form KEY=VALUE"),
        ("data.augment.max_size=1", "max_size=1 lies outside of 32"),
        ("data.augment.erasing=[.1,.1,.1,.1]", "has more than three"),
        ("train.steps=${nowhere}", "override"),
        ("train.seed=5000000000", "train.seed=5000000000 lies outside"),
        ("mixing.alpha=.inf", "mixing.alpha=inf lies outside"),
        ("data.train=[a", "override 'data.train=.a'"),
    ],
)
def test_a_wrong_override_is_one_clear_sentence(override, message):
    with pytest.raises(UserError, match=message) as error:
        load_config(None, [override])
    assert "\n" not in str(error.value)


HIDDEN = "model.score_threshold={} hides what the teacher is to label from a score of {} on; lower it, to 0.05 say"


@pytest.mark.parametrize(
    ("words", "lowest"),
    [
        (["pseudo_labels.score=0.5"], "0.5"),
        (["pseudo_labels.score=0.01"], "0.01"),
        (["pseudo_labels.threshold=per_class", "pseudo_labels.class_scores={a: 0.3}"], "0.3"),
        (["pseudo_labels.threshold=adaptive", "pseudo_labels.floor=0.4"], "0.4"),
        (["pseudo_labels.threshold=rising"], "0.5"),
    ],
)
def test_a_detector_that_hides_what_would_be_a_pseudo_label_is_refused(words, lowest):
    words = [*words, "data.target=[shapes_clipart_train]", "ema.decay=0.9", "train.steps=500"]
    with pytest.raises(UserError, match=re.escape(HIDDEN.format("0.7", lowest))):
        load_config(None, [*words, "model.score_threshold=0.7"])
    load_config(None, words)
    load_config(None, [*words, f"model.score_threshold={lowest}"])
    load_config(None, ["model.score_threshold=0.7"])  # nothing is labelled


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {stepps: 1}", "a.yaml: unknown key 'train.stepps'"),
        ("train: {steps: many}", "a.yaml: train.steps: Value 'many'"),
        ("train: [1, 2", "a.yaml: not valid YAML"),
        ("- a\n- b\n", "a.yaml: expected 'key: value' lines"),
        ("# nothing yet\n", "a.yaml: holds no setting"),
        ("_BASE_: nowhere.yaml\n", "nowhere.yaml: no such configuration file"),
        ("_BASE_: [a, b]\n", "_BASE_ must be the path of one YAML file"),
        ("_BASE_: a.yaml\n", "_BASE_ leads back to the file itself"),
        ("train: {steps: 1}\ntrain: {steps: 2}\n", "a.yaml: not valid YAML"),
        ("train: {steps: '${nowhere}'}", "a.yaml"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        load_config(write(tmp_path / "a.yaml", text))
    assert "\n" not in str(error.value)


def test_a_missing_or_binary_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no.yaml: no such configuration file"):
        load_config(tmp_path / "no.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="b.yaml"):
        load_config(tmp_path / "b.yaml")


def test_every_field_survives_omegaconf():
    assert OmegaConf.to_object(OmegaConf.structured(Config)) == Config()


D2 = "model: {engine: detectron2, detectron2_config: sub/d2.yaml}\n"


def detectron2_yaml(folder):
    (folder / "sub").mkdir(parents=True)
    return write(folder / "sub" / "d2.yaml", "MODEL: {}\n")


def test_a_file_that_a_yaml_names_is_found_beside_that_yaml(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = detectron2_yaml(tmp_path / "bases")
    write(tmp_path / "bases" / "base.yaml", D2)
    leaf = write(tmp_path / "leaf.yaml", "_BASE_: bases/base.yaml\n")
    assert load_config(leaf).model.detectron2_config == str(found)


def test_beside_its_yaml_wins_over_the_working_directory(tmp_path, monkeypatch):
    detectron2_yaml(tmp_path / "here")
    found = detectron2_yaml(tmp_path / "configs")
    monkeypatch.chdir(tmp_path / "here")
    assert load_config(write(tmp_path / "configs" / "a.yaml", D2)).model.detectron2_config == str(found)


def test_a_file_in_the_working_directory_stays_as_it_is_written(tmp_path, monkeypatch):
    detectron2_yaml(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    path = write(tmp_path / "a.yaml", D2)
    assert load_config(path).model.detectron2_config == "sub/d2.yaml"


def test_an_override_names_a_file_from_the_working_directory_alone(tmp_path, monkeypatch):
    detectron2_yaml(tmp_path / "configs")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = write(tmp_path / "configs" / "a.yaml", D2)
    with pytest.raises(UserError) as error:
        load_config(path, ["model.detectron2_config=sub/d2.yaml"])
    tried = tmp_path / "here" / "sub" / "d2.yaml"
    assert str(error.value) == f"model.detectron2_config=sub/d2.yaml: there is no such file; tried {tried}"


def test_a_file_that_is_nowhere_is_told_with_both_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    with pytest.raises(UserError) as error:
        load_config(write(tmp_path / "configs" / "a.yaml", D2))
    first, second = tmp_path / "configs" / "sub" / "d2.yaml", tmp_path / "sub" / "d2.yaml"
    message = f"model.detectron2_config=sub/d2.yaml: there is no such file; tried {first} and {second}"
    assert str(error.value) == message


def test_an_address_that_detectron2_resolves_itself_is_left_alone(tmp_path):
    address = "detectron2://somewhere/x.yaml"
    path = write(tmp_path / "a.yaml", f"model: {{engine: detectron2, detectron2_config: '{address}'}}\n")
    assert load_config(path).model.detectron2_config == address


def test_a_tilde_is_the_folder_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config(None, ["output_dir=~/run", "model.weights=~/w.pth"])
    assert (config.output_dir, config.model.weights) == (f"{tmp_path}/run", f"{tmp_path}/w.pth")
    assert load_config(None, ["output_dir=a~b"]).output_dir == "a~b"
