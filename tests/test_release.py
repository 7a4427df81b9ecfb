"""The version stands in one place, and what is released has all that it needs."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from runs import ROOT

import lossmix_det


def test_the_version_is_that_of_the_package_everywhere():
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1]
    told = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()[-1]
    assert cited == told == lossmix_det.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", told)
    assert '"' + told + '"' not in (ROOT / "setup.py").read_text()


def test_the_changelog_has_the_version_with_its_day():
    dated = re.search(r"^date-released: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1]
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:2] == ["Unreleased", f"{lossmix_det.__version__} – {dated}"]


@pytest.mark.slow
def test_the_sdist_has_sources_tests_and_pages_and_nothing_large(tmp_path):
    """By setuptools alone, which needs no network; .ci/package builds and checks the real ones."""
    import tarfile

    copy = tmp_path / "copy"
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path)], cwd=copy, check=True, capture_output=True
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {member.name.partition("/")[2] for member in opened}
    wanted = {"README.md", "LICENSE", "CITATION.cff", "CHANGELOG.md", "constraints.txt", "mkdocs.yml", "docs/index.md"}
    wanted |= {"lossmix_det/py.typed", "configs/quick.yaml", "tests/runs.py", "tools/train_net.py"}
    assert wanted <= names
    assert {name for name in files if name and not name.startswith((".git", ".pre-commit"))} <= names
    assert archive.stat().st_size < 10e6


def test_the_wheel_has_every_file_of_the_package():
    """Files that are no modules are only in it if package_data names them."""
    listed = re.search(r"package_data=(\{.*\})", (ROOT / "setup.py").read_text())[1]
    kinds = {(package.replace(".", "/"), pattern) for package, names in eval(listed).items() for pattern in names}
    named = {path for folder, pattern in kinds for path in (ROOT / folder).glob(pattern)}
    others = {path for path in (ROOT / "lossmix_det").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path for path in others if path.suffix != ".py"} == named
