"""The program `lossmix`, and the scripts in tools/."""

import re
import subprocess
import sys

import pytest
from runs import ROOT, env

from lossmix_det import commands


def test_an_export_writes_nothing_over(tmp_path, capsys):
    for name in ("model.onnx", "model.md"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("by hand")
        assert commands.main(["export", "runs/none", "--output", str(folder / "model.onnx")]) == 2
        assert f"{name} exists; give another --output" in capsys.readouterr().err
        assert (folder / name).read_text() == "by hand"


TOY = """
from lossmix_det.commands.options import new_parser, parse, run_tool
from lossmix_det.config import load_config
from lossmix_det.errors import UserError


def main(arguments=None, prog=None):
    parser = new_parser("Count steps.", prog)
    parser.add_argument("--fail", action="store_true")
    options = parse(parser, arguments)

    def run():
        if options.fail:
            raise UserError("nothing to count")
        print("steps:", load_config(options.config_file, options.overrides).train.steps)
        return 0

    return run_tool(run)
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A command from outside of the package: a file, and a line of the table."""
    (tmp_path / "toy_command.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(commands.COMMANDS, "count_steps", ("toy_command", "count the steps of a run"))
    yield
    sys.modules.pop("toy_command", None)


def test_a_new_command_is_a_file_and_a_line(toy, capsys):
    assert commands.main(["count_steps", "train.steps=7"]) == 0
    assert capsys.readouterr().out == "steps: 7\n"


def test_a_new_command_has_the_errors_of_the_others(toy, capsys):
    assert commands.main(["count_steps", "--fail"]) == 2
    assert capsys.readouterr().err == "error: nothing to count\n"
    assert commands.main(["count_steps", "train.stepps=7"]) == 2
    assert "did you mean 'train.steps'" in capsys.readouterr().err


def test_help_lists_every_command_with_a_line(toy, capsys):
    with pytest.raises(SystemExit) as ended:
        commands.main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for name, (_, summary) in commands.COMMANDS.items():
        assert any(line.split() == [name, *summary.split()] for line in printed.splitlines()), name
    assert "count the steps of a run" in printed


# What a command is told, where that is no configuration.
NEEDS = {
    "convert": "--to FORMAT",
    "report": "--output FILE",
    "export": "--output FILE",
    "predict": "--write WHAT",
    "init_config": "FOLDER:SPLIT",
    "check_dataset": "--write-clean",
}


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_help_of_a_command_says_how_it_was_called(name, capsys):
    with pytest.raises(SystemExit) as ended:
        commands.main([name, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: lossmix {name} ")
    assert NEEDS.get(name, "--config-file") in printed


def test_an_unknown_command_is_told_the_known_ones(capsys):
    assert commands.main(["trian"]) == 2
    assert "command='trian' is not one of init_config, check_dataset, train, " in capsys.readouterr().err


SAYS = """
import logging, warnings
from lossmix_det.commands.options import run_tool

def say():
    for beginning in ("torch.meshgrid: in an upcoming release, x", "This DataLoader will create 9", "something new"):
        warnings.warn(beginning, UserWarning)
    for name in ("torch.fx._symbolic_trace", "lightning_fabric.utilities", "lossmix_det.training"):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger("torch.fx._symbolic_trace").warning("is_fx_tracing will return true for both")
    logging.getLogger("lightning_fabric.utilities").info("Using bfloat16")
    logging.getLogger("lightning_fabric.utilities").warning("a fault")
    logging.getLogger("lossmix_det.training").info("step 1")
    return 0

run_tool(say)
"""


def test_log_lines_have_the_time_and_noise_of_libraries_is_left_out():
    done = subprocess.run([sys.executable, "-c", SAYS], capture_output=True, text=True, check=True, env=env())
    assert re.findall(r"Warning: (.*)", done.stderr) == ["something new"]
    assert re.findall(r"^\d\d:\d\d:\d\d (.*)$", done.stderr, re.MULTILINE) == ["a fault", "step 1"]
    assert "is_fx_tracing" not in done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("*.py")), ids=lambda path: path.name)
def test_a_tool_without_the_package_says_how_to_install_it(path):
    """-S: Python without installed packages."""
    alone = {name: value for name, value in env().items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-S", str(path)], capture_output=True, text=True, check=False, env=alone)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(f"is not installed for {sys.executable}; install this package with pip install -e .")
