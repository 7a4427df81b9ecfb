import numpy as np
import pytest

from lossmix_det.config import AugmentConfig, MaskingConfig
from lossmix_det.data.augment import Augment, RandomErasing, resize
from lossmix_det.data.masking import BlockMasking

BOTH = ["weak", "strong"]


def picture(height: int = 60, width: int = 90) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def still(**settings) -> AugmentConfig:
    """Nothing random but what the settings ask for."""
    off = {"flip": 0.0, "crop": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0, "erasing": [], "min_sizes": [60]}
    return AugmentConfig(**{**off, **settings})


BOXES = np.array([[10, 20, 40, 50], [60, 5, 90, 60]], dtype=np.float32)


def test_with_everything_off_both_views_are_the_image():
    views = Augment(still(), BOTH)(picture(), BOXES, seed=3)
    np.testing.assert_array_equal(views.weak, picture())
    np.testing.assert_array_equal(views.strong, picture())
    np.testing.assert_allclose(views.boxes, BOXES, atol=1e-3)
    assert views.kept.tolist() == [0, 1]


def test_a_view_that_is_not_asked_for_is_absent():
    assert Augment(still(), ["weak"])(picture(), BOXES, 0).strong is None
    assert Augment(still(), ["strong"])(picture(), BOXES, 0).weak is None


def test_flipping_mirrors_pixels_and_boxes():
    views = Augment(still(flip=1.0), BOTH)(picture(), BOXES, 0)
    np.testing.assert_array_equal(views.weak, picture()[:, ::-1])
    np.testing.assert_allclose(views.boxes, [[50, 20, 80, 50], [0, 5, 30, 60]], atol=1e-3)


def test_views_share_one_geometry():
    """Without changes of appearance the strong view equals the weak one, whatever was flipped, cropped and resized."""
    augment = Augment(still(flip=0.5, crop=0.7, min_sizes=[40, 80]), BOTH)
    shapes = set()
    for seed in range(20):
        views = augment(picture(), BOXES, seed)
        np.testing.assert_array_equal(views.weak, views.strong)
        shapes.add(views.weak.shape)
    assert len(shapes) > 4


def test_the_strong_view_changes_appearance_and_the_weak_one_does_not():
    augment = Augment(AugmentConfig(flip=0, min_sizes=[60], jitter=1, blur=1), BOTH)
    views = augment(picture(), BOXES, 0)
    np.testing.assert_array_equal(views.weak, picture())
    assert np.abs(views.strong.astype(int) - picture()).mean() > 5


def test_erasing_fills_patches_with_noise():
    flat = np.full((60, 90, 3), 120, dtype=np.uint8)
    views = Augment(still(erasing=[1.0]), ["strong"])(flat, BOXES, 0)
    changed = (views.strong != flat).any(axis=2).mean()
    assert 0.03 < changed < 0.25


def test_masking_blacks_out_whole_blocks_of_the_strong_view_alone():
    image = picture(128, 160) | 1  # no pixel is black
    config = still(min_sizes=[128], masking=MaskingConfig(ratio=0.5, block=32))
    hidden = np.zeros((4, 5))
    for seed in range(60):
        views = Augment(config, BOTH)(image, BOXES, seed)
        np.testing.assert_array_equal(views.weak, image)
        for row in range(4):
            for column in range(5):
                block = slice(row * 32, row * 32 + 32), slice(column * 32, column * 32 + 32)
                black = not views.strong[block].any()
                assert black or (views.strong[block] == image[block]).all()
                hidden[row, column] += black
    assert 0.45 < hidden.mean() / 60 < 0.55
    assert hidden.min() > 15  # every block has its turn; 30 of 60 on average
    assert hidden.max() < 45


def test_blocks_fill_an_image_that_is_no_multiple_of_them():
    """75 × 100 pixels in blocks of 32: 2 rows of 37.5, and 3 columns of 33.3 pixels."""
    image = picture(75, 100) | 1
    seen = np.array([[1, 0, 1], [0, 1, 0]], dtype=np.uint8)
    masked = BlockMasking(0.5, 32).apply(image, seen)
    for row in range(75):
        for column in range(100):
            kept = seen[int(row / 37.5), int(column / (100 / 3))]
            assert (masked[row, column] == image[row, column] * kept).all()


def test_a_ratio_of_one_leaves_nothing_to_be_seen():
    views = Augment(still(masking=MaskingConfig(ratio=1.0)), ["strong"])(picture(), BOXES, 0)
    assert not views.strong.any()


def test_a_seed_fixes_the_views_and_another_changes_them():
    augment = Augment(AugmentConfig(min_sizes=[60]), BOTH)
    first = augment(picture(), BOXES, 5)
    augment(picture(), BOXES, 6)
    again = Augment(AugmentConfig(min_sizes=[60]), BOTH)(picture(), BOXES, 5)
    np.testing.assert_array_equal(first.strong, again.strong)
    assert any((augment(picture(), BOXES, seed).strong != first.strong).any() for seed in (6, 7))


def test_crops_clip_boxes_and_drop_those_that_are_mostly_gone():
    """Against a brute-force look: pixels of a painted box that the crop keeps."""
    config = still(crop=1.0, min_visibility=0.4)
    augment, dropped, clipped = Augment(config, ["weak"]), 0, 0
    box = np.array([[0, 0, 30, 20]], dtype=np.float32)
    painted = np.zeros((60, 90, 3), dtype=np.uint8)
    painted[:20, :30] = 255
    for seed in range(40):
        views = augment(painted, box, seed)
        height, width = views.weak.shape[:2]
        assert height == 60 or width == 60
        if not len(views.boxes):
            dropped += 1
            continue
        x1, y1, x2, y2 = views.boxes[0]
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        white = (views.weak > 127).all(axis=2)
        assert white.sum() == pytest.approx((x2 - x1) * (y2 - y1), rel=0.15)
        clipped += views.weak[0, 0, 0] > 0
    assert dropped > 0
    assert clipped > 0


@pytest.mark.parametrize(
    ("short", "longest", "expected"), [(30, 1000, (30, 45)), (120, 1000, (120, 180)), (120, 90, (60, 90))]
)
def test_resizing_meets_the_short_side_within_the_longest(short, longest, expected):
    image, boxes = resize(picture(), BOXES, short, longest)
    assert image.shape[:2] == expected
    np.testing.assert_allclose(boxes, BOXES * expected[0] / 60, rtol=1e-5)


def test_an_image_without_boxes_is_augmented():
    views = Augment(AugmentConfig(min_sizes=[60]), BOTH)(picture(), np.zeros((0, 4), np.float32), 1)
    assert views.boxes.shape == (0, 4)


@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (64, 64), (33, 33)])
def test_erasing_works_on_images_of_any_shape(shape):
    augment = Augment(AugmentConfig(min_sizes=[32], erasing=[1.0, 1.0, 1.0]), ["strong"])
    for seed in range(60):
        assert augment(picture(*shape), BOXES[:0], seed).strong.shape[2] == 3


def test_erased_shares_fill_the_range_of_the_recipe():
    """2 to 20 % on a square image, whatever the ratio."""
    erase = RandomErasing((0.02, 0.2), (0.05, 8.0), p=1.0)
    flat = np.full((100, 100, 3), 7, dtype=np.uint8)
    shares = []
    for seed in range(300):
        erase.set_random_seed(seed)
        shares.append((erase(image=flat)["image"] != 7).any(axis=2).mean())
    assert 0.018 < min(shares) < 0.035
    assert 0.17 < max(shares) < 0.21
    assert 0.09 < np.mean(shares) < 0.13


@pytest.mark.parametrize("shape", [(3000, 2), (2, 5000), (3000, 1), (40, 1), (1, 1)])
def test_images_that_would_shrink_to_a_line_keep_their_three_axes(shape):
    config = AugmentConfig(min_sizes=[32], max_size=33, grayscale=1.0, blur=1.0, jitter=1.0)
    image, boxes = picture(*shape), np.array([[0, 0, shape[1], shape[0]]], dtype=np.float32)
    views = Augment(config, BOTH)(image, boxes, 3)
    assert views.weak.shape == views.strong.shape
    assert views.strong.ndim == 3
    assert min(views.strong.shape[:2]) >= 2
    np.testing.assert_allclose(views.boxes[0, 2:], views.weak.shape[1::-1], rtol=1e-4)
