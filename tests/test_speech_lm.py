"""SpeechLM: the vocabulary, the extension of a text model, generation."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoConfig, AutoModelForCausalLM, BloomConfig, GPT2Config, Qwen2Config

import clearspeech  # noqa: F401  (registers the classes)
from clearspeech.configuration.configuration_speech_lm import SpeechLMConfig
from clearspeech.modeling.modeling_speech_lm import SpeechLMForCausalLM

NUM_UNITS = 20
GPT2 = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0)
QWEN2 = dict(
    vocab_size=60,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    eos_token_id=[3, 4],
    pad_token_id=3,
)
TEXT_CONFIGS = {
    "gpt2": GPT2,
    "qwen2, tied": Qwen2Config(**QWEN2, tie_word_embeddings=True),
    "qwen2, untied": Qwen2Config(**QWEN2, tie_word_embeddings=False),
}


@pytest.fixture(params=TEXT_CONFIGS.values(), ids=TEXT_CONFIGS)
def text_model(request, tmp_path):
    model = AutoModelForCausalLM.from_config(request.param).eval()
    model.save_pretrained(tmp_path / "text")
    return model, tmp_path / "text"


@pytest.fixture
def speech_lm(text_model) -> SpeechLMForCausalLM:
    return SpeechLMForCausalLM.from_text_model(str(text_model[1]), NUM_UNITS).eval()


def test_the_papers_vocabulary_has_56259_rows():
    config = SpeechLMConfig()
    assert config.vocab_size == 56259
    ids = config.text_vocab_size, config.text_end_token_id, config.speech_end_token_id, config.first_unit_token_id
    assert ids == (50257, 50257, 50258, 50259)


def test_the_papers_model_has_gpt2_mediums_weights_and_the_new_rows():
    medium = GPT2Config(n_embd=1024, n_layer=24, n_head=16)
    with torch.device("meta"):
        text = AutoModelForCausalLM.from_config(medium)
        model = SpeechLMForCausalLM(SpeechLMConfig.from_text_config(medium, 6000))
    assert model.num_parameters() == text.num_parameters() + 6002 * 1024
    assert medium.vocab_size == 50257  # the argument is left as it is


def test_text_rows_keep_their_weights_tied_or_untied(text_model, speech_lm):
    text, _ = text_model
    for name in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(text, name)().weight, getattr(speech_lm, name)().weight
        assert len(new) == len(old) + 2 + NUM_UNITS
        torch.testing.assert_close(new[: len(old)], old, rtol=0, atol=0)
        assert new[len(old) :].std() > 0
    is_tied = speech_lm.get_input_embeddings().weight is speech_lm.get_output_embeddings().weight
    assert is_tied == text.config.tie_word_embeddings


def test_text_is_read_as_before(text_model, speech_lm):
    text, _ = text_model
    ids = torch.randint(5, 50, (2, 9))
    ours = speech_lm(ids).logits[..., : text.config.vocab_size]
    torch.testing.assert_close(ours, text(ids).logits)


def test_a_saved_model_reloads_to_the_same_logits(speech_lm, tmp_path):
    speech_lm.save_pretrained(tmp_path / "saved")
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert isinstance(loaded, SpeechLMForCausalLM)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = torch.randint(5, speech_lm.config.vocab_size, (2, 9))
    torch.testing.assert_close(loaded.eval()(ids).logits, speech_lm(ids).logits, rtol=0, atol=0)
    assert loaded.generation_config.eos_token_id == loaded.config.text_end_token_id


@pytest.mark.parametrize("num_beams", [1, 3])
def test_an_utterance_has_the_same_text_alone_and_in_a_left_padded_batch(speech_lm, num_beams):
    lengths = (5, 12, 9)
    rows = [torch.randint(5, speech_lm.config.vocab_size, (length,)) for length in lengths]
    ids = torch.full((3, 12), speech_lm.generation_config.pad_token_id)
    mask = torch.zeros(3, 12, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, -len(row) :], mask[index, -len(row) :] = row, 1
    options = dict(num_beams=num_beams, max_new_tokens=8)
    together = speech_lm.generate(ids, attention_mask=mask, **options)[:, 12:]
    for index, row in enumerate(rows):
        alone = speech_lm.generate(row[None], attention_mask=torch.ones(1, len(row)), **options)[0, len(row) :]
        torch.testing.assert_close(together[index, : len(alone)], alone)


def test_answers_are_as_long_as_the_papers_or_half_a_shorter_context(text_model, tmp_path):
    assert SpeechLMForCausalLM.from_text_model(str(text_model[1]), NUM_UNITS).generation_config.max_new_tokens == 32
    GPT2Config(**GPT2.to_dict() | {"n_positions": 512}).save_pretrained(tmp_path / "long")
    model = SpeechLMForCausalLM.from_text_model(str(tmp_path / "long"), NUM_UNITS, from_scratch=True)
    model.generation_config.eos_token_id = None
    assert model.generate(torch.tensor([[60]]), min_new_tokens=100).shape[1] == 1 + 150


def test_options_of_loading_reach_the_configuration_too(text_model, monkeypatch):
    asked = []
    load = AutoConfig.from_pretrained

    def watched(name, **options):
        asked.append(options)
        return load(name, **options)

    monkeypatch.setattr(AutoConfig, "from_pretrained", watched)
    SpeechLMForCausalLM.from_text_model(str(text_model[1]), NUM_UNITS, revision="main", dtype=torch.float32)
    assert {"revision": "main"} in asked


@pytest.mark.parametrize("num_units, num_beams", [(65, 1), (60, 1), (60, 2)])  # at once, or while it writes
def test_generation_past_the_context_is_refused(speech_lm, num_units, num_beams):
    input_ids = torch.randint(5, 50, (1, num_units))
    with pytest.raises(ValueError, match=r"come to 65 tokens; the model's context holds 64"):
        speech_lm.generate(input_ids=input_ids, max_new_tokens=20, min_new_tokens=20, num_beams=num_beams)


def test_padding_on_the_left_moves_no_position(speech_lm):
    ids = torch.randint(5, 50, (1, 6))
    padded, mask = torch.nn.functional.pad(ids, (4, 0), value=0), torch.tensor([[0] * 4 + [1] * 6])
    torch.testing.assert_close(speech_lm(padded, attention_mask=mask).logits[:, 4:], speech_lm(ids).logits)


def test_the_loss_of_labels_is_the_text_models_own(text_model, speech_lm):
    ids = torch.randint(5, speech_lm.config.vocab_size, (2, 9))
    labels = ids.clone()
    labels[:, :4] = -100
    logits = speech_lm(ids).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(speech_lm(ids, labels=labels).loss, expected)


def test_from_scratch_takes_the_shape_alone(tmp_path):
    GPT2.save_pretrained(tmp_path)
    model = SpeechLMForCausalLM.from_text_model(str(tmp_path), NUM_UNITS, from_scratch=True)
    assert model.config.vocab_size == 50 + 2 + NUM_UNITS
    assert not any(weights.is_meta for weights in model.parameters())


@pytest.mark.parametrize("from_scratch", [True, False])
def test_the_dtype_is_the_one_asked_for_whatever_the_text_models(tmp_path, from_scratch):
    AutoModelForCausalLM.from_config(GPT2).to(torch.bfloat16).save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        model = SpeechLMForCausalLM.from_text_model(str(tmp_path), NUM_UNITS, from_scratch, dtype=dtype)
        assert {weights.dtype for weights in model.parameters()} == {dtype}
    model = SpeechLMForCausalLM(SpeechLMConfig.from_text_config(model.config.text_config, NUM_UNITS))
    assert model.dtype == torch.float32  # as of any model of Transformers


@pytest.mark.parametrize("from_scratch", [True, False])
def test_a_saved_model_does_not_say_where_its_text_model_was(text_model, from_scratch, tmp_path):
    model = SpeechLMForCausalLM.from_text_model(str(text_model[1]), NUM_UNITS, from_scratch)
    model.save_pretrained(tmp_path / "saved")
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()


def test_a_speech_lm_is_no_text_model(speech_lm, tmp_path):
    speech_lm.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="SpeechLM already"):
        SpeechLMForCausalLM.from_text_model(str(tmp_path / "saved"), NUM_UNITS)


@pytest.mark.parametrize("num_units", [0, 49])
def test_a_vocabulary_without_room_is_refused(num_units):
    with pytest.raises(StrictDataclassClassValidationError, match=str(num_units or "at least 1")):
        SpeechLMConfig(text_config=GPT2.to_dict(), num_speech_units=num_units)


def test_a_text_model_of_unknown_context_is_refused_by_name():
    with pytest.raises(ValueError, match="bloom has no max_position_embeddings"):
        SpeechLMConfig.from_text_config(BloomConfig(vocab_size=30), NUM_UNITS)
