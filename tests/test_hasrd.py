"""Questions to HASRD: equations, books, padding, gradients, precision, reload, what is refused."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.torch import load_file, save_file
from tiny_hasrd import ENCODERS, fit_at_random, make_config, make_hasrd, make_inputs, row_of
from transformers import AutoModelForAudioTokenization, GPT2Config

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


@pytest.mark.parametrize("first", (-1, 3))
def test_a_stretch_outside_its_utterance_is_refused(best_rq, first):
    with pytest.raises(ValueError, match=rf"first tokens \[0, {first}\] in utterances of \[5, 3\]"):
        best_rq(**make_inputs(best_rq, 5, 3), first_tokens=torch.tensor([0, first]), num_tokens=2)


def test_dropped_books_never_drop_the_semantic_one(best_rq):
    inputs = make_inputs(best_rq, 6, 6)
    output = best_rq(**inputs, depths=torch.tensor([0, 2]))
    for row, books in enumerate(("semantic", 3)):
        expected = best_rq.decode(output.audio_codes[row, None], books=books).audio_values[0]
        torch.testing.assert_close(output.audio_values[row], expected)
    best_rq.config.quantizer_dropout = 1.0
    best_rq.train()
    torch.manual_seed(0)
    first = best_rq(**inputs).audio_values
    torch.manual_seed(0)
    assert torch.equal(best_rq(**inputs).audio_values, first)
    best_rq.eval()
    assert torch.equal(best_rq(**inputs).audio_values, best_rq(**inputs).audio_values)


def test_any_books_can_be_listened_to(best_rq):
    codes = best_rq.encode(**make_inputs(best_rq, 6)).audio_codes

    def listen(books) -> torch.Tensor:
        return best_rq.decode(codes, books=books).audio_values

    alike = [("all", None), ("all", 4), ("semantic", 1), ("semantic", [0]), ("acoustic", [1, 2, 3]), (2, [1, 0])]
    for one, other in alike:
        assert torch.equal(listen(one), listen(other))
    distinct = [listen(books) for books in ("all", "semantic", "acoustic", 2, [2])]
    assert all(not torch.allclose(a, b) for i, a in enumerate(distinct) for b in distinct[:i])
    few = best_rq.encode(**make_inputs(best_rq, 6), num_books=2).audio_codes
    assert torch.equal(few, codes[:, :2])
    assert torch.equal(best_rq.decode(few).audio_values, listen(2))


@pytest.mark.parametrize(
    ("books", "message"),
    [
        ([], r"got \[\]"),
        (0, "got 0"),
        (5, "got 5. This codec has 4"),
        ([4], "numbered from 0"),
        ([1, 1], "each once"),
        ("speaker", "got 'speaker'"),
    ],
)
def test_books_that_are_not_there_are_refused(best_rq, books, message):
    codes = best_rq.encode(**make_inputs(best_rq, 6)).audio_codes
    with pytest.raises(ValueError, match=message):
        best_rq.decode(codes, books=books)


def test_a_book_that_was_not_given_is_missed(best_rq):
    codes = best_rq.encode(**make_inputs(best_rq, 6), num_books=1).audio_codes
    with pytest.raises(ValueError, match="no acoustic book among the 1"):
        best_rq.decode(codes, books="acoustic")
    with pytest.raises(ValueError, match="of the 1 that were given"):
        best_rq.decode(codes, books=2)
    with pytest.raises(ValueError, match="no semantic book"):
        bare = make_hasrd("front_end")
        bare.decode(bare.encode(**make_inputs(bare, 2)).audio_codes, books="semantic")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda codes: codes.index_fill(1, torch.tensor(0), 12), r"book 0 must lie in \[0, 12\); got values from 12"),
        (lambda codes: codes.index_fill(1, torch.tensor(2), 16), r"book 2 must lie in \[0, 16\)"),
        (lambda codes: codes.index_fill(1, torch.tensor(1), -1), "book 1 .* from -1"),
        (lambda codes: codes.repeat(1, 2, 1), "has 4 books; got audio_codes of 8"),
        (lambda codes: codes[0], r"must be integers \(batch, books, tokens\)"),
        (lambda codes: codes.float(), "torch.float32"),
        (lambda codes: codes[..., :0], "must be integers"),
        (lambda codes: torch.full_like(codes, -1), r"utterances \[0\] of this batch have no tokens"),
    ],
)
def test_codes_that_mean_nothing_are_refused(best_rq, change, message):
    codes = best_rq.encode(**make_inputs(best_rq, 6)).audio_codes
    with pytest.raises(ValueError, match=message):
        best_rq.decode(change(codes))


def test_audio_is_cut_to_its_length(best_rq):
    inputs = make_inputs(best_rq, 6, 3)
    codes = best_rq.encode(**inputs).audio_codes
    full = best_rq.decode(codes).audio_values
    cut = best_rq.decode(codes, num_samples=torch.tensor([3000, 1500])).audio_values
    assert cut.shape == (2, 3000) and torch.equal(cut[0], full[0, :3000])
    assert torch.equal(cut[1, :1500], full[1, :1500]) and not cut[1, 1500:].any()
    assert best_rq.decode(codes, num_samples=700).audio_values.shape == (2, 700)
    for wrong in (1537, 0, [3072, 1536, 5]):
        with pytest.raises(ValueError, match="num_samples must be"):
            best_rq.decode(codes, num_samples=wrong)


def test_silence_is_finite(model):
    inputs = {name: torch.zeros_like(values) for name, values in make_inputs(model, 4).items()}
    inputs["attention_mask"] += 1
    output = model(**inputs)
    for values in (output.audio_values, output.commitment_loss, output.codebook_loss):
        assert bool(values.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_encodes_and_decodes(best_rq, dtype, tmp_path):
    best_rq.save_pretrained(tmp_path)
    inputs = make_inputs(best_rq, 30)
    expected = best_rq.encode(**inputs).audio_codes
    audio = best_rq.decode(expected).audio_values
    half = HasrdModel.from_pretrained(tmp_path, dtype=dtype)
    assert half.dtype == dtype and half.semantic_quantizer.codebook.dtype == torch.float32
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
    assert type(reloaded) is HasrdModel and not reloaded.training
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


def test_a_folder_without_the_encoders_weights_is_refused(tmp_path):
    encoder = make_hasrd("best_rq").encoder
    encoder.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="has no weights for"):
        HasrdModel.from_encoder(str(tmp_path), decoder_channels=32, semantic_layer=1)


def test_a_codebook_of_another_encoder_or_layer_is_refused(best_rq, tmp_path):
    centroids, fingerprint = torch.randn(12, 16), best_rq.encoder_fingerprint()
    other = make_hasrd(semantic_layer=2)
    assert fingerprint.startswith("layer 1 of ") and other.encoder_fingerprint().startswith("layer 2 of ")
    with pytest.raises(ValueError, match=f"fitted on {fingerprint}, but this encoder is layer 2 of"):
        other.set_semantic_codebook(centroids, fingerprint)
    with pytest.raises(ValueError, match="centroids must be"):
        best_rq.set_semantic_codebook(centroids[:5], fingerprint)
    with pytest.raises(ValueError, match="1 centroids have NaN"):
        best_rq.set_semantic_codebook(centroids.index_fill(0, torch.tensor(3), float("inf")), fingerprint)
    with torch.no_grad():
        next(best_rq.encoder.parameters()).add_(0.1)
    with pytest.raises(ValueError, match=f"fitted on {fingerprint}, but this encoder is layer 1 of"):
        best_rq.set_semantic_codebook(centroids, fingerprint)
    best_rq.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"was fitted on {fingerprint}, but"):
        HasrdModel.from_pretrained(tmp_path)


def test_an_unfitted_model_is_saved_and_fitted_later(tmp_path):
    HasrdModel(make_config()).save_pretrained(tmp_path)
    model = HasrdModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="fit_semantic_codebook"):
        model(**make_inputs(model, 3))
    fit_at_random(model)
    assert model(**make_inputs(model, 3)).audio_values.shape == (1, 3 * 512)


def test_a_folder_with_missing_weights_is_refused(best_rq, tmp_path):
    best_rq.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("semantic_quantizer.codebook")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights of a HASRD: semantic_quantizer.codebook"):
        HasrdModel.from_pretrained(tmp_path)


def test_wrong_inputs_are_refused(best_rq):
    hubert = make_hasrd("hubert")
    with pytest.raises(ValueError, match="takes input_values"):
        hubert.encode(input_features=torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="takes input_features"):
        best_rq.encode(input_values=torch.zeros(1, 800))
    with pytest.raises(ValueError, match=r"must be \(batch, frames, 8\); got shape \(1, 8, 9\)"):
        best_rq.encode(torch.zeros(1, 8, 9))
    with pytest.raises(ValueError, match=r"must be \(batch, frames\) = \(1, 8\); got \(1, 7\)"):
        best_rq.encode(torch.zeros(1, 8, 8), torch.ones(1, 7))
    with pytest.raises(ValueError, match=r"utterances \[1\] of this batch have no audio"):
        best_rq.encode(torch.zeros(2, 8, 8), torch.tensor([[1] * 8, [0] * 8]))
    with pytest.raises(ValueError, match="no audio"):
        hubert.encode(input_values=torch.zeros(1, 0))
    with pytest.raises(ValueError, match="num_books must be 1 to 4; got 5"):
        best_rq.encode(**make_inputs(best_rq, 3), num_books=5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(semantic_layer=3), "semantic_layer 3 does not exist"),
        (dict(upsampling_ratios=(8, 8, 4)), "multiply to the 512 samples"),
        (dict(num_acoustic_books=0, num_semantic_codes=0), "a codec needs a book"),
        (dict(decoder_channels=24), "must halve 4 times; got 24"),
        (dict(quantizer_dropout=1.5), "share in 0..1; got 1.5"),
        (dict(codebook_size=0), "codebook_size must be at least 1"),
    ],
)
def test_configurations_that_cannot_be_are_refused(fields, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        make_config(**fields)


def test_other_encoders_are_refused():
    with pytest.raises(StrictDataclassClassValidationError, match="must be one of best_rq.*got model_type='gpt2'"):
        HasrdConfig(encoder_config=GPT2Config())
    with pytest.raises(ValueError, match="needs a model_type"):
        HasrdConfig(encoder_config={"hidden_size": 4})


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
