"""Suites whose rows are settings: one factor of LossMix at a time, and every mixer with every kind of truth."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmarks.runs import Method, Part, Suite, methods_in
from lossmix_det.mixing.mixers import MIXERS

DEFAULT = "default"
SOFT = ("pseudo_labels.kind=soft",)

# By setting: what is said of it, how the default's value is called, and by name of a row the settings over the default.
FACTORS: dict[str, tuple[str, str, dict[str, tuple[str, ...]]]] = {
    "alpha": (
        "`mixing.alpha`: λ ~ Beta(α, α)",
        "1",
        {value: (f"mixing.alpha={value}",) for value in ("0.2", "0.5", "2", "5")},
    ),
    "probability": (
        "`mixing.probability`: share of the images that are mixed in adaptation",
        "0.5",
        {value: (f"mixing.probability={value}",) for value in ("0.25", "1")},
    ),
    "lam_range": (
        "`mixing.lam_range`: λ is moved into this range",
        "[0, 1]",
        {"[0.5, 1]": ("mixing.lam_range=[0.5,1.0]",)},
    ),
    "burn_in_rule": (
        "`mixing.burn_in_rule`: source images mixed with target images, whose truth is unknown in burn-in",
        "burn-in without mixing",
        {
            value: (f"mixing.burn_in_rule={value}", "mixing.burn_in_probability=0.5")
            for value in ("noise", "lam", "max")
        },
    ),
}


def ablation(title: str, name: str, configs: Path) -> Suite:
    """One factor at a time around LossMix in adaptation, and soft pseudo-labels with and without mixing.

    Args:
        title: of the page.
        name: of the folder of its runs.
        configs: folder with adaptive_teacher.yaml and adaptive_teacher_lossmix.yaml.
    """
    lossmix, unmixed = configs / "adaptive_teacher_lossmix.yaml", configs / "adaptive_teacher.yaml"
    methods, parts = [Method(DEFAULT, lossmix)], []
    for factor, (text, default, values) in FACTORS.items():
        names = {value: f"{factor}_{value.strip('[]').replace(', ', '_')}" for value in values}
        methods += [Method(names[value], lossmix, overrides) for value, overrides in values.items()]
        rows = {**names, f"{default} (default)": DEFAULT}
        parts.append(Part(text, DEFAULT, dict(sorted(rows.items()))))
    methods += [Method("soft", lossmix, SOFT), Method("no_mixing", unmixed), Method("no_mixing_soft", unmixed, SOFT)]
    rows = {
        **{"no mixing, hard": "no_mixing", "no mixing, soft": "no_mixing_soft"},
        **{"LossMix, hard (default)": DEFAULT, "LossMix, soft": "soft"},
    }
    parts.append(Part("`pseudo_labels.kind`, without and with mixing", DEFAULT, rows))
    text = f"LossMix in adaptation, one setting changed at a time; the default is `{lossmix}`."
    return Suite(title, name, tuple(methods), text=text, parts=tuple(parts))


# By how a row is called: what a mixed image is taught.
TAUGHT = {
    "share": ("mixing.rule=lossmix", "mixing.weighting=share"),
    "visibility": ("mixing.rule=lossmix", "mixing.weighting=visibility"),
    "union": ("mixing.rule=union", "mixing.weighting=share"),
}
WITHOUT_MASKS = {"mixup", "manifold"}  # a share of the whole image, so that visibility is the share
OF_A_TEACHER = {"confmix"}  # these need pseudo-labels, and so a target


def mixers(title: str, name: str, configs: Path) -> Suite:
    """Every mixer with every kind of truth, without and with adaptation, beside no mixing and the oracle.

    Args:
        title: of the page.
        name: of the folder of its runs.
        configs: folder with source_only.yaml, adaptive_teacher.yaml and oracle.yaml.
    """
    (oracle,) = methods_in(configs, ["oracle"])
    methods, parts = [], []
    settings = {"Source only": ("source_only", OF_A_TEACHER), "Adaptation": ("adaptive_teacher", set())}
    for heading, (baseline, left_out) in settings.items():
        config = configs / f"{baseline}.yaml"
        mixed = _mixed(baseline, config, (mixer for mixer in MIXERS if mixer not in left_out))
        methods += [Method(baseline, config), *mixed.values()]
        rows = {"no mixing": baseline, **{label: method.name for label, method in mixed.items()}, "oracle": oracle.name}
        parts.append(Part(heading, baseline, rows, _groups(baseline, {method.name for method in mixed.values()})))
    text = (
        "Half of the images are mixed; burn-in before adaptation is not. Share and visibility: LossMix with these "
        "weights; they are the same for mixers without masks. The oracle is trained on the labels of the target."
    )
    return Suite(title, name, (*methods, oracle), text=text, parts=tuple(parts))


def _mixed(setting: str, config: Path, names: Iterable[str]) -> dict[str, Method]:
    """By label: a method for each mixer and kind of truth that differ."""
    return {
        f"{mixer}, {taught}": Method(
            f"{setting}_{mixer}_{taught}", config, ("mixing.probability=0.5", f"mixing.mixer={mixer}", *words)
        )
        for mixer in names
        for taught, words in TAUGHT.items()
        if not (taught == "visibility" and mixer in WITHOUT_MASKS)
    }


def _groups(setting: str, names: set[str]) -> dict[str, tuple[str, ...]]:
    """What is averaged: each kind of truth over the mixers that have all kinds, and both weightings of each mixer."""
    table = {mixer: [name for kind in TAUGHT if (name := f"{setting}_{mixer}_{kind}") in names] for mixer in MIXERS}
    table = {mixer: row for mixer, row in table.items() if len(row) == len(TAUGHT)}
    by_kind = {kind: tuple(row[place] for row in table.values()) for place, kind in enumerate(TAUGHT)}
    return {
        **{f"{kind}, all mixers with masks": column for kind, column in by_kind.items()},
        **{f"{mixer}, share and visibility": tuple(row[:2]) for mixer, row in table.items()},
    }
