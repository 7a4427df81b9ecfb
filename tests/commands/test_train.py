import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from runs import ROOT, TINY, env, last_checkpoint, run, trainer

from lossmix_det import commands
from lossmix_det.commands import train as cli
from lossmix_det.commands.options import parse, run_tool
from lossmix_det.config import ModelConfig
from lossmix_det.engines import build_detector
from lossmix_det.errors import UserError
from lossmix_det.training import launch

pytestmark = pytest.mark.slow


def main(*words: str) -> int:
    return cli.main(list(words))


def test_a_config_file_and_overrides_train_and_print_the_table(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("mixing: {rule: union}\ntrain: {steps: 5}\n")
    status = main(
        "--config-file", str(tmp_path / "mine.yaml"), *TINY, f"output_dir={tmp_path / 'run'}", "train.steps=2"
    )
    assert status == 0
    printed = capsys.readouterr().out
    for words in ("shapes_clipart_test", "AP50", "VOC area", "crescent", "exports are in"):
        assert words in printed
    assert last_checkpoint(tmp_path / "run")["step"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.stepps=1"], "unknown key 'train.stepps' (did you mean 'train.steps'?)"),
        (["--config-file", "nowhere.yaml"], "nowhere.yaml: no such configuration file"),
        (["data.train=[voc_2007_trainvall]"], "did you mean 'voc_2007_trainval'"),
        (["train.device=cpu", "train.precision=fp16"], "train.precision=fp16 needs a GPU"),
        (["train.device=cpu", "--num-gpus", "3"], "data.batch_size=4 cannot be shared evenly by 3 processes"),
        (["train.device=cpu", "--num-gpus", "0"], "must be at least 1"),
        (["train.device=cpu", "--num-machines", "2"], "--num-machines needs --dist-url"),
        (["train.device=cpu", "--dist-url", "here"], "'here' is not of the form tcp://host:port"),
        (["--eval-only", *TINY, "output_dir=nowhere"], "nothing to evaluate: nowhere has no checkpoint"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_two(words, message, capsys):
    options = [word for word in words if "=" not in word or word.startswith("--")]
    overrides = [word for word in words if word not in options]
    assert main(*options, *overrides) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert message in errors[-1]
    assert errors[-1].startswith("error: ")


def test_more_gpus_than_there_are_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert main("--num-gpus", "4", "train.device=cuda") == 2
    assert "4 GPUs asked for, 1 found; lower --num-gpus" in capsys.readouterr().err


def test_no_gpu_at_all_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main("train.device=cuda") == 2
    assert "torch finds no GPU; set train.device=cpu" in capsys.readouterr().err


def test_what_the_machine_refuses_is_one_sentence(capsys):
    def full():
        raise OSError(28, "No space left on device", "x.pt")

    assert run_tool(full) == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device: 'x.pt'\n"


def test_the_address_of_the_first_machine_is_handed_on(monkeypatch):
    for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "before")  # so that what the code sets is undone after the test
    launch._set_rendezvous(launch.Processes(machines=2, machine_rank=1, dist_url="tcp://10.0.0.1:2345"))
    assert (os.environ["NODE_RANK"], os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("1", "10.0.0.1", "2345")


def test_evaluating_a_checkpoint_gives_the_scores_of_the_run_and_leaves_the_run_alone(tmp_path):
    trainer(tmp_path, "train.steps=3").train()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main("--eval-only", *TINY, f"output_dir={tmp_path}") == 0
    found = json.loads((tmp_path / "inference" / "step_0000003" / "results.json").read_text())
    assert found["model"] == json.loads((tmp_path / "results.json").read_text())["student"]
    assert all(path.read_bytes() == content for path, content in before.items())


FOUND = "detections_shapes_clipart_test.json"


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory, datasets_root):
    """Two runs of unlike weights, which detect something."""
    os.environ["LOSSMIX_DATASETS"] = str(datasets_root)
    folder = tmp_path_factory.mktemp("runs")
    for name, seed in (("first", 0), ("other", 7)):
        trainer(folder / name, "train.steps=2", f"train.seed={seed}", "model.score_threshold=0").train()
    assert (folder / "first" / FOUND).read_bytes() != (folder / "other" / FOUND).read_bytes()
    return folder


@pytest.fixture
def protocol(two_runs, tmp_path):
    """A configuration that names the weights to begin with, as every protocol does."""
    path = tmp_path / "protocol.yaml"
    path.write_text(f"model: {{weights: {two_runs / 'other' / 'export' / 'student.pth'}, score_threshold: 0}}\n")
    return str(path)


@pytest.fixture
def finished(two_runs, tmp_path):
    """The folder of a finished run."""
    return shutil.copytree(two_runs / "first", tmp_path / "run")


def assert_scored(folder, name, run):
    """One file was scored, and it detects what the model of that run detected."""
    (path,) = (folder / "inference").glob(f"*/{FOUND}")
    assert path.parent.name == name
    assert path.read_bytes() == (run / FOUND).read_bytes()


def test_evaluation_scores_the_last_checkpoint_and_not_the_weights_that_the_run_began_with(
    two_runs, protocol, finished, capsys
):
    assert main("--config-file", protocol, "--eval-only", *TINY, f"output_dir={finished}") == 0
    assert_scored(finished, "step_0000002", two_runs / "first")
    last = finished / "checkpoints" / "step_0000002.pt"
    assert f"scoring {last}: the last checkpoint in {finished}" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["model.weights={}", "model={{weights: {}}}"])
def test_weights_on_the_command_line_win_over_the_last_checkpoint(two_runs, finished, capsys, form):
    weights = two_runs / "other" / "export" / "student.pth"
    words = [*TINY, f"output_dir={finished}", "model.score_threshold=0", form.format(weights)]
    assert commands.main(["evaluate", *words]) == 0
    assert_scored(finished, "other_student", two_runs / "other")
    assert f"scoring {weights}: model.weights is given on the command line" in capsys.readouterr().err


def test_without_a_checkpoint_the_weights_of_the_file_are_scored_and_the_log_says_so(
    two_runs, protocol, tmp_path, capsys
):
    run = tmp_path / "new"
    assert main("--config-file", protocol, "--eval-only", *TINY, f"output_dir={run}") == 0
    assert_scored(run, "other_student", two_runs / "other")
    assert f"{run} has no checkpoint, so model.weights of the file is scored" in capsys.readouterr().err


def test_help_says_which_weights_are_scored(capsys):
    for words in (["train", "--help"], ["evaluate", "--help"]):
        with pytest.raises(SystemExit):
            commands.main(words)
        printed = " ".join(capsys.readouterr().out.split())
        assert "model.weights if given on the command line, else the last checkpoint in output_dir" in printed


@pytest.mark.parametrize("name", ["checkpoints/best.pt", "export/student.pth"])
def test_any_weights_of_a_run_can_be_evaluated(tmp_path, name):
    trainer(tmp_path / "run", "train.steps=2").train()
    words = [*TINY, f"output_dir={tmp_path / 'other'}", f"model.weights={tmp_path / 'run' / name}"]
    assert main("--eval-only", *words) == 0
    stem = "run_" + name.split("/")[1].split(".")[0]  # two runs may have a file of the same name
    found = json.loads((tmp_path / "other" / "inference" / stem / "results.json").read_text())
    assert found["model"] == json.loads((tmp_path / "run" / "results.json").read_text())["student"]
    assert (tmp_path / "other" / "inference" / stem / "detections_shapes_clipart_test.json").is_file()


def test_help_names_every_option_that_detectron2_users_know(capsys):
    with pytest.raises(SystemExit):
        main("--help")
    printed = capsys.readouterr().out
    for option in (
        "--config-file",
        "--eval-only",
        "--resume",
        "--num-gpus",
        "--num-machines",
        "--machine-rank",
        "--dist-url",
    ):
        assert option in printed


def test_batches_that_processes_cannot_share_are_refused_before_anything_is_trained(capsys):
    words = ["data.target=[shapes_clipart_train]", "ema.decay=0.9", "adaptation.burn_in_steps=1", "train.device=cpu"]
    assert main("--num-gpus", "2", *words, "data.target_batch_size=2", "train.accumulate=2") == 2
    assert "data.target_batch_size=2 cannot be shared evenly by 2 processes × train.accumulate=2" in (
        capsys.readouterr().err
    )


def test_an_engine_that_is_not_installed_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "lossmix_det.engines.detectron2.rcnn", None)  # as if its import failed
    with pytest.raises(UserError, match=r"needs Detectron2 .*https://detectron2.readthedocs.io/tutorials/install.html"):
        build_detector(ModelConfig(engine="detectron2"), 3)


def heavy_modules(words: list[str]) -> set[str]:
    """Which heavy modules are loaded by the time a command line has been answered."""
    code = "\n".join(["import sys", *words, "print(*(m for m in sys.modules if '.' not in m))"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env())
    return set(done.stdout.split()) & {
        "torch",
        "torchvision",
        "detectron2",
        "albumentations",
        "matplotlib",
        "tensorboard",
    }


@pytest.mark.parametrize("name", ["train", "evaluate", "visualize_mixing"])
def test_help_of_the_program_and_of_its_commands_is_answered_without_torch(name):
    for words in ([name, "--help"], ["--help"]):
        lines = ["from lossmix_det.commands import main", "import contextlib, io"]
        quiet = "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):"
        assert heavy_modules([*lines, f"{quiet} main({words})"]) == set()


def test_importing_the_package_loads_nothing_heavy():
    assert heavy_modules(["import lossmix_det"]) == set()


def test_help_and_misspelt_keys_are_answered_without_torch():
    assert heavy_modules(["from lossmix_det.commands.train import main", "main(['train.stepps=1'])"]) == set()


def test_every_config_in_the_repository_loads_and_opens_with_its_command():
    paths = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if path.parent.name != "detectron2"]
    assert len(paths) >= 160
    from lossmix_det.config import load_config

    for path in paths:
        load_config(path)
        if "_base_" not in path.parts:
            assert path.read_text().startswith(f"# python tools/train_net.py --config-file {path.relative_to(ROOT)}")
            assert "Expected" in path.read_text() or "not yet run" in path.read_text(), path


def test_methods_of_a_folder_differ_in_their_mixing_alone():
    from lossmix_det.config import as_dict, load_config

    folder = ROOT / "configs" / "shapes"
    configs = {path.stem: as_dict(load_config(path)) for path in folder.glob("*.yaml") if path.stem != "oracle"}
    for config in configs.values():
        config.pop("mixing"), config.pop("output_dir")
    assert len(configs) == 5
    assert all(config == configs["source_only"] for config in configs.values())


def test_the_run_command_exits_with_two_and_no_traceback(tmp_path):
    done = run(tmp_path, "data.train=[nowhere]")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "unknown data set 'nowhere'" in done.stderr


def test_overrides_may_stand_anywhere():
    found = parse(cli.build_parser(), ["train.steps=3", "--resume", "mixing.alpha=2", "--num-gpus", "2", "stray"])
    assert found.overrides == ["train.steps=3", "mixing.alpha=2", "stray"]
    assert (found.resume, found.num_gpus) == (True, 2)


def test_weights_of_other_classes_are_not_evaluated(tmp_path, capsys):
    trainer(tmp_path, "train.steps=1").train()
    words = [*TINY, f"output_dir={tmp_path}", "data.classes=[star,circle,square,triangle,cross,crescent]"]
    assert main("--eval-only", *words) == 2
    assert "was trained on the classes circle, square, triangle" in capsys.readouterr().err
    assert main("--eval-only", *words, f"model.weights={tmp_path / 'export' / 'student.pth'}") == 2
    assert main("--eval-only", *TINY, "data.test=[]") == 2


def test_evaluation_needs_no_training_data(tmp_path):
    trainer(tmp_path, "train.steps=1").train()
    words = [*TINY, f"output_dir={tmp_path}", "data.train=[voc_2007_trainval]"]
    classes = "data.classes=[circle,square,triangle,star,cross,crescent]"
    assert main("--eval-only", *words, classes) == 0


def test_a_damaged_last_checkpoint_is_passed_over_in_evaluation(tmp_path, caplog):
    trainer(tmp_path, "train.steps=2", "train.save_every=1").train()
    last = tmp_path / "checkpoints" / "step_0000002.pt"
    last.write_bytes(last.read_bytes()[:100])
    assert main("--eval-only", *TINY, f"output_dir={tmp_path}") == 0
    assert (tmp_path / "inference" / "step_0000001" / "results.json").is_file()


@pytest.mark.parametrize("url", ["tcp://h:99999", "tcp://h:abc", "tcp://[::1", "http://h:80"])
def test_addresses_that_are_none_are_one_sentence(url, capsys):
    assert main("--num-machines", "2", "--dist-url", url, "train.device=cpu") == 2
    assert "is not of the form tcp://host:port" in capsys.readouterr().err


def test_a_config_file_may_have_an_equals_sign_in_its_path(tmp_path, capsys):
    (tmp_path / "lr=0.1").mkdir()
    (tmp_path / "lr=0.1" / "c.yaml").write_text("train: {stepz: 1}\n")
    assert main("--config-file", str(tmp_path / "lr=0.1" / "c.yaml")) == 2
    assert "unknown key 'train.stepz'" in capsys.readouterr().err
