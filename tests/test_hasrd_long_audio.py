"""Long audio through HASRD: windows to encode it in, chunks to decode it in, memory that does not grow."""

import numpy as np
import pytest
import torch
from tiny_hasrd import ENCODERS, make_feature_extractor, make_hasrd, make_inputs, row_of

from clearspeech import HasrdModel
from clearspeech.modeling.chunked_coding import decoder_context, decoding_chunks, encoding_windows


@pytest.fixture(params=list(ENCODERS))
def model(request) -> HasrdModel:
    return make_hasrd(request.param)


@pytest.fixture
def best_rq() -> HasrdModel:
    return make_hasrd()


def test_decoding_in_chunks_is_one_pass(model):
    codes = model.encode(**make_inputs(model, 40, 23)).audio_codes
    expected = model.decode(codes).audio_values
    for size in (1, 7, 39):
        audio = model.decode(codes, tokens_per_chunk=size).audio_values
        torch.testing.assert_close(audio, expected, atol=1e-4, rtol=0)


def test_a_decoder_hears_ten_tokens_on_each_side():
    assert decoder_context((8, 8, 4, 2), (1, 3, 9)) == 10
    model = make_hasrd()
    states = torch.randn(1, 30, 16, requires_grad=True)
    middle = slice(15 * 512, 16 * 512)
    model.decoder(states)[:, middle].square().sum().backward()
    heard = states.grad[0].abs().sum(dim=-1).nonzero().flatten()
    assert 15 - 10 <= int(heard.min()) and int(heard.max()) <= 15 + 10


def test_windows_and_chunks_cover_every_token_once():
    for total in range(1, 60):
        for pieces in (encoding_windows(total, 10), decoding_chunks(total, 10, 3)):
            kept = [token for piece in pieces for token in range(piece.start, piece.end)[piece.kept]]
            assert kept == list(range(total))
            assert all(0 <= piece.start <= piece.keep_start < piece.keep_end <= piece.end <= total for piece in pieces)
    assert {piece.end - piece.start for piece in encoding_windows(57, 10)} == {10}


def test_long_audio_is_encoded_in_windows(model):
    """As many tokens as one pass gives; of the same utterance in any batch. Attention sees a window, not all."""
    inputs = make_inputs(model, 50, 33)
    expected = model.encode(**inputs).audio_codes
    model.config.max_source_tokens = 20
    output = model.encode(**inputs)
    assert output.audio_codes.shape == expected.shape
    assert output.attention_mask.sum(dim=1).tolist() == [50, 33]
    alone = model.encode(**row_of(inputs, 1, 33, model)).audio_codes
    assert torch.equal(alone[0], output.audio_codes[1, :, :33])
    agreement = float((output.audio_codes == expected)[0].float().mean())
    print(f"{type(model.encoder).__name__}: {100 * agreement:.1f} % of the codes as in one pass")


def test_convolutions_do_not_see_the_seams():
    """The front-end looks 32 tokens to each side, windows of 1000 tokens are cut 100 from their ends."""
    model = make_hasrd("front_end")
    inputs = make_inputs(model, 400)
    expected = model.encode(**inputs).audio_codes
    model.config.max_source_tokens = 330
    assert torch.equal(model.encode(**inputs).audio_codes, expected)


def test_memory_for_long_audio_is_that_of_a_window(best_rq):
    """No pass over more tokens than a window or a chunk with its context."""
    seen = []
    for module in (best_rq.encoder, best_rq.decoder):
        module.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append((args or tuple(kwargs.values()))[0].shape[1]), with_kwargs=True
        )
    best_rq.config.max_source_tokens = 30
    codes = best_rq.encode(**make_inputs(best_rq, 400)).audio_codes
    assert codes.shape[2] == 400 and max(seen) == 30 * 4
    seen.clear()
    assert best_rq.decode(codes, tokens_per_chunk=30).audio_values.shape == (1, 400 * 512)
    assert max(seen) == 50


@pytest.mark.slow
def test_an_hour_is_encoded_and_decoded():
    """From samples to samples; of what grows with its length there are those, the features and the codes."""
    model, extractor = make_hasrd(decoder_channels=16), make_feature_extractor()
    hour = 0.1 * np.random.default_rng(0).standard_normal(57_600_000, dtype=np.float32)
    codes = model.encode(**extractor(hour, sampling_rate=16000, return_tensors="pt")).audio_codes
    assert codes.shape == (1, 4, 112_500) and codes.min() >= 0
    assert model.decode(codes, num_samples=57_600_000).audio_values.shape == (1, 57_600_000)
