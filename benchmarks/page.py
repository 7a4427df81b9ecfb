"""The page of a comparison: tables in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.adapting import adaptation_of
from benchmarks.bootstrap import Resamples, interval
from benchmarks.cells import cell_of, gain_of, score_of, text_of
from benchmarks.runs import Part, Run, Suite
from lossmix_det.training.provenance import settings_of

NOTHING = "no run has finished"  # all that a page says then, but for what failed
METRICS = ("AP50", "AP")
MODELS = ("burn-in", "student", "teacher")  # of those that a run scores, what the last test set is also given of


def page(
    suite: Suite, runs: list[Run], command: str, picture: Path | None = None, resamples: Resamples | None = None
) -> str:
    """The tables in Markdown, from whatever results there are; runs that failed or are missing are shown as such.

    Args:
        suite: that the runs are of.
        runs: all that are planned.
        command: that makes the page.
        picture: of the curves, beside the page.
        resamples: AP50 of resampled test images, where intervals are to be given.
    """
    resamples = resamples or {}
    lines = [f"# {suite.title}", "", "```", command, "```", ""]
    finished = [run for run in runs if run.finished]
    if not finished:
        return "\n".join([*lines, NOTHING, "", *_failures(runs)]).rstrip() + "\n"
    sets = list(dict.fromkeys(name for run in finished for name in run.scores()))
    lines += [suite.text, ""] if suite.text else []
    lines += [_about(finished), ""]
    if resamples and not suite.parts:
        lines += [BOOTSTRAP, ""]
    parts = [line for part in _shown(suite.parts, runs) for line in _part(part, runs, sets)]
    if parts:
        lines += [DIFFERENCES, "", *parts]
    else:
        lines += _summary(runs, sets, resamples)
    for baseline in suite.baselines if sets else ():
        lines += ["", *_gains(runs, baseline, sets, resamples)]
    if suite.adapts and sets:
        changed = adaptation_of(runs, sets[-1])
        lines += ["", *changed, *([""] if changed else []), *_by_class(runs, sets[-1])]
    if picture:
        lines += ["", f"![Scores and pseudo-labels over the steps]({picture.name})"]
    lines += ["", *_failures(runs)]
    return "\n".join(lines).rstrip() + "\n"


def _by_method(runs: list[Run]) -> dict[str, list[Run]]:
    methods = dict.fromkeys(run.method for run in runs)
    return {method: [run for run in runs if run.method == method] for method in methods}


DIFFERENCES = "Columns of differences: to the row they name, with the same seed, mean ± standard error."
BOOTSTRAP = (
    "There is one seed, and so no spread over seeds. In brackets: 95 % of 1,000 resamples of the test images. They say "
    "nothing of how another training would end."
)


def _summary(runs: list[Run], sets: list[str], resamples: Resamples) -> list[str]:
    columns = [(name, metric) for name in sets for metric in METRICS]
    scored = {name for run in runs for name in run.results()}
    models = [name for name in MODELS if name in scored] if len(scored) > 1 and sets else []
    heads = [*(f"{name} {metric}" for name, metric in columns), *(f"{name}: AP50" for name in models)]
    lines = ["| " + " | ".join(["method", *heads, "runs"]) + " |", "|---|" + "---:|" * (len(heads) + 1)]
    for method, of_method in _by_method(runs).items():
        finished = [run.results() for run in of_method if run.finished]
        reported = [list(results.values())[-1] for results in finished]
        cells = [
            cell_of([score_of(scores, name, metric) for scores in reported])
            + _bracket(metric, resamples.get((method, name)))
            for name, metric in columns
        ]
        for model in models:
            cells.append(cell_of([score_of(results.get(model, {}), sets[-1]) for results in finished]))
        lines.append(f"| {text_of(method)} | " + " | ".join(cells) + f" | {len(finished)} of {len(of_method)} |")
    return [*lines, *(["", f"{', '.join(models)}: AP50 on {sets[-1]}."] if models else [])]


def _bracket(metric: str, values: np.ndarray | None, sign: str = "") -> str:
    """The interval of resampled AP50, where there is one."""
    if values is None or metric != METRICS[0] or not np.isfinite(values).any():  # nothing to find on any image
        return ""
    low, high = interval(values)
    return f" [{low:{sign}.1f}, {high:{sign}.1f}]"


def _shown(parts: Sequence[Part], runs: list[Run]) -> list[Part]:
    """Those with a row that no larger part has: rows such as the oracle stand in several."""
    rows = [{run.method for run in runs} & set(part.rows.values()) for part in parts]
    return [part for part, own in zip(parts, rows, strict=True) if not any(own < others for others in rows)]


def _part(part: Part, runs: list[Run], sets: list[str]) -> list[str]:
    """A table of some of the methods, with the differences to a baseline seed by seed."""
    methods = _by_method(runs)
    base = _scores_by_seed(methods.get(part.baseline, []))
    kinds = (*METRICS, f"AP50, difference to {part.label(part.baseline)}")
    heads = [f"{name} {kind}" for name in sets for kind in kinds]
    rows = {label: method for label, method in part.rows.items() if method in methods}
    if not rows.keys() - {part.label(part.baseline)}:  # nothing to compare
        return []
    lines = [f"## {part.title}", "", "| | " + " | ".join(heads) + " | runs |", "|---|" + "---:|" * (len(heads) + 1)]
    for label, method in rows.items():
        finished, cells = _scores_by_seed(methods[method]), []
        pairs = [(scores, base[seed]) for seed, scores in finished.items() if seed in base and method != part.baseline]
        for name in sets:
            cells += [cell_of([score_of(scores, name, metric) for scores in finished.values()]) for metric in METRICS]
            cells.append(cell_of([gain_of(one, two, name) for one, two in pairs], error=True))
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {len(finished)} of {len(methods[method])} |")
    return [*lines, "", *_groups(part, methods, sets)]


def _groups(part: Part, methods: dict[str, list[Run]], sets: list[str]) -> list[str]:
    """Differences to the baseline, averaged over the methods of each group seed by seed."""
    base = _scores_by_seed(methods.get(part.baseline, []))
    rows = []
    for label, names in part.groups.items():
        scores = [_scores_by_seed(methods[name]) for name in names if name in methods]
        seeds = [seed for seed in base if all(seed in of_method for of_method in scores)]
        if len(scores) < len(names) or not seeds:  # a mean over a part of them would not be comparable
            continue
        cells = []
        for name in sets:
            gains = [[gain_of(of[seed], base[seed], name) for of in scores] for seed in seeds]
            cells.append(cell_of([statistics.mean(row) for row in gains if None not in row], error=True))
        rows.append(f"| {label} | " + " | ".join([str(len(names)), *cells, str(len(seeds))]) + " |")
    if not rows:
        return []
    text = (
        f"AP50 minus that of {part.label(part.baseline)}: mean over several rows above with the same seed, then mean ± "
        f"standard error over seeds."
    )
    heads = ["", "rows", *sets, "seeds"]
    return [text, "", "| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1), *rows, ""]


def _scores_by_seed(runs: list[Run]) -> dict[int, dict[str, Any]]:
    return {run.seed: run.scores() for run in runs if run.finished}


def _gains(runs: list[Run], baseline: str, sets: list[str], resamples: Resamples) -> list[str]:
    """Differences to a baseline, seed by seed, with their standard error."""
    methods = _by_method(runs)
    base = _scores_by_seed(methods.get(baseline, []))
    if not base:
        return []
    lines = [f"AP50 minus that of `{baseline}` with the same seed: mean ± standard error.", ""]
    lines += ["| method | " + " | ".join(sets) + " |", "|---|" + "---:|" * len(sets)]
    for method, of_method in methods.items():
        pairs = [(run.scores(), base[run.seed]) for run in of_method if run.finished and run.seed in base]
        if method == baseline or not pairs:
            continue
        cells = [
            cell_of([gain_of(one, two, name) for one, two in pairs], error=True)
            + _bracket(METRICS[0], _difference(resamples, name, method, baseline), sign="+")
            for name in sets
        ]
        lines.append(f"| {text_of(method)} | " + " | ".join(cells) + " |")
    return lines


def _difference(resamples: Resamples, name: str, method: str, baseline: str) -> np.ndarray | None:
    """AP50 of a method minus that of the baseline, resample by resample."""
    one, other = resamples.get((method, name)), resamples.get((baseline, name))
    return None if one is None or other is None else one - other


def _by_class(runs: list[Run], test_set: str) -> list[str]:
    methods = {
        method: [run.scores() for run in of_method if run.finished] for method, of_method in _by_method(runs).items()
    }
    tested = [scores[test_set] for scored in methods.values() for scores in scored if test_set in scores]
    classes = list(dict.fromkeys(name for scores in tested for name in scores["classes"]))
    lines = [f"AP50 by class on {test_set}: mean ± standard deviation.", ""]
    lines += ["| method | " + " | ".join(map(text_of, classes)) + " |", "|---|" + "---:|" * len(classes)]
    for method, scored in methods.items():
        by_class = [scores[test_set]["classes"] for scores in scored if test_set in scores]
        cells = [cell_of([score_of(of_class, name) for of_class in by_class]) for name in classes]
        lines.append(f"| {text_of(method)} | " + " | ".join(cells) + " |")
    return lines


def _failures(runs: list[Run]) -> list[str]:
    failed = [run for run in runs if not run.finished and run.log.is_file()]
    if not failed:
        return []
    return ["Not finished:", "", *(f"* {run.method}, seed {run.seed}: {run.complaint()}" for run in failed)]


def _about(finished: list[Run]) -> str:
    """Steps, batches and machines of all finished runs, as they recorded them at each start."""
    abouts = [about for about in (run.about() for run in finished) if about]
    if not abouts:
        return "The runs have not recorded what they are of: their run.json is gone or damaged."
    settings = [settings_of(about) for about in abouts]
    starts = [
        (start, of["train.precision"])
        for about, of in zip(abouts, settings, strict=True)
        for start in (about, *about.get("resumed", []))
    ]
    revisions = dict.fromkeys(str(start["git_revision"]) for start, _ in starts)
    lengths = dict.fromkeys(
        f"{of['train.steps']} steps of {of['data.batch_size']} source images each" for of in settings
    )
    adapting = [of for of in settings if of.get("data.target")]
    targets = dict.fromkeys(str(of.get("data.target_batch_size") or of["data.batch_size"]) for of in adapting)
    more = f" (in adaptation and {' or '.join(targets)} of the target)" if targets else ""
    machines = dict.fromkeys(_machine(*start) for start in starts)
    seeds = ", ".join(map(str, dict.fromkeys(one.seed for one in finished)))
    return (
        f"Seeds {seeds}; {' or '.join(lengths)}{more}; "
        f"scores of the last step in percent, mean ± standard deviation over seeds. "
        f"{'; '.join(machines)}. "
        f"Revision {', '.join(revisions)}."
    )


def _machine(start: dict[str, Any], precision: str) -> str:
    """What a run was made with: another version or device rounds otherwise."""
    versions = ", ".join(f"{name} {start['versions'][name]}" for name in ("torch", "torchvision", "albumentations"))
    return f"Python {start['python']}, {versions}, on {start['device']} ({precision})"
