"""docs/choosing.md says what the tables of docs/results say, and no more."""

from __future__ import annotations

import re

import pytest
from pages import read
from runs import ROOT

from lossmix_det.mixing.mixers import MIXERS

ROW = re.compile(r"^\| \[([^\]]+)\]\(([^)]+)\) \| `(\w+)` \| (.*) \|$", re.MULTILINE)
NUMBER = re.compile(r"([+-][\d.]+) ± ([\d.]+)")
SECTIONS = {part.partition("\n")[0]: part for part in read("docs/choosing.md").split("\n## ")[1:]}
# The baseline that a section compares with, and the set of each of its columns.
COMPARED = {
    "Does adaptation pay?": "source_only",
    "Which mixing rule?": "adaptive_teacher",
    "Does mixing pay without adaptation?": "source_only",
}
LEAST = 4.303  # Student's t with 2 degrees of freedom, both sides, 95 %


def differences(page: str, baseline: str) -> dict[str, list[str]]:
    """By method, the cells of the table "minus that of <baseline>" of a page of results."""
    table = read(f"docs/{page}").partition(f"AP50 minus that of `{baseline}`")[2].split("\n\n")[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize("section", COMPARED)
def test_every_difference_is_that_of_its_table(section):
    rows = ROW.findall(SECTIONS[section])
    assert len(rows) >= 8
    for _, page, method, cells in rows:
        written = [cell for cell in cells.split(" | ") if NUMBER.fullmatch(cell)]
        assert written == differences(page, COMPARED[section])[method], (page, method)


def test_a_difference_passes_the_test_where_the_page_says_so():
    rows = [row for section in COMPARED for row in ROW.findall(SECTIONS[section]) if row[3].endswith(("yes", "no"))]
    assert len(rows) > 20
    for name, _, method, cells in rows:
        assert cells.endswith("yes") == passes(cells), (name, method)


def passes(cell: str) -> bool:
    mean, error = map(float, NUMBER.match(cell).groups())
    return abs(mean) >= LEAST * error


def gains_of_mixers(page: str = "mixers.md") -> dict[str, str]:
    """By row, the differences to no mixing in adaptation."""
    adaptation = read(f"docs/results/{page}").partition("## Adaptation")[2]
    rows = re.findall(r"^\| ([\w, ]+) \| (?:[^|]+ \| )+?([+-][\d.]+ ± [\d.]+) \|", adaptation, re.MULTILINE)
    return dict(rows)


@pytest.mark.parametrize("name", ["mixers.md", "mixers_blood.md"])
def test_the_table_of_mixers_is_that_of_its_page(name):
    page, kinds = gains_of_mixers(name), ("share", "visibility", "union")
    text = SECTIONS["Which mixer?"].partition(f"](results/{name})")[2].partition("](results/")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE)
    assert {name for name, _ in rows} == MIXERS.keys()
    for mixer, cells in rows:
        for kind, cell in zip(kinds, cells.split(" | "), strict=True):
            expected = page.get(f"{mixer}, {kind}", "the same")
            assert cell == (f"**{expected}**" if expected != "the same" and passes(expected) else expected), mixer


def test_what_the_text_says_of_mixers():
    page, text = gains_of_mixers(), " ".join(SECTIONS["Which mixer?"].split())
    mixed = {name: float(cell.split()[0]) for name, cell in page.items() if " and " not in name and ", all" not in name}
    mixed.pop("oracle")
    assert len(mixed) == 31
    assert min(mixed.values()) > 0
    assert max(mixed, key=mixed.get) == "classmix, visibility"
    assert {name for name, gain in mixed.items() if gain < 1} == {
        f"{each}, union" for each in ("cutmix", "confmix", "fmix")
    }
    for kind in ("share", "visibility", "union"):
        assert f"{page[f'{kind}, all mixers with masks']} with `{kind}`" in text


def test_what_the_text_says_of_mixers_on_real_images():
    page, text = gains_of_mixers("mixers_blood.md"), " ".join(SECTIONS["Which mixer?"].split())
    mixed = {name: float(cell.split()[0]) for name, cell in page.items() if " and " not in name and ", all" not in name}
    mixed.pop("oracle")
    assert len(mixed) == 31
    assert [name for name, gain in mixed.items() if gain <= 0] == ["puzzlemix, union"]
    ranked = sorted(mixed, key=mixed.get)
    assert {name.partition(",")[0] for name in ranked[-3:]} == {"mosaic"}
    assert mixed[ranked[-3]] > mixed[ranked[-4]] + 2
    for kind in ("share", "visibility", "union"):
        assert f"{page[f'{kind}, all mixers with masks']} with `{kind}`" in text
    assert f"gained {page['mosaic, share and visibility'].split()[0]} points on blood cells" in read("docs/mixing.md")
    assert f"`mixup` gained {page['mixup, share'].split()[0]}" in read("docs/mixing.md")


def test_what_the_settings_do_is_that_of_its_page():
    parts = dict(part.split("\n", 1) for part in read("docs/results/ablation.md").split("\n## ")[1:])
    rows = re.findall(r"^\| `([\w.]+)` \| (.*) \|$", SECTIONS["What do the settings do?"], re.MULTILINE)
    assert len(rows) == 10
    for setting, cells in rows:
        (page,) = (text for title, text in parts.items() if title.startswith(f"`{setting}`"))
        default, value, gain = cells.split(" | ")
        assert f"| {default} (default) |" in page
        (found,) = re.findall(
            rf"^\| {re.escape(value)} \|.* \| ([+-][\d.]+ ± [\d.]+) \| 3 of 3 \|$", page, re.MULTILINE
        )
        assert gain == (f"**{found}**" if passes(found) else found)
        assert found.startswith(("-", "+0.0"))


def test_what_the_text_says_of_mixing_alone():
    few, many = (differences(f"results/shapes_mixing{size}.md", "source_only") for size in ("_60_images", ""))
    both = {"union", "lossmix", "lossmix_instance"}
    assert {method for method, (_, clipart) in few.items() if passes(clipart)} == both
    assert {method for method, (photos, _) in many.items() if passes(photos)} == {"union", "oracle"}
    assert all(photos.startswith("-") for photos, _ in many.values())


def alone(page: str) -> tuple[dict[str, str], list[str], str]:
    """Without adaptation: by method, how mixing changed AP50; the mixers from the worst on; and the text about it."""
    whole = read(f"docs/results/{page}")
    rows = dict(re.findall(r"^\| ([\w, ]+) \| (?:[^|]+ \| )+?([+-][\d.]+ ± [\d.]+) \|", whole, re.MULTILINE))
    section = SECTIONS["Does mixing pay without adaptation?"].partition(f"](results/{page})")[2]
    text = " ".join(section.partition("](results/")[0].split())
    assert "is " + re.search(r"^\| no mixing \| ([\d.]+ ± [\d.]+)", whole, re.MULTILINE)[1] in text
    for kind in ("share", "visibility", "union"):
        assert f"{rows[f'{kind}, all mixers with masks']} with `{kind}`" in text
    assert f"`mixup` with `lossmix` changed it by {rows['mixup, share']}" in text
    of_methods = {name: cell for name, cell in rows.items() if " and " not in name and ", all" not in name}
    of_methods.pop("oracle")
    assert len(of_methods) == 28
    means = {name: float(cell.split()[0]) for name, cell in rows.items() if name.endswith("share and visibility")}
    return of_methods, [name.partition(",")[0] for name in sorted(means, key=means.get)], text


def test_what_the_text_says_of_mixers_without_adaptation():
    changes, ranked, text = alone("mixers_source_only.md")
    assert [name for name, cell in changes.items() if cell.startswith("+")] == ["classmix, visibility"]
    assert f"positive mean, {changes['classmix, visibility']}, which is none" in text
    assert (ranked[0], ranked[-2]) == ("mosaic", "saliencymix")


def test_what_the_text_says_of_mixers_without_adaptation_on_real_images():
    changes, ranked, text = alone("mixers_blood_source_only.md")
    gainers = {name: cell for name, cell in changes.items() if cell.startswith("+")}
    assert set(gainers) == {"puzzlemix, share", "puzzlemix, visibility", "comixup, visibility", "mosaic, visibility"}
    assert f"The highest is {max(gainers.values(), key=lambda cell: float(cell.split()[0]))}," in text
    passed = {"mixup, union", "saliencymix, union", "sage, union", "cutmix, share", "classmix, share"}
    assert {name for name, cell in changes.items() if passes(cell)} == passed
    assert ranked[-2:] == ["sage", "puzzlemix"]  # "cost least" in docs/mixing.md


def test_the_overview_has_the_means_of_the_tables():
    kinds = ("", "_noise", "_union", "_lossmix")
    methods = ["source_only", *(f"adaptive_teacher{kind}" for kind in kinds), "oracle"]
    overview = re.findall(r"^\| \[[^\]]+\]\((\w+\.md)\) \| (\d.*) \|$", read("docs/results/index.md"), re.MULTILINE)
    assert len(overview) >= 3
    for page, cells in overview:
        rows = re.findall(r"^\| (\w+) \| ([\d.]+) ± [\d.]+ \| [\d.]+ ±", read(f"docs/results/{page}"), re.MULTILINE)
        first = dict(reversed(rows))  # the table of all classes comes first
        assert [cell.strip() for cell in cells.split("|")] == [first.get(method, "") for method in methods]


def test_the_overview_has_every_page():
    pages = {path.name for path in (ROOT / "docs" / "results").glob("*.md")} - {"index.md"}
    assert pages <= set(re.findall(r"\]\((\w+\.md)\)", read("docs/results/index.md")))


def test_what_adaptation_changed_on_paintings_is_what_its_page_says():
    section = SECTIONS["Where hard pseudo-labels hurt"]
    written = re.findall(r"^\| [^|]+ \| `(\w+_teacher\w*)` \| (.*) \|$", section, re.MULTILINE)
    changed = read("docs/results/people_art_adaptation.md").partition("What adaptation changed")[2].split("\n\n")[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in changed.splitlines()[2:]]
    assert [(method, cells.split(" | ")) for method, cells in written] == [(row[0], row[1:6]) for row in rows]
    assert len(rows) == 11
    gains = {row[0]: row[1:4] for row in rows}  # of AP50, AP and AP75
    better = [{method for method, of in gains.items() if passes(of[number])} for number in range(3)]
    assert better[0] == {"mean_teacher_soft", "adaptive_teacher_soft_lossmix"}
    assert better[1] == {*better[0], "mean_teacher_soft_lossmix", "mean_teacher_classmix"}
    assert set.intersection(*better) == {"adaptive_teacher_soft_lossmix"}
    against = differences("results/people_art_adaptation.md", "mean_teacher")
    assert {name for name, (cell,) in against.items() if passes(cell) and name.startswith("mean_teacher")} == {
        "mean_teacher_comixup",
        "mean_teacher_soft",
    }
