"""docs/mixing.md has a section, a picture and the picture's command for every mixer, and says what the schema says."""

from __future__ import annotations

import re
import shlex

import pytest
from PIL import Image
from runs import ROOT

from lossmix_det.commands.options import parse
from lossmix_det.commands.visualize_mixing import build_parser
from lossmix_det.config import MixingConfig, choices, load_config
from lossmix_det.mixing import MIXERS, RULES, WEIGHTINGS
from lossmix_det.mixing.saliency import SALIENCIES

PAGE = (ROOT / "docs" / "mixing.md").read_text()
SECTIONS = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", PAGE, flags=re.DOTALL | re.MULTILINE))
WRITTEN = sorted({*SECTIONS} & {*MIXERS})


def picture_of(mixer: str):
    return ROOT / "docs" / "images" / "mixers" / f"{mixer}.png"


def test_every_mixer_has_a_section_and_a_picture():
    assert [name for name in MIXERS if name not in SECTIONS] == []
    assert [name for name in MIXERS if not picture_of(name).is_file()] == []
    assert [name for name in SECTIONS if name not in MIXERS] == []


@pytest.mark.parametrize("mixer", WRITTEN)
def test_a_section_has_a_picture_a_formula_a_source_and_what_is_ours(mixer):
    section = SECTIONS[mixer]
    assert f"](images/mixers/{mixer}.png)" in section
    assert len(re.findall(r"^```\n", section, flags=re.MULTILINE)) >= 1
    for heading in ("Source", "Defaults", "Ours"):
        assert f"* **{heading}.** " in section


@pytest.mark.parametrize("mixer", WRITTEN)
def test_the_printed_command_draws_the_picture_of_its_mixer(mixer):
    (line,) = re.findall(r"^\.venv/bin/lossmix visualize_mixing (.*)$", SECTIONS[mixer], flags=re.MULTILINE)
    options = parse(build_parser(), shlex.split(line))
    assert options.sources
    assert ROOT / options.output == picture_of(mixer)
    assert load_config(options.config_file, options.overrides).mixing.mixer == mixer


@pytest.mark.parametrize("mixer", WRITTEN)
def test_a_picture_is_small_and_has_something_on_it(mixer):
    assert picture_of(mixer).stat().st_size <= 150_000
    width, height = Image.open(picture_of(mixer)).size
    assert width > 300
    assert height > 300


def test_rules_weightings_and_saliencies_are_all_named():
    for names in (RULES, WEIGHTINGS, SALIENCIES, choices(MixingConfig, "saliency")):
        assert [name for name in names if f"`{name}`" not in PAGE and f"={name}`" not in PAGE] == []


@pytest.mark.parametrize("setting", ["probability", "burn_in_probability", "alpha", "least_visible", "saliency"])
def test_defaults_on_the_page_are_those_of_the_schema(setting):
    value = getattr(MixingConfig(), setting)
    assert f"| `mixing.{setting}` | {'null' if value is None else value} |" in PAGE


def test_links_lead_somewhere_or_to_pages_that_a_printed_command_writes():
    from benchmarks.suites import SUITES

    written = {str(page) for suite, (_, page) in SUITES.items() if f"--suite {suite} " in PAGE}
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        path = ROOT / "docs" / target
        assert path.is_file() or str(path.relative_to(ROOT)) in written, target
