"""Measuring a DisentangledWhisper: pairs, distances, noise posteriors, and the recipe that does it."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_training import SHAPE
from transformers import GenerationConfig

from clearspeech import DisentangledWhisperConfig, DisentangledWhisperForConditionalGeneration
from clearspeech.trainers import noise_evaluation
from clearspeech.trainers.evaluation import tokenize, transcribe
from clearspeech.trainers.metrics import relative_error_reduction
from clearspeech.trainers.noise_evaluation import (
    LatentSpeech,
    NoisyPairs,
    encode_latents,
    error_reductions,
    frame_distances,
    frame_spread,
    invariance_table,
    noise_accuracy,
    posterior_table,
    read_pairs,
    word_error_rates,
)

CLASSES = ["rain", "wind", "unknown"]


def disentangled(**overrides) -> DisentangledWhisperForConditionalGeneration:
    """A random recognizer that writes eight letters, with a window of two seconds."""
    torch.manual_seed(0)
    tiny = dict(codebook_size=32, codebook_dim=8, noise_head_dim=16, window_overlap=10, init_std=0.5)
    config = DisentangledWhisperConfig(**SHAPE, **{**tiny, "noise_labels": CLASSES[:-1], **overrides})
    model = DisentangledWhisperForConditionalGeneration(config).eval()
    ids = dict(decoder_start_token_id=1, bos_token_id=1, eos_token_id=0, pad_token_id=0)
    model.generation_config = GenerationConfig(max_length=9, suppress_tokens=[0, 1, 2, 3, 4], num_beams=2, **ids)
    return model


@pytest.fixture
def model():
    return disentangled()


@pytest.fixture
def feature_extractor(tiny_processor):
    return tiny_processor.feature_extractor


@pytest.fixture
def speech(make_speech) -> list[np.ndarray]:
    return [make_speech(num_samples, seed) for seed, num_samples in enumerate((16000, 7000, 12345, 9000))]


def latent_speech(states: list[torch.Tensor], codes: list[list[int]], probabilities=None) -> LatentSpeech:
    codes = [torch.tensor(row) for row in codes]
    return LatentSpeech(codes, states, states, probabilities, None)


# --- encoding ---


def test_latents_come_back_in_order_and_do_not_depend_on_the_batch(model, feature_extractor, speech):
    together = encode_latents(model.model, feature_extractor, speech, batch_size=3)
    alone = [encode_latents(model.model, feature_extractor, [waveform]) for waveform in speech]
    assert [len(codes) for codes in together.codes] == [-(-len(waveform) // 640) for waveform in speech]
    for row, one in enumerate(alone):
        assert torch.equal(one.codes[0], together.codes[row])
        assert torch.allclose(one.latents[0], together.latents[row], rtol=1e-4, atol=1e-2)  # they are around 100
        assert torch.allclose(one.noise_probabilities[0], together.noise_probabilities[row], atol=1e-4)
    assert torch.allclose(together.noise_probabilities.sum(dim=-1), torch.ones(4))
    assert together.noise_features.shape == (4, 16)


def test_a_model_without_a_noise_head_has_no_posterior(feature_extractor, speech):
    encoded = encode_latents(disentangled(noise_labels=[]).model, feature_extractor, speech)
    assert encoded.noise_probabilities is None and encoded.noise_features is None


def test_measuring_does_not_end_training(model, feature_extractor, speech):
    model.train()
    encode_latents(model.model, feature_extractor, speech)
    assert model.model.training


def test_tokens_need_a_quantizer(feature_extractor, speech):
    with pytest.raises(ValueError, match="bottleneck='adapter' has no tokens"):
        encode_latents(disentangled(bottleneck="adapter", noise_labels=[]).model, feature_extractor, speech)


def test_no_speech_is_refused(model, feature_extractor):
    with pytest.raises(ValueError, match="no waveform to encode"):
        encode_latents(model.model, feature_extractor, [])


def test_tokenizing_needs_no_votes(model, feature_extractor, speech):
    tokens = tokenize(model.model, feature_extractor, speech, batch_size=3)
    expected = encode_latents(model.model, feature_extractor, speech).codes
    assert all(torch.equal(one, other) for one, other in zip(tokens.codes, expected, strict=True))
    assert tokens.votes == []


def test_transcripts_can_be_searched_with_beams(model, feature_extractor, tokenizer, speech, monkeypatch):
    beams = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **options: beams.append(options["num_beams"]) or generate(**options))
    transcribe(model, feature_extractor, tokenizer, speech, num_beams=3)
    transcribe(model, feature_extractor, tokenizer, speech)
    assert beams == [3, 1]


# --- pairs ---


def test_pairs_are_read_once_so_that_labels_belong_to_their_noise():
    reads = []

    def draw(batch):
        reads.append(len(reads))
        audio = [np.full(4, reads[-1], dtype=np.float32) for _ in batch["text"]]
        return {"audio": audio, "clean_audio": audio, "text": batch["text"], "noise": [str(reads[-1])] * len(audio)}

    columns = {"text": ["a", "b"], "audio": [0, 0], "clean_audio": [0, 0], "noise": ["", ""]}
    pairs = read_pairs(Dataset.from_dict(columns).with_transform(draw))
    assert [str(int(waveform[0])) for waveform in pairs.noisy] == pairs.noise


def test_a_pair_of_two_lengths_is_refused():
    rows = {"audio": [[0.0] * 4], "clean_audio": [[0.0] * 3], "text": ["hello"]}
    with pytest.raises(ValueError, match="'hello' has 4 noisy and 3 clean samples"):
        read_pairs(Dataset.from_dict(rows))


def test_a_swapped_pair_is_refused(make_speech):
    clean = make_speech(16000)
    rows = {"audio": [clean], "clean_audio": [clean + 0.1 * np.random.randn(16000)], "text": ["hello"]}
    with pytest.raises(ValueError, match="'hello' seems to be swapped"):
        read_pairs(Dataset.from_dict(rows).with_format("numpy"))


def test_speech_without_its_clean_view_is_refused():
    with pytest.raises(ValueError, match="Expected pairs with a column clean_audio"):
        read_pairs(Dataset.from_dict({"audio": [[0.0]], "text": ["hello"]}))


def test_speech_recorded_in_noise_has_no_clean_view():
    pairs = read_pairs(Dataset.from_dict({"audio": [[0.0, 0.1]], "text": ["hello"], "noise": ["bus"]}))
    assert pairs.clean is None and list(pairs.views()) == ["noisy"] and pairs.noise == ["bus"]


def test_an_utterance_has_a_recording_in_each_noise_that_it_was_made_in(speech):
    one, other, *_ = speech
    noisy = [np.full(4, row) for row in range(5)]
    pairs = NoisyPairs(noisy, [one, other, one, one, one], ["a"] * 5, ["bus", "cafe", "street", "", "bus"])
    found = pairs.recordings(4)
    assert {name: waveform[0] for name, waveform in found.items()} == {"bus": 4, "street": 2, "recorded noise": 3}


# --- figures ---


def test_speech_that_noise_does_not_move_has_no_distance():
    states = [torch.randn(5, 8), torch.randn(3, 8)]
    speech = latent_speech(states, [[1, 2, 3, 4, 5], [1, 1, 1]])
    table = invariance_table(speech, speech, codebook_size=10)
    assert table["latent_distance"] == table["code_distance_relative"] == table["ued"] == 0.0
    assert table["codebook_usage"] == 50.0


def test_relative_distances_do_not_depend_on_the_scale_of_the_latents():
    clean, noisy = [torch.randn(5, 8)], [torch.randn(5, 8)]
    codes = [[1, 2, 3, 4, 5]]
    small = invariance_table(latent_speech(clean, codes), latent_speech(noisy, codes), 10)
    large = invariance_table(latent_speech([10 * clean[0]], codes), latent_speech([10 * noisy[0]], codes), 10)
    assert large["latent_distance"] == pytest.approx(10 * small["latent_distance"], rel=1e-5)
    assert large["latent_distance_relative"] == pytest.approx(small["latent_distance_relative"], rel=1e-5)
    slow = np.mean([math.dist(one, other) for one, other in zip(clean[0].tolist(), noisy[0].tolist())])
    assert small["latent_distance"] == pytest.approx(slow, rel=1e-5)


def test_the_spread_is_the_mean_distance_of_two_frames():
    states = [torch.randn(4, 3), torch.randn(2, 3)]
    frames = torch.cat(states).tolist()
    slow = [math.dist(one, other) for index, one in enumerate(frames) for other in frames[:index]]
    assert frame_spread(states) == pytest.approx(np.mean(slow), rel=1e-5)
    many = [torch.randn(3000, 3)]
    assert frame_spread(many) == frame_spread(many)


@pytest.mark.parametrize("states", [[torch.ones(4, 3)], [torch.ones(1, 3)]])
def test_latents_of_one_point_have_no_spread(states):
    with pytest.raises(ValueError, match="have no spread to compare with"):
        frame_spread(states)


def test_distances_of_utterances_that_are_no_pair_are_refused():
    with pytest.raises(ValueError, match=r"Utterance 1 has states \(2, 3\) and \(4, 3\)"):
        frame_distances([torch.ones(1, 3), torch.ones(2, 3)], [torch.ones(1, 3), torch.ones(4, 3)])


def test_posteriors_are_uniform_or_sure():
    uniform = posterior_table(latent_speech([], [], torch.full((3, 4), 0.25)), "clean")
    assert uniform["clean_posterior_max"] == uniform["clean_unknown"] == 25.0
    assert uniform["clean_posterior_entropy"] == pytest.approx(math.log(4))
    sure = posterior_table(latent_speech([], [], torch.eye(4)[[0, 3]]), "noisy")
    assert sure == {"noisy_posterior_max": 100.0, "noisy_posterior_entropy": 0.0, "noisy_unknown": 50.0}


def test_a_verdict_of_unknown_is_wrong():
    verdicts = torch.eye(3)[[0, 2, 1, 1]]
    assert noise_accuracy(verdicts, ["rain", "rain", "wind", "wind"], CLASSES) == {
        "noise_accuracy": 75.0,
        "noise_accuracy/rain": 50.0,
        "noise_accuracy/wind": 100.0,
    }


@pytest.mark.parametrize(
    "noise, received", [(["dog"], "'dog'"), (["rain", "unknown"], "'unknown'"), ([""], "''"), ([], "no utterance")]
)
def test_noise_that_the_head_does_not_know_is_refused(noise, received):
    with pytest.raises(ValueError, match=f"knows rain, wind; got {received}"):
        noise_accuracy(torch.ones(len(noise), 3), noise, CLASSES)


def test_errors_are_counted_for_each_noise(monkeypatch):
    views = {"noisy": ["a x", "a b", "x x", "a b"], "clean": ["a b"] * 4}
    monkeypatch.setattr(noise_evaluation, "transcribe", lambda *arguments: views[arguments[3]])
    pairs = NoisyPairs("noisy", "clean", ["a b"] * 4, ["rain", "rain", "wind", ""])
    rates = word_error_rates(None, None, None, pairs)
    assert rates == {"wer": 37.5, "wer/rain": 25.0, "wer/wind": 100.0, "wer/clean": 0.0}
    alone = word_error_rates(None, None, None, NoisyPairs("noisy", None, pairs.texts, pairs.noise))
    assert alone == {name: rate for name, rate in rates.items() if name != "wer/clean"}


def test_the_relative_error_reduction_is_the_papers():
    assert round(relative_error_reduction(2.47, 13.72)) == 82  # section IV-A
    assert round(relative_error_reduction(2.47, 3.78)) == 35
    assert relative_error_reduction(6.0, 4.0) == -50.0
    with pytest.raises(ValueError, match="error must be positive, got 0.0"):
        relative_error_reduction(1.0, 0.0)


def test_errors_are_reduced_under_each_noise_on_which_the_base_errs():
    base = {"wer": 20.0, "wer/rain": 40.0, "wer/wind": 0.0, "wer/clean": 5.0}
    rates = {"wer": 5.0, "wer/rain": 50.0, "wer/wind": 1.0, "wer/clean": 4.0}
    assert error_reductions(rates, base) == {"rer": 75.0, "rer/rain": -25.0}
