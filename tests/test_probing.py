"""Questions to the linear probes: do they find what is there, and nothing else; are they held-out, seeded, strict."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import BatchFeature

from clearspeech.trainers import probing
from clearspeech.trainers.metrics import CharacterErrorRate
from clearspeech.trainers.probing import (
    Probe,
    Rate,
    factor_frames,
    frames_needed,
    mix_labelled_noise,
    name_recording,
    plot_probes,
    probe_characters,
    probe_classes,
    split_recordings,
    stratified_folds,
    summarize,
)


class EnergyModel(torch.nn.Module):
    """Stands in for a FactoredASR: one frame per 100 samples, whose states are its samples, content their half."""

    device = torch.device("cpu")

    def __init__(self, factorize: bool = True):
        super().__init__()
        self.factorize = factorize

    def factors(self, input_values, attention_mask):
        states = input_values.unflatten(1, (-1, 100))
        content, context = (2 * states[..., :50], 2 * states[..., 50:]) if self.factorize else (states, None)
        mask = attention_mask[:, ::100].bool()
        return SimpleNamespace(content=content, context=context, last_hidden_state=states, attention_mask=mask)


def pad(audio, sampling_rate, return_tensors):
    """Its processor."""
    waveforms = [torch.as_tensor(waveform) for waveform in audio]
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True, padding_value=9.0)
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    return BatchFeature({"input_values": padded, "attention_mask": mask.long()})


def random_frames(labels: list[str], seed: int, tells: bool) -> list[torch.Tensor]:
    """Utterances `(frames, 6)` of noise whose mean depends on the label, if it tells."""
    generator, classes = torch.Generator().manual_seed(seed), sorted(set(labels))
    frames = []
    for number, label in enumerate(labels):
        states = torch.randn(5 + number % 3, 6, generator=generator)
        states[:, classes.index(label)] += 3.0 * tells
        frames.append(states)
    return frames


def spelled_frames(texts: list[str], tells: bool) -> list[torch.Tensor]:
    """Two frames `(frames, 5)` for each character, which differ by character if they tell."""
    generator = torch.Generator().manual_seed(1)
    alphabet = " abn"
    frames = []
    for text in texts:
        ids = torch.tensor([[1 + alphabet.index(character), 0] for character in text]).flatten()
        states = torch.nn.functional.one_hot(ids, 5).float() * tells
        frames.append(states + 0.1 * torch.randn(len(ids), 5, generator=generator))
    return frames


def test_frames_come_in_order_and_without_padding(make_speech):
    waveforms = [make_speech(100 * frames, seed=frames) for frames in (3, 1, 7, 2)]
    frames = factor_frames(EnergyModel(), pad, waveforms, batch_size=2)
    assert list(frames) == ["content", "context", "states"]
    for waveform, content, context, states in zip(waveforms, *frames.values(), strict=True):
        assert torch.equal(states.flatten(), torch.from_numpy(waveform))
        assert torch.equal(torch.cat([content, context], dim=-1), 2 * states)


def test_a_model_without_factors_has_states_alone_and_keeps_its_mode(make_speech):
    model = EnergyModel(factorize=False).train()
    frames = factor_frames(model, pad, [make_speech(300)])
    assert list(frames) == ["states"] and model.training


def test_nothing_to_probe_is_refused():
    with pytest.raises(ValueError, match="no waveform"):
        factor_frames(EnergyModel(), pad, [])


def test_a_probe_finds_a_class_where_it_is_and_chance_where_it_is_not():
    labels = ["ann", "bob", "cat"] * 20
    frames = {"content": random_frames(labels, 0, tells=False), "context": random_frames(labels, 1, tells=True)}
    probe = probe_classes(frames, labels, stratified_folds(labels))
    assert probe.rates["context"].value > 95
    assert probe.rates["content"].value < 55
    assert probe.chance == pytest.approx(100 / 3)
    assert probe.context_minus_content.low > 30
    for rate in probe.rates.values():
        assert 0 <= rate.low <= rate.value <= rate.high <= 100


def test_an_utterance_is_judged_by_a_probe_that_has_not_seen_it():
    """Distinct directions for each utterance: what was trained on is known by heart, what was not is a guess."""
    labels = ["ann", "bob"] * 10
    frames = {"states": [10.0 * row[None] for row in torch.eye(20)]}
    assert probe_classes(frames, labels, stratified_folds(labels)).rates["states"].value < 75


def test_probes_are_the_same_each_time():
    labels = ["ann", "bob"] * 10
    frames = {"states": random_frames(labels, 0, tells=True)}
    runs = [probe_classes(frames, labels, stratified_folds(labels)) for _ in range(2)]
    assert runs[0] == runs[1] and runs[0].context_minus_content is None


def test_folds_have_their_share_of_every_class():
    labels = np.array(["ann"] * 15 + ["bob"] * 11)
    folds = stratified_folds(list(labels))
    for fold in range(5):
        assert (labels[folds == fold] == "ann").sum() == 3
        assert (labels[folds == fold] == "bob").sum() in (2, 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["ann"] * 5 + ["bob"] * 4, "at least 5 utterances.*'bob': 4"),
        (["ann"] * 9, "only ann"),
        ([], "no utterance"),
        (["ann"] * 5 + [""] * 5, "5 of 10 utterances have no label"),
    ],
)
def test_classes_that_cannot_be_probed_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        stratified_folds(labels)


@pytest.fixture
def tones():
    """A clip of each of five recordings of each of two classes; a clip is a constant, and no two are alike."""
    return {
        name: {f"{name}{clip}": [np.full(50, sign * (1.0 + clip), "f4")] for clip in range(5)}
        for name, sign in (("a", 1), ("b", -1))
    }


def test_noise_classes_are_balanced_and_folds_share_neither_utterance_nor_recording(tones, make_speech, monkeypatch):
    met = []
    perturber = probing.Perturber
    monkeypatch.setattr(probing, "Perturber", lambda rows, clips: met.append(clips) or perturber(rows, clips))
    mixed = mix_labelled_noise([make_speech(50, seed) for seed in range(20)], tones, (0.0, 10.0), copies=2)
    assert sorted(mixed.utterances) == sorted([*range(20)] * 2)
    for fold in range(5):
        of_fold = mixed.folds == fold
        assert [np.array(mixed.labels)[of_fold].tolist().count(name) for name in tones] == [4, 4]
        assert not set(mixed.utterances[of_fold]) & set(mixed.utterances[~of_fold])
    assert all(np.ndim(clips) == 2 and len(clips) == 1 for clips in met)
    assert {float(clips[0][0]) for clips, fold in zip(met, mixed.folds) if fold == 2} == {3.0, -3.0}


def test_takes_of_one_recording_are_in_one_fold(tones, make_speech, monkeypatch):
    met = []
    perturber = probing.Perturber
    monkeypatch.setattr(probing, "Perturber", lambda rows, clips: met.append(clips) or perturber(rows, clips))
    tones["a"] |= {"a1": [np.full(50, 2.0 + take / 10, "f4") for take in range(3)], "more": [np.full(50, 9.0, "f4")]}
    mixed = mix_labelled_noise([make_speech(50, seed) for seed in range(20)], tones, (0.0, 10.0))
    folds_of = {}
    for clips, fold in zip(met, mixed.folds):
        for clip in clips:
            folds_of.setdefault(round(float(clip[0]), 1), set()).add(int(fold))
    assert {len(folds) for folds in folds_of.values()} == {1} and len(folds_of) == 13  # all clips are met
    assert folds_of[2.0] == folds_of[2.1] == folds_of[2.2]


def test_folds_have_about_equally_many_clips():
    recordings = {name: [np.full(1, float(ord(name)))] * number for name, number in zip("abcdef", (1, 1, 3, 1, 1, 1))}
    assert sorted(map(len, split_recordings(recordings))) == [1, 1, 1, 2, 3]


@pytest.mark.parametrize(
    ("path", "recording"),
    [
        ("4-102844-A-49.flac", "4-102844"),
        ("esc50/test/4-102844-C-49.wav", "4-102844"),
        ("rain/1.wav", "rain/1.wav"),
        ("airplane_seg00.flac", "airplane_seg00.flac"),
    ],
)
def test_a_file_of_esc50_names_its_recording(path, recording):
    assert name_recording(path) == recording


def test_the_noise_has_an_snr_of_the_range_and_is_the_same_each_time(tones, make_speech):
    clean = [make_speech(50, seed) for seed in range(10)]
    mixed, again = (mix_labelled_noise(clean, tones, (3.0, 6.0)) for _ in range(2))
    for waveform, repeated, number in zip(mixed.waveforms, again.waveforms, mixed.utterances):
        assert np.array_equal(waveform, repeated)
        noise = waveform - clean[number]
        assert 2.9 < 10 * np.log10(np.square(clean[number]).sum() / np.square(noise).sum()) < 6.1


def test_too_little_noise_and_too_few_utterances_are_refused(tones, make_speech):
    speech = [make_speech(50, seed) for seed in range(10)]
    with pytest.raises(ValueError, match="fewer recordings of {'b': 4}"):
        takes = {f"b{clip}": tones["b"][f"b{clip}"] * 2 for clip in range(4)}  # eight clips
        mix_labelled_noise(speech, tones | {"b": takes}, (0.0, 10.0))
    with pytest.raises(ValueError, match="got 1 classes"):
        mix_labelled_noise(speech, {"a": tones["a"]}, (0.0, 10.0))
    with pytest.raises(ValueError, match="9 utterances x 1 copies.*2 classes"):
        mix_labelled_noise(speech[:9], tones, (0.0, 10.0))


def test_copies_of_an_utterance_are_resampled_together():
    """Ten utterances, each all right or all wrong: copies must not make the interval narrower."""
    labels, utterances = ["a", "b"] * 50, np.repeat(np.arange(10), 10)
    right = np.repeat([1.0, 0.0] * 5, 10)
    together = summarize({"states": np.bincount(utterances, weights=right)}, np.bincount(utterances), 50.0, {})
    apart = summarize({"states": right}, np.ones(len(labels)), 50.0, {})
    widths = [probe.rates["states"].high - probe.rates["states"].low for probe in (together, apart)]
    assert together.rates["states"].value == apart.rates["states"].value == 50
    assert widths[0] > 2.5 * widths[1]


def test_characters_are_read_where_they_are_and_not_where_they_are_not():
    train, test = ["ban nab", "an", "baa", "nab an", "ab ba"] * 8, ["nan", "ban an"]
    frames = [
        {"content": spelled_frames(texts, True), "context": spelled_frames(texts, False)} for texts in (train, test)
    ]
    probe = probe_characters(frames[0], train, frames[1], test)
    assert probe.rates["content"].value < 5 and probe.chance == 100
    assert probe.rates["context"].value > 50 and probe.context_minus_content.low > 0


def test_character_error_rates_are_the_suites(monkeypatch):
    monkeypatch.setattr(probing.CharacterLayer, "fit", lambda *_: None)
    monkeypatch.setattr(probing.CharacterLayer, "transcribe", lambda self, frames: "ban")
    test = ["nan", "Ban, an"]
    frames = {"states": spelled_frames(["nan", "ban an"], True)}
    expected = CharacterErrorRate().compute(predictions=["ban", "ban"], references=test)["cer"]
    assert probe_characters(frames, test, frames, test).rates["states"].value == pytest.approx(expected)


def test_texts_longer_than_their_frames_are_not_trained_on_and_empty_ones_are_refused():
    frames = {"states": [torch.randn(3, 5)]}
    assert frames_needed("baab") == 5
    with pytest.raises(ValueError, match="fewer frames than characters"):
        probe_characters(frames, ["baab"], frames, ["a"])
    with pytest.raises(ValueError, match="empty after normalization"):
        probe_characters(frames, ["..."], frames, ["a"])


def test_probes_are_drawn(tmp_path):
    rates = {name: Rate(value, value - 5, value + 5) for name, value in (("content", 30.0), ("context", 90.0))}
    plot_probes({"speaker accuracy in %": Probe(rates, 10.0, None, {"content": 4})}, tmp_path / "probe.png", "an4")
    assert (tmp_path / "probe.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no probe"):
        plot_probes({}, tmp_path / "probe.png", "an4")
