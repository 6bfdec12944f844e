"""The codec's losses against slow references: mel filters by hand, one map at a time, one segment at a time."""

import math

import pytest
import torch

from clearspeech.modeling.discriminators import CodecDiscriminators
from clearspeech.trainers.codec_losses import (
    MEL_BINS,
    MEL_WINDOWS,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    mel_distances,
    mel_filters,
    multi_scale_mel_loss,
)


def to_mel(hertz: float) -> float:
    """Slaney's scale: linear up to 1000 Hz, logarithmic above."""
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def to_hertz(mel: float) -> float:
    return 200 * mel / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)


def slow_filters(window: int, bins: int) -> torch.Tensor:
    edges = [to_hertz(to_mel(8000) * each / (bins + 1)) for each in range(bins + 2)]
    filters = torch.zeros(window // 2 + 1, bins)
    for row in range(window // 2 + 1):
        frequency = 16000 * row / window
        for column, (low, top, high) in enumerate(zip(edges, edges[1:], edges[2:])):
            height = min((frequency - low) / (top - low), (high - frequency) / (high - top))
            filters[row, column] = max(0.0, height) * 2 / (high - low)
    return filters


def slow_mel_distance(waveform, target, window, bins) -> float:
    hop, total = window // 4, 0.0
    logs = []
    for each in (waveform, target):
        padded = torch.nn.functional.pad(each[None, None], (window // 2, window // 2), mode="reflect")[0, 0]
        hann = 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(window) / window)
        frames = [padded[start : start + window] * hann for start in range(0, len(padded) - window + 1, hop)]
        mels = torch.stack([torch.fft.rfft(frame).abs() @ slow_filters(window, bins) for frame in frames])
        logs.append(mels.clamp(min=1e-5).log10())
    total += float((logs[0] - logs[1]).abs().mean())
    return total


def test_mel_filters_are_slaneys_triangles_of_unit_area():
    torch.testing.assert_close(mel_filters(256, 20, 16000), slow_filters(256, 20), atol=1e-6, rtol=1e-3)


def test_the_mel_loss_is_the_sum_over_windows_of_the_mean_of_each():
    waveforms, targets = 0.1 * torch.randn(2, 500), 0.1 * torch.randn(2, 500)
    windows, bins = (32, 128), (5, 20)
    expected = [
        sum(slow_mel_distance(ours, theirs, *each) for each in zip(windows, bins))
        for ours, theirs in zip(waveforms, targets)
    ]
    torch.testing.assert_close(
        mel_distances(waveforms, targets, windows, bins), torch.tensor(expected), rtol=1e-3, atol=0
    )
    loss = multi_scale_mel_loss(waveforms, targets, windows, bins)
    assert float(loss) == pytest.approx(sum(expected) / 2, rel=1e-3)
    assert float(multi_scale_mel_loss(waveforms, targets, windows, bins, num_segments=8)) == pytest.approx(
        sum(expected) / 8, rel=1e-3
    )


def test_the_default_windows_are_the_papers_seven():
    assert MEL_WINDOWS == (32, 64, 128, 256, 512, 1024, 2048) and MEL_BINS == (5, 10, 20, 40, 80, 160, 320)


def test_a_waveform_ten_times_as_loud_is_a_decade_away_in_each_window_and_bin_that_has_a_frequency():
    waveform = torch.randn(1, 4000)
    assert float(mel_distances(waveform, 10 * waveform, (1024,), (20,))) == pytest.approx(1.0, abs=1e-3)
    assert float(mel_distances(waveform, waveform)) == 0.0
    empty = float((mel_filters(32, 64, 16000).sum(dim=0) == 0).float().mean())
    assert empty > 0.5  # 17 frequencies cannot fill 64 bins
    assert float(mel_distances(waveform, 10 * waveform, (32,), (64,))) == pytest.approx(1 - empty, abs=1e-3)


def test_bins_without_a_frequency_and_silence_give_finite_losses_and_gradients():
    targets = torch.cat([torch.zeros(1, 2000), torch.randn(1, 2000)])
    waveforms = torch.cat([torch.randn(1, 2000), torch.zeros(1, 2000)]).requires_grad_()
    loss = multi_scale_mel_loss(waveforms, targets, (32, 512), (64, 80))
    loss.backward()
    assert torch.isfinite(loss) and waveforms.grad.isfinite().all() and waveforms.grad[0].abs().sum() > 0


def test_only_the_made_waveform_gets_gradients():
    waveforms, targets = torch.randn(1, 600, requires_grad=True), torch.randn(1, 600, requires_grad=True)
    multi_scale_mel_loss(waveforms, targets, (64,), (10,)).backward()
    assert waveforms.grad is not None and targets.grad is None


@pytest.mark.parametrize(
    "shapes, windows, message",
    [
        (((1, 500), (1, 501)), (64,), "of one shape"),
        (((500,), (500,)), (64,), "of one shape"),
        (((1, 32), (1, 32)), (64,), "needs more than 32; got 32"),
        (((1, 500), (1, 500)), (64, 128), "as many numbers of mel bins"),
    ],
)
def test_what_has_no_mel_distance_is_refused(shapes, windows, message):
    with pytest.raises(ValueError, match=message):
        mel_distances(*map(torch.zeros, shapes), windows, (10,))


@pytest.fixture
def maps():
    """Of real and made segments, three each: two discriminators with maps of different shapes."""
    shapes = [[(3, 4, 7), (3, 2, 5), (3, 1, 5)], [(3, 6), (3, 1, 2, 2)]]
    return [[[torch.randn(shape) for shape in of_one] for of_one in shapes] for _ in range(2)]


def test_discriminators_are_pushed_to_one_and_zero(maps):
    real, made = maps
    expected = 0.0
    for ours, theirs in zip(real, made):
        expected += sum((1 - value) ** 2 for value in ours[-1].flatten().tolist()) / ours[-1].numel()
        expected += sum(value**2 for value in theirs[-1].flatten().tolist()) / theirs[-1].numel()
    assert float(discriminator_loss(real, made)) == pytest.approx(expected, rel=1e-5)
    assert float(discriminator_loss(real, made, num_segments=6)) == pytest.approx(expected / 2, rel=1e-5)


def test_the_generator_is_pushed_to_one(maps):
    expected = sum(
        sum((1 - value) ** 2 for value in of_one[-1].flatten().tolist()) / of_one[-1].numel() for of_one in maps[1]
    )
    assert float(generator_loss(maps[1])) == pytest.approx(expected, rel=1e-5)


def test_feature_matching_averages_each_map_and_leaves_the_scores_out(maps):
    real, made = maps
    expected = 0.0
    for ours, theirs in zip(real, made):
        for first, second in list(zip(ours, theirs))[:-1]:
            pairs = zip(first.flatten().tolist(), second.flatten().tolist())
            expected += sum(abs(a - b) for a, b in pairs) / first.numel()
    assert float(feature_matching_loss(real, made)) == pytest.approx(expected, rel=1e-5)
    made[0][-1] += 5.0
    assert float(feature_matching_loss(real, made)) == pytest.approx(expected, rel=1e-5)


def test_feature_matching_moves_the_made_segments_only():
    discriminators = CodecDiscriminators((2,), (64,), channel_factor=1 / 32)
    real, made = torch.randn(2, 300, requires_grad=True), torch.randn(2, 300, requires_grad=True)
    feature_matching_loss(discriminators(real), discriminators(made)).backward()
    assert made.grad.abs().sum() > 0 and real.grad is None


def test_a_step_is_the_mean_over_its_micro_batches(maps):
    real, made = maps
    halves = [
        [[[each[part] for each in of_one] for of_one in side] for side in (real, made)]
        for part in (slice(0, 1), slice(1, 3))
    ]
    for loss in (discriminator_loss, feature_matching_loss):
        parts = sum(float(loss(*half, num_segments=3)) for half in halves)
        assert parts == pytest.approx(float(loss(real, made)), rel=1e-5)
