"""Questions to published folders: they carry their source, and load where the suite cannot be imported."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from tiny_factored import make_factored
from tiny_hasrd import make_hasrd
from transformers import (
    AutoConfig,
    AutoModelForAudioTokenization,
    AutoModelForCausalLM,
    AutoModelForRNNT,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    PreTrainedTokenizerFast,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    pipeline,
)

from clearspeech import hub
from clearspeech.processing.corpora import load_corpus
from clearspeech.processing.feature_extraction_best_rq import BestRQFeatureExtractor
from clearspeech.processing.pipeline_factored_asr import FactoredASRPipeline
from clearspeech.processing.pipeline_speech_lm import SpeechLMPipeline
from clearspeech.processing.processing_speech_lm import SpeechLMProcessor

ROOT = Path(__file__).parents[1]

# runs in a process of its own: argument 1 is the model (folder or Hub name), 2 an audio file
STRANGER = """
import json, sys
sys.modules["clearspeech"] = None  # as if it were not installed
import soundfile
from transformers import AutoFeatureExtractor, AutoModelForAudioTokenization, AutoProcessor, pipeline
model, path = sys.argv[1:]
samples, rate = soundfile.read(path, dtype="float32")
tokenizer = AutoModelForAudioTokenization.from_pretrained(model, trust_remote_code=True)
extractor = AutoFeatureExtractor.from_pretrained(model, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(model, trust_remote_code=True)
codes = tokenizer.encode(**extractor(samples, sampling_rate=rate, return_tensors="pt")).audio_codes
transcribe = pipeline("automatic-speech-recognition", model=model, trust_remote_code=True, device="cpu")
print(json.dumps({
    "codes": codes.tolist(),
    "text": transcribe(path)["text"],
    "classes": [type(part).__name__ for part in (tokenizer, extractor, processor, transcribe.model, transcribe)],
    "modules": sorted({type(part).__module__.split(".")[0] for part in (tokenizer, extractor, processor, transcribe)}),
}))
"""


# the same for a SpeechLM, whose audio tokenizer is inside its processor
SPEECH_LM_STRANGER = """
import json, sys
sys.modules["clearspeech"] = None
import soundfile
from transformers import AutoModelForCausalLM, AutoProcessor, pipeline
model, path = sys.argv[1:]
samples, rate = soundfile.read(path, dtype="float32")
processor = AutoProcessor.from_pretrained(model, trust_remote_code=True)
language_model = AutoModelForCausalLM.from_pretrained(model, trust_remote_code=True)
transcribe = pipeline("automatic-speech-recognition", model=model, trust_remote_code=True, device="cpu")
processor.save_pretrained("again")  # with the source that it came with
again = AutoProcessor.from_pretrained("again", trust_remote_code=True)
parts = (language_model, processor, processor.audio_tokenizer, processor.feature_extractor, transcribe)
print(json.dumps({
    "units": processor.units(samples, rate)[0],
    "units again": again.units(samples, rate)[0],
    "text": transcribe(path)["text"],
    "classes": [type(part).__name__ for part in parts],
    "modules": [type(part).__module__.split(".")[0] for part in parts],
}))
"""

# the same for a FactoredASR, which has its factors beside its text
FACTORED_STRANGER = """
import json, sys
sys.modules["clearspeech"] = None
import soundfile
from transformers import AutoFeatureExtractor, AutoModelForRNNT, AutoProcessor, pipeline
path, audio = sys.argv[1:]
samples, rate = soundfile.read(audio, dtype="float32")
model = AutoModelForRNNT.from_pretrained(path, trust_remote_code=True)
extractor = AutoFeatureExtractor.from_pretrained(path, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
content = model.factors(**processor(audio=samples, sampling_rate=rate, return_tensors="pt")).content
transcribe = pipeline("automatic-speech-recognition", model=path, trust_remote_code=True, device="cpu")
parts = (model, extractor, processor, transcribe)
print(json.dumps({
    "content": content[0, :, 0].tolist(),
    "text": transcribe(audio)["text"],
    "beams": transcribe(audio, generate_kwargs={"num_beams": 3})["text"],
    "classes": [type(part).__name__ for part in parts],
    "modules": [type(part).__module__.split(".")[0] for part in parts],
}))
"""


@pytest.fixture(params=["stable_token", "disentangled_whisper"])
def tiny_model(request, tiny_model, tiny_disentangled):
    """Each method's in turn."""
    return {"stable_token": tiny_model, "disentangled_whisper": tiny_disentangled}[request.param]


@pytest.fixture
def published(tiny_model, tiny_processor, tmp_path):
    return hub.publish(tiny_model, tiny_processor, tmp_path / "published", card="# A card\n")


@pytest.fixture
def recording(make_speech, tmp_path):
    path = tmp_path / "speech.wav"
    soundfile.write(path, make_speech(40000), 16000, subtype="FLOAT")
    return path


# of the two only the first, where its units are just those of any SpeechLM
of_stable_token = pytest.mark.parametrize("tiny_model", ["stable_token"], indirect=True)


@pytest.fixture
def merging_processor(tiny_kmeans_processor, tiny_pieces, tokenizer) -> SpeechLMProcessor:
    """Pieces of clusters of an encoder that Transformers owns, as its features are."""
    extractor, model = tiny_kmeans_processor.feature_extractor, tiny_kmeans_processor.audio_tokenizer
    return SpeechLMProcessor(extractor, model, tokenizer, tiny_pieces, text_vocab_size=31)


@pytest.fixture
def published_speech_lm(tiny_speech_lm, tiny_speech_processor, tmp_path):
    return hub.publish(tiny_speech_lm, tiny_speech_processor, tmp_path / "published_speech_lm", card="# A card\n")


# the same for a codec, which has no text
CODEC_STRANGER = """
import json, sys
sys.modules["clearspeech"] = None
import soundfile
from transformers import AutoFeatureExtractor, AutoModelForAudioTokenization
model, path = sys.argv[1:]
samples, rate = soundfile.read(path, dtype="float32")
codec = AutoModelForAudioTokenization.from_pretrained(model, trust_remote_code=True)
extractor = AutoFeatureExtractor.from_pretrained(model, trust_remote_code=True)
inputs = extractor(samples, sampling_rate=rate, return_tensors="pt", return_attention_mask=True)
codes = codec.encode(**inputs).audio_codes
audio = codec.decode(codes, books="semantic", num_samples=len(samples)).audio_values
print(json.dumps({
    "codes": codes.tolist(),
    "audio": audio.tolist(),
    "modules": [type(part).__module__.split(".")[0] for part in (codec, codec.encoder, extractor)],
}))
"""


def load_as_a_stranger(model: str, recording, hf_home, script: str = STRANGER) -> dict:
    """What the model gives in a fresh process in which the suite cannot be imported."""
    environment = {**os.environ, "HF_HOME": str(hf_home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for name in ("HF_MODULES_CACHE", "HF_HUB_CACHE", "PYTHONPATH"):
        environment.pop(name, None)
    result = subprocess.run(
        [sys.executable, "-c", script, model, str(recording)],
        env=environment,
        cwd=hf_home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def check_stranger(seen: dict, tiny_model, tiny_processor, recording, here: str):
    samples, rate = soundfile.read(recording, dtype="float32")
    features = tiny_processor(audio=samples, sampling_rate=rate, return_tensors="pt")
    assert seen["codes"] == tiny_model.model.encode(**features).audio_codes.tolist()
    assert seen["text"] == here
    assert seen["modules"] == ["transformers_modules"]
    assert seen["classes"] == [
        type(tiny_model.model).__name__,
        "StableTokenFeatureExtractor",
        "StableTokenProcessor",
        type(tiny_model).__name__,
        "SpeechRecognitionPipeline",
    ]


def test_a_published_folder_transcribes_without_the_suite(
    published, tiny_model, tiny_processor, tiny_folder, recording, tmp_path
):
    here = pipeline("automatic-speech-recognition", model=str(tiny_folder), device="cpu")(str(recording))["text"]
    home = tmp_path / "home"
    home.mkdir()
    seen = load_as_a_stranger(str(published), recording, home)
    check_stranger(seen, tiny_model, tiny_processor, recording, here)


def test_a_published_repo_in_the_hub_cache_transcribes_without_the_suite(
    published, tiny_model, tiny_processor, tiny_folder, recording, tmp_path
):
    here = pipeline("automatic-speech-recognition", model=str(tiny_folder), device="cpu")(str(recording))["text"]
    home = tmp_path / "home"
    put_into_cache(published, home, "stable-token-tiny")
    seen = load_as_a_stranger("someone/stable-token-tiny", recording, home)
    check_stranger(seen, tiny_model, tiny_processor, recording, here)


def put_into_cache(published: Path, hf_home: Path, name: str):
    """As if `someone/NAME` had been downloaded before."""
    repo, revision = hf_home / "hub" / f"models--someone--{name}", "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(published, repo / "snapshots" / revision)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(revision)


def test_a_published_speech_lm_transcribes_without_the_suite(merging_processor, make_speech_lm, recording, tmp_path):
    model, home = make_speech_lm(num_speech_units=24), tmp_path / "home"
    published = hub.publish(model, merging_processor, tmp_path / "published", card="")
    home.mkdir()
    seen = load_as_a_stranger(str(published), recording, home, SPEECH_LM_STRANGER)
    samples, rate = soundfile.read(recording, dtype="float32")
    assert seen["units"] == seen["units again"] == merging_processor.units(samples, rate)[0]
    assert seen["text"] == SpeechLMPipeline(model=model, processor=merging_processor, device="cpu")(samples)["text"]
    assert seen["classes"] == [
        "SpeechLMForCausalLM",
        "SpeechLMProcessor",
        "KMeansTokenizerModel",
        "Wav2Vec2FeatureExtractor",
        "SpeechLMPipeline",
    ]
    ours = "transformers_modules"
    assert seen["modules"] == [ours, ours, ours, "transformers", ours]


@of_stable_token
def test_a_published_speech_lm_in_the_hub_cache_transcribes_without_the_suite(
    published_speech_lm, tiny_speech_lm, tiny_speech_processor, recording, tmp_path
):
    home = tmp_path / "home"
    put_into_cache(published_speech_lm, home, "speech-lm-tiny")
    seen = load_as_a_stranger("someone/speech-lm-tiny", recording, home, SPEECH_LM_STRANGER)
    samples, rate = soundfile.read(recording, dtype="float32")
    here = SpeechLMPipeline(model=tiny_speech_lm, processor=tiny_speech_processor, device="cpu")
    assert seen["units"] == seen["units again"] == tiny_speech_processor.units(samples, rate)[0]
    assert seen["text"] == here(samples)["text"]
    assert seen["classes"][2:4] == ["StableTokenModel", "StableTokenFeatureExtractor"]
    assert set(seen["modules"]) == {"transformers_modules"}


@of_stable_token
@pytest.mark.parametrize("trust", [True, None])
def test_the_pipeline_of_a_published_speech_lm_runs_beside_the_suite(published_speech_lm, recording, trust):
    options = dict(model=str(published_speech_lm), trust_remote_code=trust, device="cpu")
    transcribe = pipeline("automatic-speech-recognition", **options)
    assert type(transcribe) is SpeechLMPipeline
    assert transcribe(str(recording))["text"]


@of_stable_token
def test_a_published_speech_lm_carries_its_audio_tokenizers_source_in_its_root(published_speech_lm):
    sources = {path.name for path in published_speech_lm.glob("*.py")}
    assert {"modeling_speech_lm.py", "modeling_stable_token.py", "unit_pieces.py", "speech_tasks.py"} <= sources
    assert [path.name for path in published_speech_lm.iterdir() if path.is_dir()] == ["audio_tokenizer"]
    config = json.loads((published_speech_lm / "config.json").read_text())
    inside = json.loads((published_speech_lm / "audio_tokenizer" / "config.json").read_text())
    for reference in (*config["auto_map"].values(), *inside["auto_map"].values()):
        assert reference.split(".")[0] + ".py" in sources
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_speech_lm.SpeechLMForCausalLM"
    assert inside["auto_map"]["AutoModelForAudioTokenization"] == "modeling_stable_token.StableTokenModel"
    recognition = config["custom_pipelines"]["automatic-speech-recognition"]
    assert recognition["impl"] == "pipeline_speech_lm.SpeechLMPipeline"


@of_stable_token
def test_a_published_speech_lm_keeps_nothing_of_training_and_loading(tiny_speech_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_speech_folder)
    model.config.use_cache = model.config.text_config.use_cache = False
    published = hub.publish(model, AutoProcessor.from_pretrained(tiny_speech_folder), tmp_path / "published", card="")
    check_clean(published)
    assert json.loads((published / "config.json").read_text())["text_config"]["use_cache"] is True
    assert (published / "audio_tokenizer" / "model.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("encoder", "extractor"), [("conformer", "FactoredASRFeatureExtractor"), ("wav2vec2", "Wav2Vec2FeatureExtractor")]
)
def test_a_published_factored_asr_transcribes_without_the_suite(encoder, extractor, recording, tmp_path):
    model, processor = make_factored(encoder)
    published, home = hub.publish(model, processor, tmp_path / "published", card=""), tmp_path / "home"
    home.mkdir()
    seen = load_as_a_stranger(str(published), recording, home, FACTORED_STRANGER)
    samples, rate = soundfile.read(recording, dtype="float32")
    content = model.factors(**processor(audio=samples, sampling_rate=rate, return_tensors="pt")).content
    assert seen["content"] == content[0, :, 0].tolist()
    here = FactoredASRPipeline(model=model, processor=processor, device="cpu")
    assert seen["text"] == here(samples)["text"] != ""
    assert seen["beams"] == here(samples, generate_kwargs={"num_beams": 3})["text"]
    assert seen["classes"] == ["FactoredASRForRNNT", extractor, "FactoredASRProcessor", "FactoredASRPipeline"]
    ours, theirs = "transformers_modules", "transformers"
    assert seen["modules"] == [ours, ours if encoder == "conformer" else theirs, ours, ours]


def test_a_published_factored_asr_in_the_hub_cache_transcribes_without_the_suite(recording, tmp_path):
    model, processor = make_factored()
    published, home = hub.publish(model, processor, tmp_path / "published", card=""), tmp_path / "home"
    put_into_cache(published, home, "factored-asr-tiny")
    seen = load_as_a_stranger("someone/factored-asr-tiny", recording, home, FACTORED_STRANGER)
    here = FactoredASRPipeline(model=model, processor=processor, device="cpu")
    assert seen["text"] == here(str(recording))["text"] and set(seen["modules"]) == {"transformers_modules"}


@pytest.mark.parametrize("trust", [True, None])
def test_a_published_factored_asr_runs_beside_the_suite(recording, tmp_path, trust):
    published = hub.publish(*make_factored(), tmp_path / "published", card="")
    sources = {path.name for path in published.glob("*.py")}
    assert {"modeling_factored_asr.py", "frame_encoders.py", "pipeline_factored_asr.py"} <= sources
    config = json.loads((published / "config.json").read_text())
    assert config["auto_map"]["AutoModelForRNNT"] == "modeling_factored_asr.FactoredASRForRNNT"
    recognition = config["custom_pipelines"]["automatic-speech-recognition"]
    assert recognition == {"impl": "pipeline_factored_asr.FactoredASRPipeline", "pt": ["AutoModelForRNNT"]}
    options = dict(model=str(published), trust_remote_code=trust, device="cpu")
    transcribe = pipeline("automatic-speech-recognition", **options)
    assert type(transcribe) is FactoredASRPipeline and transcribe(str(recording))["text"]
    assert type(AutoModelForRNNT.from_pretrained(published, trust_remote_code=trust)) is type(transcribe.model)


@pytest.mark.parametrize("encoder", ["best_rq", "hubert"])
def test_a_published_codec_encodes_and_decodes_without_the_suite(encoder, recording, tmp_path):
    model, home = make_hasrd(encoder), tmp_path / "home"
    own = encoder == "best_rq"
    extractor = BestRQFeatureExtractor(num_mel_bins=8) if own else Wav2Vec2FeatureExtractor()
    published = hub.publish(model, extractor, tmp_path / "published", card="")
    home.mkdir()
    seen = load_as_a_stranger(str(published), recording, home, CODEC_STRANGER)
    samples, rate = soundfile.read(recording, dtype="float32")
    inputs = extractor(samples, sampling_rate=rate, return_tensors="pt", return_attention_mask=True)
    codes = model.encode(**inputs).audio_codes
    assert seen["codes"] == codes.tolist()
    assert seen["audio"] == model.decode(codes, books="semantic", num_samples=len(samples)).audio_values.tolist()
    ours, theirs = "transformers_modules", "transformers"
    assert seen["modules"] == [ours, *([ours, ours] if own else [theirs, theirs])]


def test_where_the_suite_is_imported_its_classes_win(published, tiny_model):
    model = AutoModelForAudioTokenization.from_pretrained(published, trust_remote_code=True)
    assert type(model) is type(tiny_model.model)
    assert type(AutoConfig.from_pretrained(published)) is type(tiny_model.config)


@pytest.mark.parametrize("trust", [True, None])
def test_the_pipeline_of_a_published_folder_runs_beside_the_suite(published, recording, trust):
    transcribe = pipeline("automatic-speech-recognition", model=str(published), trust_remote_code=trust, device="cpu")
    assert transcribe(str(recording))["text"]


def test_the_folder_is_flat_and_imports_nothing_of_the_suite(published, tiny_model):
    files, method = {path.name for path in published.iterdir()}, tiny_model.config.model_type
    assert {f"configuration_{method}.py", f"modeling_{method}.py", "quantization.py", "README.md"} <= files
    assert not [path for path in published.iterdir() if path.is_dir()]
    for path in published.glob("*.py"):
        assert "from .." not in path.read_text()
    auto_map = json.loads((published / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForSpeechSeq2Seq"] == f"modeling_{method}.{type(tiny_model).__name__}"
    assert {reference.split(".")[0] + ".py" for reference in auto_map.values()} <= files


def test_a_published_folder_keeps_nothing_of_training_and_loading(tiny_folder, tmp_path):
    model = AutoModelForSpeechSeq2Seq.from_pretrained(tiny_folder)
    model.config.use_cache = False  # as the Trainer leaves it
    published = hub.publish(model, AutoProcessor.from_pretrained(tiny_folder), tmp_path / "published", card="")
    check_clean(published)


def check_clean(folder: Path):
    assert json.loads((folder / "config.json").read_text())["use_cache"] is True
    assert not set(hub.LOADING_FIELDS) & json.loads((folder / "tokenizer_config.json").read_text()).keys()
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644  # others may read it


def run_recipe(name: str, monkeypatch, *arguments: str):
    monkeypatch.setattr("sys.argv", [name, *arguments])
    runpy.run_path(str(ROOT / "recipes" / name), run_name="__main__")


def test_a_kept_mini_model_is_clean_and_asks_for_float32(tiny_whisper_folder, tmp_path, monkeypatch):
    card, folder = tmp_path / "card.md", tmp_path / "kept"
    card.write_text("# Mini\n")
    arguments = ["--model", str(tiny_whisper_folder), "--folder", str(folder), "--card", str(card)]
    run_recipe("keep_mini.py", monkeypatch, *arguments)
    check_clean(folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"


def test_the_mini_models_in_the_repository_are_clean():
    folders = [path.parent for path in (ROOT / "hub_cards" / "mini").glob("*/config.json")]
    assert folders
    for folder in folders:
        assert json.loads((folder / "config.json").read_text())["use_cache"] is True
        assert not set(hub.LOADING_FIELDS) & json.loads((folder / "tokenizer_config.json").read_text()).keys()


def test_the_kept_stable_token_transcribes_digits():
    speech = load_corpus("embedded", "test")
    row = next(row for row in speech if row["text"] == "nine seven four five")
    transcribe = pipeline(
        "automatic-speech-recognition", model=str(ROOT / "hub_cards" / "mini" / "stable_token"), device="cpu"
    )
    assert transcribe(row["audio"])["text"] == row["text"]


def test_a_folder_with_a_model_is_not_overwritten(published, tiny_model, tiny_processor):
    with pytest.raises(FileExistsError, match="holds a model already"):
        hub.publish(tiny_model, tiny_processor, published, card="")


def test_classes_from_elsewhere_are_refused():
    with pytest.raises(ValueError, match="WhisperConfig.*import clearspeech"):
        hub.collect_sources([WhisperConfig, PreTrainedTokenizerFast])


@pytest.mark.parametrize(
    "line", ["from ..configuration import configuration_stable_token", "import clearspeech.hub", "from . import hub"]
)
def test_imports_that_a_flat_repo_cannot_follow_are_refused(monkeypatch, line):
    monkeypatch.setattr(hub.inspect, "getsource", lambda module: f"{line}\n")
    with pytest.raises(ValueError, match="a Hub repo is flat"):
        hub.flatten_imports("clearspeech.modeling.quantization")
