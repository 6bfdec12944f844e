"""Questions to what evaluation recipes share: the labels of corpora, where results go, what is measured."""

from pathlib import Path

import pytest
from tiny_corpora import use_own_cache, write_utterances


@pytest.fixture(autouse=True)
def recipes(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "recipes"))


def test_hub_configurations_have_labels_of_their_own():
    from measured_speech import corpus_label

    assert corpus_label("google/fleurs:en_us") == "fleurs-en_us"
    assert corpus_label("digit_strings:somewhere/spoken_digits:40") == "digit_strings"


@pytest.mark.parametrize(
    ("source", "label"),
    [
        ("JacobLinCool/VoiceBank-DEMAND-16k:../data/DS_10283_2791/", "VoiceBank-DEMAND-16k-DS_10283_2791"),
        ("voicebank_demand:../data/DS_10283_2791:28spk", "DS_10283_2791-28spk"),
        ("voicebank_demand:../data/DS_10283_2791", "DS_10283_2791"),
        ("chime4:/data/CHiME4:real", "CHiME4-real"),
        ("../data/alphanumeric@verbalised", "alphanumeric"),
    ],
)
def test_labels_of_corpora_can_be_parts_of_file_names(source, label):
    from measured_speech import corpus_label

    assert corpus_label(source) == label


def test_corpora_with_one_label_are_refused():
    from measured_speech import label_sources

    assert label_sources(["a/an4", "b/digits"]) == {"an4": "a/an4", "digits": "b/digits"}
    with pytest.raises(ValueError, match=r"cannot tell apart: \['an4', 'an4'\]"):
        label_sources(["a/an4", "b/an4"])


def test_results_go_beside_the_model_unless_told_otherwise():
    from measured_speech import MeasuringArguments

    assert MeasuringArguments(model="outputs/mini").folder == Path("outputs/mini/evaluation")
    assert MeasuringArguments(model="outputs/mini", output_dir="elsewhere").folder == Path("elsewhere")


def test_the_first_short_utterances_of_the_split_are_measured(tmp_path, monkeypatch):
    from measured_speech import MeasuringArguments

    use_own_cache(tmp_path, monkeypatch)
    corpus = str(write_utterances(tmp_path / "corpus"))
    everything = MeasuringArguments(model="m", split="train").load(corpus)
    assert len(everything) == 2  # the second of three has no text
    assert len(MeasuringArguments(model="m", split="train", max_utterances=1).load(corpus)) == 1
