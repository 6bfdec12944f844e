"""Questions to HASRD: equations, books, padding, gradients, precision, reload."""

import numpy as np
import pytest
import torch
from tiny_hasrd import (
    ENCODERS,
    fit_at_random,
    make_config,
    make_feature_extractor,
    make_hasrd,
    make_inputs,
    row_of,
)
from transformers import AutoModel, AutoModelForAudioTokenization

from clearspeech import HasrdConfig, HasrdModel
from clearspeech.configuration.configuration_best_rq import BestRQConfig
from clearspeech.modeling.vector_quantization import nearest_codes

LENGTHS = (7, 3, 1)  # tokens


@pytest.fixture(params=list(ENCODERS))
def model(request) -> HasrdModel:
    return make_hasrd(request.param)


@pytest.fixture
def best_rq() -> HasrdModel:
    return make_hasrd()


def test_every_token_begun_has_a_code_of_every_book(model):
    config = model.config
    codes = model.encode(**make_inputs(model, 5)).audio_codes
    assert codes.shape == (1, config.num_books, 5)
    assert all(
        0 <= codes[:, book].min() and codes[:, book].max() < size for book, size in enumerate(config.book_sizes)
    )
    name = model.main_input_name
    longer = {name: torch.cat([make_inputs(model, 5)[name], make_inputs(model, 1, seed=1)[name][:, :1]], dim=1)}
    assert model.encode(**longer).audio_codes.shape[2] == 6
    shortest = {name: longer[name][:, :1]}
    assert model.encode(**shortest).audio_codes.shape == (1, config.num_books, 1)


def test_codes_and_audio_do_not_depend_on_the_batch_or_its_padding(model):
    inputs = make_inputs(model, *LENGTHS, padding=2)
    output = model.encode(**inputs)
    audio = model.decode(output.audio_codes).audio_values
    assert output.attention_mask.sum(dim=1).tolist() == list(LENGTHS)
    for row, num_tokens in enumerate(LENGTHS):
        alone = model.encode(**row_of(inputs, row, num_tokens, model)).audio_codes
        assert torch.equal(alone[0], output.audio_codes[row, :, :num_tokens])
        assert bool((output.audio_codes[row, :, num_tokens:] == -1).all())
        expected = model.decode(alone).audio_values[0]
        torch.testing.assert_close(audio[row, : len(expected)], expected, atol=1e-5, rtol=0)
        assert not audio[row, len(expected) :].any()


def test_waveforms_of_one_length_are_encoded_at_once():
    """Also where the first convolution is normalized over time, for which padding would be audio."""
    hubert, batches = make_hasrd("hubert"), []
    hubert.encoder.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    inputs = make_inputs(hubert, 9, 9, 9)
    states, _ = hubert.latents(**inputs)
    assert batches == [3]
    for row in range(3):
        alone, _ = hubert.latents(**row_of(inputs, row, 9, hubert))
        torch.testing.assert_close(states[row], alone[0], atol=1e-5, rtol=1e-5)
    batches.clear()
    hubert.latents(**make_inputs(hubert, 9, 8, 9))
    assert batches == [1, 1, 1]


def test_equations_2_and_3(best_rq):
    """Written out from the states of each layer."""
    inputs = make_inputs(best_rq, 6)
    states, mask = best_rq.latents(**inputs)
    hidden = best_rq.encoder(**inputs, output_hidden_states=True).hidden_states
    weights = best_rq.layer_weights.softmax(dim=0)
    torch.nn.init.normal_(best_rq.projection.weight)
    mixed = sum(weight * each for weight, each in zip(weights, hidden))
    codebook = best_rq.semantic_quantizer.codebook
    semantic_codes = nearest_codes(hidden[1], codebook)
    residual = mixed @ best_rq.projection.weight.T - codebook[semantic_codes]
    total, codes = codebook[semantic_codes], [semantic_codes]
    for book in best_rq.acoustic_quantizer.books:
        vectors, ids, _, _ = book(residual)
        total, residual = total + vectors, residual - vectors
        codes.append(ids)
    quantized = best_rq.quantize(states, mask)
    assert torch.equal(quantized.codes, torch.stack(codes, dim=1))
    torch.testing.assert_close(quantized.states, total)
    output = best_rq(**inputs)
    torch.testing.assert_close(output.audio_values, best_rq.decoder(total))
    torch.testing.assert_close(output.audio_values, best_rq.decode(output.audio_codes).audio_values)


def test_layers_start_alike_and_w_from_the_identity():
    torch.manual_seed(0)
    model = HasrdModel(make_config())
    states = torch.randn(1, 4, 3, 16)
    torch.testing.assert_close(model.mix_layers(states), states.mean(dim=2))


def test_gradients_reach_w_and_the_layers_weights_but_not_the_semantic_book(best_rq):
    best_rq.encoder.requires_grad_(False)
    best_rq.train()
    output = best_rq(**make_inputs(best_rq, *LENGTHS), depths=torch.tensor([3, 3, 3]))
    (output.audio_values.square().sum() + output.commitment_loss.sum()).backward()
    assert bool(best_rq.layer_weights.grad.any()) and bool(best_rq.projection.weight.grad.any())
    assert all(weight.grad is None for weight in best_rq.encoder.parameters())
    assert not best_rq.semantic_quantizer.codebook.requires_grad


def test_the_bare_codec_trains_its_encoder():
    """Table 1's DAC+fbank: no semantic book, no layers to mix, no W."""
    model = make_hasrd("front_end").train()
    assert model.config.num_books == 3
    model(**make_inputs(model, 4)).audio_values.square().sum().backward()
    assert all(bool(weight.grad.any()) for weight in model.encoder.parameters() if weight.dim() > 1)
    assert not {"projection", "semantic_quantizer"} & {name for name, _ in model.named_children()}


def test_the_encoder_of_a_model_in_training_gives_the_same_codes(model):
    """No dropout, no masked spans."""
    inputs = make_inputs(model, *LENGTHS)
    expected = model.encode(**inputs).audio_codes
    model.train()
    assert torch.equal(model(**inputs, depths=torch.full((3,), 3)).audio_codes, expected)
    assert model.decoder.training and not model.encoder.training


def test_losses_are_sums_over_an_utterances_tokens(model):
    inputs = make_inputs(model, *LENGTHS)
    output = model(**inputs)
    for row, num_tokens in enumerate(LENGTHS):
        alone = model(**row_of(inputs, row, num_tokens, model))
        torch.testing.assert_close(output.commitment_loss[row], alone.commitment_loss[0])
        torch.testing.assert_close(output.codebook_loss[row], alone.codebook_loss[0])


def test_a_stretch_is_decoded_of_what_was_encoded_as_a_whole(model):
    """As if its codes alone had been decoded; codes and losses are those of all tokens."""
    inputs = make_inputs(model, *LENGTHS)
    whole = model(**inputs)
    output = model(**inputs, first_tokens=torch.tensor([2, 1, 0]), num_tokens=4)
    assert torch.equal(output.audio_codes, whole.audio_codes)
    assert torch.equal(output.commitment_loss, whole.commitment_loss)
    assert output.audio_values.shape == (3, 4 * model.config.samples_per_token)
    for row, (first, end) in enumerate(((2, 6), (1, 3), (0, 1))):
        expected = model.decode(whole.audio_codes[row, None, :, first:end]).audio_values[0]
        torch.testing.assert_close(output.audio_values[row, : len(expected)], expected, atol=1e-5, rtol=0)
        assert not output.audio_values[row, len(expected) :].any()


def test_depths_say_how_many_acoustic_books_follow_the_semantic_one(best_rq):
    output = best_rq(**make_inputs(best_rq, 6, 6), depths=torch.tensor([0, 2]))
    for row, books in enumerate(("semantic", 3)):
        expected = best_rq.decode(output.audio_codes[row, None], books=books).audio_values[0]
        torch.testing.assert_close(output.audio_values[row], expected)


@pytest.mark.parametrize("encoder", ["best_rq", "front_end"])
def test_dropped_books_never_drop_the_first_one(encoder):
    """Any number from 1 on is kept: the semantic book, or without one the first acoustic."""
    model = make_hasrd(encoder, quantizer_dropout=1.0).train()
    inputs, numbers = make_inputs(model, 6, 6), range(1, model.config.num_books + 1)
    kept = []
    for seed in range(12):
        torch.manual_seed(seed)
        output = model(**inputs)
        torch.manual_seed(seed)
        assert torch.equal(model(**inputs).audio_values, output.audio_values)
        for codes, audio in zip(output.audio_codes, output.audio_values):
            heard = {books: model.decode(codes[None], books=books).audio_values[0] for books in numbers}
            (books,) = [books for books, expected in heard.items() if torch.allclose(audio, expected, atol=1e-6)]
            kept.append(books)
    assert set(kept) == set(numbers)
    model.eval()
    assert torch.equal(model(**inputs).audio_values, model.decode(output.audio_codes).audio_values)


def test_the_semantic_book_alone_needs_no_mixed_layers(best_rq, monkeypatch):
    inputs = make_inputs(best_rq, 6)
    expected = best_rq.encode(**inputs).audio_codes
    monkeypatch.setattr(best_rq, "mix_layers", None)
    assert torch.equal(best_rq.encode(**inputs, num_books=1).audio_codes, expected[:, :1])


def test_any_books_can_be_listened_to(best_rq):
    codes = best_rq.encode(**make_inputs(best_rq, 6)).audio_codes

    def listen(books) -> torch.Tensor:
        return best_rq.decode(codes, books=books).audio_values

    alike = [("all", None), ("all", 4), ("semantic", 1), ("semantic", [0]), ("acoustic", [1, 2, 3]), (2, [1, 0])]
    alike += [(2, np.int64(2)), (2, np.arange(2)), (2, torch.arange(2))]
    for one, other in alike:
        assert torch.equal(listen(one), listen(other))
    distinct = [listen(books) for books in ("all", "semantic", "acoustic", 2, [2])]
    assert all(not torch.allclose(a, b) for i, a in enumerate(distinct) for b in distinct[:i])
    few = best_rq.encode(**make_inputs(best_rq, 6), num_books=2).audio_codes
    assert torch.equal(few, codes[:, :2])
    assert torch.equal(best_rq.decode(few).audio_values, listen(2))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_codes_of_any_integers_are_decoded(best_rq, dtype):
    codes = best_rq.encode(**make_inputs(best_rq, 6)).audio_codes
    assert torch.equal(best_rq.decode(codes.to(dtype)).audio_values, best_rq.decode(codes).audio_values)


def test_audio_is_cut_to_its_length(best_rq):
    inputs = make_inputs(best_rq, 6, 3)
    codes = best_rq.encode(**inputs).audio_codes
    full = best_rq.decode(codes).audio_values
    cut = best_rq.decode(codes, num_samples=torch.tensor([3000, 1500])).audio_values
    assert cut.shape == (2, 3000) and torch.equal(cut[0], full[0, :3000])
    assert torch.equal(cut[1, :1500], full[1, :1500]) and not cut[1, 1500:].any()
    assert best_rq.decode(codes, num_samples=700).audio_values.shape == (2, 700)
    assert best_rq.decode(codes, num_samples=[np.int64(3000), 1500]).audio_values.shape == (2, 3000)
    for wrong in (1537, 0, [3072, 1536, 5], 1000.7, True):
        with pytest.raises(ValueError, match="num_samples must be"):
            best_rq.decode(codes, num_samples=wrong)


@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_silence_is_encoded_decoded_and_learned_from(encoder):
    """From samples on, without NaN."""
    model, silence = make_hasrd(encoder), np.zeros(16000, dtype=np.float32)
    inputs = make_feature_extractor(encoder)(
        silence, sampling_rate=16000, return_tensors="pt", return_attention_mask=True
    )
    codes = model.encode(**inputs).audio_codes
    assert codes.shape[2] == -(-16000 // model.config.samples_per_token)
    assert bool(model.decode(codes, num_samples=16000).audio_values.isfinite().all())
    output = model.train()(**inputs)
    for values in (output.audio_values, output.commitment_loss, output.codebook_loss):
        assert bool(values.isfinite().all())
    (output.audio_values.square().sum() + output.commitment_loss.sum() + output.codebook_loss.sum()).backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert gradients and all(bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_encodes_and_decodes(best_rq, dtype, tmp_path):
    best_rq.save_pretrained(tmp_path)
    inputs = make_inputs(best_rq, 30)
    expected = best_rq.encode(**inputs).audio_codes
    audio = best_rq.decode(expected).audio_values
    half = HasrdModel.from_pretrained(tmp_path, dtype=dtype)
    assert half.dtype == dtype and half.semantic_quantizer.codebook.dtype == torch.float32
    assert HasrdModel.from_pretrained(tmp_path, torch_dtype=dtype).dtype == dtype
    assert float((half.encode(**inputs).audio_codes == expected)[:, 0].float().mean()) > 0.8
    decoded = half.decode(expected).audio_values
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, audio, atol=0.02, rtol=0)


def test_quantizing_is_in_full_precision_under_autocast(best_rq):
    states, mask = best_rq.latents(**make_inputs(best_rq, 30))
    expected = best_rq.quantize(states, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantized = best_rq.quantize(states, mask)
        output = best_rq(**make_inputs(best_rq, 4))
    assert torch.equal(quantized.codes, expected.codes) and torch.equal(quantized.states, expected.states)
    assert output.audio_values.dtype == torch.float32


def test_a_reloaded_model_is_the_same(model, tmp_path):
    inputs = make_inputs(model, 9)
    expected = model(**inputs)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForAudioTokenization.from_pretrained(tmp_path)
    assert type(reloaded) is type(AutoModel.from_pretrained(tmp_path)) is HasrdModel and not reloaded.training
    output = reloaded(**inputs)
    assert torch.equal(output.audio_codes, expected.audio_codes)
    assert torch.equal(output.audio_values, expected.audio_values)


def test_a_model_kept_in_half_precision_knows_its_codebook(best_rq, tmp_path):
    best_rq.half().save_pretrained(tmp_path)
    reloaded = HasrdModel.from_pretrained(tmp_path)
    assert reloaded.dtype == torch.float32
    assert reloaded.encode(**make_inputs(best_rq, 4)).audio_codes.shape == (1, 4, 4)


@pytest.mark.parametrize("name", ["best_rq", "hubert", "wavlm"])
def test_a_codec_is_built_on_a_pretrained_encoder(name, tmp_path):
    source = make_hasrd(name).encoder
    source.save_pretrained(tmp_path / "encoder")
    fields = dict(num_acoustic_books=2, decoder_channels=32, semantic_layer=2, num_semantic_codes=5)
    if name != "best_rq":
        fields["upsampling_ratios"] = (5, 8, 4)
    model = HasrdModel.from_encoder(str(tmp_path / "encoder"), **fields).eval()
    states, _ = model.latents(**make_inputs(model, 5))
    other = make_hasrd(name)
    other.encoder.load_state_dict(source.state_dict())
    torch.testing.assert_close(states, other.latents(**make_inputs(model, 5))[0])
    assert str(tmp_path) not in model.config.to_json_string()
    with pytest.raises(ValueError, match="no centroids yet"):
        model.encode(**make_inputs(model, 5))
    with pytest.raises(ValueError, match="no centroids yet"):
        model.decode(torch.zeros(1, 3, 2, dtype=torch.long))


def test_what_a_checkpoint_may_lack_is_not_part_of_the_fingerprint(tmp_path):
    """An encoder's embedding of masked spans is drawn at each loading of a folder that has none."""
    source = make_hasrd("hubert").encoder
    weights = {name: values for name, values in source.state_dict().items() if name != "masked_spec_embed"}
    assert len(weights) == len(source.state_dict()) - 1
    source.save_pretrained(tmp_path, state_dict=weights)
    fields = dict(decoder_channels=32, semantic_layer=1, upsampling_ratios=(5, 8, 4))
    fingerprints = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        fingerprints.add(HasrdModel.from_encoder(str(tmp_path), **fields).encoder_fingerprint())
    assert len(fingerprints) == 1


def test_an_unfitted_model_is_saved_and_fitted_later(tmp_path):
    HasrdModel(make_config()).save_pretrained(tmp_path)
    model = HasrdModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="fit_semantic_codebook"):
        model(**make_inputs(model, 3))
    fit_at_random(model)
    assert model(**make_inputs(model, 3)).audio_values.shape == (1, 3 * 512)


def test_the_bitrates_are_the_papers():
    assert HasrdConfig().bitrate == 3.125 and HasrdConfig().frame_rate == 31.25
    hubert = HasrdConfig(encoder_config={"model_type": "hubert"})
    assert hubert.bitrate == 4.5 and hubert.upsampling_ratios == (8, 5, 4, 2) and hubert.num_books == 9
    bare = BestRQConfig(num_hidden_layers=0, hidden_size=1024, num_attention_heads=8)
    assert HasrdConfig(encoder_config=bare, num_semantic_codes=0).bitrate == 2.8125


def test_the_paper_is_the_default():
    config = HasrdConfig()
    assert (config.hidden_size, config.semantic_layer, config.num_books) == (768, 8, 10)
    assert (config.decoder_channels, config.upsampling_ratios) == (1536, (8, 8, 4, 2))
