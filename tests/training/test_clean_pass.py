"""The pass over unmixed images: its gradient, and what it teaches."""

from __future__ import annotations

import pytest
import torch
from adapting import ADAPT, adapting, batch
from runs import trainer
from torch.testing import assert_close

from lossmix_det.mixing.saliency import by_gradient
from lossmix_det.structures import ImageBatch, Supervision
from lossmix_det.training.clean_pass import CleanPass
from lossmix_det.training.student_batch import StudentBatch

CLEAN = [
    *("mixing.mixer=sage", "mixing.saliency=gradient", "mixing.probability=1.0", "model.normalizer=images"),
    "optimizer.clip_norm=0",
]


def source_batch() -> StudentBatch:
    views = batch().source
    return StudentBatch(views.weak.to_float(), {"source": [Supervision.full(views.truths)]})


def gradients(it) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in it.state.student_step.named_parameters() if p.grad is not None}


def test_the_map_is_the_norm_over_the_colours_of_the_plain_losss_gradient(tmp_path):
    it = trainer(tmp_path, *CLEAN)
    it.state.detector.train()
    batch_, step = source_batch(), it.state.student_step
    found = CleanPass(it.state, it.fabric)(batch_)
    assert found.shape == batch_.images.pixels[:, 0].shape
    pixels = batch_.images.pixels.clone().requires_grad_()
    images = ImageBatch(pixels, batch_.images.sizes, batch_.images.keys)
    total = step.total(step(StudentBatch(images, batch_.supervisions)))
    (expected,) = torch.autograd.grad(total, pixels)
    assert_close(found, expected.square().sum(1).sqrt())


def test_in_fp16_the_loss_is_scaled_before_its_gradient_is_taken(tmp_path):
    """As for weights: where a loss is small, the gradient of a pixel would be 0 in fp16."""
    it = trainer(tmp_path, *CLEAN)
    it.state.detector.train()
    plain = CleanPass(it.state, it.fabric)(source_batch())
    it.state.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled = CleanPass(it.state, it.fabric)(source_batch())
    assert_close(scaled, plain * 1024)


def test_without_a_share_nothing_is_learned_from_it(tmp_path):
    it = trainer(tmp_path, *CLEAN)
    clean = CleanPass(it.state, it.fabric)
    clean(source_batch())
    assert not gradients(it)
    assert clean.learned == 0.0
    assert clean.losses == {}


@pytest.mark.parametrize(("share", "counted"), [(0.0, 0), (0.5, 1)])
def test_norms_learn_from_the_pass_only_if_the_student_does(tmp_path, share, counted):
    it = trainer(tmp_path, *CLEAN, "model.norm=batch")
    it.state.detector.train()
    norms = [part for part in it.state.detector.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert norms
    CleanPass(it.state, it.fabric, share)(source_batch())
    assert {int(norm.num_batches_tracked) for norm in norms} == {counted}
    assert all(norm.training for norm in norms)


def test_a_share_is_learned_as_that_share_of_the_plain_loss(tmp_path):
    it = trainer(tmp_path, *CLEAN)
    it.state.detector.train()
    clean = CleanPass(it.state, it.fabric, share=0.25)
    clean(source_batch())
    found = gradients(it)
    it.state.optimizer.zero_grad()
    step = it.state.student_step
    total = step.total(step(source_batch()))
    total.backward()
    for name, value in gradients(it).items():
        assert_close(found[name], 0.25 * value)
    assert_close(clean.losses["loss"], 0.25 * total.detach())


def test_parts_give_the_gradient_of_the_whole(tmp_path):
    it = trainer(tmp_path, *CLEAN)
    it.state.detector.train()
    passes = [CleanPass(it.state, it.fabric, share=0.5, parts=parts) for parts in (1, 2)]
    maps, grads = [], []
    for clean in passes:
        maps.append(clean(source_batch()))
        grads.append(gradients(it))
        it.state.optimizer.zero_grad()
    assert_close(maps[0], maps[1])
    for name, value in grads[0].items():
        assert_close(grads[1][name], value, rtol=1e-4, atol=1e-6)
    assert_close(passes[0].losses["loss"], passes[1].losses["loss"])


def test_images_of_which_nothing_is_known_are_even(tmp_path):
    it = trainer(tmp_path, *CLEAN)
    views = batch().source
    unknown = Supervision.full(views.truths, 0.0)
    clean = CleanPass(it.state, it.fabric)
    found = clean(StudentBatch(views.weak.to_float(), {"source": [unknown]}))
    assert not found.any()
    maps = by_gradient(views.weak, found)
    assert_close(maps, torch.full_like(maps, 1 / maps[0].numel()))


def test_the_step_is_the_weighted_sum_of_both_passes(tmp_path):
    """With saliency by gradient and share c: the gradient is (1 - c) of the mixed batch's and c of the clean one's."""
    step = batch()
    found = {}
    for share in (0.0, 1.0, 0.4):
        # In this range no proposal hangs on the last digit of the saliency, which the share rounds.
        words = [f"mixing.clean_share={share}", "data.views=[weak,strong]", "mixing.lam_range=[0.0,1.0]"]
        it = trainer(tmp_path / str(share), *CLEAN, *words)
        it.state.detector.train()
        student_batch = it.compose(step)
        it._accumulate([student_batch])
        found[share] = gradients(it)
    for name, value in found[0.4].items():
        zero = torch.zeros_like(value)
        expected = 0.6 * found[0.0].get(name, zero) + 0.4 * found[1.0].get(name, zero)
        assert_close(value, expected, rtol=1e-3, atol=1e-5)


def test_alignment_keeps_its_weight_beside_a_clean_loss(tmp_path):
    """The clean pass aligns nothing, so the discriminator's gradient is the same whatever its share."""
    found = {}
    for share in (0.0, 0.6, 1.0):
        words = [f"mixing.clean_share={share}", "mixing.probability=0.5", "alignment.parts=[image]"]
        it = adapting(tmp_path / str(share), *CLEAN, *words)
        it.state.detector.train()
        it._accumulate([it.compose(batch())])
        found[share] = [each.grad for each in it.state.alignment.parameters()]
    assert found[0.0][0].abs().max() > 0
    for share in (0.6, 1.0):
        for grad, expected in zip(found[share], found[0.0], strict=True):
            assert_close(grad, expected, rtol=1e-3, atol=1e-6)


def test_the_logged_loss_is_the_weighted_sum_of_both_losses_computed_apart(tmp_path):
    """The clean loss by a plain pass over the images as they are, the mixed one by a plain pass over the mix."""
    share, step = 0.3, batch()
    it = trainer(tmp_path, *CLEAN, f"mixing.clean_share={share}")
    it.state.detector.train()
    student_batch = it.compose(step)
    found = it._accumulate([student_batch])["loss"]
    student = it.state.student_step
    views = [
        StudentBatch(view.to_float(), {"source": [Supervision.full(step.source.truths)]})
        for view in (step.source.weak, step.source.strong)
    ]
    weak, strong, mixed = (float(student.total(student(each)).detach()) for each in (*views, student_batch))
    clean = (weak + strong) / 2
    assert clean != pytest.approx(mixed, rel=1e-3)
    assert found == pytest.approx(share * clean + (1 - share) * mixed, rel=1e-6)


def test_a_pass_that_is_not_finite_teaches_nothing(tmp_path):
    it = trainer(tmp_path, *CLEAN, "mixing.clean_share=0.5")
    it.state.detector.train()
    student_batch = it.compose(batch())
    it.clean_pass.loss = torch.tensor(float("nan"))
    assert it._accumulate([student_batch]) is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_adaptation_looks_at_pseudo_labels_too(tmp_path, kind):
    words = [word for word in ADAPT if not word.startswith("mixing")]
    it = adapting(
        tmp_path, *CLEAN, *words, "mixing.clean_share=0.3", f"pseudo_labels.kind={kind}", "train.accumulate=2"
    )
    for _ in range(2):
        losses = it.learn(batch())
        it.state.step += 1
    assert all(torch.isfinite(torch.tensor(value)) for value in losses.values())
    assert it.clean_pass.learned == 0.3
