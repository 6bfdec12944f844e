"""Questions to recipes/publish.py: a trained folder of every kind of model goes out as what it was saved as."""

import json
import runpy
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_best_rq import make_best_rq
from tiny_factored import make_factored
from tiny_hasrd import make_feature_extractor
from tiny_hasrd_ctc import make_recognizer, save_speech_model
from transformers import GPT2Config

RECIPE = Path(__file__).parents[1] / "recipes" / "publish.py"


def save_parts(folder, *parts):
    for part in parts:
        part.save_pretrained(folder)


FOLDERS = {  # by name: how it is written, the class that was saved, and an Auto class that loads it
    "hasrd on a BEST-RQ": (save_speech_model, "modeling_hasrd.HasrdModel", "AutoModelForAudioTokenization"),
    "hasrd on a HuBERT": (
        lambda folder: save_speech_model(folder, "hubert"),
        "modeling_hasrd.HasrdModel",
        "AutoModelForAudioTokenization",
    ),
    "hasrd_ctc": (
        lambda folder: save_parts(folder, *make_recognizer()),
        "modeling_hasrd_ctc.HasrdForCTC",
        "AutoModelForCTC",
    ),
    "best_rq": (
        lambda folder: save_parts(folder, make_best_rq(), make_feature_extractor()),
        "modeling_best_rq.BestRQForPreTraining",
        "AutoModelForPreTraining",
    ),
    "best_rq without its head": (
        lambda folder: save_speech_model(folder, whole=False),
        "modeling_best_rq.BestRQModel",
        "AutoModel",
    ),
    "factored_asr": (
        lambda folder: save_parts(folder, *make_factored()),
        "modeling_factored_asr.FactoredASRForRNNT",
        "AutoModelForRNNT",
    ),
}


def run_recipe(monkeypatch, *arguments: str):
    monkeypatch.setattr("sys.argv", ["publish.py", *arguments])
    runpy.run_path(str(RECIPE), run_name="__main__")


def publish(monkeypatch, model: Path, tmp_path: Path) -> Path:
    """The recipe's new folder."""
    card, folder = tmp_path / "card.md", tmp_path / "published"
    card.write_text("# Mine\n")
    run_recipe(monkeypatch, "--model", str(model), "--folder", str(folder), "--card", str(card))
    return folder


def check_published(folder: Path, trained: Path, reference: str, auto_class: str):
    """The weights of the trained folder, its features, and the source of the class that it was."""
    published, expected = (load_file(each / "model.safetensors") for each in (folder, trained))
    assert published.keys() == expected.keys()
    assert all(values.equal(expected[name]) for name, values in published.items())
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"][auto_class] == reference
    assert config["architectures"] == [reference.split(".")[1]]
    assert (folder / f"{reference.split('.')[0]}.py").exists()
    assert (folder / "README.md").read_text() == "# Mine\n"


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_kind_of_model_is_published_as_what_it_was_saved_as(kind, tmp_path, monkeypatch):
    write, reference, auto_class = FOLDERS[kind]
    write(tmp_path / "trained")
    folder = publish(monkeypatch, tmp_path / "trained", tmp_path)
    check_published(folder, tmp_path / "trained", reference, auto_class)
    assert (folder / "preprocessor_config.json").exists() or (folder / "processor_config.json").exists()


def test_a_recognizer_is_not_cut_down_to_its_tokenizer(tiny_folder, tmp_path, monkeypatch):
    reference = "modeling_stable_token.StableTokenForConditionalGeneration"
    folder = publish(monkeypatch, tiny_folder, tmp_path)
    check_published(folder, tiny_folder, reference, "AutoModelForSpeechSeq2Seq")


def test_a_tokenizer_of_clusters_is_published(tiny_kmeans_processor, tmp_path, monkeypatch):
    trained = tmp_path / "trained"
    save_parts(trained, tiny_kmeans_processor.audio_tokenizer, tiny_kmeans_processor.feature_extractor)
    folder = publish(monkeypatch, trained, tmp_path)
    reference = "modeling_kmeans_tokenizer.KMeansTokenizerModel"
    check_published(folder, trained, reference, "AutoModelForAudioTokenization")


def test_a_folder_of_another_library_is_refused(tmp_path, monkeypatch):
    GPT2Config(architectures=["Mine"]).save_pretrained(tmp_path / "trained")
    with pytest.raises(ValueError, match=r"holds \['Mine'\], and a gpt2 can be .*GPT2LMHeadModel"):
        publish(monkeypatch, tmp_path / "trained", tmp_path)
    assert not (tmp_path / "published").exists()


def test_a_speech_lm_is_published_with_its_audio_tokenizer_and_pipeline(tiny_speech_folder, tmp_path, monkeypatch):
    folder = publish(monkeypatch, tiny_speech_folder, tmp_path)
    assert (folder / "audio_tokenizer" / "model.safetensors").exists()
    assert (folder / "pipeline_speech_lm.py").exists()


def test_nothing_is_published_without_a_card(tiny_folder, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "published"
    with pytest.raises(SystemExit):
        run_recipe(monkeypatch, "--model", str(tiny_folder), "--folder", str(folder))
    assert "--card" in capsys.readouterr().err
    assert not folder.exists()
