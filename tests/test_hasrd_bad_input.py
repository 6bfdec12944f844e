"""Questions to HASRD about bad input: codes, books, masks, audio, weights and configurations that cannot be."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.torch import load_file, save_file
from tiny_hasrd import ENCODERS, make_config, make_hasrd, make_inputs
from transformers import GPT2Config

from clearspeech import HasrdConfig, HasrdModel

LENGTHS = (7, 3, 1)  # tokens


@pytest.fixture(params=list(ENCODERS))
def model(request) -> HasrdModel:
    return make_hasrd(request.param)


@pytest.fixture
def best_rq() -> HasrdModel:
    return make_hasrd()


@pytest.mark.parametrize("first", (-1, 3))
def test_a_stretch_outside_its_utterance_is_refused(best_rq, first):
    with pytest.raises(ValueError, match=rf"first tokens \[0, {first}\] in utterances of \[5, 3\]"):
        best_rq(**make_inputs(best_rq, 5, 3), first_tokens=torch.tensor([0, first]), num_tokens=2)


@pytest.mark.parametrize(
    ("encoder", "depths", "message"),
    [
        ("best_rq", [4, 0], r"numbers of acoustic books, 0 to 3; got \[4, 0\]"),
        ("best_rq", [0, -1], r"0 to 3; got \[0, -1\]"),
        ("front_end", [0, 1], r"1 to 3; got \[0, 1\]"),
        ("best_rq", [3], r"\(batch,\) = \(2,\)"),
    ],
)
def test_depths_that_no_utterance_has_are_refused(encoder, depths, message):
    model = make_hasrd(encoder)
    with pytest.raises(ValueError, match=message):
        model(**make_inputs(model, 3, 3), depths=torch.tensor(depths))


def test_a_misspelt_argument_is_refused(best_rq):
    with pytest.raises(TypeError, match="dephts"):
        best_rq(**make_inputs(best_rq, 3), dephts=torch.tensor([1]))


@pytest.mark.parametrize(
    ("books", "message"),
    [
        ([], r"got \[\]"),
        (0, "got 0"),
        (5, "got 5. This codec has 4"),
        ([4], "numbered from 0"),
        ([1, 1], "each once"),
        (True, "books must be a whole number; got True"),
        ([0, True], "must be a whole number; got True"),
        (1.5, "must be a whole number; got 1.5"),
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
        (lambda codes: codes > 0, "torch.bool"),
        (lambda codes: codes.index_fill(2, torch.tensor(3), -1), r"\[0\] .* padding before or within their tokens"),
        (lambda codes: codes.index_fill(2, torch.tensor(0), -1), r"\[0\] .* padding before or within their tokens"),
        (lambda codes: codes[..., :0], "must be integers"),
        (lambda codes: torch.full_like(codes, -1), r"utterances \[0\] of this batch have no tokens"),
    ],
)
def test_codes_that_mean_nothing_are_refused(best_rq, change, message):
    codes = best_rq.encode(**make_inputs(best_rq, 6)).audio_codes
    with pytest.raises(ValueError, match=message):
        best_rq.decode(change(codes))


@pytest.mark.parametrize("mask", [[0, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1]])
def test_a_mask_of_tokens_with_a_hole_is_refused(best_rq, mask):
    codes = best_rq.encode(**make_inputs(best_rq, 6, 6)).audio_codes
    with pytest.raises(ValueError, match=r"utterances \[1\] of this batch have padding before or within their tokens"):
        best_rq.decode(codes, torch.tensor([[1] * 6, mask]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_padding_may_hold_anything_but_audio_no_nan(model, value):
    inputs, name = make_inputs(model, *LENGTHS, padding=2), model.main_input_name
    expected = model(**inputs)
    inputs[name][~inputs["attention_mask"].bool()] = value
    output = model(**inputs)
    assert torch.equal(output.audio_codes, expected.audio_codes)
    assert torch.equal(output.audio_values, expected.audio_values)
    inputs[name][1, 0] = value
    with pytest.raises(ValueError, match=r"utterances \[1\] of this batch have NaN or infinity"):
        model.encode(**inputs)


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
    best_rq.half().float().save_pretrained(tmp_path)  # a cast does not make them belong together
    with pytest.raises(ValueError, match=f"was fitted on {fingerprint}, but"):
        HasrdModel.from_pretrained(tmp_path)


def test_a_folder_with_missing_weights_is_refused(best_rq, tmp_path):
    best_rq.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("semantic_quantizer.codebook")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights of a HasrdModel: semantic_quantizer.codebook"):
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
    with pytest.raises(ValueError, match="takes input_features alone"):
        best_rq.encode(**make_inputs(best_rq, 2), input_values=torch.zeros(1, 800))
    with pytest.raises(ValueError, match="no audio"):
        hubert.encode(input_values=torch.zeros(1, 0))
    with pytest.raises(ValueError, match="num_books must be 1 to 4; got 5"):
        best_rq.encode(**make_inputs(best_rq, 3), num_books=5)
    with pytest.raises(ValueError, match="num_books must be a whole number; got True"):
        best_rq.encode(**make_inputs(best_rq, 3), num_books=True)
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"tokens_per_chunk must be at least 1; got {size}"):
            best_rq.decode(torch.zeros(1, 4, 3, dtype=torch.long), tokens_per_chunk=size)


def test_a_mask_of_audio_with_a_hole_is_refused(model):
    """Padding on the left would be encoded, and the end of the audio left out."""
    inputs = make_inputs(model, 4, 4)
    for hole in (slice(0, 2), slice(2, 5)):
        mask = inputs["attention_mask"].clone()
        mask[1, hole] = 0
        with pytest.raises(ValueError, match=r"\[1\] of this batch have padding before or within their audio"):
            model.encode(**inputs | {"attention_mask": mask})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(semantic_layer=3), "semantic_layer 3 does not exist"),
        (dict(upsampling_ratios=(8, 8, 4)), "multiply to the 512 samples"),
        (dict(num_acoustic_books=0, num_semantic_codes=0), "a codec needs a book"),
        (dict(decoder_channels=24), "must halve 4 times; got 24"),
        (dict(decoder_channels=0), "must halve 4 times; got 0"),
        (dict(sampling_rate=24000), "sampling_rate must be 16000.*got 24000"),
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
