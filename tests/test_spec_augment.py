"""Questions to SpecAugment: which values it masks, how many, and that an utterance's masks are its own."""

import pytest
import torch

from clearspeech.processing.spec_augment import spec_augment

NUM_BINS, STACK = 64, 3


def ones(batch: int, frames: int) -> torch.Tensor:
    return torch.ones(batch, frames, STACK * NUM_BINS)


def spans(masked: torch.Tensor) -> list[int]:
    """Lengths of the runs of True."""
    return [len(run) for run in "".join("x" if value else " " for value in masked.tolist()).split()]


def test_whole_bands_and_whole_spans_become_zero_and_nothing_else_changes():
    features = torch.randn(20, 300, STACK * NUM_BINS)
    masked = spec_augment(features, [300] * 20, range(20), NUM_BINS) == 0.0
    bands, times = masked.all(dim=1), masked.all(dim=2)
    assert torch.equal(masked, bands[:, None] | times[:, :, None])
    augmented = spec_augment(features, [300] * 20, range(20), NUM_BINS)
    assert torch.equal(augmented[~masked], features[~masked])
    assert bands.any() and times.any()


def test_stacked_frames_lose_the_same_bins():
    bands = (spec_augment(ones(50, 30), [30] * 50, range(50), NUM_BINS) == 0.0).all(dim=1).view(50, STACK, NUM_BINS)
    assert torch.equal(bands, bands[:, :1].expand_as(bands))
    assert bands.any()


def test_bands_are_at_most_two_of_21_bins_each():
    """27 / 80 of 64 bins."""
    bands = (spec_augment(ones(400, 20), [20] * 400, range(400), NUM_BINS) == 0.0).all(dim=1)[:, :NUM_BINS]
    widths = [spans(row) for row in bands]
    assert max(map(len, widths)) == 2
    assert max(map(sum, widths)) in range(38, 43)
    one_each = (spec_augment(ones(400, 20), [20] * 400, range(400), NUM_BINS, num_frequency_masks=1) == 0.0).all(1)
    drawn = one_each[:, :NUM_BINS].sum(dim=1)
    assert set(drawn.tolist()) == set(range(22))
    assert drawn.float().mean() == pytest.approx(10.5, abs=1.0)
    assert one_each[:, 0].any() and one_each[:, NUM_BINS - 1].any()


@pytest.mark.parametrize(("frames", "num_masks", "width"), [(24, 0, 0), (25, 1, 1), (100, 4, 4), (1000, 20, 40)])
def test_longer_utterances_get_more_and_longer_spans(frames, num_masks, width):
    features, options = torch.ones(200, frames, 2), dict(num_bins=2, num_frequency_masks=0)
    times = (spec_augment(features, [frames] * 200, range(200), **options) == 0.0).all(dim=2)
    expected = 1 - (1 - width / 2 / frames) ** num_masks  # masks of the mean width that fall anywhere
    assert times.float().mean() == pytest.approx(expected, abs=0.02)
    assert times.sum(dim=1).max() <= num_masks * width
    one_each = spec_augment(features, [frames] * 200, range(200), num_time_masks=1, **options)
    assert (one_each == 0.0).all(dim=2).sum(dim=1).max() == width


def test_spans_lie_within_the_utterance_and_depend_on_its_own_length_and_seed_only():
    features = ones(3, 400)
    augmented = spec_augment(features, torch.tensor([100, 400, 100]), torch.tensor([7, 8, 9]), NUM_BINS)
    alone = spec_augment(features[:1, :100], [100], [7], NUM_BINS)
    assert torch.equal(augmented[0, :100], alone[0])
    assert not torch.equal(augmented[0], augmented[2])
    assert not (augmented[0, 100:] == 0.0).all(dim=1).any()


def test_zero_masks_change_nothing_and_features_are_not_overwritten():
    features = ones(1, 300)
    assert torch.equal(spec_augment(features, [300], [0], NUM_BINS, num_frequency_masks=0, num_time_masks=0), features)
    spec_augment(features, [300], [0], NUM_BINS)
    assert torch.equal(features, ones(1, 300))


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="num_bins=80 per frame, got frames of 192"):
        spec_augment(ones(1, 30), [30], [0], 80)
    with pytest.raises(ValueError, match="2 utterances .* got 2 and 1"):
        spec_augment(ones(2, 30), [30, 30], [0], NUM_BINS)
    with pytest.raises(ValueError, match=r"1\.\.30, got \[31\]"):
        spec_augment(ones(1, 30), [31], [0], NUM_BINS)
