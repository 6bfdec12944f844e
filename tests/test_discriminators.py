"""Questions to the codec's discriminators: DAC's size, what a map sees, rows on their own, silence, gradients."""

import pytest
import torch
from torch import nn

from clearspeech.modeling.discriminators import (
    CodecDiscriminators,
    PeriodDiscriminator,
    ScaleDiscriminator,
    SpectrogramDiscriminator,
)

TINY = dict(periods=(2, 3), fft_sizes=(128, 64), rates=(2,), channel_factor=1 / 32)


@pytest.fixture
def discriminators() -> CodecDiscriminators:
    return CodecDiscriminators(**TINY)


def test_the_default_is_five_periods_and_three_resolutions_of_dacs_size():
    with torch.device("meta"):
        full = CodecDiscriminators()
    kinds = [type(each) for each in full.discriminators]
    assert kinds == [PeriodDiscriminator] * 5 + [SpectrogramDiscriminator] * 3
    # five times 32, 128, 512, 1024, 1024 channels of 5 samples and a score, three times five bands of 32 channels
    of_period = sum(5 * a * b + 2 * b for a, b in ((1, 32), (32, 128), (128, 512), (512, 1024), (1024, 1024)))
    of_period += 3 * 1024 + 2
    of_band = (27 * 2 + 2) * 32 + 3 * (27 * 32 + 2) * 32 + (9 * 32 + 2) * 32
    of_resolution = 5 * of_band + 9 * 32 + 2
    assert sum(each.numel() for each in full.parameters()) == 5 * of_period + 3 * of_resolution


def test_each_discriminator_gives_its_maps_and_the_scores_last(discriminators):
    maps = discriminators(torch.randn(2, 1000))
    assert [len(each) for each in maps] == [6, 6, 7, 26, 26]
    assert all(each.shape[0] == 2 for of_one in maps for each in of_one)
    assert [tuple(of_one[-1].shape[1:]) for of_one in maps[:3]] == [(2, 1, 7), (3, 1, 5), (1, 2)]
    assert maps[3][-1].shape[1:3] == (1, 32)  # 1000 / 32 samples, rounded up


def test_columns_of_a_period_are_two_dimensional_convolutions_one_column_wide():
    discriminator, waveforms = PeriodDiscriminator(3, 1 / 32), torch.randn(2, 31)
    hidden = nn.functional.pad(waveforms[:, None], (0, 2), mode="reflect").view(2, 1, 11, 3)
    for convolution, ours in zip(discriminator.stack, discriminator(waveforms)):
        weight, stride = convolution.weight[..., None], (convolution.stride[0], 1)
        hidden = nn.functional.conv2d(hidden, weight, convolution.bias, stride, padding=(2, 0))
        hidden = nn.functional.leaky_relu(hidden, 0.1)
        torch.testing.assert_close(ours, hidden.permute(0, 3, 1, 2))


def test_a_frame_of_the_spectrogram_is_the_transform_around_its_hop():
    discriminator, waveforms = SpectrogramDiscriminator(64, 1 / 32), torch.randn(1, 200)
    spectrogram = discriminator.spectrogram(waveforms)
    assert spectrogram.shape == (1, 2, 13, 33)  # 200 / 16 samples, rounded up
    frame = 6  # samples 96 .. 111
    expected = torch.fft.rfft(waveforms[0, 72:136] * torch.hann_window(64))
    torch.testing.assert_close(spectrogram[0, :, frame], torch.view_as_real(expected).T, atol=1e-5, rtol=0)


def test_the_bands_share_the_spectrum_without_gap_or_overlap():
    for fft_size, ends in {2048: [102, 256, 512, 768, 1025], 512: [25, 64, 128, 192, 257]}.items():
        bands = SpectrogramDiscriminator(fft_size, 1 / 32).bands
        assert [high for _, high in bands] == ends and [low for low, _ in bands] == [0, *ends[:-1]]


def test_a_scale_hears_nothing_above_half_its_rate():
    discriminator = ScaleDiscriminator(4, 1 / 32)
    tone = torch.sin(torch.arange(4000) * 0.8 * torch.pi)[None]  # above an eighth of the sampling rate
    silent, loud = discriminator(torch.zeros(1, 4000)), discriminator(tone)
    middle = slice(300, -300)  # the tone begins and ends abruptly
    torch.testing.assert_close(loud[0][..., middle], silent[0][..., middle], atol=1e-2, rtol=0)


def test_offset_and_loudness_do_not_matter_and_rows_are_judged_alone(discriminators):
    waveforms = torch.randn(3, 600)
    expected = discriminators(waveforms)
    changed = waveforms * torch.tensor([[0.1], [1.0], [3.0]]) + torch.tensor([[0.5], [0.0], [-1.0]])
    for row in range(3):
        for of_one, of_row in zip(expected, discriminators(changed[row : row + 1])):
            torch.testing.assert_close(of_row[-1][0], of_one[-1][row], atol=1e-4, rtol=1e-4)
    normalized = discriminators.normalize(changed)
    torch.testing.assert_close(normalized.mean(dim=1), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(normalized.abs().amax(dim=1), torch.full((3,), 0.8))


def test_silence_and_padding_have_scores_and_gradients(discriminators):
    waveforms = torch.cat([torch.zeros(1, 600), torch.randn(1, 600)]).requires_grad_()
    scores = sum(of_one[-1].square().mean() for of_one in discriminators(waveforms))
    scores.backward()
    assert torch.isfinite(scores) and waveforms.grad.isfinite().all()
    assert all(each.grad.isfinite().all() for each in discriminators.parameters())


def test_a_factor_of_channels_makes_them_narrower():
    with torch.device("meta"):
        wide, narrow = CodecDiscriminators(), CodecDiscriminators(channel_factor=1 / 16)
    count = [sum(each.numel() for each in model.parameters()) for model in (wide, narrow)]
    assert count[1] < count[0] / 150
    assert narrow.discriminators[0].stack[1].out_channels == 8


def test_no_discriminator_at_all_is_refused():
    with pytest.raises(ValueError, match="at least one of periods"):
        CodecDiscriminators(periods=(), fft_sizes=())
