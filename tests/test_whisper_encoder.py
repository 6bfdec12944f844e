"""Questions to the encoder on real lengths: Whisper's states, exact padding, checkpointing, precision."""

import pytest
import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder, sinusoids

from clearspeech.modeling.whisper_encoder import LengthAwareWhisperEncoder, masked_mean_pool
from clearspeech.processing.feature_extraction_stable_token import StableTokenFeatureExtractor

POSITIONS = 120  # 2.4 s


@pytest.fixture
def config() -> WhisperConfig:
    return WhisperConfig(
        num_mel_bins=16,
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        max_source_positions=POSITIONS,
        init_std=0.3,
        attn_implementation="sdpa",
    )


@pytest.fixture
def encoder(config) -> LengthAwareWhisperEncoder:
    return LengthAwareWhisperEncoder(config).eval()


def test_full_length_input_gives_whispers_states(config, encoder):
    reference = WhisperEncoder(config).eval()
    encoder.load_state_dict(reference.state_dict())
    features = torch.randn(2, 16, 2 * POSITIONS)
    with torch.no_grad():
        expected = reference(features).last_hidden_state
        torch.testing.assert_close(encoder(features).last_hidden_state, expected, atol=1e-5, rtol=0)
        everything = torch.ones(2, 2 * POSITIONS, dtype=torch.int64)
        torch.testing.assert_close(encoder(features, everything).last_hidden_state, expected, atol=1e-5, rtol=0)


def test_a_random_encoder_has_whispers_sinusoids(encoder):
    assert torch.equal(encoder.embed_positions.weight, sinusoids(POSITIONS, 32))
    assert not encoder.embed_positions.weight.requires_grad


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5, 63, 64, 65, 101, 239])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_states_do_not_depend_on_padding_even_when_the_padding_is_not_silent(config, num_frames, attention):
    config._attn_implementation = attention
    encoder = LengthAwareWhisperEncoder(config).eval()
    features = torch.randn(2, 16, 240)
    mask = torch.ones(2, 240, dtype=torch.int64)
    mask[0, num_frames:] = 0
    with torch.no_grad():
        alone = encoder(features[:1, :, :num_frames]).last_hidden_state
        batch = encoder(features, mask).last_hidden_state
    num_states = -(-num_frames // 2)
    assert alone.shape == (1, num_states, 32)
    torch.testing.assert_close(batch[:1, :num_states], alone, atol=2e-5, rtol=0)


@pytest.mark.parametrize("num_samples", [161, 319, 320, 321, 639, 640, 641, 1279, 1281, 15999, 32639, 32640])
def test_states_of_an_utterance_alone_and_in_a_batch_are_equal(encoder, make_speech, num_samples):
    extractor = StableTokenFeatureExtractor(feature_size=16)
    speech, longer = make_speech(num_samples), make_speech(35000, seed=1)
    with torch.no_grad():
        alone = encoder(**extractor(speech, sampling_rate=16000, return_tensors="pt")).last_hidden_state
        batch = encoder(**extractor([speech, longer], sampling_rate=16000, return_tensors="pt")).last_hidden_state
    num_states = -(-num_samples // 320)
    torch.testing.assert_close(batch[0, :num_states], alone[0, :num_states], atol=2e-5, rtol=0)


def test_a_left_over_frame_is_its_own_mean():
    states = torch.randn(1, 5, 3)
    mask = torch.tensor([[True, True, True, False, False]])
    pooled, pooled_mask = masked_mean_pool(states, mask, 2)
    torch.testing.assert_close(pooled[0, 0], states[0, :2].mean(dim=0))
    torch.testing.assert_close(pooled[0, 1], states[0, 2])
    assert pooled.shape == (1, 3, 3)
    assert pooled_mask.tolist() == [[True, True, False]]


def test_sdpa_and_eager_attention_agree(config):
    states = []
    features, mask = torch.randn(2, 16, 90), torch.ones(2, 90, dtype=torch.int64)
    mask[1, 33:] = 0
    for attention in ("sdpa", "eager"):
        torch.manual_seed(1)
        config._attn_implementation = attention
        encoder = LengthAwareWhisperEncoder(config).eval()
        states.append(encoder(features, mask).last_hidden_state[:, :17])
    torch.testing.assert_close(states[0], states[1], atol=2e-5, rtol=0)


def test_gradient_checkpointing_gives_the_same_gradients(encoder):
    features, mask = torch.randn(2, 16, 90), torch.ones(2, 90, dtype=torch.int64)
    mask[1, 33:] = 0
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            encoder.gradient_checkpointing_enable()
        encoder.train().zero_grad()
        encoder(features, mask).last_hidden_state[:, :17].pow(2).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in encoder.named_parameters() if p.requires_grad})
    assert encoder.is_gradient_checkpointing
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_bfloat16_runs_and_is_near_float32(encoder):
    features, mask = torch.randn(2, 16, 90), torch.ones(2, 90, dtype=torch.int64)
    with torch.no_grad():
        expected = encoder(features, mask).last_hidden_state
        states = encoder.to(torch.bfloat16)(features, mask).last_hidden_state
    assert states.dtype == torch.bfloat16
    assert (states.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_bad_shapes_are_refused(encoder):
    with pytest.raises(ValueError, match=r"\(batch, 16 mel bins, frames\); got shape \(1, 80, 8\)"):
        encoder(torch.randn(1, 80, 8))
    with pytest.raises(ValueError, match=r"frames\) = \(1, 8\); got \(1, 7\)"):
        encoder(torch.randn(1, 16, 8), torch.ones(1, 7))
    with pytest.raises(ValueError, match="242 mel frames need 121 positions, the encoder has 120"):
        encoder(torch.randn(1, 16, 242))
