"""Perturbations: their physics, the paper's tables, independence from batch and padding, and bad input."""

import math
import struct
import time
import zlib

import numpy as np
import pytest
import torch

from clearspeech.processing.perturbation import (
    EVALUATION_PERTURBATIONS,
    TRAINING_PERTURBATIONS,
    Perturbation,
    Perturber,
    bit_crush,
    change_speed,
    coloured_noise,
    mix_at_snr,
    utterance_seed,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def white(num_samples: int, seed: int = 0, gain: float = 0.1) -> torch.Tensor:
    return gain * torch.randn(num_samples, generator=seeded(seed))


def sine(frequency: float, seconds: float, sampling_rate: int = 16_000) -> torch.Tensor:
    time_axis = torch.arange(round(seconds * sampling_rate), dtype=torch.float64) / sampling_rate
    return torch.sin(2 * math.pi * frequency * time_axis).float()


def decibels(power_ratio: torch.Tensor | float) -> float:
    return 10 * math.log10(float(power_ratio))


def snr_db(clean: torch.Tensor, perturbed: torch.Tensor) -> float:
    clean, noise = clean.double(), perturbed.double() - clean.double()
    return decibels(clean.square().mean() / noise.square().mean())


def octave_slope(noise: torch.Tensor, edges: tuple[float, ...]) -> float:
    """dB per octave of the power spectral density, a straight line through the mean densities of octave bands (Hz)."""
    power = torch.fft.rfft(noise.double()).abs().square()
    frequencies = torch.arange(len(power)) * 16_000 / len(noise)
    bands = [(low <= frequencies) & (frequencies < 2 * low) for low in edges]
    return float(np.polyfit(range(len(edges)), [decibels(power[band].mean()) for band in bands], 1)[0])


def one(name: str, noise_clips=None) -> Perturber:
    return Perturber([row for row in EVALUATION_PERTURBATIONS if row.name == name], noise_clips)


@pytest.fixture(scope="module")
def noise_clips() -> list[torch.Tensor]:
    return [white(5_000 * clip, seed=clip) for clip in range(1, 6)]


# the paper's tables


def test_training_ranges_are_those_of_table_9():
    assert {row.name: (row.minimum, row.maximum) for row in TRAINING_PERTURBATIONS} == {
        "gaussian": (16, 30),
        "pink": (16, 24),
        "brown": (12, 24),
        "bit_crush": (8, 14),
        "real": (12, 24),
    }


def test_evaluation_points_are_those_of_table_13():
    assert {row.name: (row.kind, row.minimum, row.maximum) for row in EVALUATION_PERTURBATIONS} == {
        "gaussian": ("gaussian", 25, 25),
        "pink": ("pink", 22, 22),
        "brown": ("brown", 16, 16),
        "bit_crush": ("bit_crush", 10, 10),
        "real": ("real", 16, 16),
        "real_ood": ("real", 16, 16),
    }


def test_every_type_is_drawn_equally_often_and_every_level_lies_in_its_range(noise_clips):
    perturber = Perturber(TRAINING_PERTURBATIONS, noise_clips)
    waveforms = white(400).repeat(1000, 1)
    perturbed = perturber(waveforms, [400] * 1000, range(1000))
    ranges = {row.name: (row.minimum, row.maximum) for row in TRAINING_PERTURBATIONS}
    for name, (minimum, maximum) in ranges.items():
        levels = [level for drawn, level in zip(perturbed.names, perturbed.levels) if drawn == name]
        assert 140 <= len(levels) <= 260  # 200 expected, 13 standard deviation
        assert minimum <= min(levels) < minimum + 0.3
        assert maximum - 0.3 < max(levels) <= maximum
        assert abs(np.mean(levels) - (minimum + maximum) / 2) < 0.15 * (maximum - minimum)
    bit_depths = {level for name, level in zip(perturbed.names, perturbed.levels) if name == "bit_crush"}
    assert bit_depths == {8, 9, 10, 11, 12, 13, 14}


# physics


@pytest.mark.parametrize(("exponent", "slope"), [(0.0, 0.0), (1.0, -3.01), (2.0, -6.02)])
def test_noise_falls_by_its_slope_per_octave(exponent, slope):
    noise = coloured_noise(2**19, exponent, seeded())
    assert octave_slope(noise, (31.25, 62.5, 125, 250, 500, 1000, 2000, 4000)) == pytest.approx(slope, abs=0.1)


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_coloured_noise_is_flat_below_20_hz_and_has_no_offset(exponent):
    noise = torch.cat([coloured_noise(2**17, exponent, seeded(seed)) for seed in range(4)])
    assert octave_slope(noise, (2.5, 5.0, 10.0)) == pytest.approx(0.0, abs=0.8)
    assert abs(float(noise.mean())) < 0.01


def test_brown_noise_is_as_loud_above_100_hz_in_a_short_utterance_as_in_a_long_one():
    def share_above_100_hz(num_samples: int) -> float:
        power = sum(
            torch.fft.rfft(coloured_noise(num_samples, 2.0, seeded(seed))).abs().square() for seed in range(20)
        )
        return decibels(power[round(100 * num_samples / 16_000) :].sum() / power.sum())

    assert share_above_100_hz(16_000) == pytest.approx(share_above_100_hz(160_000), abs=1.0)


@pytest.mark.parametrize("num_samples", [1, 2, 3, 161, 15_999, 16_001, 104_729])
@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_noise_of_any_length_has_unit_rms(num_samples, exponent):
    noise = coloured_noise(num_samples, exponent, seeded())
    assert noise.shape == (num_samples,)
    assert noise.dtype == torch.float32
    assert float(noise.double().square().mean()) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("asked", [-5.0, 0.0, 16.0, 25.0, 30.0])
def test_mixing_reaches_the_snr_within_a_tenth_of_a_decibel(asked):
    clean, noise = white(16_000, seed=1), white(16_000, seed=2, gain=3.0) + 0.5
    assert snr_db(clean, mix_at_snr(clean, noise, asked)) == pytest.approx(asked, abs=0.1)


def test_mixing_a_batch_takes_one_snr_for_each_row():
    clean, noise = torch.stack([white(8_000, 1), white(8_000, 2, gain=0.01)]), torch.stack([white(8_000, 3)] * 2)
    mixed = mix_at_snr(clean, noise, torch.tensor([10.0, 20.0]))
    assert snr_db(clean[0], mixed[0]) == pytest.approx(10, abs=0.1)
    assert snr_db(clean[1], mixed[1]) == pytest.approx(20, abs=0.1)


@pytest.mark.parametrize("name", ["gaussian", "pink", "brown", "real", "real_ood"])
@pytest.mark.parametrize("num_samples", [401, 16_000, 50_001])
def test_perturber_reaches_the_snr_over_the_real_samples(name, num_samples, noise_clips):
    waveforms = torch.zeros(1, 60_000)
    waveforms[0, :num_samples] = white(num_samples, seed=9)
    perturbed = one(name, noise_clips)(waveforms, [num_samples], [3])
    measured = snr_db(waveforms[0, :num_samples], perturbed.waveforms[0, :num_samples])
    assert measured == pytest.approx(perturbed.levels[0], abs=0.1)


@pytest.mark.parametrize("bit_depth", [8, 10, 14])
def test_bit_crush_rounds_to_the_levels_of_its_formula(bit_depth):
    clean = white(16_000).clamp(-1, 1)
    crushed = bit_crush(clean, bit_depth)
    q = 2**bit_depth / 2 + 1
    levels = crushed.double() * q
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert float((crushed - clean).abs().max()) <= 0.5 / q + 1e-6
    assert len(torch.unique(crushed)) <= 2 * q + 1
    noise_power = (crushed - clean).double().square().mean()
    assert decibels(noise_power * 12 * q**2) == pytest.approx(0.0, abs=0.3)  # step / sqrt(12)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.1, 2.0])
def test_speed_moves_pitch_and_length_and_keeps_the_level(factor):
    faster = change_speed(sine(500.0, 2.0), factor)
    assert len(faster) == round(32_000 / factor)
    expected = torch.sin(2 * math.pi * 500.0 * factor * torch.arange(len(faster), dtype=torch.float64) / 16_000)
    torch.testing.assert_close(faster[200:-200].double(), expected[200:-200], atol=0.02, rtol=0)


def test_speed_up_does_not_alias():
    faster = change_speed(sine(7_000.0, 1.0), 2.0)  # 14 kHz is above half the sampling rate
    assert float(faster[200:-200].abs().max()) < 0.02


def test_speed_takes_a_batch():
    batch = torch.stack([white(4_001, 1), white(4_001, 2)])
    torch.testing.assert_close(change_speed(batch, 1.1)[1], change_speed(batch[1], 1.1))


# noise clips


def test_short_clips_are_looped_and_long_clips_cropped():
    clip = torch.arange(1.0, 11.0)
    tiny = torch.full((1, 25), 1e-3)
    noise = one("real", [clip])(tiny, [25], [1]).waveforms[0] - tiny[0]
    torch.testing.assert_close(noise[:10], noise[10:20], rtol=1e-3, atol=0)
    noise = one("real", [clip])(tiny, [4], [1]).waveforms[0, :4] - tiny[0, :4]
    steps = noise.diff()
    torch.testing.assert_close(steps, steps[0].expand(3), rtol=1e-3, atol=0)


def test_a_crop_never_falls_into_a_pause_of_its_clip():
    clip = torch.zeros(80_000)
    clip[60_000:60_400] = white(400)
    for seed in range(50):
        perturbed = one("real", [clip])(white(1_000).unsqueeze(0), [1_000], [seed]).waveforms[0]
        assert snr_db(white(1_000), perturbed) == pytest.approx(16.0, abs=0.1)


def test_all_clips_and_many_places_are_met():
    clips = [torch.full((1_000,), float(sign)) for sign in (-1, 1)]
    signs = [float(one("real", clips)(torch.ones(1, 10), [10], [seed]).waveforms[0, 0] > 1) for seed in range(40)]
    assert 8 < sum(signs) < 32


def test_arrays_serve_as_clips():
    clean = white(800).unsqueeze(0)
    from_array = one("real", [np.linspace(-1, 1, 500)])(clean, [800], [1]).waveforms
    torch.testing.assert_close(from_array, one("real", [torch.linspace(-1, 1, 500)])(clean, [800], [1]).waveforms)


def test_each_row_draws_from_the_pool_of_its_own_name_and_rows_may_share_one():
    pools = {"low": [torch.full((500,), -1.0)], "high": [torch.full((500,), 1.0)] * 2, "other": [torch.zeros(1)]}
    rows = [Perturbation(name, "real", snr, snr) for name in ("low", "high") for snr in (0.0, 10.0)]
    clean = white(400).repeat(200, 1)
    perturbed = Perturber(rows, pools)(clean, [400] * 200, range(200))
    added = (perturbed.waveforms - clean).mean(dim=1)
    assert all((offset > 0) == (name == "high") for offset, name in zip(added, perturbed.names))
    met = {
        pair: list(zip(perturbed.names, perturbed.levels)).count(pair)
        for pair in zip(perturbed.names, perturbed.levels)
    }
    assert len(met) == 4 and min(met.values()) > 25  # 50 expected, 6 standard deviation


def test_one_pool_in_a_list_or_under_its_name_gives_the_same_noise(noise_clips):
    clean = white(2_000).repeat(50, 1)
    from_list = Perturber(TRAINING_PERTURBATIONS, noise_clips)(clean, [2_000] * 50, range(50))
    from_mapping = Perturber(TRAINING_PERTURBATIONS, {"real": noise_clips})(clean, [2_000] * 50, range(50))
    assert torch.equal(from_list.waveforms, from_mapping.waveforms)


# the same utterance meets the same noise


def test_an_utterance_does_not_depend_on_batch_padding_or_order(noise_clips):
    perturber = Perturber(TRAINING_PERTURBATIONS, noise_clips)
    utterances = [white(length, seed=length) for length in (161, 640, 6_401, 12_000, 16_001, 31_999, 32_640, 7)]
    seeds = [utterance_seed(utterance) for utterance in utterances]
    batch = torch.full((len(utterances), 40_000), 0.3)  # what lies past the end does not count
    for row, utterance in enumerate(utterances):
        batch[row, : len(utterance)] = utterance
    lengths = torch.tensor([len(utterance) for utterance in utterances])
    together = perturber(batch, lengths, seeds)
    backwards = perturber(batch.flip(0), lengths.flip(0), seeds[::-1])
    assert torch.equal(together.waveforms, backwards.waveforms.flip(0))
    for row, utterance in enumerate(utterances):
        alone = perturber(utterance.unsqueeze(0), [len(utterance)], [seeds[row]])
        assert torch.equal(alone.waveforms[0], together.waveforms[row, : len(utterance)])
        assert (alone.names[0], alone.levels[0]) == (together.names[row], together.levels[row])
        assert not together.waveforms[row, len(utterance) :].any()


def test_the_seed_decides_and_the_global_generator_does_not(noise_clips):
    perturber, clean = Perturber(TRAINING_PERTURBATIONS, noise_clips), white(2_000).unsqueeze(0)
    first = perturber(clean, [2_000], [5])
    state = torch.get_rng_state()
    torch.manual_seed(99)
    assert torch.equal(first.waveforms, perturber(clean, [2_000], [5]).waveforms)
    assert not torch.equal(first.waveforms, perturber(clean, [2_000], [6]).waveforms)
    torch.set_rng_state(state)


def test_the_input_is_left_as_it_was(noise_clips):
    clean = white(2_000).unsqueeze(0)
    kept = clean.clone()
    Perturber(TRAINING_PERTURBATIONS, noise_clips)(clean, [1_500], [5])
    assert torch.equal(clean, kept)


def test_seeds_come_from_the_samples_and_the_salt():
    utterance = white(1_000)
    assert utterance_seed(utterance) == utterance_seed(utterance.numpy()) == utterance_seed(utterance.double())
    by_hand = zlib.crc32(struct.pack("<ffq", 0.5, -0.25, 7))  # the same in any process
    assert utterance_seed(torch.tensor([0.5, -0.25]), salt=7) == by_hand
    assert utterance_seed(utterance[:-1]) != utterance_seed(utterance)
    assert len({utterance_seed(utterance, salt) for salt in range(1_000)}) == 1_000
    assert all(0 <= utterance_seed(utterance, salt) < 2**32 for salt in (-1, 0, 2**40))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_meets_the_noise_of_a_cpu(noise_clips):
    perturber, clean = Perturber(TRAINING_PERTURBATIONS, noise_clips), white(16 * 4_000).view(16, 4_000)
    on_cpu = perturber(clean, [4_000] * 16, range(16))
    on_gpu = perturber(clean.cuda(), [4_000] * 16, range(16))
    assert on_gpu.waveforms.is_cuda
    torch.testing.assert_close(on_gpu.waveforms.cpu(), on_cpu.waveforms, atol=1e-6, rtol=0)


def test_every_type_runs_a_hundred_times_faster_than_real_time_on_one_core(noise_clips):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    clean = white(20 * 16_000).unsqueeze(0)
    try:
        for row in EVALUATION_PERTURBATIONS:
            perturber = one(row.name, noise_clips)
            perturber(clean, [320_000], [0])
            start = time.process_time()
            perturber(clean, [320_000], [1])
            assert 20.0 / (time.process_time() - start) > 100, row.name
    finally:
        torch.set_num_threads(threads)


# bad input


@pytest.mark.parametrize("row", EVALUATION_PERTURBATIONS, ids=lambda row: row.name)
def test_silence_stays_silence(row, noise_clips):
    assert not one(row.name, noise_clips)(torch.zeros(1, 100), [100], [1]).waveforms.any()


def test_real_noise_without_clips_is_named():
    with pytest.raises(ValueError, match="real need noise_clips"):
        Perturber(TRAINING_PERTURBATIONS)
    with pytest.raises(ValueError, match="real, real_ood need noise_clips"):
        Perturber(EVALUATION_PERTURBATIONS, [])
    with pytest.raises(ValueError, match="Perturbations real need noise_clips"):
        Perturber(TRAINING_PERTURBATIONS, {"wind": [torch.ones(3)]})
    with pytest.raises(ValueError, match="Noise clip 0 of 'real' is silent"):
        Perturber(TRAINING_PERTURBATIONS, {"real": [torch.zeros(3)]})
    Perturber([row for row in TRAINING_PERTURBATIONS if row.kind != "real"])  # needs none


def test_in_domain_and_held_out_noise_do_not_share_a_pool(noise_clips):
    with pytest.raises(ValueError, match="real, real_ood would share one pool"):
        Perturber(EVALUATION_PERTURBATIONS, noise_clips)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (torch.zeros(0), "non-empty 1-d"),
        (torch.ones(2, 5), "non-empty 1-d"),
        (torch.zeros(10), "silent"),
        (torch.tensor([1.0, math.nan]), "NaN or infinite"),
    ],
)
def test_unusable_noise_clips_are_named(clip, message):
    with pytest.raises(ValueError, match=f"Noise clip 1 .*{message}"):
        one("real", [torch.ones(3), clip])


@pytest.mark.parametrize(
    ("waveforms", "num_samples", "seeds", "message"),
    [
        (torch.ones(5), [5], [0], r"\(batch, samples\)"),
        (torch.ones(1, 5, dtype=torch.int16), [5], [0], "floating point"),
        (torch.ones(1, 5), [0], [0], r"num_samples\[0\] must lie in 1..5, got 0"),
        (torch.ones(2, 5), [5, 6], [0, 0], r"num_samples\[1\] must lie in 1..5, got 6"),
        (torch.ones(2, 5), [5], [0, 0], "got 1 and 2"),
        (torch.ones(1, 5), [5], [-1], "Utterance 0 .*got -1"),
        (torch.ones(1, 5), [5], [2**32], "Utterance 0 .*got 4294967296"),
        (torch.tensor([[1.0, 1.0], [1.0, math.inf]]), [2, 2], [0, 0], "Utterance 1 .*NaN or infinite"),
    ],
)
def test_bad_batches_are_named(waveforms, num_samples, seeds, message):
    with pytest.raises(ValueError, match=message):
        one("gaussian")(waveforms, num_samples, seeds)


def test_padding_may_hold_anything():
    waveforms = torch.tensor([[1.0, -1.0, math.nan]])
    assert bool(torch.isfinite(one("pink")(waveforms, [2], [0]).waveforms).all())


@pytest.mark.parametrize(
    "row",
    [
        ("x", "purple", 1, 2),
        ("x", "pink", 2, 1),
        ("x", "pink", 1, math.inf),
        ("x", "bit_crush", 0, 8),
        ("x", "bit_crush", 8.5, 9),
    ],
)
def test_impossible_rows_are_refused(row):
    with pytest.raises(ValueError, match="'x'"):
        Perturbation(*row)
    with pytest.raises(ValueError, match="at least one"):
        Perturber([])


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        coloured_noise(0, 1.0, seeded())
    with pytest.raises(ValueError, match="5 samples, noise 4"):
        mix_at_snr(torch.ones(5), torch.ones(4), 10.0)
    with pytest.raises(ValueError, match="noise is silent"):
        mix_at_snr(torch.ones(5), torch.zeros(5), 10.0)
    with pytest.raises(ValueError, match="got 25"):
        bit_crush(torch.ones(5), 25)
    with pytest.raises(ValueError, match="got 0.1"):
        change_speed(torch.ones(5), 0.1)
    with pytest.raises(ValueError, match="too short"):
        change_speed(torch.ones(1), 3.0)
