"""Questions to the StableToken models: reload, base weights, sizes, padding, long audio, codes, generation."""

import dataclasses

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import sinusoids

from clearspeech import StableTokenConfig, StableTokenForConditionalGeneration, StableTokenModel
from clearspeech.processing.feature_extraction_stable_token import StableTokenFeatureExtractor

EDGE_LENGTHS = [161, 319, 320, 321, 639, 640, 641, 1279, 1280, 1281, 1919, 1921, 15999, 31999, 32000, 32639, 32640]


@pytest.fixture
def extractor() -> StableTokenFeatureExtractor:
    return StableTokenFeatureExtractor(feature_size=16)


@pytest.fixture
def features(extractor, make_speech):
    """Two utterances of 1.5 and 0.7 s in one batch."""
    return extractor([make_speech(24000), make_speech(11000, seed=1)], sampling_rate=16000, return_tensors="pt")


@pytest.fixture
def whisper_folder(tmp_path):
    """A random multilingual Whisper with the generation configuration of OpenAI's checkpoints."""
    config = WhisperConfig(
        vocab_size=40,
        num_mel_bins=16,
        d_model=32,
        encoder_layers=4,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=64,
        max_source_positions=100,
        max_target_positions=24,
        decoder_start_token_id=1,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        begin_suppress_tokens=[3, 0],
    )
    whisper = WhisperForConditionalGeneration(config)
    whisper.generation_config = GenerationConfig(
        begin_suppress_tokens=[3, 0],
        decoder_start_token_id=1,
        eos_token_id=0,
        pad_token_id=0,
        forced_decoder_ids=[[1, None], [2, 36]],
        is_multilingual=True,
        lang_to_id={"<|en|>": 37, "<|zh|>": 38},
        task_to_id={"transcribe": 36, "translate": 35},
        max_length=24,
        no_timestamps_token_id=39,
        return_timestamps=False,
        suppress_tokens=[4, 5],
    )
    whisper.save_pretrained(tmp_path / "whisper")
    return tmp_path / "whisper"


def test_both_classes_load_from_one_folder_without_a_word(tiny_model, tmp_path, features):
    tiny_model.save_pretrained(tmp_path)
    recognizer, report = StableTokenForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer, report = StableTokenModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))

    for name, value in tiny_model.state_dict().items():
        assert torch.equal(recognizer.state_dict()[name], value), name
    codes = tiny_model.model.encode(**features).audio_codes
    assert torch.equal(tokenizer.encode(**features).audio_codes, codes)
    assert torch.equal(recognizer.model.encode(**features).audio_codes, codes)


def test_the_tokenizer_saves_and_reloads_alone(tiny_model, tmp_path, features):
    tiny_model.model.save_pretrained(tmp_path)
    tokenizer, report = StableTokenModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys"))
    expected = tiny_model.model.encode(**features).audio_codes
    assert torch.equal(tokenizer.encode(**features).audio_codes, expected)


def test_random_models_have_whispers_sinusoids(tiny_model):
    assert torch.equal(tiny_model.model.encoder.embed_positions.weight, sinusoids(100, 32))
    assert torch.equal(tiny_model.upper_positions.weight, sinusoids(50, 32))


def test_positions_missing_in_a_folder_are_sinusoids_again(tiny_config, tmp_path):
    """Transformers builds on the meta device and fills what a folder lacks: nothing may be left as it lies."""
    without = StableTokenConfig.from_dict({**tiny_config.to_dict(), "reinject_positions": False})
    StableTokenForConditionalGeneration(without).save_pretrained(tmp_path)
    model, report = StableTokenForConditionalGeneration.from_pretrained(
        tmp_path, config=tiny_config, output_loading_info=True
    )
    assert set(report["missing_keys"]) == {"upper_positions.weight"}
    assert torch.equal(model.upper_positions.weight, sinusoids(50, 32))


def test_the_output_head_stays_tied_to_the_embeddings(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    reloaded = StableTokenForConditionalGeneration.from_pretrained(tmp_path)
    assert reloaded.proj_out.weight is reloaded.decoder.embed_tokens.weight


def test_every_whisper_weight_finds_its_place(whisper_folder):
    whisper = WhisperForConditionalGeneration.from_pretrained(whisper_folder).state_dict()
    model = StableTokenForConditionalGeneration.from_whisper(str(whisper_folder), num_bits=4, quantize_position=1)
    ours = model.state_dict()
    copied = set()
    for name, value in whisper.items():
        place = name.replace("model.decoder.", "decoder.")
        place = place.replace("model.encoder.layer_norm.", "upper_norm.")
        for layer in range(1, 4):  # one layer stays below the quantizer
            place = place.replace(f"model.encoder.layers.{layer}.", f"upper_layers.{layer - 1}.")
        assert torch.equal(ours[place], value), name
        copied.add(place)
    new = {name for name in ours if name not in copied}
    assert all(name.startswith("model.quantizer.") or name == "upper_positions.weight" for name in new)
    assert torch.equal(model.upper_positions.weight, whisper["model.encoder.embed_positions.weight"][:50])


def test_the_quantizer_sits_at_the_encoders_mid_point(whisper_folder):
    model = StableTokenForConditionalGeneration.from_whisper(str(whisper_folder))
    assert len(model.model.encoder.layers) == len(model.upper_layers) == 2


@pytest.mark.parametrize("pooling_size, window, overlap", [(1, 1500, 500), (2, 750, 250), (4, 375, 125), (6, 250, 83)])
def test_windows_of_any_token_rate_share_a_third(pooling_size, window, overlap):
    config = StableTokenConfig.from_whisper(WhisperConfig(), pooling_size=pooling_size)
    assert (config.max_source_tokens, config.window_overlap) == (window, overlap)
    assert (
        StableTokenConfig.from_whisper(WhisperConfig(), pooling_size=pooling_size, window_overlap=7).window_overlap
        == 7
    )


@pytest.mark.parametrize("pooling_size, reason", [(0, "at least 1; got 0"), (8, "divide the encoder's 1500 .*got 8")])
def test_a_whisper_is_not_cut_into_broken_tokens(pooling_size, reason):
    with pytest.raises(StrictDataclassClassValidationError, match=reason):
        StableTokenConfig.from_whisper(WhisperConfig(), pooling_size=pooling_size)


def test_a_multilingual_whispers_generation_settings_are_kept_and_do_not_stop_generation(whisper_folder, features):
    model = StableTokenForConditionalGeneration.from_whisper(str(whisper_folder), num_bits=4).eval()
    assert model.generation_config.suppress_tokens == [4, 5]
    ids = model.generate(**features, max_new_tokens=6)
    assert ids.shape[0] == 2
    assert not torch.isin(ids, torch.tensor([4, 5])).any()


def test_a_multilingual_whisper_is_asked_as_it_was_trained(whisper_folder, features, tmp_path):
    """Start, language, task, no timestamps; the language stays with the saved model."""
    model = StableTokenForConditionalGeneration.from_whisper(str(whisper_folder), num_bits=4).eval()
    assert model.prompt_ids() == [1] == model.generate(**features, max_new_tokens=3)[0, :1].tolist()
    model.generation_config.language = "en"
    model.save_pretrained(tmp_path / "stable")
    reloaded = StableTokenForConditionalGeneration.from_pretrained(tmp_path / "stable").eval()
    for num_beams in (1, 3):
        ids = reloaded.generate(**features, max_new_tokens=3, num_beams=num_beams)
        assert ids[:, :4].tolist() == [[1, 37, 36, 39]] * 2
    with pytest.raises(ValueError, match="language 'de' is not one of this Whisper's; it has <|en|>, <|zh|>"):
        model.generation_config.language = "de"
        model.generate(**features)


def test_a_saved_model_from_whisper_generates_the_same(whisper_folder, features, tmp_path):
    model = StableTokenForConditionalGeneration.from_whisper(str(whisper_folder), num_bits=4).eval()
    model.save_pretrained(tmp_path / "stable")
    reloaded = StableTokenForConditionalGeneration.from_pretrained(tmp_path / "stable")
    expected = model.generate(**features, max_new_tokens=6)
    assert torch.equal(reloaded.generate(**features, max_new_tokens=6), expected)


def test_a_base_that_is_no_whisper_is_refused(tiny_folder):
    with pytest.raises(ValueError, match="starts from a Whisper checkpoint; got model_type='stable_token'"):
        StableTokenForConditionalGeneration.from_whisper(str(tiny_folder))


@pytest.mark.parametrize(
    "num_voters, parameters, printed",
    [(1, 320261133, 320.261), (3, 320294439, 320.294), (5, 320327745, 320.328), (7, 320361051, 320.361)],
)
def test_parameter_counts_are_table_12s(num_voters, parameters, printed):
    """Convolutions, 16 layers, the voters' projections and the shared one back; no position table, no final norm."""
    with torch.device("meta"):
        model = StableTokenModel(StableTokenConfig(num_voters=num_voters))
    counted = sum(value.numel() for name, value in model.named_parameters() if "embed_positions" not in name)
    assert counted == parameters
    assert round(counted / 1e6, 3) == printed


def test_the_defaults_are_the_papers():
    config = StableTokenConfig()
    assert (config.num_voters, config.num_bits, config.codebook_size) == (5, 13, 8192)
    assert config.quantize_position == 16
    assert 16000 / (160 * config.mel_frames_per_token) == 25.0  # tokens per second


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_voters": 4}, "num_voters must be odd.*got 4"),
        ({"num_voters": 0}, "num_voters must be odd.*got 0"),
        ({"num_bits": 25}, "num_bits must be between 1 and 24; got 25"),
        ({"quantize_position": 32}, "must lie inside the encoder .*got 32"),
        ({"pooling_size": 0}, "pooling_size must be at least 1; got 0"),
        ({"pooling_size": 8}, "pooling_size must divide the encoder's 1500 positions; got 8"),
        ({"window_overlap": 750}, "smaller than a window of 750 tokens; got 750"),
    ],
)
def test_impossible_configurations_are_refused(fields, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        StableTokenConfig(**fields)


@pytest.mark.parametrize("longest", [32000, 35000], ids=["one window", "two windows"])
@pytest.mark.parametrize("num_samples", EDGE_LENGTHS)
def test_tokens_of_an_utterance_alone_and_in_a_batch_are_identical(
    tiny_model, extractor, make_speech, num_samples, longest
):
    speech, longer = make_speech(num_samples), make_speech(max(longest, num_samples), seed=1)
    alone = tiny_model.model.encode(**extractor(speech, sampling_rate=16000, return_tensors="pt"))
    batch = tiny_model.model.encode(**extractor([speech, longer], sampling_rate=16000, return_tensors="pt"))
    num_tokens = -(-num_samples // 640)
    assert alone.audio_codes.shape == (1, num_tokens)
    assert torch.equal(batch.audio_codes[0, :num_tokens], alone.audio_codes[0])
    assert (batch.audio_codes[0, num_tokens:] == -1).all()
    assert batch.attention_mask[0].sum() == num_tokens


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 6, 7, 101])
def test_left_over_mel_frames_make_a_token_of_their_own(tiny_model, num_frames):
    features = torch.randn(1, 16, 120)
    mask = (torch.arange(120) < num_frames).long()[None]
    alone = tiny_model.model.encode(features[..., :num_frames])
    padded = tiny_model.model.encode(features, mask)
    num_tokens = -(-num_frames // 4)
    assert alone.audio_codes.shape == (1, num_tokens)
    assert torch.equal(padded.audio_codes[0, :num_tokens], alone.audio_codes[0])


@pytest.mark.parametrize("beams", [1, 3])
def test_transcripts_alone_and_in_a_batch_are_identical(tiny_model, extractor, make_speech, beams):
    speeches = [make_speech(length, seed=length) for length in (4000, 9999, 16001, 28000)]
    batch = tiny_model.generate(**extractor(speeches, sampling_rate=16000, return_tensors="pt"), num_beams=beams)
    texts = set()
    for row, speech in enumerate(speeches):
        alone = tiny_model.generate(**extractor(speech, sampling_rate=16000, return_tensors="pt"), num_beams=beams)
        assert torch.equal(batch[row, : alone.shape[1]], alone[0])
        texts.add(tuple(alone[0].tolist()))
    assert len(texts) > 1  # the text depends on the audio


def test_features_without_a_mask_are_all_real(tiny_model):
    features = torch.randn(1, 16, 80)
    mask = torch.ones(1, 80, dtype=torch.int64)
    assert torch.equal(tiny_model.generate(features), tiny_model.generate(features, mask))
    labels = torch.tensor([[5, 6, 0]])
    with_mask, without = tiny_model(features, mask, labels=labels), tiny_model(features, labels=labels)
    assert torch.equal(with_mask.loss, without.loss)


@pytest.fixture
def long_and_short_window(tiny_config):
    """
    The same weights with a table of 400 tokens (16 s) and of 50 tokens (2 s). Without positions, and with an attention
    that adds nothing, a token does not depend on where its window lies: any difference is a fault of the seams.
    """
    wide_config = StableTokenConfig.from_dict(
        {**tiny_config.to_dict(), "max_source_positions": 800, "window_overlap": 20, "init_std": 0.1}
    )
    narrow_config = StableTokenConfig.from_dict({**wide_config.to_dict(), "max_source_positions": 100})
    torch.manual_seed(0)
    wide, narrow = StableTokenModel(wide_config).eval(), StableTokenModel(narrow_config).eval()
    weights = wide.state_dict()
    del weights["encoder.embed_positions.weight"]
    narrow.load_state_dict(weights, strict=False)
    for model in (wide, narrow):
        model.encoder.embed_positions.weight.zero_()
        for layer in model.encoder.layers:
            layer.self_attn.out_proj.weight.data.zero_()
            layer.self_attn.out_proj.bias.data.zero_()
    return wide, narrow


@pytest.mark.parametrize("num_frames", [201, 203, 204, 320, 321, 479, 480, 481, 999, 1600])
def test_windows_give_the_tokens_of_one_pass_none_lost_or_doubled(long_and_short_window, num_frames):
    wide, narrow = long_and_short_window
    features = torch.randn(1, 16, num_frames)
    one_pass, windows = wide.encode(features), narrow.encode(features)
    assert windows.audio_codes.shape == one_pass.audio_codes.shape == (1, -(-num_frames // 4))
    assert torch.equal(windows.audio_codes, one_pass.audio_codes)
    assert windows.attention_mask.all()
    torch.testing.assert_close(windows.votes, one_pass.votes)
    torch.testing.assert_close(windows.last_hidden_state, one_pass.last_hidden_state)


def test_every_token_of_a_long_recording_comes_from_where_it_lies(tiny_model):
    """With attention and positions: tokens far from a seam equal those of the window around them."""
    features = torch.randn(1, 16, 520)
    codes = tiny_model.model.encode(features).audio_codes[0]
    assert len(codes) == 130
    first_window = tiny_model.model.encode(features[..., :200]).audio_codes[0]
    assert torch.equal(codes[:45], first_window[:45])  # up to the middle of the overlap of 10 tokens
    last_window = tiny_model.model.encode(features[..., -200:]).audio_codes[0]
    assert torch.equal(codes[-45:], last_window[-45:])


@pytest.mark.parametrize("windows_per_batch", [1, 2, 8])
def test_windows_run_in_groups_without_changing_tokens(tiny_model, windows_per_batch):
    features = torch.randn(1, 16, 999)
    expected = tiny_model.model.encode(features).audio_codes
    assert torch.equal(tiny_model.model.encode(features, windows_per_batch=windows_per_batch).audio_codes, expected)


def test_utterances_in_a_batch_with_a_long_recording_keep_their_tokens(tiny_model, extractor, make_speech):
    """Also the one that fits a window, and the long one that ends inside another window than the longest."""
    speeches = [make_speech(length, seed=length) for length in (161, 20000, 31999, 32000, 32001, 75000, 100000)]
    batch = tiny_model.model.encode(**extractor(speeches, sampling_rate=16000, return_tensors="pt"))
    for row, speech in enumerate(speeches):
        alone = tiny_model.model.encode(**extractor(speech, sampling_rate=16000, return_tensors="pt"))
        num_tokens = -(-len(speech) // 640)
        assert int(batch.attention_mask[row].sum()) == int(alone.attention_mask.sum()) == num_tokens
        assert torch.equal(batch.audio_codes[row, :num_tokens], alone.audio_codes[0, :num_tokens])
        assert (batch.audio_codes[row, num_tokens:] == -1).all()


def test_audio_of_exactly_one_window_trains_and_transcribes(tiny_model, extractor, make_speech):
    """30 s for a Whisper, 2 s here: no padding beyond the position table may be added to it."""
    features = extractor(make_speech(32000), sampling_rate=16000, return_tensors="pt")
    assert tiny_model(**features, labels=torch.tensor([[5, 0]])).speech.audio_codes.shape == (1, 50)
    assert tiny_model.generate(**features).shape[0] == 1


def test_embedded_codes_are_the_states_that_the_upper_layers_read(tiny_model, features):
    output = tiny_model.model.encode(**features)
    codes = output.audio_codes[output.attention_mask]
    torch.testing.assert_close(tiny_model.model.embed_codes(codes), output.last_hidden_state[output.attention_mask])


def test_padding_has_no_embedding(tiny_model, features):
    codes = tiny_model.model.encode(**features).audio_codes
    assert (codes == -1).any()
    with pytest.raises(ValueError, match="Drop padding"):
        tiny_model.model.embed_codes(codes)


def test_votes_are_confidences_between_minus_one_and_one(tiny_model, features):
    output = tiny_model.model.encode(**features)
    assert output.votes.shape == (*output.audio_codes.shape, 4)
    assert set((output.votes * 3).round().unique().tolist()) <= {-3.0, -1.0, 1.0, 3.0}
    assert output.projections is None


def test_the_two_views_are_two_passes(tiny_model, features):
    """One batched forward equals the clean voters' pass on clean and the noisy voter's on perturbed speech."""
    clean, mask = features.input_features, features.attention_mask
    perturbed = clean + 0.3 * torch.randn_like(clean)
    noisy = torch.tensor([False, False, True])
    both = tiny_model.model(clean, mask, perturbed_input_features=perturbed, noisy_voters=noisy).projections
    torch.testing.assert_close(both[:2], tiny_model.model(clean, mask).projections[:2])
    torch.testing.assert_close(both[2], tiny_model.model(perturbed, mask).projections[2])


def test_half_a_noisy_view_is_refused(tiny_model, features):
    clean = features.input_features
    with pytest.raises(ValueError, match="noisy_voters needs perturbed_input_features"):
        tiny_model.model(clean, noisy_voters=torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"noisy_voters must have shape \(3,\); got None"):
        tiny_model.model(clean, perturbed_input_features=clean)
    with pytest.raises(ValueError, match=r"noisy_voters must have shape \(3,\); got \(5,\)"):
        tiny_model.model(clean, perturbed_input_features=clean, noisy_voters=torch.zeros(5, dtype=torch.bool))
    with pytest.raises(ValueError, match="both views must have one shape"):
        tiny_model.model(clean, perturbed_input_features=clean[..., 1:], noisy_voters=torch.zeros(3, dtype=torch.bool))


def test_every_weight_that_is_trained_gets_a_gradient(tiny_model, features):
    tiny_model.train()
    perturbed = features.input_features + 0.1
    labels = torch.tensor([[5, 6, 0], [7, 0, -100]])
    noisy = torch.tensor([True, False, False])
    tiny_model(**features, perturbed_input_features=perturbed, noisy_voters=noisy, labels=labels).loss.backward()
    without = [name for name, p in tiny_model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_gradient_checkpointing_gives_the_same_gradients(tiny_model, features):
    labels = torch.tensor([[5, 6, 0], [7, 0, -100]])
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            tiny_model.gradient_checkpointing_enable()
        tiny_model.train().zero_grad()
        tiny_model(**features, labels=labels).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in tiny_model.named_parameters() if p.requires_grad})
    assert tiny_model.upper_layers[0].gradient_checkpointing
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_eager_attention_gives_the_same_transcripts_and_tokens(tiny_folder, features):
    sdpa = StableTokenForConditionalGeneration.from_pretrained(tiny_folder, attn_implementation="sdpa")
    eager = StableTokenForConditionalGeneration.from_pretrained(tiny_folder, attn_implementation="eager")
    assert eager.model.encoder.layers[0].self_attn.config._attn_implementation == "eager"
    assert torch.equal(sdpa.model.encode(**features).audio_codes, eager.model.encode(**features).audio_codes)
    assert torch.equal(sdpa.generate(**features), eager.generate(**features))


def test_bfloat16_tokenizes_and_transcribes(tiny_folder, features):
    model = StableTokenForConditionalGeneration.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    output = model.model.encode(**features)
    assert output.last_hidden_state.dtype == torch.bfloat16
    assert output.votes.dtype == torch.float32
    expected = StableTokenModel.from_pretrained(tiny_folder).encode(**features)
    agreement = output.audio_codes[output.attention_mask] == expected.audio_codes[output.attention_mask]
    assert agreement.float().mean() > 0.8
    assert model.generate(**features).shape[0] == 2


def test_the_loss_is_the_mean_over_labels_or_over_those_of_a_whole_step(tiny_model, features):
    labels = torch.tensor([[5, 6, 0], [7, 0, -100]])
    output = tiny_model(**features, labels=labels)
    log_probabilities = output.logits.log_softmax(dim=-1)
    picked = [log_probabilities[row, place, labels[row, place]] for row, place in labels.ne(-100).nonzero()]
    torch.testing.assert_close(output.loss, -sum(picked) / 5)
    whole_step = tiny_model(**features, labels=labels, num_items_in_batch=torch.tensor(20)).loss
    torch.testing.assert_close(whole_step, -sum(picked) / 20)


def test_labels_longer_than_the_decoder_are_refused(tiny_model, features):
    with pytest.raises(ValueError, match="labels have 25 tokens, the decoder has 24 positions"):
        tiny_model(**features, labels=torch.ones(2, 25, dtype=torch.int64))


def test_outputs_say_what_they_hold(tiny_model, features):
    output = tiny_model.model.encode(**features)
    assert [field.name for field in dataclasses.fields(output)] == [
        "last_hidden_state",
        "audio_codes",
        "attention_mask",
        "votes",
        "projections",
    ]
