"""Questions to composed digit strings: seeds, gaps, splits that share no recording."""

import numpy as np
import pytest
from tiny_corpora import write_digits

from clearspeech.processing.corpora import load_corpus


@pytest.fixture
def digits(tmp_path):
    return write_digits(tmp_path / "digits")


def test_digit_strings_are_seeded_strings_of_one_speaker(digits):
    strings = load_corpus(f"digit_strings:{digits}:20", "train")
    again = load_corpus(f"digit_strings:{digits}:20", "train", decoded=True)
    for string, same in zip(strings, again, strict=True):
        num_digits = len(string["text"].split())
        assert 2 <= num_digits <= 8 and string["speaker"] in ("s1", "s2")
        silence = len(string["audio"]) / 16000 - 0.1 * num_digits
        assert 0.025 * (num_digits - 1) - 0.001 <= silence <= 0.150 * (num_digits - 1)
        assert string["text"] == same["text"]
        np.testing.assert_array_equal(string["audio"], same["audio"])


def test_digit_strings_of_different_splits_share_no_recording(digits):
    recordings = {}
    for split in ("train", "validation", "test"):
        tones = [row["audio"][:1600] for row in load_corpus(f"digit_strings:{digits}:60", split)]
        peaks = [np.argmax(np.abs(np.fft.rfft(tone * np.hanning(1600), 16000))) for tone in tones]
        recordings[split] = {round((peak - 300) / 50) for peak in peaks}
    assert recordings == {"train": set(range(9)), "validation": {9}, "test": {10, 11}}


def test_the_number_of_digit_strings_must_be_a_number(digits):
    with pytest.raises(ValueError, match="'many' is not a number of strings"):
        load_corpus(f"digit_strings:{digits}:many", "train")
