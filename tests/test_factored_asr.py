"""Questions to FactoredASR's model: its parts, padding, search, saving, and what it refuses."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from tiny_frame_encoders import ENCODERS, LENGTHS, SIZES, alone, build, make_inputs
from transformers import (
    GenerationConfig,
    ParakeetCTCConfig,
    ParakeetForCTC,
    WhisperModel,
)

from clearspeech.configuration.configuration_factored_asr import FactoredASRConfig
from clearspeech.modeling.factor_networks import FactorNetwork
from clearspeech.modeling.gradient_reversal import reverse_gradient
from clearspeech.modeling.modeling_factored_asr import FactoredASRForRNNT


@pytest.mark.parametrize("encoder", ENCODERS)
def test_factors_of_an_utterance_do_not_depend_on_its_batch(encoder):
    model = build(encoder)
    inputs = make_inputs(model)
    batch = model.factors(**inputs)
    for row in range(len(LENGTHS)):
        single = model.factors(**alone(model, inputs, row))
        num_frames = single.content.shape[1]
        assert int(batch.attention_mask[row].sum()) == num_frames == int(single.attention_mask.sum())
        for name in ("content", "context", "last_hidden_state"):
            torch.testing.assert_close(batch[name][row, :num_frames], single[name][0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_text_of_an_utterance_does_not_depend_on_its_batch(encoder):
    model = build(encoder)
    inputs = make_inputs(model)
    for num_beams in (1, 3):
        texts = model.generate(**inputs, num_beams=num_beams)
        assert not (texts == model.config.blank_token_id).any()
        for row in range(len(LENGTHS)):
            single = model.generate(**alone(model, inputs, row), num_beams=num_beams)[0]
            assert torch.equal(texts[row, : len(single)], single)
            assert (texts[row, len(single) :] == model.config.pad_token_id).all()


@torch.no_grad()
def test_greedy_search_writes_the_likeliest_symbol_until_it_is_a_blank():
    """Frame by frame, against a loop that runs the whole prediction network anew for each symbol."""
    model = build(max_symbols_per_step=3)
    inputs = make_inputs(model, lengths=(20,))
    states = model.get_audio_features(**inputs).pooler_output[0]
    written = []
    for state in states:
        for _ in range(model.config.max_symbols_per_step):
            history = torch.tensor([[model.config.blank_token_id, *written]])
            logits = model.joint(model.decoder(history)[:, -1], state[None])
            symbol = int(logits.argmax())
            if symbol == model.config.blank_token_id:
                break
            written.append(symbol)
    assert len(written) > 5
    assert model.generate(**inputs)[0].tolist() == written


def test_a_wider_beam_finds_texts_that_are_at_least_as_likely():
    from clearspeech.trainers.losses import transducer_loss

    model = build()
    inputs = make_inputs(model, lengths=(12,))

    @torch.no_grad()
    def cost(labels):
        output = model(**inputs, labels=labels)
        mask = output.speech.attention_mask
        return float(transducer_loss(output.logits, labels, mask, model.config.blank_token_id))  # per label, as ranked

    costs = [cost(model.generate(**inputs, num_beams=width)) for width in (2, 8)]
    assert costs[1] <= costs[0] + 1e-4


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_is_reconstructed_from_its_own_frames(encoder):
    model = build(encoder)
    inputs = make_inputs(model)
    masked = torch.zeros(model.state_mask(inputs["attention_mask"]).shape, dtype=torch.bool)
    masked[:, 1] = True
    output = model(
        **inputs, masked_frames=masked, reversal_weight=1.0, labels=torch.tensor([[1, 2], [3, -100], [4, 5]])
    )
    num_frames = output.speech.content.shape[1]
    assert output.frames.shape == (3, num_frames, model.frame_encoder.frame_size)
    assert [each.shape for each in output.reconstructions] == [(3, num_frames, 8)] * 2 + [output.frames.shape]
    assert not output.frames.requires_grad
    assert output.logits.shape == (3, num_frames, 3, 11)


def test_the_loss_of_labels_is_the_transducers_per_label():
    from clearspeech.trainers.losses import transducer_loss

    model = build()
    inputs, labels = make_inputs(model), torch.tensor([[1, 2], [3, -100], [4, 5]])
    output = model(**inputs, labels=labels)
    mask = output.speech.attention_mask
    torch.testing.assert_close(output.loss, transducer_loss(output.logits, labels, mask, model.config.blank_token_id))
    assert model(**inputs, labels=labels, return_loss=False).loss is None


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_loss_does_not_depend_on_how_far_inputs_and_labels_are_padded(encoder):
    model = build(encoder)
    inputs, labels = make_inputs(model), torch.tensor([[1, 2], [3, -100], [4, 5]])
    pad, in_time = torch.nn.functional.pad, (0, 40)
    longer = {
        name: pad(value, in_time if value.dim() == 2 or encoder == "whisper" else (0, 0, *in_time))
        for name, value in inputs.items()
    }
    expected = model(**inputs, labels=labels).loss
    torch.testing.assert_close(model(**longer, labels=labels).loss, expected, atol=1e-5, rtol=1e-5)
    wider = pad(labels, (0, 2), value=-100)
    torch.testing.assert_close(model(**inputs, labels=wider).loss, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_model_in_half_precision_transcribes(encoder):
    model = build(encoder)
    inputs = make_inputs(model)
    assert model.to(torch.bfloat16).generate(**inputs).shape[0] == len(LENGTHS)


def test_options_of_a_search_that_it_does_not_have_are_refused():
    model = build()
    inputs = make_inputs(model)
    beams = GenerationConfig(num_beams=3)
    assert torch.equal(model.generate(**inputs, generation_config=beams), model.generate(**inputs, num_beams=3))
    for options, message in (
        (dict(num_beams=3, temperature=2.0), "has no temperature"),
        (dict(num_beams=11), "below the vocabulary's 11; got 11"),
        (dict(return_dict_in_generate=True), "returns ids alone"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(**inputs, **options)


def test_reversal_passes_values_on_and_turns_gradients_with_its_weight():
    values = torch.randn(3, requires_grad=True)
    reversed_values = reverse_gradient(values, 0.25)
    assert torch.equal(reversed_values, values)
    (reversed_values * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([-0.25, -0.5, -0.75]))


def test_reconstructors_learn_what_factors_unlearn():
    """One step against the gradients makes a reconstructor better, and the factor it reads worse to tell from."""
    model = build()
    output = model(**make_inputs(model), reversal_weight=1.0)
    error = (output.reconstructions[0] - output.speech.content.detach()).pow(2).mean()
    reader = next(model.reconstruction.content.parameters())
    factor = next(model.context_network.parameters())
    by_reader, by_factor = torch.autograd.grad(error, [reader, factor], retain_graph=True)
    plain = model.reconstruction.content(output.speech.context)
    unturned = torch.autograd.grad((plain - output.speech.content.detach()).pow(2).mean(), [reader, factor])
    torch.testing.assert_close(by_reader, unturned[0])
    torch.testing.assert_close(by_factor, -unturned[1])


def test_without_factors_the_transducer_reads_the_encoders_states():
    model = build(factorize=False)
    assert not [name for name in model.state_dict() if "content" in name or "context" in name or "reconstr" in name]
    speech = model.factors(**make_inputs(model))
    assert speech.context is None
    states = speech.last_hidden_state
    centred = states - states.mean(dim=2, keepdim=True)
    torch.testing.assert_close(speech.content, centred / (centred.square().mean(dim=2, keepdim=True) + 1e-5).sqrt())
    with pytest.raises(ValueError, match="no factors to reconstruct"):
        model(**make_inputs(model), reversal_weight=1.0)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_recognition_runs_neither_reconstructors_nor_context(num_beams):
    model, ran = build(), set()
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, _: ran.add(module))
    model.generate(**make_inputs(model), num_beams=num_beams)
    assert model.content_network in ran
    assert not ran & {*model.context_network.modules(), *model.reconstruction.modules()}


def test_factor_networks_have_the_papers_layers():
    with torch.device("meta"):
        network = FactorNetwork(1024, hidden_size=512, output_size=512, num_layers=3, dropout=0.1)
    linear = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linear] == [(512, 1024), (512, 512), (512, 512), (512, 512)]
    assert sum(isinstance(layer, torch.nn.ReLU) for layer in network) == 3


@pytest.mark.parametrize("encoder", ["lstm", "conformer", "wav2vec2"])
def test_a_saved_model_is_the_same(encoder, tmp_path):
    model = build(encoder)
    model.save_pretrained(tmp_path)
    loaded = FactoredASRForRNNT.from_pretrained(tmp_path).eval()
    assert type(loaded.config.encoder_config) is type(model.config.encoder_config)
    assert loaded.main_input_name == model.main_input_name
    inputs = make_inputs(model)
    torch.testing.assert_close(loaded.factors(**inputs).content, model.factors(**inputs).content)
    assert torch.equal(loaded.generate(**inputs), model.generate(**inputs))


def test_a_pretrained_encoder_keeps_its_weights(tmp_path):
    WhisperModel(ENCODERS["whisper"]).save_pretrained(tmp_path)
    source = WhisperModel.from_pretrained(tmp_path)
    model = FactoredASRForRNNT.from_encoder(str(tmp_path), **SIZES)
    for name, value in source.encoder.state_dict().items():
        torch.testing.assert_close(model.frame_encoder.encoder.state_dict()[name], value)
    assert str(tmp_path) not in str(model.config.to_dict())


def test_a_whole_parakeet_lends_its_encoder(tmp_path):
    config = ParakeetCTCConfig(vocab_size=10, pad_token_id=0, encoder_config=ENCODERS["parakeet"].to_dict())
    source = ParakeetForCTC(config)
    source.save_pretrained(tmp_path)
    ours = FactoredASRForRNNT.from_encoder(str(tmp_path), **SIZES).frame_encoder.encoder.state_dict()
    for name, value in source.encoder.state_dict().items():
        torch.testing.assert_close(ours[name], value)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"encoder_config": {"model_type": "bert"}}, "a state for each frame"),
        ({"encoder_config": {"hidden_size": 4}}, "needs a model_type"),
        ({"factor_dim": 0}, "factor_dim must be at least 1"),
        ({"num_decoder_layers": 0}, "num_decoder_layers must be at least 1"),
        ({"blank_token_id": 3}, "must be the last of vocab_size=11"),
    ],
)
def test_configurations_that_cannot_work_are_refused(fields, message):
    with pytest.raises((StrictDataclassClassValidationError, ValueError), match=message):
        FactoredASRConfig(**{"encoder_config": ENCODERS["lstm"], **SIZES, **fields})


@pytest.mark.parametrize(
    "encoder, inputs, message",
    [
        ("lstm", {"input_values": torch.randn(1, 400)}, "takes input_features"),
        ("wav2vec2", {"input_features": torch.randn(1, 8, 12)}, "takes input_values"),
        ("lstm", {"input_features": torch.randn(1, 8, 13)}, r"\(batch, frames, 12\)"),
        ("whisper", {"input_features": torch.randn(1, 8, 12)}, r"\(batch, 12, frames\)"),
        ("lstm", {"input_features": torch.randn(1, 8, 12), "attention_mask": torch.ones(1, 7)}, "attention_mask"),
        ("wav2vec2", {"input_values": torch.randn(1, 20)}, "too short for a single frame"),
        ("lstm", {"input_features": torch.randn(1, 0, 12)}, r"shape \(1, 0, 12\)"),
        ("whisper", {"input_features": torch.randn(1, 12, 0)}, r"shape \(1, 12, 0\)"),
        ("wav2vec2", {"input_values": torch.randn(0, 400)}, r"shape \(0, 400\)"),
        (
            "parakeet",
            {"input_features": torch.randn(1, 8, 16), "attention_mask": torch.zeros(1, 8)},
            "0.0. real frames",
        ),
        ("hubert", {"input_values": torch.randn(1, 400), "attention_mask": torch.zeros(1, 400)}, "0.0. real samples"),
    ],
)
def test_inputs_of_another_encoder_are_refused(encoder, inputs, message):
    with pytest.raises(ValueError, match=message):
        build(encoder).factors(**inputs)
    with pytest.raises(ValueError, match=message):
        build(encoder).generate(**inputs)


def test_one_frame_is_enough():
    model = build("conformer")
    inputs = make_inputs(model, lengths=(1,))
    assert model.factors(**inputs).content.shape == (1, 1, 8)
    assert model.generate(**inputs).dim() == 2
