"""Questions to the k-means tokenizer: layers, padding, long audio, nearest centroids, reload, what is refused."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForAudioTokenization,
    GPT2Config,
    HubertConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WhisperModel,
)

from clearspeech import KMeansTokenizerConfig, KMeansTokenizerModel
from clearspeech.processing.feature_extraction_stable_token import StableTokenFeatureExtractor

SHAPE = dict(
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=64,
    conv_dim=(16, 16, 16),
    conv_kernel=(10, 8, 4),
    conv_stride=(10, 8, 4),
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=2,
    hidden_dropout=0.5,  # would show if it were at work
)
GROUP = dict(feat_extract_norm="group", do_stable_layer_norm=False)
LAYER = dict(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
WAVEFORM_CONFIGS = {
    "hubert, group norm": HubertConfig(**SHAPE, **GROUP),
    "hubert, layer norm": HubertConfig(**SHAPE, **LAYER),
    "wavlm, group norm": WavLMConfig(**SHAPE, **GROUP),
    "wavlm, layer norm": WavLMConfig(**SHAPE, **LAYER),
    "wav2vec2, layer norm": Wav2Vec2Config(**SHAPE, **LAYER),
}
LENGTHS = [700, 4000, 15999, 16000, 16001, 24000]  # samples


@pytest.fixture(params=[*WAVEFORM_CONFIGS, "whisper"])
def encoder_folder(request, tmp_path, tiny_whisper_folder):
    """A pretrained encoder as the Hub has it, with its feature extractor."""
    if request.param == "whisper":
        return tiny_whisper_folder
    torch.manual_seed(0)
    AutoModel.from_config(WAVEFORM_CONFIGS[request.param]).save_pretrained(tmp_path / "encoder")
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture
def extract(encoder_folder):
    """Waveforms to what the encoder takes."""
    if (encoder_folder / "preprocessor_config.json").exists():
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(encoder_folder)
    else:
        extractor = StableTokenFeatureExtractor.from_pretrained(encoder_folder, mel_frames_per_token=2)
    return lambda speech: extractor(speech, sampling_rate=16000, padding="longest", return_tensors="pt")


def make_tokenizer(folder, inputs) -> KMeansTokenizerModel:
    """Of layer 2, with every second frame of some speech as a centroid."""
    model = KMeansTokenizerModel.from_encoder(str(folder), layer=2, codebook_size=40)
    model.set_centroids(model.features(**inputs)[0][0, :80:2])
    return model


@pytest.fixture
def tokenizer_model(encoder_folder, extract, make_speech):
    return make_tokenizer(encoder_folder, extract([make_speech(32000, seed=99)]))


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_features_are_the_hidden_states_of_transformers(encoder_folder, extract, make_speech, layer):
    """Also of the last layer, which Transformers gives with Whisper's final norm and without that of the others."""
    model = KMeansTokenizerModel.from_encoder(str(encoder_folder), layer, 10)
    inputs = extract([make_speech(19200)])
    if model.config.reads_waveforms:
        source = AutoModel.from_pretrained(encoder_folder).eval()
        expected = source(**inputs, output_hidden_states=True).hidden_states[layer]
    else:  # which wants its whole window
        source = WhisperModel.from_pretrained(encoder_folder).eval().encoder
        inputs["input_features"] = torch.nn.functional.pad(inputs["input_features"], (0, 2000 - 120))
        inputs["attention_mask"] = torch.ones(1, 2000)
        expected = source(inputs["input_features"], output_hidden_states=True).hidden_states[layer]
    states, mask = model.features(**inputs)
    assert mask.all()
    torch.testing.assert_close(states, expected)


def test_an_utterances_codes_do_not_depend_on_its_batch(tokenizer_model, extract, make_speech):
    speeches = [make_speech(length, seed=length) for length in LENGTHS]
    states, mask = tokenizer_model.features(**extract(speeches))
    batch = tokenizer_model.encode(**extract(speeches))
    assert torch.equal(batch.attention_mask, mask)
    for row, speech in enumerate(speeches):
        alone_states, alone_mask = tokenizer_model.features(**extract([speech]))
        real = int(alone_mask.sum())
        assert int(mask[row].sum()) == real > 0
        difference = (states[row, :real] - alone_states[0, :real]).abs().max()
        assert difference < 1e-4 * alone_states.abs().max()
        alone = tokenizer_model.encode(**extract([speech])).audio_codes[0, :real]
        assert torch.equal(batch.audio_codes[row, :real], alone)
        assert (batch.audio_codes[row, real:] == tokenizer_model.padding_code).all()
        assert alone.min() >= 0


def test_there_are_fifty_codes_a_second(tokenizer_model, extract, make_speech):
    num_codes = tokenizer_model.encode(**extract([make_speech(32000)])).audio_codes.shape[1]
    assert abs(num_codes - 100) <= 1
    assert tokenizer_model.config.mel_frames_per_token == 2


def test_codes_are_the_nearest_centroids(tokenizer_model, extract, make_speech):
    inputs = extract([make_speech(16000)])
    states, _ = tokenizer_model.features(**inputs)
    distances = [[(frame - centroid).square().sum() for centroid in tokenizer_model.centroids] for frame in states[0]]
    expected = torch.tensor(distances).argmin(dim=-1)
    assert torch.equal(tokenizer_model.encode(**inputs).audio_codes[0], expected)
    assert len(expected.unique()) > 10


def test_a_tokenizer_reloads_with_the_same_codes(tokenizer_model, extract, make_speech, tmp_path):
    """Nothing above its layer is stored, and training mode brings no dropout."""
    inputs = extract([make_speech(16000), make_speech(9000)])
    expected = tokenizer_model.encode(**inputs).audio_codes
    tokenizer_model.save_pretrained(tmp_path / "tokenizer")
    stored = load_file(tmp_path / "tokenizer" / "model.safetensors")
    assert {name.split("layers.")[1][0] for name in stored if ".layers." in name and ".conv_layers." not in name} == {
        "0",
        "1",
    }
    model = AutoModelForAudioTokenization.from_pretrained(tmp_path / "tokenizer")
    assert type(model) is KMeansTokenizerModel
    assert torch.equal(model.train().encode(**inputs).audio_codes, expected)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    half = KMeansTokenizerModel.from_pretrained(tmp_path / "tokenizer", dtype=torch.bfloat16)
    assert half.centroids.dtype == torch.float32
    assert (half.encode(**inputs).audio_codes == expected).float().mean() > 0.8


def test_a_saved_tokenizer_does_not_say_where_its_encoder_was(tokenizer_model, encoder_folder, tmp_path):
    tokenizer_model.save_pretrained(tmp_path / "tokenizer")
    assert str(encoder_folder) not in (tmp_path / "tokenizer" / "config.json").read_text()


@pytest.mark.parametrize("lost", ["centroids", "layer"])
def test_half_a_tokenizer_is_refused(tokenizer_model, tmp_path, lost):
    """Transformers would fill in random numbers with a warning."""
    tokenizer_model.save_pretrained(tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / "model.safetensors"
    weights = load_file(file)
    name = "centroids" if lost == "centroids" else next(name for name in weights if ".layers.1." in name)
    del weights[name]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks weights of a k-means tokenizer: {name}"):
        KMeansTokenizerModel.from_pretrained(tmp_path / "tokenizer")


def test_a_tokenizer_without_centroids_gives_features_but_no_codes(encoder_folder, extract, make_speech):
    model = KMeansTokenizerModel.from_encoder(str(encoder_folder), 1, 10)
    inputs = extract([make_speech(16000)])
    assert model.features(**inputs)[0].isfinite().all()
    with pytest.raises(ValueError, match="no centroids yet"):
        model.encode(**inputs)
    with pytest.raises(ValueError, match=r"centroids must be \(10, 32\); got \(9, 32\)"):
        model.set_centroids(torch.zeros(9, 32))
    with pytest.raises(ValueError, match="1 centroids have NaN"):
        model.set_centroids(torch.zeros(10, 32).index_fill(0, torch.tensor(3), float("nan")))


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_that_does_not_exist_is_refused(encoder_folder, layer):
    with pytest.raises(ValueError, match=f"layer {layer} does not exist: .* has 1 to 3"):
        KMeansTokenizerModel.from_encoder(str(encoder_folder), layer, 10)
    with pytest.raises(StrictDataclassClassValidationError, match=f"layer {layer} does not exist"):
        KMeansTokenizerConfig(encoder_config=HubertConfig(**SHAPE), layer=layer)


def test_inputs_of_the_other_kind_and_of_wrong_shapes_are_refused(tokenizer_model):
    config = tokenizer_model.config
    with pytest.raises(ValueError, match=f"takes {tokenizer_model.main_input_name}"):
        name = "input_features" if config.reads_waveforms else "input_values"
        tokenizer_model.encode(**{name: torch.zeros(1, 16, 100)})
    wrong = torch.zeros(1, 1, 3) if config.reads_waveforms else torch.zeros(1, 3)
    with pytest.raises(ValueError, match=f"{tokenizer_model.main_input_name} must be"):
        tokenizer_model.encode(**{tokenizer_model.main_input_name: wrong})


def test_audio_without_a_frame_is_refused():
    model = KMeansTokenizerModel(KMeansTokenizerConfig(encoder_config=HubertConfig(**SHAPE), layer=1))
    mask = torch.tensor([[1] * 4000, [1] * 300 + [0] * 3700])
    with pytest.raises(ValueError, match="300 samples are too short"):
        model.features(input_values=torch.zeros(2, 4000), attention_mask=mask)
    with pytest.raises(ValueError, match="attention_mask must be"):
        model.features(input_values=torch.zeros(2, 4000), attention_mask=mask[:1])


def test_long_audio_is_read_in_windows(tiny_whisper_folder, make_speech):
    """50 seconds in windows of 20; an encoder of waveforms hears all at once."""
    extractor = StableTokenFeatureExtractor.from_pretrained(tiny_whisper_folder, mel_frames_per_token=2)
    speech = extractor(make_speech(32000, seed=99), sampling_rate=16000, return_tensors="pt")
    model = make_tokenizer(tiny_whisper_folder, speech)
    inputs = extractor(make_speech(800000), sampling_rate=16000, return_tensors="pt")
    codes = model.encode(**inputs).audio_codes
    assert codes.shape == (1, 2500)
    first = model.encode(inputs["input_features"][..., :2000]).audio_codes
    assert torch.equal(codes[:, :800], first[:, :800])
    with pytest.raises(ValueError, match="cut longer audio into windows"):
        model.features(**inputs)


@pytest.mark.parametrize("folder", ["tiny_folder", "disentangled"])
def test_the_suites_own_tokenizers_lend_their_encoder(folder, request, tmp_path, tiny_disentangled, make_speech):
    if folder == "disentangled":
        tiny_disentangled.save_pretrained(tmp_path / "disentangled")
        folder, source = tmp_path / "disentangled", tiny_disentangled.model.encoder
    else:
        folder, source = request.getfixturevalue(folder), request.getfixturevalue("tiny_model").model.encoder
    extractor = StableTokenFeatureExtractor(feature_size=16, mel_frames_per_token=2)
    inputs = extractor(make_speech(16000), sampling_rate=16000, return_tensors="pt")
    model = KMeansTokenizerModel.from_encoder(str(folder), 2, 10)
    assert model.config.encoder_config.model_type == "whisper"
    states, mask = source.embed(inputs["input_features"], inputs["attention_mask"])
    expected = source.run_layers(source.layers[:2], states, mask)
    torch.testing.assert_close(model.features(**inputs)[0], expected)


def test_nothing_above_a_stable_tokens_quantizer_can_be_lent(tiny_folder):
    with pytest.raises(ValueError, match=r"layer 3 of .* has no weights for .*layers\.2\."):
        KMeansTokenizerModel.from_encoder(str(tiny_folder), 3, 10)


@pytest.mark.parametrize("name", ["hubert, layer norm", "wavlm, group norm"])
def test_an_encoder_stored_in_half_precision_computes_in_full(name, tmp_path):
    torch.manual_seed(0)
    source = AutoModel.from_config(WAVEFORM_CONFIGS[name]).half()
    source.save_pretrained(tmp_path / "encoder")
    model = KMeansTokenizerModel.from_encoder(str(tmp_path / "encoder"), 1, 10)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_other_models_are_refused(tmp_path):
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must be one of whisper, hubert, wav2vec2, wavlm; got model_type='gpt2'"):
        KMeansTokenizerModel.from_encoder(str(tmp_path), 1, 10)


def test_the_papers_tokenizer_has_its_shape():
    """WavLM-large up to layer 23 of 24, 2000 clusters of 1024 dimensions."""
    with torch.device("meta"):
        model = KMeansTokenizerModel(KMeansTokenizerConfig())
    assert len(model.encoder.encoder.layers) == 23
    assert model.centroids.shape == (2000, 1024)
