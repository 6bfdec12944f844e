"""How close a codec's waveform is: DAC's distances, ratios of energy, what is not installed, voices."""

import math
import stat
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_corpora import SHARED_DATA, needs_shared_data
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

from clearspeech.processing.corpora import load_corpus
from clearspeech.trainers.codec_losses import mel_distances
from clearspeech.trainers.codec_metrics import (
    ALWAYS_HERE,
    MEASURES,
    UNITS,
    mel_distance,
    si_sdr,
    stft_distance,
    take_measures,
    visqol,
)
from clearspeech.trainers.speaker_similarity import (
    EcapaEncoder,
    LdaSpeakerEncoder,
    XVectorEncoder,
    similarity_anchors,
    spectral_statistics,
)


def slow_stft_distance(waveform, target) -> float:
    """DAC's, frame by frame."""
    total = 0.0
    for window in (2048, 512):
        hann = 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(window) / window)
        magnitudes = []
        for each in (waveform, target):
            padded = torch.nn.functional.pad(each[None], (window // 2, window // 2), mode="reflect")[0]
            frames = padded.unfold(0, window, window // 4) * hann
            magnitudes.append(torch.fft.rfft(frames).abs())
        logs = [each.clamp(min=1e-5).pow(2).log10() for each in magnitudes]
        total += float((logs[0] - logs[1]).abs().mean() + (magnitudes[0] - magnitudes[1]).abs().mean())
    return total


@pytest.fixture
def pair():
    return 0.1 * torch.randn(2, 3000), 0.1 * torch.randn(2, 3000)


def test_the_stft_distance_is_dacs(pair):
    expected = [slow_stft_distance(*each) for each in zip(*pair)]
    torch.testing.assert_close(stft_distance(*pair), torch.tensor(expected), rtol=1e-3, atol=0)


def test_the_mel_distance_is_the_papers_seven_windows(pair):
    windows, bins = (32, 64, 128, 256, 512, 1024, 2048), (5, 10, 20, 40, 80, 160, 320)
    torch.testing.assert_close(mel_distance(*pair), mel_distances(*pair, windows, bins))


def test_distances_of_audio_that_is_shorter_than_a_window_are_of_its_padding():
    waveforms, targets = 0.1 * torch.randn(1, 700), 0.1 * torch.randn(1, 700)
    padded = [torch.nn.functional.pad(each, (0, 1348)) for each in (waveforms, targets)]
    for distance in (mel_distance, stft_distance):
        assert float(distance(waveforms, targets)) == pytest.approx(float(distance(*padded)))
        assert float(distance(waveforms, waveforms)) == 0.0


def test_si_sdr_is_the_ratio_of_what_is_added_whatever_the_scale():
    target = torch.randn(1, 16000)
    noise = torch.randn(1, 16000)
    target, noise = (each - each.mean() for each in (target, noise))
    noise = noise - target * (noise * target).sum() / target.square().sum()
    noise = noise * target.norm() / noise.norm() / 10
    for scale in (1.0, 0.1, -2.0):
        assert float(si_sdr(scale * (target + noise) + 0.3, target)) == pytest.approx(20.0, abs=0.01)
    assert float(si_sdr(target, target)) > 70
    for other in (torch.zeros_like(target), target):
        assert torch.isfinite(si_sdr(other, torch.zeros_like(target))).all()
    assert float(si_sdr(torch.zeros_like(target), target)) < -70


def test_measures_are_taken_by_their_names(pair):
    figures = take_measures(pair[0][0], pair[1][0])
    assert figures.keys() == set(ALWAYS_HERE)
    assert figures["stft_distance"] == pytest.approx(float(stft_distance(*pair)[0]), rel=1e-5)
    assert UNITS.keys() == MEASURES.keys()
    with pytest.raises(ValueError, match="Measures are mel_distance.* got unknown mos"):
        take_measures(pair[0][0], pair[1][0], ["si_sdr", "mos"])


@pytest.mark.parametrize("name, package", [("stoi", "pystoi"), ("pesq", "pesq")])
def test_a_measure_whose_package_is_missing_says_so(name, package, pair, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"{name.upper()} needs the package {package}, .* pip install {package}"):
        MEASURES[name](pair[0][0], pair[1][0])


def test_packages_get_the_target_first_and_the_rate(pair, monkeypatch):
    made, target = pair[0][0], pair[1][0]
    given = {}
    pystoi, pesq = ModuleType("pystoi"), ModuleType("pesq")
    pystoi.stoi = lambda *values: given.update(stoi=values) or 0.5
    pesq.pesq = lambda *values: given.update(pesq=values) or 3.5
    monkeypatch.setitem(sys.modules, "pystoi", pystoi)
    monkeypatch.setitem(sys.modules, "pesq", pesq)
    assert take_measures(made, target, ("stoi", "pesq")) == {"stoi": 0.5, "pesq": 3.5}
    assert np.array_equal(given["stoi"][0], target) and given["stoi"][2] == 16000
    assert given["pesq"][0] == 16000 and np.array_equal(given["pesq"][2], made) and given["pesq"][3] == "wb"


def test_visqol_is_the_program_on_the_path_or_says_what_is_missing(pair, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="needs the program visqol on the PATH"):
        visqol(pair[0][0], pair[1][0])
    program = tmp_path / "visqol"
    test = '[ -f "$2" ] && [ -f "$4" ] && [ "$5" = --use_speech_mode ]'
    for line, script in (("", f"{test} && echo MOS-LQO:		4.25"), ("no score", "echo broken >&2; exit 3")):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IEXEC)
        if not line:
            assert visqol(pair[0][0], pair[1][0]) == 4.25
        else:
            with pytest.raises(RuntimeError, match="ended with 3 and no score: broken"):
                visqol(pair[0][0], pair[1][0])


# --- voices ---


def voices(num_speakers: int, per_speaker: int, seed: int = 0, room: float = 0.0):
    """
    Noise through a filter of each speaker's own, at random loudness; and the speakers' names. room: how much of it is
    the filter of a room that all of them are in, another one for each seed.
    """
    waveforms, speakers = [], []
    generator = torch.Generator().manual_seed(seed)
    filters = torch.randn(num_speakers, 24, generator=generator) + room * torch.randn(24, generator=generator)
    for speaker, response in enumerate(filters):
        for _ in range(per_speaker):
            noise = torch.randn(1, 1, 8000) * torch.rand(1)
            waveforms.append(torch.nn.functional.conv1d(noise, response[None, None])[0, 0])
            speakers.append(f"s{speaker}")
    return waveforms, speakers


def anchors_of(encoder, waveforms, speakers):
    return similarity_anchors([encoder(each) for each in waveforms], speakers)


def test_statistics_do_not_depend_on_loudness_and_silence_has_some():
    waveform = voices(1, 1)[0][0]
    torch.testing.assert_close(
        spectral_statistics(0.3 * waveform), spectral_statistics(waveform), atol=1e-3, rtol=1e-3
    )
    assert spectral_statistics(waveform).shape == (96,)
    for each in (torch.zeros(8000), torch.zeros(10)):
        assert spectral_statistics(each).isfinite().all()


def test_other_speakers_than_those_it_was_fitted_on_are_told_apart():
    anchors = anchors_of(LdaSpeakerEncoder.fit(*voices(12, 6)), *voices(5, 5, seed=1))
    assert anchors["similarity_same_speaker"] > anchors["similarity_other_speaker"] + 0.5
    assert anchors["similarity_error"] < 15


def test_two_speakers_of_one_corpus_are_not_alike_for_the_room_that_they_share():
    rooms = [voices(8, 5, seed, room=4.0) for seed in (0, 1, 2)]
    waveforms, speakers = (sum((room[part] for room in rooms), []) for part in (0, 1))
    corpora = [name for name, room in zip("abc", rooms) for _ in room[0]]
    encoder, test = LdaSpeakerEncoder.fit(waveforms, speakers, corpora), voices(8, 5, seed=3, room=4.0)
    assert encoder(test[0][0]).shape == (23,)  # 24 speakers, although each name is in three rooms
    far, near = (anchors_of(each, *test) for each in (encoder, encoder.centred(test[0])))
    assert far["similarity_other_speaker"] > 0.5
    assert abs(near["similarity_other_speaker"]) < 0.2 and near["similarity_same_speaker"] > 0.5


def test_too_few_or_nameless_speakers_are_refused():
    waveforms, speakers = voices(3, 2)
    for names in (["s1", "s1", "s1", "s2", "s2", "s2"], ["", "", *speakers[2:]], list("abcdef")):
        with pytest.raises(ValueError, match="at least 3 named speakers with two utterances"):
            LdaSpeakerEncoder.fit(waveforms, names)
    with pytest.raises(ValueError, match="Pairs of one and of two speakers"):
        similarity_anchors([each[:4] for each in waveforms], ["a"] * 6)


@needs_shared_data
def test_real_speakers_are_closer_to_themselves_than_to_others():
    """59 speakers of an4 for training, ten others for the test."""

    def read(split):
        rows = load_corpus(str(SHARED_DATA / "an4"), split, streaming=False)
        rows = rows.select(range(0, len(rows), 3 if split == "train" else 2))
        return [torch.tensor(np.array(row["audio"])) for row in rows], list(rows.select_columns("speaker")["speaker"])

    test = read("test")
    anchors = anchors_of(LdaSpeakerEncoder.fit(*read("train")).centred(test[0]), *test)
    assert abs(anchors["similarity_other_speaker"]) < 0.2
    assert anchors["similarity_same_speaker"] > anchors["similarity_other_speaker"] + 0.3
    assert anchors["similarity_error"] < 30


def test_a_model_of_transformers_gives_embeddings(tmp_path):
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    layers = dict(conv_dim=(8,) * 7, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)
    config = WavLMConfig(**sizes, **layers, tdnn_dim=(16,) * 5, xvector_output_dim=6)
    WavLMForXVector(config).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    encoder = XVectorEncoder(str(tmp_path))
    assert encoder(torch.randn(16000)).shape == encoder(torch.randn(300)).shape == (6,)


def test_ecapa_says_that_speechbrain_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "speechbrain", None)
    with pytest.raises(ImportError, match="ECAPA-TDNN needs the package speechbrain.* pip install speechbrain"):
        EcapaEncoder()


def test_ecapa_runs_where_it_is_told_to(monkeypatch):
    package, asked = ModuleType("speechbrain.inference.speaker"), []
    package.EncoderClassifier = SimpleNamespace(from_hparams=lambda **options: asked.append(options))
    for name, module in (("speechbrain", None), ("speechbrain.inference", None), (package.__name__, package)):
        monkeypatch.setitem(sys.modules, name, module or ModuleType(name))
    EcapaEncoder(device="cuda:1")
    assert asked == [{"source": "speechbrain/spkrec-ecapa-voxceleb", "run_opts": {"device": "cuda:1"}}]
