"""One burn-in for all methods of a comparison that would take the same one."""

from pathlib import Path

import pytest
from comparing import options
from runs import ROOT, TINY, assert_same_tensors, last_checkpoint

from benchmarks import burn_in, compare
from benchmarks.runs import Suite, methods_in
from lossmix_det.config import load_config

pytestmark = pytest.mark.slow


PAIRS = [
    ("adaptive_teacher", "adaptive_teacher_lossmix"),
    ("mean_teacher", "adaptive_teacher"),  # the borrower's discriminator is its own
    ("adaptive_teacher", "mean_teacher"),
]


@pytest.mark.parametrize("methods", PAIRS)
def test_methods_share_a_burn_in_and_end_as_if_each_had_its_own(tmp_path, monkeypatch, methods):
    monkeypatch.chdir(ROOT)
    suite = Suite("small", "shapes_adapt", methods_in(ROOT / "configs" / "shapes_adapt", methods), adapts=True)
    words = [*TINY, "data.target=[shapes_clipart_train]", "adaptation.burn_in_steps=4", "train.steps=6"]
    words += ["train.eval_every=2", "train.save_every=2", "pseudo_labels.score=0.05"]
    for folder, own in (("shared", methods), ("alone", methods[1:])):
        words_of = ["--seeds", "5", "--methods", *own, "--output", str(tmp_path / f"{folder}.md")]
        chosen = options(tmp_path / folder, *words_of)
        chosen.overrides = words
        compare.compare(suite, chosen, tmp_path / "unused.md")
    shared, alone = (tmp_path / folder / "shapes_adapt" / f"{methods[1]}_seed5" for folder in ("shared", "alone"))
    assert "resuming at step 4 of 6" in (shared / "log.txt").read_text()
    assert "resuming" not in (alone / "log.txt").read_text()
    for name in ("metrics.csv", "scores.csv", "results.json", "burn_in/detections_shapes_clipart_test.json"):
        assert (shared / name).read_bytes() == (alone / name).read_bytes(), name
    ends = [last_checkpoint(folder) for folder in (shared, alone)]
    for part in ("student", "ema", "alignment", "optimizer"):
        assert ends[1][part] or (part, methods[1]) == ("alignment", "mean_teacher")
        assert_same_tensors(*(end[part] for end in ends))


@pytest.mark.parametrize(
    ("words", "alike"),
    [
        (["mixing.burn_in_probability=0"], True),
        (["mixing.burn_in_probability=0", "pseudo_labels.score=0.3"], True),
        ([], False),  # burn-in mixes, by another rule
        (["mixing.burn_in_probability=0", "train.seed=2"], False),
        (["mixing.burn_in_probability=0", "adaptation.burn_in_steps=5"], False),
        (["mixing.burn_in_probability=0", "alignment.parts=[image]", "train.loss_weights={alignment: 0.3}"], True),
        (["mixing.burn_in_probability=0", "train.loss_weights={source: 0.3}"], False),
        (["mixing.burn_in_probability=0", "data.target=[]"], False),
    ],
)
def test_a_burn_in_is_shared_only_if_it_is_the_same(words, alike):
    adapts = ["data.target=[shapes_clipart_train]", "ema.decay=0.9"]
    first = load_config(None, [*adapts, "mixing.probability=0.0", "output_dir=a", "mixing.burn_in_probability=0"])
    second = load_config(None, [*adapts, "mixing.rule=lossmix", "output_dir=b", *words])
    lenders = burn_in.lenders_of({Path("a"): first, Path("b"): second})
    assert lenders == ({Path("b"): Path("a")} if alike else {})
