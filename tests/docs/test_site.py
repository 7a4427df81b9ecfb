"""The site: its pages and links, the table of settings, and the steps of CI. It is built by .ci/docs."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from pages import NAMES, read
from runs import ROOT

from lossmix_det.config import Config, as_dict, flat

spec = importlib.util.spec_from_file_location("site_hooks", ROOT / ".ci" / "site_hooks.py")
hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hooks)


def on_site(text: str, page: str = "guide.md", repo_url: str | None = None) -> str:
    page, config = SimpleNamespace(file=SimpleNamespace(src_uri=page)), SimpleNamespace(repo_url=repo_url)
    return hooks.on_page_markdown(text, page, config, None)


def listed(nav: object) -> set[str]:
    if isinstance(nav, str):
        return {nav}
    return set().union(*map(listed, nav.values() if isinstance(nav, dict) else nav))


def test_every_page_is_in_the_navigation_or_in_the_overview_of_results():
    nav = listed(yaml.safe_load(read("mkdocs.yml"))["nav"])
    pages = {name.removeprefix("docs/") for name in NAMES if name.startswith("docs/")}
    assert nav <= pages
    assert {page for page in pages - nav if not page.startswith("results/")} == set()


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    words = [str(ROOT / ".ci" / "docs"), str(tmp_path / "site")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stderr
    settings = (tmp_path / "site" / "settings.html").read_text()
    assert "<code>pseudo_labels.threshold</code>" in settings
    assert "https://" not in re.sub(r'<a [^>]*href="https://[^"]*"', "", settings)
    assert "Weak and strong views" in (tmp_path / "site" / "reference" / "structures.html").read_text()


def test_no_page_waits_for_another_host():
    site = yaml.safe_load(read("mkdocs.yml"))
    assert site["theme"]["font"] is False
    assert not {"extra_javascript", "repo_url"} & set(site)  # a repository's address would be asked for its stars
    assert not re.search(r"@import|url\(", read("docs/css/site.css"))


@pytest.mark.parametrize(
    ("link", "host", "expected"),
    [
        ("[schema.py](../lossmix_det/config/schema.py)", None, "`lossmix_det/config/schema.py`"),
        ("[CONTRIBUTING.md](../CONTRIBUTING.md#add-a-mixer)", None, "`CONTRIBUTING.md`"),
        ("[a test](../tests/runs.py)", None, "a test (`tests/runs.py`)"),
        ("[a test](../tests/runs.py)", "https://x.org/y", "[a test](https://x.org/y/blob/main/tests/runs.py)"),
        ("[configs](../configs)", "https://x.org/y/", "[configs](https://x.org/y/tree/main/configs)"),
        ("[a page](mixing.md#rules)", None, "[a page](mixing.md#rules)"),
    ],
)
def test_a_link_out_of_the_site_becomes_a_path_or_leads_to_the_host(link, host, expected):
    assert on_site(f"See {link}.", repo_url=host) == f"See {expected}."


def test_a_link_from_a_folder_to_a_page_stays():
    assert on_site("[x](../mixing.md)", "reference/mixing.md") == "[x](../mixing.md)"
    assert on_site("[x](../../setup.py)", "reference/mixing.md") == "x (`setup.py`)"


def test_a_link_out_of_the_site_that_leads_nowhere_is_refused():
    with pytest.raises(FileNotFoundError, match="no lost.py"):
        on_site("[x](../lost.py)")


def test_the_table_of_settings_has_every_setting_with_its_default():
    rows = dict(re.findall(r"^\| `([\w.<>]+)` \| [^|]* \| `(.*?)` \|", on_site(hooks.MARK), re.MULTILINE))
    for key, value in flat(as_dict(Config())).items():
        written = yaml.safe_load(rows[key].replace("\\|", "|"))
        assert (TEXTS[key](written) if key in TEXTS else written) == value, key
    assert "datasets.<name>.pixel_origin" in rows


# Texts that YAML alone takes for numbers; the reader of configurations knows better.
TEXTS = {"mixing.stages": lambda written: list(map(str, written)), "train.precision": str}


def test_comments_of_settings_are_those_beside_them():
    text = on_site(hooks.MARK)
    assert "| `data.workers` | loading processes per training process | `1` | whole number, at least 0 |" in text
    assert "and halve the unsupervised weight | `warn` | `warn`, `stop`, `restore` |" in text
    assert "timm/&lt;name> for any of timm" in text


def test_the_workflow_and_the_local_run_call_the_same_scripts():
    workflow, local = read(".github/workflows/ci.yml"), read(".ci/run")
    others = {"run", "site_hooks.py", "__pycache__"}
    scripts = {f".ci/{path.name}" for path in (ROOT / ".ci").iterdir() if path.name not in others}
    assert len(scripts) == 3
    for script in scripts:
        assert re.search(rf"run: {script}\b", workflow), script
        assert re.search(rf"^{script}\b", local, re.MULTILINE), script
        assert (ROOT / script).stat().st_mode & 0o111, script
    jobs = yaml.safe_load(workflow)["jobs"]
    supported = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', read("setup.py"))
    assert jobs["tests"]["strategy"]["matrix"]["python"] == supported
