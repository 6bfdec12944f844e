"""Questions to SpeechLM's pipeline: its texts, batches, long audio, tasks and prompts, what does not fit."""

import numpy as np
import pytest
import soundfile
import torch
from tokenizers import Tokenizer
from transformers import (
    AutomaticSpeechRecognitionPipeline,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    WhisperFeatureExtractor,
    WhisperProcessor,
    pipeline,
)

from clearspeech import SpeechLMConfig, SpeechLMForCausalLM
from clearspeech.processing.pipeline_speech_lm import SpeechLMPipeline
from clearspeech.processing.processing_speech_lm import SpeechLMProcessor
from clearspeech.processing.speech_tasks import TASKS
from clearspeech.processing.unit_pieces import UnitPieces


@pytest.fixture
def transcriber(tiny_speech_folder) -> SpeechLMPipeline:
    return pipeline("automatic-speech-recognition", model=str(tiny_speech_folder), device="cpu")


@pytest.fixture
def two_tasks(tiny_speech_lm, tiny_speech_processor, tokenizer) -> SpeechLMPipeline:
    """A model that was trained on both tasks, by their prompts."""
    processor = tiny_speech_processor.with_text_model(tokenizer, 31, tasks=["asr", "emotion"])
    return SpeechLMPipeline(model=tiny_speech_lm, processor=processor, device="cpu")


@pytest.fixture
def read(monkeypatch):
    """`read(transcriber)`: the ids that the pipeline's model reads from now on, row by row, without padding."""

    def watch(transcriber) -> list[list[int]]:
        rows, generate = [], transcriber.model.generate

        def watched(input_ids, attention_mask, **kwargs):
            rows.extend(ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True))
            return generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

        monkeypatch.setattr(transcriber.model, "generate", watched)
        return rows

    return watch


def test_a_checkpoint_folder_gives_the_speech_lms_pipeline(transcriber):
    assert type(transcriber) is SpeechLMPipeline
    assert isinstance(transcriber, AutomaticSpeechRecognitionPipeline)
    assert type(transcriber.processor) is SpeechLMProcessor


def test_a_stock_folder_gets_the_stock_pipeline(tiny_whisper_folder, tokenizer):
    WhisperProcessor(WhisperFeatureExtractor(feature_size=16), tokenizer).save_pretrained(tiny_whisper_folder)
    stock = pipeline("automatic-speech-recognition", model=str(tiny_whisper_folder), device="cpu")
    assert type(stock) is AutomaticSpeechRecognitionPipeline
    assert stock.processor is None  # as without the suite
    assert type(stock.feature_extractor) is WhisperFeatureExtractor


def test_text_is_what_generate_writes(transcriber, tiny_speech_processor, make_speech):
    speech = make_speech(9000)
    inputs = tiny_speech_processor(audio=speech, sampling_rate=16000, return_tensors="pt")
    tokens = transcriber.model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    expected = tiny_speech_processor.tokenizer.decode(tokens).strip()
    assert len(expected) >= 6
    assert transcriber(speech) == {"text": expected}


def test_text_depends_on_the_speech(transcriber, make_speech):
    assert len({transcriber(make_speech(9000, seed=seed))["text"] for seed in range(4)}) > 1


def test_files_arrays_and_dicts_agree(transcriber, make_speech, tmp_path):
    speech = make_speech(9000)
    expected = transcriber(speech)
    soundfile.write(tmp_path / "speech.wav", speech, 16000, subtype="FLOAT")
    assert transcriber(str(tmp_path / "speech.wav")) == expected
    assert transcriber((tmp_path / "speech.wav").read_bytes()) == expected
    assert transcriber({"raw": speech, "sampling_rate": 16000}) == expected
    assert transcriber({"array": speech.astype(np.float64), "sampling_rate": 16000}) == expected


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_a_batch_of_different_lengths_gives_what_each_gives_alone(transcriber, make_speech, options):
    recordings = [make_speech(n, seed=n) for n in (161, 5000, 100000, 20000, 639)]
    alone = [transcriber(recording, **options) for recording in recordings]
    assert transcriber(recordings, **options) == alone
    assert transcriber(recordings, batch_size=3, **options) == alone


def test_batches_need_neither_a_padding_token_nor_padding_on_the_right(tiny_speech_processor, tokenizer, make_speech):
    """GPT-2's tokenizer has none, and many language models' pad on the left, which the stock pipeline refuses."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()  # which a test before this one may have asked for
    bare = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    bare.padding_side = "left"
    assert bare.pad_token_id is None
    processor = tiny_speech_processor.with_text_model(bare, 40)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    text_config = Qwen2Config(vocab_size=40, num_key_value_heads=2, max_position_embeddings=80, **sizes)
    model = SpeechLMForCausalLM(SpeechLMConfig.from_text_config(text_config, num_speech_units=16)).eval()
    transcriber = SpeechLMPipeline(model=model, processor=processor, device="cpu")
    recordings = [make_speech(n, seed=n) for n in (5000, 20000, 639)]
    assert transcriber(recordings, batch_size=3, max_new_tokens=8) == [
        transcriber(recording, max_new_tokens=8) for recording in recordings
    ]


def test_nothing_of_long_audio_is_lost_and_every_window_leaves_room_for_the_answer(transcriber, read, make_speech):
    num_samples = 40 * 6400 + 77  # 16 s; the tiny StableToken sees 2 s, 50 units
    rows = read(transcriber)
    words = transcriber(make_speech(num_samples))["text"].split(" ")
    assert 8 < len(rows) == len(words)
    num_units = sum(len(row) - 1 for row in rows)
    assert -(-num_samples // 640) <= num_units <= -(-num_samples // 640) + len(rows) - 1  # a cut may split one unit
    assert max(len(row) for row in rows) <= 51


def test_a_longer_answer_takes_shorter_windows(transcriber, read, make_speech):
    speech, rows = make_speech(30000), read(transcriber)
    given = GenerationConfig(max_new_tokens=75, eos_token_id=31, pad_token_id=0)
    for options in ({"max_new_tokens": 75}, {"generate_kwargs": {"generation_config": given}}):
        rows.clear()
        transcriber(speech, **options)
        assert 10 < max(len(row) for row in rows) <= 96 - 75
    with pytest.raises(ValueError, match="context of 96 tokens has no room .* prompt of 0 and an answer of 95"):
        transcriber(speech, max_new_tokens=95)


def test_a_model_that_says_nothing_of_its_answers_has_room_for_the_papers(tiny_speech_lm, tiny_speech_processor, read):
    tiny_speech_lm.generation_config = GenerationConfig(eos_token_id=31, pad_token_id=0)
    tiny_speech_lm.config.text_config.n_positions = 400
    transcriber = SpeechLMPipeline(model=tiny_speech_lm, processor=tiny_speech_processor, device="cpu")
    assert transcriber._answer_tokens({}) == 150
    tiny_speech_lm.config.text_config.n_positions = 96
    transcriber = SpeechLMPipeline(model=tiny_speech_lm, processor=tiny_speech_processor, device="cpu")
    assert transcriber._answer_tokens({}) == 48  # half of a context that is shorter than two answers


def test_windows_fit_even_if_no_two_codes_merge(tiny_speech_lm, tiny_speech_processor, read, make_speech):
    pieces = UnitPieces.train([list(range(16))] * 9, 16, 16)  # one piece per code
    merging = SpeechLMProcessor(
        tiny_speech_processor.feature_extractor,
        tiny_speech_processor.audio_tokenizer,
        tiny_speech_processor.tokenizer,
        pieces,
        31,
    )
    transcriber = SpeechLMPipeline(model=tiny_speech_lm, processor=merging, device="cpu")
    rows = read(transcriber)
    transcriber(make_speech(40000), max_new_tokens=70)
    assert 10 < max(len(row) for row in rows) <= 96 - 70


def test_windows_are_not_longer_than_what_the_model_was_trained_on(
    tiny_speech_lm, tiny_speech_processor, tokenizer, read, make_speech, tmp_path
):
    short = tiny_speech_processor.with_text_model(tokenizer, 31, max_seconds=0.8)
    short.save_pretrained(tmp_path)
    loaded = SpeechLMProcessor.from_pretrained(tmp_path)
    transcriber = SpeechLMPipeline(model=tiny_speech_lm, processor=loaded, device="cpu")
    rows = read(transcriber)
    transcriber(make_speech(40000))
    assert len(rows) >= 4 and max(len(row) for row in rows) <= 0.8 * 25 + 1


def test_generation_arguments_reach_the_model(transcriber, tiny_speech_folder, make_speech):
    speech = make_speech(8000)
    whole = transcriber(speech)["text"]
    for options in ({"max_new_tokens": 3}, {"generate_kwargs": {"max_new_tokens": 3}}):
        short = transcriber(speech, **options)["text"]
        assert whole.startswith(short) and len(short) <= 3
        given_first = pipeline("automatic-speech-recognition", model=str(tiny_speech_folder), device="cpu", **options)
        assert given_first(speech)["text"] == short


def test_one_task_is_asked_without_prompt_and_several_by_theirs(transcriber, two_tasks, read, make_speech):
    speech, rows = make_speech(9000), read(two_tasks)
    ask = {name: two_tasks.processor.prompt_ids(task.prompts[0]) for name, task in TASKS.items()}
    two_tasks(speech)
    two_tasks(speech, task="asr")
    two_tasks(speech, task="emotion")
    two_tasks(speech, prompt=TASKS["emotion"].prompts[3])
    units = two_tasks.processor.sequence(two_tasks.processor.units(speech, 16000)[0])["input_ids"]
    fourth = two_tasks.processor.prompt_ids(TASKS["emotion"].prompts[3])
    assert rows == [[*prompt, *units] for prompt in (ask["asr"], ask["asr"], ask["emotion"], fourth)]

    alone = read(transcriber)
    transcriber(speech)
    transcriber(speech, task="asr")
    assert alone == [units, units]


def test_a_prompt_takes_shorter_windows(transcriber, two_tasks, read, make_speech):
    rows = read(two_tasks)
    two_tasks([make_speech(100000), make_speech(9000)], batch_size=2)
    assert 60 < max(len(row) for row in rows) <= 96 - 8
    with pytest.raises(ValueError, match="no room .* prompt of 90 and an answer of 8"):
        transcriber(make_speech(9000), prompt="a" * 90)


def test_a_prompt_given_to_the_pipeline_stays(tiny_speech_folder, read, make_speech):
    folder = str(tiny_speech_folder)
    asking = pipeline("automatic-speech-recognition", model=folder, device="cpu", prompt="say it")
    rows = read(asking)
    asking(make_speech(9000))
    assert rows[0][:6] == asking.processor.prompt_ids("say it")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "emotion"}, "Got task='emotion', but this model was trained on asr"),
        ({"task": "asr", "prompt": "say"}, "Got task='asr' and prompt='say'. Pass one"),
        ({"max_length": 20}, "max_length=20, which counts the speech.*max_new_tokens"),
        ({"generate_kwargs": {"generation_config": GenerationConfig(max_length=20)}}, "max_length=20, which counts"),
        ({"prompt": "say <|endoftext|>"}, "special tokens"),
        ({"return_timestamps": True}, "without times"),
        ({"chunk_length_s": 30}, "cut at quiet places already"),
    ],
)
def test_options_that_do_not_apply_are_refused(transcriber, make_speech, options, message):
    with pytest.raises(ValueError, match=message):
        transcriber(make_speech(8000), **options)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros((2, 16000), dtype=np.float32), "mono"),
        (np.zeros(16000, dtype=np.int16), "floating-point"),
        ({"raw": np.zeros(16000, dtype=np.int16), "sampling_rate": 44100}, "floating-point"),
        (np.full(16000, np.nan, dtype=np.float32), "NaN"),
        (np.zeros(100, dtype=np.float32), "at least one hop"),
    ],
)
def test_bad_audio_is_refused(transcriber, audio, message):
    with pytest.raises(ValueError, match=message):
        transcriber(audio)


def test_a_processor_of_another_model_is_refused(tiny_speech_lm, tiny_speech_processor, tokenizer):
    other = tiny_speech_processor.with_text_model(tokenizer, 40)
    with pytest.raises(ValueError, match="rows of text"):
        SpeechLMPipeline(model=tiny_speech_lm, processor=other, device="cpu")
    with pytest.raises(ValueError, match="SpeechLMForCausalLM without its processor"):
        SpeechLMPipeline(model=tiny_speech_lm, device="cpu")


def test_a_folder_without_its_audio_tokenizer_says_so(tiny_speech_folder):
    (tiny_speech_folder / "audio_tokenizer" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="Cannot load the audio tokenizer"):
        pipeline("automatic-speech-recognition", model=str(tiny_speech_folder), device="cpu")


def test_the_audio_tokenizer_follows_the_pipelines_device(tiny_speech_lm, tiny_speech_processor, monkeypatch):
    moved = []
    monkeypatch.setattr(tiny_speech_processor.audio_tokenizer, "to", moved.append)
    SpeechLMPipeline(model=tiny_speech_lm, processor=tiny_speech_processor, device="cpu")
    assert moved == [torch.device("cpu")]


def test_a_saved_pipeline_writes_the_same(transcriber, make_speech, tmp_path):
    transcriber.save_pretrained(tmp_path / "saved")
    saved = pipeline("automatic-speech-recognition", model=str(tmp_path / "saved"), device="cpu")
    assert saved(make_speech(9000)) == transcriber(make_speech(9000))
