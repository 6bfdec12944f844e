"""Questions to SpeechLM's processor: units, sequences, text, saving and loading, bad input."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoProcessor,
    PreTrainedTokenizerFast,
    WhisperFeatureExtractor,
)
from transformers.utils import hub

from clearspeech import DisentangledWhisperModel
from clearspeech.processing.processing_speech_lm import SpeechLMProcessor
from clearspeech.processing.speech_tasks import TASKS
from clearspeech.processing.unit_pieces import UnitPieces

TEXT_END, SPEECH_END, FIRST_UNIT = 31, 32, 33  # behind the character tokenizer's 31 rows


@pytest.fixture
def processor(tiny_speech_processor) -> SpeechLMProcessor:
    return tiny_speech_processor


@pytest.fixture
def kmeans(tiny_kmeans_processor) -> SpeechLMProcessor:
    return tiny_kmeans_processor


@pytest.fixture
def pieces(tiny_pieces) -> UnitPieces:
    return tiny_pieces


@pytest.fixture
def merging(processor, pieces) -> SpeechLMProcessor:
    """The same units, merged."""
    return SpeechLMProcessor(
        processor.feature_extractor, processor.audio_tokenizer, processor.tokenizer, pieces, processor.text_vocab_size
    )


def expected_codes(processor, speech) -> list[int]:
    features = processor.feature_extractor(speech, sampling_rate=16000, return_tensors="pt")
    return processor.audio_tokenizer.encode(**features).audio_codes[0].tolist()


def test_units_are_the_audio_tokenizers_codes(processor, make_speech):
    speech = make_speech(9000)
    assert processor.num_speech_units == 16
    assert processor.units(speech, 16000) == [expected_codes(processor, speech)]


@pytest.mark.parametrize("source", ["processor", "kmeans", "merging"])
def test_units_do_not_depend_on_the_batch(request, source, make_speech):
    processor = request.getfixturevalue(source)
    recordings = [make_speech(length, seed=length) for length in (20000, 401, 9000)]
    assert processor.units(recordings, 16000) == [processor.units(each, 16000)[0] for each in recordings]


def test_pieces_stand_for_the_same_codes_in_fewer_units(processor, merging, pieces):
    codes = [0, 1, 2, 3, 4, 5, 0, 1, 6, 7]
    assert merging.num_speech_units == 24
    assert len(pieces.encode(codes)) < len(codes)
    speech = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    assert pieces.decode(merging.units(speech, 16000)[0]) == processor.units(speech, 16000)[0]


def test_a_sequence_is_prompt_units_end_of_speech_answer_end_of_text(processor, tokenizer):
    sequence = processor.sequence([3, 0, 15], text="Hi, You!", prompt="say it")
    prompt, answer = (tokenizer(text, add_special_tokens=False).input_ids for text in ("say it", "hi you"))
    speech = [FIRST_UNIT + 3, FIRST_UNIT, FIRST_UNIT + 15]
    assert sequence["input_ids"] == [*prompt, *speech, SPEECH_END, *answer, TEXT_END]
    assert (sequence["num_prompt"], sequence["num_speech"]) == (len(prompt), 3)
    assert processor.sequence([3])["input_ids"] == [FIRST_UNIT + 3, SPEECH_END]


def test_sequences_are_padded_on_the_left_for_generation(processor):
    batch = processor(units=[[1], [1, 2, 3]], prompt=["a", "b"], return_tensors="pt")
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1, 1], [1] * 5]
    assert batch["input_ids"][0].tolist() == [0, 0, *processor.sequence([1], prompt="a")["input_ids"]]
    assert batch["input_ids"][1].tolist() == processor.sequence([1, 2, 3], prompt="b")["input_ids"]


def test_audio_and_its_units_give_the_same_batch(processor, make_speech):
    recordings = [make_speech(9000), make_speech(20000)]
    of_audio = processor(audio=recordings, sampling_rate=16000, text=["one", "two"], prompt="say")
    of_units = processor(units=processor.units(recordings, 16000), text=["one", "two"], prompt="say")
    assert dict(of_audio) == dict(of_units)
    assert of_audio["input_ids"][1][-1] == TEXT_END


def test_text_ends_at_the_end_of_text_and_other_ids_are_dropped(processor, tokenizer):
    hi, you = (tokenizer(text, add_special_tokens=False).input_ids for text in ("hi", " you"))
    assert processor.decode([*hi, FIRST_UNIT + 2, SPEECH_END, *you, TEXT_END, *hi, 0]) == "hi you"
    assert processor.batch_decode(torch.tensor([[*hi, 0, 0, -100]])) == ["hi"]
    assert processor.decode([]) == ""


def words_tokenizer(words: list[str], **special: str) -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate(["<unk>", *words, *special.values()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special)


def test_prompts_stay_as_they_are_where_the_tokenizer_knows_their_characters(processor):
    knows = processor.with_text_model(words_tokenizer(["Say", "it."], eos_token="</s>"), 10)
    assert knows.tokenizer.convert_ids_to_tokens(knows.prompt_ids("Say it.")) == ["Say", "it."]
    assert processor.prompt_ids("Say it.") == processor.prompt_ids("say it")
    with pytest.raises(ValueError, match=r"'say 7'.*outside the tokenizer's vocabulary: \['7'\]"):
        processor.prompt_ids("Say 7.")


def test_a_model_of_several_tasks_is_asked_the_first_unless_told_otherwise(processor, tokenizer):
    asking = processor.with_text_model(tokenizer, 31, ("asr", "emotion"))

    def written(**options) -> list[int]:
        return asking(units=[3, 1], **options)["input_ids"][0]

    for task in ("asr", "emotion"):
        assert written(task=task) == asking.sequence([3, 1], prompt=TASKS[task].prompts[0])["input_ids"]
    assert written() == written(task="asr") and written(prompt="say it") != written()
    with pytest.raises(ValueError, match="Pass one of them"):
        written(task="asr", prompt="say it")
    with pytest.raises(ValueError, match="trained on asr"):
        processor(units=[3, 1], task="emotion")


def test_padding_is_to_the_longest_whatever_it_is_called(processor):
    batch = processor(units=[[1, 2], [3]], padding=True)
    assert batch == processor(units=[[1, 2], [3]], padding="longest") == processor(units=[[1, 2], [3]])
    with pytest.raises(ValueError, match="got padding='max_length'"):
        processor(units=[[1, 2], [3]], padding="max_length")


def test_a_tokenizer_without_padding_pads_with_its_end_of_text(processor):
    other = processor.with_text_model(words_tokenizer(["one"], eos_token="</s>"), 10)
    assert other.pad_token_id == other.tokenizer.eos_token_id == 2
    with pytest.raises(ValueError, match="neither a padding token nor an end of text"):
        processor.with_text_model(words_tokenizer(["one"]), 10)


def test_an_audio_tokenizers_folder_becomes_a_source_of_units(tiny_folder, tiny_disentangled, tmp_path, make_speech):
    processor = SpeechLMProcessor.from_pretrained(tiny_folder)
    assert processor.num_speech_units == 16
    speech = make_speech(9000)
    assert processor.units(speech, 16000) == [expected_codes(processor, speech)]

    tiny_disentangled.save_pretrained(tmp_path / "other")
    processor.feature_extractor.save_pretrained(tmp_path / "other")
    other = SpeechLMProcessor.from_pretrained(tmp_path / "other")
    assert type(other.audio_tokenizer) is DisentangledWhisperModel
    assert other.num_speech_units == 32


def test_a_saved_processor_makes_the_same_sequences(merging, make_speech, tmp_path):
    merging.tasks = ("asr", "emotion")
    merging.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is SpeechLMProcessor
    assert loaded.tasks == ("asr", "emotion")
    given = dict(audio=make_speech(9000), sampling_rate=16000, text="nine", prompt="Say it.")
    assert dict(loaded(**given)) == dict(merging(**given))
    assert not loaded.audio_tokenizer.training


def test_a_source_of_units_without_text_is_saved_and_takes_a_text_model_later(kmeans, tokenizer, tmp_path):
    kmeans.save_pretrained(tmp_path)
    loaded = SpeechLMProcessor.from_pretrained(tmp_path)
    assert loaded.tokenizer is None
    speech = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    assert loaded.units(speech, 16000) == kmeans.units(speech, 16000)
    with_text = loaded.with_text_model(tokenizer, 40)
    assert with_text.sequence([0])["input_ids"] == [42, 41]
    for act in (lambda: loaded.sequence([1]), lambda: loaded.text_ids("one"), lambda: loaded.decode([1])):
        with pytest.raises(ValueError, match="speech units only.*with_text_model"):
            act()


def test_pushing_uploads_the_audio_tokenizer_and_the_pieces(merging, monkeypatch, tmp_path):
    uploaded = []

    def create_commit(repo_id, operations, **options):
        uploaded.extend(operation.path_in_repo for operation in operations)

    api = SimpleNamespace(
        create_repo=lambda repo_id, **options: SimpleNamespace(repo_id=repo_id), create_commit=create_commit
    )
    monkeypatch.setattr(hub, "hf_api", lambda: api)
    card = SimpleNamespace(save=lambda path: None)
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *arguments, **options: card)
    merging.save_pretrained(tmp_path / "mine", push_to_hub=True)
    assert {"processor_config.json", "unit_pieces.model", "tokenizer.json"} <= set(uploaded)
    assert {"audio_tokenizer/config.json", "audio_tokenizer/model.safetensors"} <= set(uploaded)


def test_max_samples_give_at_most_so_many_units(processor, kmeans, make_speech):
    for source, seconds in ((processor, 0.4), (kmeans, 0.2)):
        num_samples = source.max_samples(10)
        assert num_samples == seconds * 16000
        assert len(source.units(make_speech(num_samples), 16000)[0]) in (9, 10)  # frames overlap: the last may lack
    assert processor.max_samples(1000) == 2 * 16000  # all that the tiny StableToken sees at once
    assert kmeans.max_samples(1000) == 20 * 16000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either `audio=`.*or `units=`"),
        ({"audio": np.zeros(9000, dtype=np.float32), "units": [1], "sampling_rate": 16000}, "not neither or both"),
        ({"audio": np.zeros(9000, dtype=np.float32)}, r"Expected sampling_rate=16000 \(Hz\), got None"),
        ({"audio": np.zeros((2, 9000), dtype=np.float32), "sampling_rate": 16000}, "mono"),
        ({"audio": np.full(9000, np.nan, dtype=np.float32), "sampling_rate": 16000}, "9000 samples that are NaN"),
        ({"audio": [], "sampling_rate": 16000}, "Got no audio"),
        ({"units": [[1], []]}, "Got no speech units"),
        ({"units": [1, 16]}, "must be 0 to 15; got 1 to 16"),
        ({"units": [[3, -1]]}, "must be 0 to 15; got -1 to 3"),
        ({"units": [[1], [2]], "text": ["one"]}, "Got 2 utterances and 1 texts"),
        ({"units": [[1], [2]], "prompt": ["a", "b", "c"]}, "Got 2 utterances and 3 prompts"),
        ({"units": [1], "text": ""}, "nothing is left of the transcript ''"),
        ({"units": [1], "text": "?!"}, "nothing is left of the transcript"),
        ({"units": [1], "prompt": " "}, "Got the prompt ' ': ask something"),
        ({"units": [1], "text": "7 up"}, r"outside the tokenizer's vocabulary: \['7'\]"),
        ({"units": [1], "text": "one <text_end> two"}, "special tokens <text_end>"),
        ({"units": [1], "text": "one <speech_end> two"}, "special tokens <speech_end>"),
        ({"units": [1], "text": "one <|endoftext|>"}, r"special tokens <\|endoftext\|>"),
        ({"units": [1], "prompt": "one <|unknown|>"}, r"special tokens <\|unknown\|>"),
    ],
)
def test_bad_input_is_refused_with_what_was_received(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


def test_audio_too_short_for_one_unit_is_refused(processor, kmeans):
    with pytest.raises(ValueError, match="at least one hop of 160 samples, got 100"):
        processor.units(np.zeros(100, dtype=np.float32), 16000)
    with pytest.raises(ValueError, match="at least one window of 400 samples, got 100"):
        kmeans.units(np.zeros(100, dtype=np.float32), 16000)


def test_a_codec_of_several_codebooks_is_refused(processor, make_speech, monkeypatch):
    codes = SimpleNamespace(audio_codes=torch.zeros(1, 4, 9), attention_mask=torch.ones(1, 9))
    monkeypatch.setattr(processor.audio_tokenizer, "encode", lambda **features: codes)
    with pytest.raises(ValueError, match=r"one code per frame.*got \(1, 4, 9\) from StableTokenModel"):
        processor.units(make_speech(9000), 16000)


def test_parts_that_do_not_belong_together_are_refused(processor, tokenizer, pieces):
    parts = processor.feature_extractor, processor.audio_tokenizer
    with pytest.raises(ValueError, match="belong together; got NoneType and 31"):
        SpeechLMProcessor(*parts, text_vocab_size=31)
    with pytest.raises(ValueError, match="tokenizer has 31 tokens, the text model 30 rows"):
        processor.with_text_model(tokenizer, 30)
    with pytest.raises(ValueError, match="pieces are of 12 codes, but the audio tokenizer has 16"):
        SpeechLMProcessor(*parts, unit_pieces=UnitPieces.train([list(range(12))] * 9, 12, 12))
    with pytest.raises(ValueError, match="Unknown task 'translate'"):
        processor.with_text_model(tokenizer, 31, tasks=["translate"])
    with pytest.raises(ValueError, match="Got no task"):
        processor.with_text_model(tokenizer, 31, tasks=[])
    with pytest.raises(TypeError, match="WhisperFeatureExtractor"):
        SpeechLMProcessor(*parts, tokenizer=WhisperFeatureExtractor(), text_vocab_size=31)


def test_a_model_with_other_units_or_other_text_is_refused(processor, merging, tiny_speech_lm, tokenizer):
    processor.check_model(tiny_speech_lm)
    with pytest.raises(ValueError, match="model has 16 speech units, this processor 24"):
        merging.check_model(tiny_speech_lm)
    with pytest.raises(ValueError, match="model has 31 rows of text, this processor 40"):
        processor.with_text_model(tokenizer, 40).check_model(tiny_speech_lm)


def test_a_folder_without_its_audio_tokenizer_is_refused(tiny_speech_folder):
    (tiny_speech_folder / "audio_tokenizer" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="Cannot load the audio tokenizer of .*audio_tokenizer.*model.safetensors"):
        SpeechLMProcessor.from_pretrained(tiny_speech_folder)
    (tiny_speech_folder / "audio_tokenizer" / "config.json").unlink()
    with pytest.raises(ValueError, match="Cannot load the audio tokenizer of .*audio_tokenizer.*config.json"):
        SpeechLMProcessor.from_pretrained(tiny_speech_folder)


def drop_weight(folder, name: str):
    path = folder / "audio_tokenizer" / "model.safetensors"
    weights = load_file(path)
    del weights[name]
    save_file(weights, path, metadata={"format": "pt"})


def test_missing_centroids_are_named(kmeans, tmp_path):
    kmeans.save_pretrained(tmp_path)
    drop_weight(tmp_path, "centroids")
    with pytest.raises(ValueError, match="lacks weights.*centroids"):
        SpeechLMProcessor.from_pretrained(tmp_path)


def test_missing_weights_of_any_audio_tokenizer_are_named(tiny_speech_folder):
    drop_weight(tiny_speech_folder, "encoder.conv1.weight")
    with pytest.raises(ValueError, match="audio_tokenizer lack encoder.conv1.weight, so its units would be random"):
        SpeechLMProcessor.from_pretrained(tiny_speech_folder)


def test_missing_pieces_are_named(merging, tmp_path):
    merging.save_pretrained(tmp_path)
    (tmp_path / "unit_pieces.model").unlink()
    with pytest.raises(OSError, match="says that units are pieces of unit_pieces.model, which cannot be found"):
        SpeechLMProcessor.from_pretrained(tmp_path)


def test_the_folder_says_what_is_in_it(merging, tmp_path):
    merging.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "processor_config.json").read_text())
    assert fields["unit_pieces"] == "unit_pieces.model"
    assert (fields["text_vocab_size"], fields["tasks"]) == (31, ["asr"])
    assert fields["feature_extractor"]["feature_extractor_type"] == "StableTokenFeatureExtractor"
    assert (tmp_path / "audio_tokenizer" / "config.json").exists()
