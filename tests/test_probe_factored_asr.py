"""The recipe that probes a FactoredASR: its numbers and files, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_corpora import write_parquet
from tiny_factored import make_factored

SPEAKERS = ("ann", "bob")
ESC50 = Path(__file__).parents[2] / "shared" / "data" / "esc50_noise"


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "recipes"))
    import probe_factored_asr

    return probe_factored_asr


@pytest.fixture
def make_folder(tmp_path):
    """`make_folder(name, **fields)`: a random model's."""

    def make(name: str, **fields) -> str:
        model, processor = make_factored(**fields)
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return make


@pytest.fixture
def corpus(tmp_path, make_speech) -> str:
    """Five utterances of each of two speakers in train and test, and a folder of five clips of each of two noises."""
    tone = np.sin(np.arange(4000) / 3).astype("f4")
    for split in ("train", "test"):
        for name, header in (("corpus", "file_name,text,speaker"), ("noise", "file_name,noise")):
            (tmp_path / name / split).mkdir(parents=True)
            lines = [header]
            for index in range(10):
                audio = make_speech(9000 + 300 * index, index) if name == "corpus" or index % 2 else tone
                soundfile.write(tmp_path / name / split / f"{index}.wav", audio, 16000)
                lines.append(f"{index}.wav," + (f"a b,{SPEAKERS[index % 2]}" if name == "corpus" else "ab"[index % 2]))
            (tmp_path / name / split / "metadata.csv").write_text("\n".join(lines))
    return str(tmp_path / "corpus")


def arguments(model: str, corpus: str, *more: str) -> list[str]:
    return ["--model", model, "--dataset", corpus, "--device", "cpu", *more]


def test_all_probes_of_both_factors_states_and_a_baseline_are_written(recipe, make_folder, corpus, tmp_path, capsys):
    model, baseline = make_folder("model"), make_folder("baseline", factorize=False)
    options = ["--baseline", baseline, "--noise_dataset", str(tmp_path / "noise"), "--noise_copies", "1"]
    probes = recipe.main(arguments(model, corpus, *options))
    written = json.loads(Path(model, "evaluation", "probe.json").read_text())
    for name in ("speaker", "noise", "characters_cer"):
        assert list(written[name]) == ["content", "context", "states", "unfactored"]
        for each, rate in probes[name].rates.items():
            low, high = written["intervals"][name][each]
            assert low <= written[name][each] == rate.value <= high
        assert written["context_minus_content"][name][0] == written[name]["context"] - written[name]["content"]
    assert written["chance"] == {"speaker": 50.0, "noise": 50.0, "characters_cer": 100.0}
    assert Path(model, "evaluation", "probe.png").read_bytes().startswith(b"\x89PNG")
    assert "speaker accuracy in %, chance 50.0" in capsys.readouterr().out


def test_one_probe_alone_needs_nothing_of_the_others(recipe, make_folder, corpus, tmp_path):
    probes = recipe.main(arguments(make_folder("model"), corpus, "--probes", "speaker", "--output_dir", str(tmp_path)))
    assert list(probes) == ["speaker"] and list(probes["speaker"].rates) == ["content", "context", "states"]
    assert (tmp_path / "probe.json").exists()


def test_what_cannot_be_probed_is_refused(recipe, make_folder, corpus, tmp_path):
    model, baseline = make_folder("model"), make_folder("baseline", factorize=False)
    noise = ["--noise_dataset", str(tmp_path / "noise")]
    with pytest.raises(ValueError, match="needs --noise_dataset"):
        recipe.main(arguments(model, corpus))
    with pytest.raises(ValueError, match="some of speaker, noise, characters; got pitch"):
        recipe.main(arguments(model, corpus, "--probes", "pitch"))
    with pytest.raises(ValueError, match="lowest and the highest"):
        recipe.main(arguments(model, corpus, *noise, "--snrs_db", "5"))
    with pytest.raises(ValueError, match="--noise_classes dog: the noise has a, b"):
        recipe.main(arguments(model, corpus, *noise, "--noise_classes", "dog"))
    with pytest.raises(ValueError, match="baseline was trained with factorize=False"):
        recipe.main(arguments(baseline, corpus, *noise))
    with pytest.raises(ValueError, match="at least 5 utterances"):
        recipe.main(arguments(model, corpus, *noise, "--max_utterances", "9"))


def test_clips_are_told_by_recording(recipe, corpus, tmp_path):
    folder = tmp_path / "noise" / "test"
    lines = (folder / "metadata.csv").read_text().splitlines()
    for take in "AB":
        (folder / f"1-17-{take}-3.wav").write_bytes((folder / "0.wav").read_bytes())
        lines.append(f"1-17-{take}-3.wav,a")
    (folder / "metadata.csv").write_text("\n".join(lines))
    clips = recipe.read_noise(recipe.ProbeArguments("model", corpus, noise_dataset=[str(tmp_path / "noise")]))
    assert sorted(map(len, clips["a"].values())) == [1, 1, 1, 1, 1, 2] and len(clips["a"]["1-17"]) == 2
    assert sorted(map(len, clips["b"].values())) == [1, 1, 1, 1, 1]
    assert clips["a"]["1-17"][0].shape == (4000,)


def test_clips_without_a_name_are_refused(recipe, corpus, tmp_path):
    audio = {"bytes": (tmp_path / "noise" / "test" / "0.wav").read_bytes(), "path": None}
    write_parquet(tmp_path / "unnamed" / "test.parquet", [{"audio": audio, "noise": "a"}])
    with pytest.raises(ValueError, match="unnamed has a clip of a without a file name"):
        recipe.read_noise(recipe.ProbeArguments("model", corpus, noise_dataset=[str(tmp_path / "unnamed")]))


@pytest.mark.skipif(not ESC50.is_dir(), reason="needs the real noise")
def test_every_class_of_the_tables_probe_has_recordings_for_all_folds(recipe, corpus):
    from reproduce_factored_asr import PROBE_NOISES

    args = recipe.ProbeArguments("model", corpus, noise_dataset=[str(ESC50)], noise_classes=PROBE_NOISES)
    for recordings in recipe.read_noise(args).values():
        assert len(recordings) >= recipe.NUM_FOLDS and sum(map(len, recordings.values())) == 8
