"""Questions to the recognizer of representations: what it reads, CTC, padding, what is frozen, reload, bad input."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from tiny_hasrd import ENCODERS, make_config, make_hasrd, make_inputs
from tiny_hasrd_ctc import REPRESENTATIONS, SIZES, make_recognizer, save_speech_model
from transformers import AutoModelForCTC

from clearspeech.configuration.configuration_hasrd_ctc import HasrdCTCConfig
from clearspeech.modeling.modeling_hasrd_ctc import HasrdForCTC, read_off

WAVEFORM_ENCODERS = [name for name in ENCODERS if name not in ("best_rq", "front_end")]


@pytest.fixture
def codec():
    return make_hasrd()


@pytest.fixture
def inputs(codec):
    """Utterances of 9 and 4 tokens, padded to 11."""
    return make_inputs(codec, 9, 4, padding=2)


# --- what it reads ---


def test_features_are_the_frames_of_a_token_one_after_another(inputs):
    model, _ = make_recognizer("features")
    states, mask = model.represent(**inputs)
    assert states.shape == (2, 11, 32) and mask.sum(dim=1).tolist() == [9, 4]
    assert torch.equal(states[1, 2], inputs["input_features"][1, 8:12].flatten())
    assert not states[~mask].any()
    assert not list(model._speech_models())  # nothing of the HASRD is needed


def test_a_layer_is_the_encoders_own(codec, inputs):
    states, mask = make_recognizer("layer")[0].represent(**inputs)
    expected, _ = codec.latents(**inputs)
    torch.testing.assert_close(states, expected[:, :, 1])
    assert not states[~mask].any()


def test_layers_are_summed_with_weights_that_add_up_to_one(codec, inputs):
    model, _ = make_recognizer("layers")
    assert model.layer_shares.tolist() == pytest.approx([1 / 3] * 3)
    with torch.no_grad():
        model.layer_weights.copy_(torch.tensor([-50.0, 50.0, -50.0]))  # one of them alone
        logits = model(**inputs).logits
    alone, _ = make_recognizer("layer")
    alone.lstm.load_state_dict(model.lstm.state_dict())
    alone.head.load_state_dict(model.head.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(logits, alone(**inputs).logits)


@pytest.mark.parametrize(
    "representation, books",
    [("semantic", [0]), ("acoustic", [1, 2, 3]), ("combined", [0, 1, 2, 3]), ("books", [1, 3])],
)
def test_books_are_the_sums_of_what_the_codes_stand_for(representation, books, codec, inputs):
    states, mask = make_recognizer(representation)[0].represent(**inputs)
    codes = codec.encode(**inputs).audio_codes.clamp_min(0)
    expected = torch.zeros_like(states)
    for book in books:
        if book == 0:
            expected += codec.semantic_quantizer.codebook[codes[:, 0]]
        else:
            expected += codec.acoustic_quantizer.books[book - 1].embed(codes[:, book])
    torch.testing.assert_close(states[mask], expected[mask])
    assert not states[~mask].any()


def test_combined_books_are_what_the_codec_decodes(codec, inputs):
    states, _ = make_recognizer("combined")[0].represent(**inputs)
    hidden_states, mask = codec.latents(**inputs)
    torch.testing.assert_close(states, codec.quantize(hidden_states, mask).states)


def test_the_first_book_of_a_codec_without_a_semantic_one_can_be_read():
    codec = make_config("front_end")
    config = HasrdCTCConfig(speech_config=codec, representation="books", books=[0], **SIZES)
    model = HasrdForCTC(config).eval()
    states, mask = model.represent(**make_inputs(make_hasrd("front_end"), 5, 3))
    assert states.shape == (2, 5, 16) and mask.sum() == 8
    assert len({tuple(row) for row in states[mask].tolist()}) <= codec.codebook_size


# --- CTC ---


def test_repetitions_and_blanks_are_left_out():
    path = torch.tensor([[0, 5, 5, 0, 5, 6, 0, 0], [4, 4, 7, 7, 3, 0, 0, 9]])
    mask = torch.arange(8) < torch.tensor([[8], [4]])
    logits = torch.nn.functional.one_hot(path, 10).float()
    assert [row.tolist() for row in read_off(logits, mask, 0)] == [[5, 5, 6], [4, 7]]


def test_the_loss_is_the_sum_over_all_alignments_per_label(inputs):
    """Against all paths of a short utterance, one by one."""
    model, _ = make_recognizer("layer")
    features, mask = inputs["input_features"][1:, :16], inputs["attention_mask"][1:, :16]  # 4 tokens
    labels = torch.tensor([[5, 6]])
    with torch.no_grad():
        output = model(features, mask, labels=labels)
    probabilities = output.logits[0].double().softmax(dim=-1)[:, [0, 5, 6]]
    total = 0.0
    for path in torch.cartesian_prod(*[torch.arange(3)] * 4):
        written = [int(each) for before, each in zip([0, *path.tolist()], path.tolist()) if each and each != before]
        if written == [1, 2]:
            total += probabilities[torch.arange(4), path].prod()
    assert float(output.loss) == pytest.approx(-float(total.log()) / 2, rel=1e-4)


def test_an_empty_text_has_a_loss_of_blanks_alone(inputs):
    model, _ = make_recognizer("layer")
    with torch.no_grad():
        output = model(**inputs, labels=torch.full((2, 3), -100))
        blanks = output.logits.log_softmax(dim=-1)[..., 0][output.attention_mask].sum()
    torch.testing.assert_close(output.loss, -blanks)


def test_a_text_that_its_tokens_can_just_write_has_a_loss(inputs):
    """A blank has to stand between two letters that are alike."""
    model, _ = make_recognizer("layer")
    labels = torch.tensor([[5, 6, 5, 6], [5, 6, 6, -100]])
    assert bool(model(**inputs, labels=labels).loss.isfinite())
    with pytest.raises(
        ValueError, match=r"utterances \[1\] of this batch take \[5\] tokens, and their audio has \[4\]"
    ):
        model(**inputs, labels=torch.tensor([[5, 6, 5, 6], [5, 6, 6, 5]]))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[5, 0], [6, -100]], r"without the blank, 0, and be -100 on padding; got \[0\]"),
        ([[5, 31], [6, -1]], r"must lie in \[0, 31\).* got \[-1, 31\]"),
        ([[5, 6]], r"\(batch, characters\) of 2 rows; got \(1, 2\)"),
    ],
)
def test_labels_that_are_no_characters_are_refused(labels, message, inputs):
    with pytest.raises(ValueError, match=message):
        make_recognizer("layer")[0](**inputs, labels=torch.tensor(labels))


def test_blanks_alone_are_an_empty_text(inputs):
    model, _ = make_recognizer()
    with torch.no_grad():
        model.head.bias[0] = 1e4
    assert model.generate(**inputs).shape == (2, 0)


# --- padding ---


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_an_utterance_has_the_same_logits_and_text_alone_and_in_any_batch(representation, codec, inputs):
    model, _ = make_recognizer(representation)
    with torch.no_grad():
        batch = model(**inputs)
    written, alone_rows = model.generate(**inputs), []
    for row, num_tokens in enumerate((9, 4)):
        alone = {name: value[row, None, : 4 * num_tokens] for name, value in inputs.items()}
        with torch.no_grad():
            logits = model(**alone).logits[0]
        torch.testing.assert_close(batch.logits[row, :num_tokens], logits, atol=2e-4, rtol=0)
        alone_rows.append(model.generate(**alone)[0].tolist())
    assert any(alone_rows)
    for row, expected in zip(written.tolist(), alone_rows):
        assert row == expected + [0] * (len(row) - len(expected))


@pytest.mark.parametrize("encoder", WAVEFORM_ENCODERS)
def test_waveforms_are_read_where_the_encoder_reads_them(encoder):
    model, _ = make_recognizer("semantic", encoder)
    assert model.main_input_name == "input_values"
    inputs = make_inputs(make_hasrd(encoder), 9, 4)
    with torch.no_grad():
        batch = model(**inputs)
        alone = model(**{name: value[1:, : 4 * 160] for name, value in inputs.items()})
    assert batch.attention_mask.sum(dim=1).tolist() == [9, 4]
    torch.testing.assert_close(batch.logits[1, :4], alone.logits[0], atol=2e-4, rtol=0)


# --- what is frozen ---


@pytest.mark.parametrize("representation", ["layers", "combined"])
def test_what_is_measured_gets_no_gradients_and_stays_in_evaluation_mode(representation, inputs):
    model, _ = make_recognizer(representation)
    model.train()
    assert not any(part.training for module in model._speech_models() for part in module.modules())
    model(**inputs, labels=torch.tensor([[5, 6], [7, -100]])).loss.backward()
    trained = {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is not None}
    assert trained == {"lstm", "head"} | ({"layer_weights"} if representation == "layers" else set())
    model.freeze_speech_model()
    assert {name.split(".")[0] for name, weight in model.named_parameters() if weight.requires_grad} == trained


# --- folders ---


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_a_saved_recognizer_is_the_same_and_holds_no_more_than_it_needs(representation, inputs, tmp_path):
    model, _ = make_recognizer(representation)
    model.save_pretrained(tmp_path)
    again, report = AutoModelForCTC.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is HasrdForCTC and not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits)
    parts = {name.split(".")[0] for name in model.state_dict()} - {"lstm", "head", "layer_weights"}
    needs = {"features": set(), "layer": {"encoder"}, "layers": {"encoder"}}
    assert parts == needs.get(representation, {"codec"})
    assert not any("decoder" in name for name in model.state_dict())


@pytest.mark.parametrize("encoder", ["best_rq", "hubert"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_centroids(encoder, dtype, tmp_path):
    """Of a recognizer that is loaded in it, and of one that was cast, saved and loaded."""
    model, _ = make_recognizer("combined", encoder)
    centroids = model.codec.semantic_quantizer.codebook.clone()
    model.save_pretrained(tmp_path / "single")
    model.to(dtype).save_pretrained(tmp_path / "half")
    for folder in ("single", "half"):
        half = AutoModelForCTC.from_pretrained(tmp_path / folder, dtype=dtype)
        assert half.head.weight.dtype == half.codec.encoder.dtype == dtype
        assert torch.equal(half.codec.semantic_quantizer.codebook, centroids)
        inputs = make_inputs(half.codec, 9, 4)
        assert bool(half(**inputs).logits.isfinite().all())
    assert HasrdForCTC.from_pretrained(tmp_path / "half").dtype == torch.float32


def test_a_recognizer_without_all_of_its_weights_is_refused(tmp_path):
    model, _ = make_recognizer()
    weights = {name: values for name, values in model.state_dict().items() if name != "codec.projection.weight"}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match="lacks weights of a HasrdForCTC: codec.projection.weight"):
        HasrdForCTC.from_pretrained(tmp_path)


def test_a_recognizer_of_another_encoder_than_its_books_is_refused(tmp_path):
    model, _ = make_recognizer()
    with torch.no_grad():
        next(model.codec.encoder.parameters()).add_(0.1)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the semantic book in .* was fitted on layer 1 of .*, but this encoder is"):
        HasrdForCTC.from_pretrained(tmp_path)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_a_recognizer_takes_over_the_hasrd_of_a_folder(representation, inputs, tmp_path):
    codec, folder = save_speech_model(tmp_path / "hasrd")
    model = HasrdForCTC.from_speech_model(folder, **SIZES | REPRESENTATIONS[representation])
    expected, _ = make_recognizer(representation)
    for ours, theirs in zip(model.eval().represent(**inputs), expected.represent(**inputs)):
        torch.testing.assert_close(ours, theirs)
    assert str(tmp_path) not in model.config.to_json_string()


@pytest.mark.parametrize("encoder", ["best_rq", "hubert"])
def test_a_recognizer_takes_over_an_encoder_alone(encoder, tmp_path):
    source, folder = save_speech_model(tmp_path / "encoder", encoder, whole=False)
    model = HasrdForCTC.from_speech_model(folder, **SIZES, representation="layer", layer=2).eval()
    weights = model.encoder.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in source.state_dict().items())
    model.save_pretrained(tmp_path / "recognizer")
    again = HasrdForCTC.from_pretrained(tmp_path / "recognizer")
    assert again.config.speech_config.model_type == source.config.model_type
    assert str(tmp_path) not in (tmp_path / "recognizer" / "config.json").read_text()


def test_weights_that_are_not_there_are_named(tmp_path):
    source, folder = save_speech_model(tmp_path / "encoder", whole=False)
    kept = {name: value for name, value in source.state_dict().items() if not name.startswith("layers.1.")}
    source.save_pretrained(folder, state_dict=kept)
    with pytest.raises(ValueError, match="no pretrained encoder: it has no weights for layers.1"):
        HasrdForCTC.from_speech_model(folder, **SIZES, representation="layers")


def test_a_hasrd_whose_semantic_book_is_not_fitted_is_refused(inputs):
    config = HasrdCTCConfig(speech_config=make_config(), **SIZES)
    with pytest.raises(ValueError, match="the semantic book has no centroids yet"):
        HasrdForCTC(config).represent(**inputs)


# --- sizes and bad input ---


def test_the_paper_is_the_default():
    with torch.device("meta"):
        model = HasrdForCTC(HasrdCTCConfig())
    layers = [*model.lstm.forward_layers, *model.lstm.backward_layers]
    assert [(each.input_size, each.hidden_size) for each in layers] == 2 * [(768, 1024), (2048, 1024)]
    assert model.config.representation == "semantic"
    assert model.config.speech_config.semantic_layer == 8


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(representation="words"), "representation must be one of features, layer"),
        (dict(representation="layer"), "layer belongs to representation='layer', which needs it; got None"),
        (dict(representation="semantic", layer=1), "layer belongs to representation='layer'"),
        (dict(representation="layer", layer=3), "has layers 0 to 2; got layer=3"),
        (dict(representation="books", books=[]), "some of 4 books, numbered from 0, each once; got"),
        (dict(representation="books", books=[1, 1]), "each once"),
        (dict(representation="books", books=[4]), "some of 4 books"),
        (dict(representation="combined", books=[0]), "books belongs to representation='books'"),
        (dict(speech_config=ENCODERS["best_rq"](), representation="semantic"), "a best_rq has none"),
        (dict(speech_config=make_config("front_end"), representation="semantic"), "has no semantic book"),
        (dict(speech_config=make_config(num_acoustic_books=0), representation="acoustic"), "some of 1 books"),
        (dict(speech_config=ENCODERS["hubert"](), representation="features"), "it has no features"),
        (dict(speech_config=dict(model_type="whisper"), representation="layers"), "got model_type='whisper'"),
        (dict(hidden_size=0), "hidden_size must be at least 1"),
        (dict(pad_token_id=31), "pad_token_id must be one of vocab_size=31"),
    ],
)
def test_what_cannot_be_measured_is_refused(fields, message):
    with pytest.raises(StrictDataclassClassValidationError) as error:
        HasrdCTCConfig(**{"speech_config": make_config()} | fields)
    assert message in str(error.value.__cause__ or error.value)


def test_wrong_inputs_and_beams_are_refused(inputs):
    model, _ = make_recognizer()
    with pytest.raises(ValueError, match="takes input_features"):
        model(input_values=torch.zeros(1, 16000))
    with pytest.raises(ValueError, match=r"the utterances \[1\] of this batch have no audio"):
        model(inputs["input_features"], torch.tensor([[1], [0]]).expand(2, 44))
    with pytest.raises(ValueError, match="num_beams is 4, but this model is decoded greedily"):
        model.generate(**inputs, num_beams=4)
