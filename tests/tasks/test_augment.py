"""Augmentation changes pixels only as its settings say."""

import torch

from loopline.tasks.classification.augment import Augment
from loopline.tasks.classification.parameters import ClassificationTrain

NOTHING = ClassificationTrain(
    epochs=1, patience=1, batch_size=8, learning_rate=0.01, width=4, weight_decay=0, label_smoothing=0,
    class_weights=False, rotate=0, shift=0, scale=0, flip=False, erase=0,
)  # fmt: skip


def augmented(pixels: torch.Tensor, **change: float) -> torch.Tensor:
    torch.manual_seed(0)
    return Augment(NOTHING.model_copy(update=change))(pixels)


def picture(n: int = 64, height: int = 12, width: int = 16) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (1, height, width, 3), generator=random, dtype=torch.uint8).expand(n, -1, -1, -1)


def test_without_settings_nothing_changes() -> None:
    assert torch.equal(augmented(picture()), picture().float())


def test_a_flip_mirrors_about_half_of_the_images_exactly() -> None:
    pixels = picture()
    changed = augmented(pixels, flip=True)
    kept = _alike(changed, pixels.float())
    mirrored = _alike(changed, pixels.float().flip(2))
    assert (kept ^ mirrored).all()
    assert 10 < mirrored.sum() < 54


def _alike(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return ((a - b).abs() < 0.01).flatten(1).all(1)


def test_a_shift_moves_by_whole_pixels_and_blurs_nothing() -> None:
    pixels = picture()
    shifted = augmented(pixels, shift=0.2)
    assert not _alike(shifted, pixels.float()).all()
    assert torch.isclose(shifted, shifted.round(), atol=0.01).all()


def test_rotation_and_scale_keep_the_shape_and_the_range() -> None:
    pixels = picture()
    for change in ({"rotate": 20}, {"scale": 0.2}):
        changed = augmented(pixels, **change)
        assert changed.shape == pixels.shape
        assert changed.min() >= -0.01
        assert changed.max() <= 255.01
        assert not _alike(changed, pixels.float()).any()


def test_a_quarter_turn_of_a_wide_image_keeps_its_pixels_square() -> None:
    bar = torch.zeros(1, 20, 40, 1)
    bar[:, 9:11, 15:25] = 255  # ten wide, two high
    torch.manual_seed(0)
    angle = (torch.rand(1) * 2 - 1).item()
    turned = augmented(bar, rotate=90 / angle)
    columns, rows = (turned[0, :, :, 0] > 127).any(0).sum().item(), (turned[0, :, :, 0] > 127).any(1).sum().item()
    assert (columns, rows) == (2, 10)


def test_erasing_blanks_one_patch_in_the_share_of_the_settings() -> None:
    pixels = picture(400)
    erased = augmented(pixels, erase=0.25)
    changed = (erased != pixels.float()).any(3).flatten(1).sum(1)
    assert 60 < (changed > 0).sum() < 140
    assert changed.max() <= 0.5 * 12 * 0.5 * 16 + 16
