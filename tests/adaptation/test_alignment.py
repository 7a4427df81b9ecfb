import pytest
import torch
from adapting import ALIGN, adapting, batch
from torch.nn import functional as F
from torch.testing import assert_close

from lossmix_det.adaptation.alignment import Alignment, ImageDiscriminator, ReverseGradient, target_of_cells
from lossmix_det.config import AlignmentConfig, ModelConfig
from lossmix_det.engines import Features, build_detector
from lossmix_det.structures import ImageBatch
from lossmix_det.training.phases import Domains


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return build_detector(ModelConfig(), 6).train()


def encoded(detector, sizes=((64, 96),) * 3):
    torch.manual_seed(2)
    return detector.encode(ImageBatch(torch.rand(3, 3, 64, 96), sizes, (1, 2, 3)))


def domains(shares, mixed=(False,) * 3) -> Domains:
    shares = torch.tensor(shares)
    is_target = torch.tensor([False, False, True])
    chosen = ~torch.tensor(mixed)
    clean = chosen / torch.where(is_target, (chosen & is_target).sum(), (chosen & ~is_target).sum()).clamp(min=1)
    return Domains(shares, 1 / torch.where(is_target, 1, 2), clean)


def aligned(detector, **settings) -> Alignment:
    torch.manual_seed(3)
    return Alignment(AlignmentConfig(parts=["image", "instance"], **settings), detector)


def test_the_gradient_is_reversed_and_nothing_else_changes():
    values = torch.randn(4, requires_grad=True)
    out = ReverseGradient.apply(values)
    assert_close(out, values)
    (out * torch.arange(4.0)).sum().backward()
    assert_close(values.grad, -torch.arange(4.0))


def test_the_discriminator_descends_where_the_detector_ascends(detector):
    encoding = encoded(detector)
    alignment = aligned(detector)
    loss = alignment(detector, encoding, encoding.images.sizes, domains([0.0, 0.0, 1.0]))["alignment/image"]
    feature = encoding.canvases[0].features[alignment.level]
    reversed_gradient = torch.autograd.grad(loss, feature, retain_graph=True)[0]
    plain = feature.detach().requires_grad_()
    logits = alignment.discriminators["image"](plain)
    again = F.binary_cross_entropy_with_logits(logits[:2], torch.zeros_like(logits[:2]))
    again += F.binary_cross_entropy_with_logits(logits[2:], torch.ones_like(logits[2:]))
    assert_close(again, loss)
    assert_close(reversed_gradient, -torch.autograd.grad(again, plain)[0])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_mixed_images_label_is_its_share_of_the_target(detector, share):
    """BCE is linear in the label: the loss at a share is the blend of the losses at 0 and 1, by share."""
    encoding, alignment = encoded(detector), aligned(detector)

    def loss(value):
        return alignment(detector, encoding, encoding.images.sizes, domains([0.0, value, 1.0], (False, True, False)))

    low, high, between = loss(0.0), loss(1.0), loss(share)
    for name, value in between.items():
        assert_close(value, (1 - share) * low[name] + share * high[name])


def test_mixed_images_may_be_left_out(detector):
    encoding, alignment = encoded(detector), aligned(detector, mixed="skip")
    losses = [
        alignment(detector, encoding, encoding.images.sizes, domains([0.0, share, 1.0], (False, True, False)))[
            "alignment/image"
        ]
        for share in (0.2, 0.9)
    ]
    assert_close(*losses)
    logits = alignment.discriminators["image"](encoding.canvases[0].features[alignment.level])
    expected = F.binary_cross_entropy_with_logits(logits[:1], torch.zeros_like(logits[:1]))
    expected += F.binary_cross_entropy_with_logits(logits[2:], torch.ones_like(logits[2:]))
    assert_close(losses[0], expected)


def test_padding_is_not_judged(detector):
    """An image of half the canvas: the mean over the cells of its own half."""
    encoding, alignment = encoded(detector, ((64, 48), (64, 96), (64, 96))), aligned(detector)
    found = alignment(detector, encoding, encoding.images.sizes, domains([0.0, 0.0, 1.0]))["alignment/image"]
    logits = alignment.discriminators["image"](encoding.canvases[0].features[alignment.level])[:, 0]
    half = logits.shape[2] // 2
    parts = [
        F.binary_cross_entropy_with_logits(part, torch.full_like(part, label), reduction="mean")
        for part, label in ((logits[0, :, :half], 0.0), (logits[1], 0.0), (logits[2], 1.0))
    ]
    assert_close(found, (parts[0] + parts[1]) / 2 + parts[2])


def test_instances_are_the_best_proposals_of_each_image(detector):
    encoding, alignment = encoded(detector), aligned(detector, instances=5)
    found = alignment(detector, encoding, encoding.images.sizes, domains([0.0, 0.0, 1.0]))["alignment/instance"]
    boxes = [proposals[:5] for proposals in encoding.proposals]
    heads = detector.model.roi_heads
    features = heads.box_head(heads.box_roi_pool(encoding.canvases[0].features, boxes, list(encoding.images.sizes)))
    logits = alignment.discriminators["instance"](features)
    expected = F.binary_cross_entropy_with_logits(logits[:10], torch.zeros(10, 1))
    expected += F.binary_cross_entropy_with_logits(logits[10:], torch.ones(5, 1))
    assert_close(found, expected)


def test_the_image_discriminator_is_that_of_adaptive_teacher():
    widths = [(layer.in_channels, layer.out_channels) for layer in ImageDiscriminator(1024) if hasattr(layer, "weight")]
    assert widths == [(1024, 256), (256, 128), (128, 128), (128, 1)]
    assert ImageDiscriminator(8)(torch.zeros(2, 8, 5, 7)).shape == (2, 1, 5, 7)


def test_no_alignment_of_weight_zero_is_built(tmp_path):
    it = adapting(tmp_path, ALIGN[0], "train.loss_weights={alignment/image: 0.0, alignment/instance: 0.5}")
    assert list(it.state.alignment.discriminators) == ["instance"]
    assert adapting(tmp_path / "b", ALIGN[0], "train.loss_weights={alignment: 0.0}").state.alignment is None


def test_alignment_costs_no_forward_pass_and_reaches_the_backbone(tmp_path):
    it = adapting(tmp_path, *ALIGN, "pseudo_labels.min_size=1000")
    student_batch = it.compose(batch())
    calls = []
    it.state.detector.model.backbone.register_forward_hook(lambda *_: calls.append(1))
    losses = it.state.student_step(student_batch)
    assert len(calls) == 1
    losses["alignment/image"].backward(retain_graph=True)
    assert it.state.detector.model.backbone.body.conv1.weight.grad.abs().sum() > 0
    assert it.state.detector.model.roi_heads.box_head.fc6.weight.grad is None
    losses["alignment/instance"].backward()
    assert it.state.detector.model.roi_heads.box_head.fc6.weight.grad.abs().sum() > 0


def halves() -> torch.Tensor:
    """(3, 8, 12) maps over 64×96 pixels: source, target in the left half, target."""
    maps = torch.zeros(3, 8, 12)
    maps[1, :, :6], maps[2] = 1.0, 1.0
    return maps


def test_under_a_mask_every_cell_has_the_label_of_its_own_pixels(detector):
    encoding, alignment = encoded(detector), aligned(detector)
    known = domains([0.0, 0.5, 1.0], (False, True, False))
    masked = Domains(known.shares, known.weights, known.unmixed_weights, halves())
    found = alignment(detector, encoding, encoding.images.sizes, masked)
    logits = alignment.discriminators["image"](encoding.canvases[0].features[alignment.level])[:, 0]
    labels = torch.zeros_like(logits)
    columns = logits.shape[2]
    labels[1, :, : columns // 2], labels[2] = 1.0, 1.0
    labels[1, :, columns // 2] = 0.5 if columns % 2 else labels[1, 0, columns // 2]
    losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean((1, 2))
    assert_close(found["alignment/image"], (losses[0] + losses[1]) / 2 + losses[2])
    plain = alignment(detector, encoding, encoding.images.sizes, known)
    assert not torch.isclose(found["alignment/image"], plain["alignment/image"])
    assert_close(found["alignment/instance"], plain["alignment/instance"])  # proposals have the label of their image


def test_a_map_that_is_even_is_the_share(detector):
    encoding, alignment = encoded(detector), aligned(detector)
    known = domains([0.0, 0.3, 1.0], (False, True, False))
    even = Domains(
        known.shares, known.weights, known.unmixed_weights, known.shares.view(3, 1, 1).expand(-1, 8, 12).clone()
    )
    losses = [alignment(detector, encoding, encoding.images.sizes, each)["alignment/image"] for each in (known, even)]
    assert_close(*losses)


def test_a_canvas_reads_its_part_of_the_map():
    """A canvas of 32×64 pixels of a batch on 64×96: the upper left 4×8 cells."""
    maps = torch.arange(96.0).view(1, 8, 12) / 96
    known = Domains(torch.zeros(1), torch.ones(1), torch.ones(1), maps)
    features = Features((0,), {}, (32, 64))
    assert torch.equal(target_of_cells(known, features, (4, 8), [(32, 64)]), maps[:, :4, :8])
    assert_close(target_of_cells(known, features, (2, 4), [(32, 64)])[0, 0, 0], maps[0, :2, :2].mean())


def test_what_lies_beyond_an_image_does_not_count_in_a_cell():
    """An image 40 pixels wide, its last 8 the target's: they are all there is of the second cell of 32 pixels."""
    maps = torch.zeros(1, 8, 12)
    maps[0, :4, 4] = 1.0
    known = Domains(torch.zeros(1), torch.ones(1), torch.ones(1), maps)
    found = target_of_cells(known, Features((0,), {}, (32, 64)), (1, 2), [(32, 40)])
    assert found.tolist() == [[[0.0, 1.0]]]
    wider = target_of_cells(known, Features((0,), {}, (32, 64)), (1, 2), [(32, 44)])
    assert_close(wider, torch.tensor([[[0.0, 2 / 3]]]))
