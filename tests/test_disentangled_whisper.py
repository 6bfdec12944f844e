"""DisentangledWhisper: codes, residue, noise head and recognizer."""

import itertools

import pytest
import torch
from tiny_training import SHAPE
from transformers import AutoModelForAudioTokenization, AutoModelForSpeechSeq2Seq, WhisperConfig

from clearspeech import (
    DisentangledWhisperConfig,
    DisentangledWhisperForConditionalGeneration,
    StableTokenFeatureExtractor,
)
from clearspeech.modeling.modeling_whisper_ctc import WhisperForJointCTC

TINY = SHAPE | dict(window_overlap=10, codebook_size=32, codebook_dim=8, noise_head_dim=16, max_source_positions=120)
STRATEGIES = list(itertools.product(("mean", "conv", "conv_transformer"), ("repeat", "conv")))


def tiny_model(seed=0, **overrides):
    torch.manual_seed(seed)
    config = DisentangledWhisperConfig(**(TINY | dict(noise_labels=["rain", "wind"]) | overrides))
    return DisentangledWhisperForConditionalGeneration(config).eval()


def features_of(*lengths, seed=0):
    extractor = StableTokenFeatureExtractor(feature_size=16)
    generator = torch.Generator().manual_seed(seed)
    waveforms = [torch.randn(length, generator=generator) * 0.1 for length in lengths]
    return [extractor([each], sampling_rate=16000, return_tensors="pt") for each in waveforms], extractor(
        waveforms, sampling_rate=16000, return_tensors="pt"
    )


@pytest.fixture(scope="module")
def whisper_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(0)
    WhisperForJointCTC(WhisperConfig(**SHAPE)).save_whisper(folder)
    return str(folder)


@pytest.mark.parametrize("downsampling, upsampling", STRATEGIES)
def test_an_utterance_is_the_same_alone_and_in_a_batch(downsampling, upsampling):
    model = tiny_model(downsampling=downsampling, upsampling=upsampling, noise_head_layers=1)
    lengths = (161, 320, 640, 641, 960, 1281, 8000, 32640)
    alone, batch = features_of(*lengths)
    with torch.no_grad():
        together = model.encode_speech(**batch)
        for row, features in enumerate(alone):
            single = model.encode_speech(**features)
            frames, states = int(single.attention_mask.sum()), int(features["attention_mask"][:, ::2].sum())
            assert torch.equal(single.audio_codes[0, :frames], together.audio_codes[row, :frames])
            for name, length in (("latents", frames), ("residue", frames), ("last_hidden_state", states)):
                error = (single[name][0, :length] - together[name][row, :length]).abs().max()
                assert error < 1e-5, (lengths[row], name)
            assert torch.allclose(single.noise_logits[0], together.noise_logits[row], atol=1e-5)


def test_tokens_come_at_25_hz_and_padding_is_the_padding_code():
    model = tiny_model()
    _, batch = features_of(16000, 8000)
    output = model.model.encode(**batch)
    assert output.audio_codes.shape == (2, 25)
    assert output.attention_mask.sum(dim=1).tolist() == [25, 13]
    assert torch.equal(output.audio_codes == model.config.padding_code, ~output.attention_mask)
    assert output.noise_logits is None  # of a window, not of the recording


def test_the_residue_is_what_the_codes_leave_over():
    model = tiny_model()
    _, batch = features_of(16000, 8000)
    output = model.model(**batch)
    codes = model.model.embed_codes(output.audio_codes)
    expected = (output.latents - codes) * output.attention_mask.unsqueeze(-1)
    assert torch.allclose(output.residue, expected, atol=1e-6)
    assert torch.allclose(output.distances, expected.norm(dim=-1), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cosine_latents_have_unit_length_so_that_nothing_behind_them_sees_the_norm(dtype):
    model = tiny_model(codebook_distance="cosine").to(dtype)
    _, batch = features_of(16000, 8000)
    batch["input_features"] = batch["input_features"].to(dtype)
    before = model.encode_speech(**batch)
    mask = before.attention_mask
    norms = before.latents[mask].float().norm(dim=-1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-2 if dtype == torch.bfloat16 else 1e-6)
    with torch.no_grad():
        model.model.latent_encoder.project.weight *= 8
        model.model.latent_encoder.project.bias *= 8
    after = model.encode_speech(**batch)
    assert torch.equal(after.audio_codes, before.audio_codes)
    for name in ("residue", "distances", "noise_logits", "last_hidden_state"):
        assert torch.allclose(after[name], before[name], atol=1e-5), name
    assert before.distances.max() < 2


def test_l2_latents_are_the_projections_themselves():
    model = tiny_model()
    _, batch = features_of(16000)
    states, mask = model.model.encoder_states(**batch), batch["attention_mask"][:, ::2].bool()
    encoder = model.model.latent_encoder
    latents, _ = encoder(states, mask)
    assert torch.equal(latents, encoder.project(encoder.downsampling(states, mask)[0]))


def test_normalized_latents_have_zero_mean_and_unit_variance_over_their_dimensions():
    _, batch = features_of(16000)
    latents = tiny_model(normalize_latents=True).model(**batch).latents
    assert torch.allclose(latents.mean(dim=-1), torch.zeros(1, 25), atol=1e-5)
    assert torch.allclose(latents.var(dim=-1, unbiased=False), torch.ones(1, 25), atol=1e-2)


@pytest.mark.parametrize("layers", [0, 3])
def test_stem_layers_are_the_conv_transformers_blocks_at_full_rate(layers):
    model = tiny_model(downsampling="conv_transformer", stem_layers=layers)
    strides = [block.stride for block in model.model.latent_encoder.downsampling.blocks]
    assert strides == [1] * layers + [2]
    assert model.model(**features_of(16000)[1]).audio_codes.shape == (1, 25)


def test_the_adapter_has_as_many_blocks_as_asked_for():
    model = tiny_model(bottleneck="adapter", adapter_blocks=3, noise_labels=[])
    states, whole = torch.randn(1, 4, 32), model.adapter
    assert len(whole.blocks) == 3
    assert torch.equal(whole(states), whole.blocks[2](whole.blocks[1](whole.blocks[0](states))))


@pytest.mark.parametrize("layers", [0, 2])
def test_the_noise_head_is_as_wide_and_deep_as_asked_for(layers):
    model = tiny_model(noise_head_dim=12, noise_head_layers=layers)
    assert len(model.model.noise_head.layers) == layers
    assert model.model(**features_of(16000, 8000)[1]).noise_features.shape == (2, 12)


def test_long_audio_is_tokenized_in_windows():
    model = tiny_model()
    alone, _ = features_of(16000 * 7)  # the tiny position table holds 2.4 s
    output = model.model.encode(**alone[0])
    assert output.audio_codes.shape == (1, 175)
    assert output.attention_mask.all()
    with pytest.raises(ValueError, match="cut longer audio into windows"):
        model.explain(**alone[0])


def test_explain_gives_ids_residue_posterior_and_distances():
    model = tiny_model()
    _, batch = features_of(16000, 8000)
    explanation = model.explain(**batch)
    assert explanation.audio_codes.shape == (2, 25)
    assert explanation.residue.shape == (2, 25, 8)
    assert torch.allclose(explanation.distances, explanation.residue.norm(dim=-1), atol=1e-5)
    assert explanation.noise_probabilities.shape == (2, 3)
    assert torch.allclose(explanation.noise_probabilities.sum(dim=-1), torch.ones(2))
    assert model.config.noise_classes == ["rain", "wind", "unknown"]


def test_a_model_without_noise_head_explains_without_posterior():
    _, batch = features_of(8000)
    assert tiny_model(noise_labels=[]).explain(**batch).noise_probabilities is None


@pytest.mark.parametrize("bottleneck", ["adapter", "none"])
def test_baselines_have_no_tokens(bottleneck):
    model = tiny_model(bottleneck=bottleneck)
    _, batch = features_of(8000)
    assert model.generate(**batch, max_new_tokens=3, num_beams=1).shape[0] == 1
    with pytest.raises(ValueError, match=f"bottleneck='{bottleneck}'"):
        model.model.encode(**batch)


def test_without_bottleneck_it_is_the_frozen_whisper(whisper_folder):
    model = DisentangledWhisperForConditionalGeneration.from_whisper(whisper_folder, bottleneck="none").eval()
    whisper = WhisperForJointCTC.from_pretrained(whisper_folder).eval()
    _, batch = features_of(16000, 8000)
    ids = torch.tensor([[1, 4, 5], [1, 6, 7]])
    ours, theirs = model(**batch, decoder_input_ids=ids), whisper(**batch, decoder_input_ids=ids)
    assert torch.allclose(ours.logits, theirs.logits, atol=1e-6)


def test_a_fresh_adapter_starts_near_the_whisper(whisper_folder):
    model = DisentangledWhisperForConditionalGeneration.from_whisper(whisper_folder, bottleneck="adapter").eval()
    _, batch = features_of(16000)
    states = model.model.encoder_states(**batch)
    assert (model.adapter(states) - states).norm() < 0.5 * states.norm()


def test_saved_folders_load_as_recognizer_and_as_tokenizer_and_stay_frozen(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    recognizer = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path)
    tokenizer = AutoModelForAudioTokenization.from_pretrained(tmp_path)
    _, batch = features_of(16000, 8000)
    expected = model.model.encode(**batch)
    for loaded in (recognizer.model, tokenizer):
        assert torch.equal(loaded.encode(**batch).audio_codes, expected.audio_codes)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), recognizer.state_dict().values()))
    trained = {name.split(".")[0] for name, weights in recognizer.named_parameters() if weights.requires_grad}
    assert trained == {"model", "latent_decoder"}
    assert not any(weights.requires_grad for weights in recognizer.model.encoder.parameters())
    assert not any(weights.requires_grad for weights in tokenizer.encoder.parameters())


def test_frozen_parts_have_no_dropout_in_training(whisper_folder):
    model = DisentangledWhisperForConditionalGeneration.from_whisper(whisper_folder, dropout=0.5)
    model.train()
    assert model.latent_decoder.training and model.model.latent_encoder.training
    assert not model.model.encoder.training and not model.decoder.training
    _, batch = features_of(16000)
    first, second = (model.model.encoder_states(**batch) for _ in range(2))
    assert torch.equal(first, second)


def test_trained_modules_move_to_another_whisper(whisper_folder, tmp_path):
    source = DisentangledWhisperForConditionalGeneration.from_whisper(
        whisper_folder, codebook_size=16, downsampling="conv", noise_labels=["rain"]
    )
    source.model.quantizer.codebook += 1
    source.save_pretrained(tmp_path)
    copy = DisentangledWhisperForConditionalGeneration.from_whisper(whisper_folder, str(tmp_path))
    assert copy.config.codebook_size == 16 and copy.config.downsampling == "conv"
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), copy.state_dict().values()))


def test_modules_for_another_width_are_refused(whisper_folder, tmp_path):
    tiny_model(d_model=16).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="width 16, the base has 32"):
        DisentangledWhisperForConditionalGeneration.from_whisper(whisper_folder, str(tmp_path))


@pytest.mark.parametrize(
    "asked, known",
    [
        (dict(codebook_size=99), "codebook_size=32"),
        (dict(codebook_distance="cosine"), "codebook_distance='l2'"),
        (dict(noise_labels=["wind", "rain"]), r"noise_labels=\['rain', 'wind'\]"),
    ],
)
def test_an_override_that_contradicts_the_trained_modules_is_refused(whisper_folder, tmp_path, asked, known):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{next(iter(asked))}=.* contradicts .*, which has {known}"):
        DisentangledWhisperForConditionalGeneration.from_whisper(whisper_folder, str(tmp_path), **asked)


def test_how_the_codebook_moves_on_may_differ_from_the_trained_modules(whisper_folder, tmp_path):
    tiny_model(max_source_positions=100, codebook_decay=0.9).save_pretrained(tmp_path)
    again = DisentangledWhisperForConditionalGeneration.from_whisper(
        whisper_folder, str(tmp_path), codebook_decay=0.5, dead_code_threshold=1.0
    )
    assert (again.model.quantizer.decay, again.model.quantizer.dead_code_threshold) == (0.5, 1.0)


def test_a_tokenizer_alone_has_no_modules_to_go_on_with(whisper_folder, tmp_path):
    tiny_model(max_source_positions=100).model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="lacks .* weights, .*: give a whole model"):
        DisentangledWhisperForConditionalGeneration.from_whisper(whisper_folder, str(tmp_path))


def test_modules_of_another_shape_or_model_are_refused(whisper_folder, tmp_path):
    tiny_model(downsampling="mean").save_pretrained(tmp_path)  # for more positions than the base has
    with pytest.raises(ValueError, match="other shapes.*latent_decoder.positions"):
        DisentangledWhisperForConditionalGeneration.from_whisper(whisper_folder, str(tmp_path))
    with pytest.raises(ValueError, match="'whisper' model; expected 'disentangled_whisper'"):
        DisentangledWhisperForConditionalGeneration.from_whisper(whisper_folder, whisper_folder)


def test_a_base_that_is_no_whisper_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="starts from a Whisper checkpoint"):
        DisentangledWhisperForConditionalGeneration.from_whisper(str(tmp_path))


def test_a_new_model_decodes_with_the_papers_ten_beams(whisper_folder):
    assert DisentangledWhisperForConditionalGeneration.from_whisper(whisper_folder).generation_config.num_beams == 10


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(downsampling="max"), "downsampling must be one of mean, conv, conv_transformer; got 'max'"),
        (dict(upsampling="linear"), "upsampling"),
        (dict(bottleneck="rvq"), "bottleneck"),
        (dict(codebook_distance="l1"), "codebook_distance"),
        (dict(codebook_size=0), "codebook_size must be at least 1; got 0"),
        (dict(codebook_decay=0.0), "codebook_decay"),
        (dict(dead_code_threshold=-1.0), "dead_code_threshold"),
        (dict(stem_layers=-1), "stem_layers must not be negative; got -1"),
        (dict(refinement_layers=-1), "refinement_layers must not be negative"),
        (dict(noise_head_layers=-1), "noise_head_layers must not be negative"),
        (dict(d_model=1022), "d_model must be a multiple of the 4 attention heads; got 1022"),
        (dict(noise_labels=["rain"], noise_head_dim=6, noise_head_layers=1), "noise_head_dim must be a multiple"),
        (dict(pooling_size=4), "pooling_size must be 2"),
        (dict(noise_labels=["rain", "rain"]), "must differ"),
        (dict(noise_labels=["unknown"]), "must differ"),
    ],
)
def test_configurations_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(Exception, match=message):
        DisentangledWhisperConfig(**wrong)


@pytest.mark.parametrize(
    "fields",
    [
        dict(d_model=30, downsampling="mean"),
        dict(d_model=30, bottleneck="adapter"),
        dict(noise_head_dim=6),
        dict(noise_labels=[], noise_head_dim=6, noise_head_layers=1),
    ],
)
def test_widths_that_no_attention_divides_are_free(fields):
    assert tiny_model(**fields).config.to_dict().items() >= fields.items()


def test_bfloat16_keeps_the_codebook_in_float32(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model.model.quantizer.codebook.dtype == torch.float32
    assert model.latent_decoder.project.weight.dtype == torch.bfloat16
    _, batch = features_of(8000)
    output = model.encode_speech(batch["input_features"].bfloat16(), batch["attention_mask"])
    assert output.last_hidden_state.dtype == torch.bfloat16
