"""What adaptation and burn-in make of a batch."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from adapting import COUNT, adapting, batch, views
from runs import assert_same_tensors
from torch.nn import functional as F
from torch.testing import assert_close

from lossmix_det.config import Config, MixingConfig, ModelConfig, PairsConfig
from lossmix_det.engines import SoftTeacher, build_detector
from lossmix_det.engines.two_stage.encoding import Scores
from lossmix_det.mixing import BURN_IN_RULES, RULES, AcrossDomains, Mix, Recipe
from lossmix_det.structures import ImageBatch, StepBatch, Supervision
from lossmix_det.training.phases import Adaptation, BurnIn, Phases


def config(rule: str = "lossmix", **mixing) -> Config:
    return Config(mixing=MixingConfig(rule=rule, **{"probability": 1.0, **mixing}))


def pseudo(*weights: float, boxes: float = 0.0) -> Supervision:
    truths = tuple(replace(truth, classes=truth.classes + 2) for truth in views(10).truths)
    given = torch.tensor(weights)
    return Supervision(truths, given, given * boxes)


def fixed(monkeypatch, partner: list[int], lam: list[float]) -> None:
    """Draw these partners and λ, whatever the recipe says."""
    shares = torch.tensor(lam)
    sources = torch.stack([torch.arange(len(lam)), torch.tensor(partner)], dim=1)
    mix = Mix(sources, torch.stack([shares, 1 - shares], dim=1))
    monkeypatch.setattr(Recipe, "draw", lambda *_: mix)


def adaptation(settings: Config) -> Adaptation:
    return Adaptation(settings, settings.mixing)


def burn_in(settings: Config) -> BurnIn:
    return BurnIn(settings, settings.mixing)


def compose(phase, step: StepBatch, labels=None):
    return phase.compose(step, np.random.default_rng(0), labels)


def only(name: str, step: StepBatch) -> StepBatch:
    """A batch whose source has one view."""
    other = "weak" if name == "strong" else "strong"
    return StepBatch(replace(step.source, **{other: None}), step.target)


def weights(student_batch, name: str) -> list[tuple[list[float], list[float], float]]:
    rounded = lambda values: [round(float(value), 4) for value in values]  # noqa: E731
    return [
        (rounded(s.class_weights), rounded(s.box_weights), s.mean_over)
        for s in student_batch.supervisions.get(name, [])
    ]


def test_every_pair_is_taught_both_truths_by_lam_and_each_domain_is_a_mean_of_its_own(monkeypatch):
    """Slots: two sources, two targets. Pairs: source×source, source×target, target×source, target unmixed."""
    fixed(monkeypatch, [1, 2, 0, 3], [0.25, 0.75, 0.5, 1.0])
    student_batch = compose(adaptation(config()), only("strong", batch()), pseudo(1.0, 1.0))
    assert "source" not in student_batch.supervisions
    assert weights(student_batch, "target") == [([0, 0, 0, 1], [0, 0, 0, 0], 2)]
    assert weights(student_batch, "mixed") == [
        ([0.25, 0.75, 0, 0], [0.25, 0.75, 0, 0], 2),  # own truths of the source's slots
        ([0, 0, 0.5, 0], [0, 0, 0, 0], 2),  # of the target's: pseudo-labels, no regression
        ([0.75, 0.25, 0, 0], [0.75, 0, 0, 0], 2),  # partners'
        ([0, 0, 0.5, 0], [0, 0, 0.5, 0], 2),
    ]
    assert [len(s.truths[1]) for s in student_batch.supervisions["mixed"]] == [1, 1, 2, 2]
    assert_close(student_batch.domains.shares, torch.tensor([0.0, 0.25, 0.5, 1.0]))
    assert_close(student_batch.domains.weights, torch.full((4,), 0.5))
    assert_close(student_batch.domains.unmixed_weights, torch.tensor([0.0, 0, 0, 1]))
    step = batch()
    source, target = step.source.strong.to_float().pixels, step.target.strong.to_float().pixels
    expected = [0.25 * source[0] + 0.75 * source[1], 0.75 * source[1] + 0.25 * target[0]]
    expected += [0.5 * target[0] + 0.5 * source[0], target[1]]
    assert_close(student_batch.images.pixels, torch.stack(expected))


def test_swapping_the_images_and_lam_changes_nothing(monkeypatch):
    """Source 0 with target 0 at λ, and target 0 with source 0 at 1 - λ, are one image with one loss."""
    torch.manual_seed(0)
    detector = build_detector(ModelConfig(), 6).train()
    for part in (detector.model.rpn, detector.model.roi_heads):
        part.fg_bg_sampler.positive_fraction = 0.5
    losses = []
    for lam in (0.3, 0.7):
        slot = 0 if lam == 0.3 else COUNT
        partner = [COUNT, 1, 0, COUNT + 1]
        fixed(monkeypatch, partner, [lam if index == slot else 1.0 for index in range(2 * COUNT)])
        student_batch = compose(adaptation(config()), only("strong", batch()), pseudo(1.0, 1.0, boxes=1.0))
        images = replace(student_batch.images, keys=(7,) * 4)
        encoding = detector.encode(images)
        parts = [detector.losses(encoding, each) for each in student_batch.supervisions["mixed"]]
        losses.append({name: sum(part[name] for part in parts) for name in parts[0]})
    assert losses[0]["roi_class"] > 0
    for name, value in losses[0].items():
        assert_close(losses[1][name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("rule", "lam", "weight"),
    [("noise", 0.93, 1.0), ("lam", 0.3, 0.3), ("max", 0.7, 0.7)],
)
def test_burn_in_rules_for_pairs_with_the_unlabelled_target(monkeypatch, rule, lam, weight):
    """λ = 0.3 as drawn; `noise` moves it into [1 - 0.1, 1]. The source×source pair beside it is left as it is."""
    fixed(monkeypatch, [2, 0], [0.3, 0.3])
    student_batch = compose(burn_in(config(burn_in_rule=rule, noise_share=0.1)), only("strong", batch()))
    step = batch()
    source, target = step.source.strong.to_float().pixels, step.target.strong.to_float().pixels
    assert_close(student_batch.images.pixels[0], lam * source[0] + (1 - lam) * target[0])
    assert_close(student_batch.images.pixels[1], 0.3 * source[1] + 0.7 * source[0])
    own, partner = weights(student_batch, "mixed")
    assert own[0] == pytest.approx([weight, 0.3])
    assert partner[0] == pytest.approx([0.0, 0.7])
    assert own[1] == own[0]


def test_noise_keeps_the_target_faint_under_every_rule_and_mixer():
    """Under `own` λ may have been drawn close to 1 by the rule's own range, and is not moved a second time."""
    for mixer in ("mixup", "mosaic", "comixup", "confmix"):
        settings = config("own", mixer=mixer, pairs=PairsConfig(0.0, 1.0, 0.0), noise_share=0.1)
        phase, seen = burn_in(settings), []
        phase.watch = lambda mix, taught, seen=seen: seen.append(mix)
        for seed in range(5):
            phase.compose(batch(), np.random.default_rng(seed))
        shares = torch.cat([1 - mix.lam[mix.mixed] for mix in seen])
        assert len(shares)
        assert float(shares.max()) <= 0.1 + 1e-6, mixer
    drawn = config("own", lam_range=[0.9, 1.0])
    mix = Mix(torch.tensor([[0, 1]]), torch.tensor([[0.93, 0.07]]))
    noise = BURN_IN_RULES["noise"](drawn.mixing, RULES["own"](drawn.mixing))
    assert_close(noise(mix, torch.tensor([True]), views(1).strong).lam, torch.tensor([0.93]))


def test_the_weight_of_the_background_is_that_of_the_rule_by_which_an_image_is_taught(monkeypatch):
    """Pairs with the unlabelled target are taught as `lossmix`, which has no such weight."""
    settings = config("lossmix_instance", weighting="visibility", background_weight=3.0, burn_in_rule="lam")
    masks = torch.zeros(2, 2, 4, 4)
    masks[:, 0, :, :2] = masks[:, 1, :, 2:] = 1.0
    mix = Mix(torch.tensor([[0, 2], [1, 0]]), torch.full((2, 2), 0.5), masks)
    monkeypatch.setattr(Recipe, "draw", lambda *_: mix)
    found = compose(burn_in(settings), only("strong", batch())).supervisions["mixed"]
    by_image = [{each.background_weight for each in found if each.class_weights[index] > 0} for index in (0, 1)]
    assert by_image == [{1.0}, {3.0}]


@pytest.mark.parametrize("rule", ["lossmix", "lossmix_instance", "union", "own"])
def test_burn_in_treats_target_partners_alike_under_every_rule(monkeypatch, rule):
    fixed(monkeypatch, [2, 3], [0.4, 0.4])
    student_batch = compose(burn_in(config(rule)), only("weak", batch()))
    (supervision,) = [each for each in student_batch.supervisions["mixed"] if each.active]
    assert_close(supervision.class_weights, torch.ones(2))
    assert all(truth.weights is None for truth in supervision.truths)
    assert [len(truth) for truth in supervision.truths] == [2, 1]


@pytest.mark.parametrize("phase", [burn_in, adaptation])
def test_nothing_is_mixed_at_probability_zero(phase):
    step, labels = batch(), pseudo(1.0, 1.0) if phase is adaptation else None
    student_batch = compose(phase(config(probability=0.0)), only("strong", step), labels)
    seen = [step.source.strong, step.target.strong][: 1 if phase is burn_in else 2]
    assert_close(student_batch.images.pixels, torch.cat([view.to_float().pixels for view in seen]))
    assert "mixed" not in student_batch.supervisions


def test_a_partner_without_pseudo_labels_leaves_its_share_untaught(monkeypatch):
    fixed(monkeypatch, [2, 3, 0, 1], [0.4] * 4)
    expected = {
        "lossmix": [([0.4, 0.4], 0), ([0.4, 0.4], 1), ([0.0, 0.6], 2), ([0.6, 0.6], 3)],
        "union": [([1, 1], 0), ([1, 1], 1)],
        "own": [([1, 1], 0), ([0, 1], 1)],
    }
    for rule, rows in expected.items():
        student_batch = compose(adaptation(config(rule)), only("strong", batch()), pseudo(0.0, 1.0))
        mixed = student_batch.supervisions["mixed"]
        assert len(mixed) == len(rows)
        for values, place in rows:
            slots = slice(COUNT, None) if place % 2 else slice(0, COUNT)
            expected_weights = [0.0, 0.4] if rule == "lossmix" and place == 1 else values
            assert_close(mixed[place].class_weights[slots], torch.tensor(expected_weights, dtype=torch.float32))


@pytest.mark.parametrize(("rule", "shares"), [("union", (1.0, 1.0)), ("lossmix_instance", (0.4, 0.6))])
def test_one_assignment_weights_each_box_by_its_image_and_pseudo_boxes_do_not_regress(monkeypatch, rule, shares):
    """A source slot with a target partner whose pseudo-labels weigh 0.5."""
    fixed(monkeypatch, [2, 1, 2, 3], [0.4, 1.0, 1.0, 1.0])
    student_batch = compose(adaptation(config(rule)), only("strong", batch()), pseudo(0.5, 0.5))
    (mixed,) = student_batch.supervisions["mixed"]
    truth = mixed.truths[0]
    assert mixed.class_weights.tolist() == [1, 0, 0, 0]
    assert_close(truth.weights, torch.tensor([shares[0]] * 2 + [shares[1] * 0.5] * 2))
    assert_close(truth.box_weights, torch.tensor([shares[0]] * 2 + [0.0] * 2))
    assert truth.classes.tolist() == [1, 3, 3, 5]


def test_the_supervised_weight_and_the_weak_view():
    settings = config(probability=0.0)
    settings.adaptation.supervised_weight = 0.5
    student_batch = compose(adaptation(settings), batch(), pseudo(1.0, 1.0))
    assert weights(student_batch, "source") == [([0.5, 0.5, 0, 0, 0.5, 0.5], [0.5, 0.5, 0, 0, 0.5, 0.5], 4)]
    assert student_batch.blocks == [2, 2, 2]
    parts = student_batch.split(2)
    assert [part.blocks for part in parts] == [[1, 1, 1]] * 2
    assert [weights(part, "source")[0][0] for part in parts] == [[0.5, 0, 0.5]] * 2
    assert_close(parts[0].domains.weights, torch.tensor([0.5, 1.0, 0.5]))
    with pytest.raises(ValueError, match="2 images cannot be cut into 4"):
        student_batch.split(4)


def test_only_the_views_that_are_to_be_mixed_are():
    student_batch = compose(adaptation(config(views=["strong"])), batch(), pseudo(1.0, 1.0))
    assert_close(student_batch.domains.unmixed_weights, torch.tensor([0.0, 0, 0, 0, 0.5, 0.5]))


def test_composing_leaves_the_batch_as_it_was():
    step, labels = batch(), pseudo(1.0, 0.0)
    before = copy.deepcopy((vars(step.source.strong), vars(step.target.strong), vars(labels)))
    compose(adaptation(config("union")), step, labels)
    for now, then in zip((step.source.strong, step.target.strong), before, strict=False):
        assert_same_tensors(vars(now), then)
    assert_same_tensors([truth.boxes for truth in labels.truths], [truth.boxes for truth in before[2]["truths"]])


@pytest.mark.parametrize(
    ("pairs", "shares"),
    [((1, 1, 1), (0.5, 0.5)), ((1, 0, 1), (0.0, 0.0)), ((0, 1, 0), (1.0, 1.0)), ((3, 1, 0), (0.25, 1.0))],
)
def test_pairs_come_as_often_as_they_are_set(pairs, shares):
    """Share of source slots, and of target slots, that are mixed across the domains."""
    rng, sources, targets = np.random.default_rng(0), 3, 5
    pairing = AcrossDomains(sources, targets, PairsConfig(*map(float, pairs)), both=True)
    across = np.zeros(sources + targets)
    for _ in range(600):
        partner = pairing.draw(rng)[:, 0]
        assert (partner != np.arange(sources + targets)).all()
        across += (partner < sources) != (np.arange(sources + targets) < sources)
    found = across[:sources].mean() / 600, across[sources:].mean() / 600
    assert found == pytest.approx(shares, abs=0.03)


@pytest.mark.parametrize(("sources", "targets"), [(1, 1), (4, 1), (1, 3)])
def test_an_image_that_is_alone_in_its_domain_takes_one_of_the_other(sources, targets):
    own = np.arange(sources + targets)
    for odds, alone in ((PairsConfig(), False), (PairsConfig(source_target=0.0), True)):
        pairing = AcrossDomains(sources, targets, odds, both=True)
        for seed in range(20):
            partner = pairing.draw(np.random.default_rng(seed))[:, 0]
            lonely = [index for index, count in ((0, sources), (-1, targets)) if count == 1]
            assert all((partner[index] == own[index]) == alone for index in lonely)


@pytest.mark.parametrize(("wide_sources", "wide_targets", "alike"), [(2, 2, 4), (3, 1, 2), (4, 0, 0), (0, 1, 3)])
def test_pairs_across_the_domains_are_alike_where_they_can_be(wide_sources, wide_targets, alike):
    """Every target is the partner of one source and the reverse, as without looking at shapes."""
    wide, tall = (40, 60), (60, 40)
    sizes = [[wide] * count + [tall] * (4 - count) for count in (wide_sources, wide_targets)]
    pairing = AcrossDomains(4, 4, PairsConfig(0.0, 1.0, 0.0), both=True, sizes=[*sizes[0], *sizes[1]])
    seen = set()
    for seed in range(100):
        partner = pairing.draw(np.random.default_rng(seed))[:, 0]
        assert sorted(partner[:4]) == [4, 5, 6, 7]
        assert sorted(partner[4:]) == [0, 1, 2, 3]
        for own, others, dealt in ((*sizes, partner[:4] - 4), (*sizes[::-1], partner[4:])):
            assert sum(size == others[other] for size, other in zip(own, dealt, strict=True)) == alike
        seen.add(tuple(partner))
    assert len(seen) > 3


def test_every_rule_sees_the_same_pairs_and_lam_in_burn_in_the_sources_slots_alone():
    drawn = []
    for rule in ("lossmix", "union", "lossmix_instance"):
        recipe = Recipe(MixingConfig(rule=rule, lam_range=[0.2, 0.6]))
        pool = ImageBatch(torch.zeros(7, 3, 1, 1), ((1, 1),) * 7)
        drawn.append(recipe.draw(pool, AcrossDomains(4, 3, PairsConfig(), both=False), np.random.default_rng(5)))
        assert len(drawn[-1].lam) == 4
        assert int(drawn[-1].sources.max()) <= 6
    assert_same_tensors([vars(mix) for mix in drawn[1:]], [vars(drawn[0])] * 2)
    mixed = drawn[0].lam[drawn[0].mixed]
    assert ((mixed >= 0.2) & (mixed <= 0.6)).all()


def phases(settings: Config) -> Phases:
    settings.data.target = ["drawings"]
    settings.train.steps, settings.adaptation.burn_in_steps = 10, 4
    return Phases(settings)


def test_burn_in_may_mix_less_than_adaptation():
    both = phases(config(burn_in_probability=0.0))
    assert "mixed" not in compose(both.at(3), batch()).supervisions
    assert set(compose(both.at(4), batch(), pseudo(1.0, 1.0)).supervisions) == {"mixed"}


def test_phases_follow_one_another():
    assert type(Phases(Config()).at(0)).__name__ == "SourceOnly"
    made = phases(config(off_last_steps=2))
    found = [(type(phase).__name__, phase.recipe.probability) for phase in map(made.at, (0, 3, 4, 7, 8))]
    assert found == [("BurnIn", 1.0)] * 2 + [("Adaptation", 1.0)] * 2 + [("Adaptation", 0.0)]


# ------------------------------------------------------------------------------------------------------ soft labels


def test_a_student_that_agrees_with_its_teacher_learns_nothing_from_it(tmp_path):
    """Soft classes and offsets of the same network on the same pixels: every gradient is zero."""
    it = adapting(tmp_path, "pseudo_labels.kind=soft", "pseudo_labels.score=0.3")
    step = batch()
    same = replace(step.target, strong=step.target.weak)
    it.state.detector.eval()  # the same proposals as the teacher's
    student_batch = it.compose(StepBatch(step.source, same))
    assert all(
        truth.teacher_image is not None for truth in student_batch.supervisions["target"][0].truths[COUNT : 2 * COUNT]
    )
    losses = it.state.student_step(student_batch)
    assert losses["target/roi_class"] > 0.1
    assert losses["target/rpn_class"] > 0.01
    assert float(losses["target/roi_box"].detach()) == pytest.approx(0, abs=1e-6)
    assert float(losses["target/rpn_box"].detach()) == pytest.approx(0, abs=1e-6)
    sum(value for name, value in losses.items() if name.startswith("target/")).backward()
    assert max(float(p.grad.abs().max()) for p in it.state.detector.parameters() if p.grad is not None) < 1e-5


def test_soft_losses_are_cross_entropies_with_the_teachers_scores():
    """A teacher that says one thing of every sample: all four losses summed by hand over what was sampled."""
    torch.manual_seed(0)
    detector = build_detector(ModelConfig(), 6).train()
    encoding = detector.encode(views(10).strong.to_float())
    teacher = build_detector(ModelConfig(), 6).eval()
    logits, says, shift = torch.tensor([2.0, -1.0, 0.5, 0.0, 3.0, 0.0, 0.0]), torch.tensor(1.5), torch.tensor(0.25)
    with torch.no_grad():
        for layer, bias in zip(teacher.last_layers(), (says, shift, logits, shift), strict=True):
            layer.weight.zero_()
            layer.bias.copy_(bias.expand_as(layer.bias))
        marker = SoftTeacher(teacher, teacher.encode(views(10).weak.to_float()), temperature=2.0)
    samples = []
    sampler = detector.model.rpn.fg_bg_sampler
    detector.model.rpn.fg_bg_sampler = lambda labels: samples.append(sampler(labels)) or samples[-1]
    truths = tuple(replace(truth, teacher_image=index) for index, truth in enumerate(views(10).truths))
    found = detector.losses(encoding, Supervision.full(truths), marker)

    scores = Scores(*(torch.cat(parts) for parts in zip(*encoding.scored.outputs, strict=True)))
    p = (logits / 2).softmax(0)
    assert_close(found["roi_class"], -(p * scores.logits.log_softmax(1)).sum(1).mean(), rtol=1e-4, atol=1e-5)
    boxes = smooth_l1(scores.deltas[:, 4], shift)  # the teacher sees class 4 everywhere
    assert_close(found["roi_box"], boxes / len(scores.deltas), rtol=1e-4, atol=1e-5)

    positive, negative = (torch.stack(masks).bool() for masks in samples[0])
    chosen = positive | negative
    logit, probability = encoding.objectness[chosen.flatten()], (says / 2).sigmoid()
    expected = -(probability * F.logsigmoid(logit) + (1 - probability) * F.logsigmoid(-logit)).mean()
    assert_close(found["rpn_class"], expected, rtol=1e-4, atol=1e-5)
    expected = smooth_l1(encoding.deltas[positive.flatten()], shift) / chosen.sum()
    assert_close(found["rpn_box"], expected, rtol=1e-4, atol=1e-5)


def smooth_l1(values: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return F.smooth_l1_loss(values, wanted.expand_as(values), beta=1 / 9, reduction="sum")


def test_a_mixed_image_blends_a_hard_source_truth_and_a_soft_target_truth(tmp_path, monkeypatch):
    """Both slots of one pair, against the two truths scored one by one on the same mixed image."""
    it = adapting(tmp_path, "pseudo_labels.kind=soft", "pseudo_labels.score=0.3")
    step = only("strong", batch())
    labels, marker = it.state.labeller.label(it.state.teacher.module, step.target, 0)
    fixed(monkeypatch, [COUNT, 1, 2, 3], [0.3, 1.0, 1.0, 1.0])
    student_batch = compose(adaptation(config()), step, labels)
    encoding = it.state.detector.encode(student_batch.images)
    found = [it.state.detector.losses(encoding, each, marker) for each in student_batch.supervisions["mixed"]]

    alone = it.state.detector.encode(student_batch.images.take([0]))
    hard = it.state.detector.losses(alone, Supervision.full(step.source.truths[:1]), marker)
    soft = it.state.detector.losses(alone, Supervision.full(labels.truths[:1]), marker)
    for name in it.state.detector.loss_names:
        assert soft[name] > 0
        # Two source slots, so that one image is half of the mean.
        expected = (0.3 * hard[name] + 0.7 * soft[name]) / 2
        assert_close(sum(part[name] for part in found), expected, rtol=1e-4, atol=1e-5)
