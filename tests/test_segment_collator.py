"""Segments of a codec's training: where they begin, what they hold, features of the real samples alone."""

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor

from clearspeech.processing.feature_extraction_best_rq import BestRQFeatureExtractor
from clearspeech.processing.loudness import bring_to_level
from clearspeech.processing.segment_collator import SegmentCollator


@pytest.fixture
def rows(make_speech):
    return [{"audio": make_speech(length, seed)} for seed, length in enumerate((9000, 1500, 4096, 20000))]


@pytest.fixture
def collator():
    return SegmentCollator(BestRQFeatureExtractor(8), segment_samples=4096)


def levelled(row: dict) -> np.ndarray:
    """What segments are cut from."""
    return bring_to_level(row["audio"]).numpy()


def start_of(segment: torch.Tensor, audio: np.ndarray) -> int:
    """Where a segment was cut from."""
    starts = [start for start in np.flatnonzero(audio == segment[0].item()) if start + len(segment) <= len(audio)]
    (start,) = [start for start in starts if np.array_equal(audio[start : start + len(segment)], segment.numpy())]
    return start


def test_a_segment_is_a_stretch_of_the_utterance_and_a_shorter_one_is_padded(rows, collator):
    batch = collator(rows)
    assert batch["waveforms"].shape == (4, 4096) and batch["num_samples"].tolist() == [4096, 1500, 4096, 4096]
    for waveform, row in zip(batch["waveforms"], rows):
        start_of(waveform[: len(row["audio"])], levelled(row))
    assert not batch["waveforms"][1, 1500:].any()
    assert np.array_equal(batch["waveforms"][2], levelled(rows[2]))


def test_where_it_begins_depends_on_utterance_epoch_and_seed_alone(rows, collator):
    def starts(rows, epoch=0, seed=0):
        drawing = SegmentCollator(collator.feature_extractor, segment_samples=4096, seed=seed)
        drawing.set_epoch(epoch)
        return [start_of(waveform, levelled(row)) for waveform, row in zip(drawing(rows)["waveforms"], rows)]

    long = [rows[0], rows[3]]
    torch.rand(3)  # draws elsewhere do not matter
    assert starts(long) == starts(long[::-1])[::-1] == starts(long)
    assert len({tuple(starts(long, epoch, seed)) for epoch in range(3) for seed in range(3)}) == 9


def test_segments_lie_anywhere_in_the_utterance(rows, collator):
    starts = []
    for epoch in range(300):
        collator.set_epoch(epoch)
        starts.append(start_of(collator.cut(torch.from_numpy(rows[3]["audio"]))[0], levelled(rows[3])))
    assert set(starts) == {512 * token for token in range(32)}  # 20000 - 4096 samples
    assert np.mean(starts) == pytest.approx(31 * 512 / 2, rel=0.1)


EXTRACTORS = {  # with samples and inputs per token
    "features": (BestRQFeatureExtractor(8), 512, 4),
    "waveforms": (Wav2Vec2FeatureExtractor(return_attention_mask=True), 320, 320),
}


@pytest.mark.parametrize("source_samples", (None, 8192), ids=("segment", "source"))
@pytest.mark.parametrize("kind", EXTRACTORS)
def test_features_are_those_of_the_whole_utterance_around_the_segment(kind, source_samples, rows):
    extractor, per_token, per_inputs = EXTRACTORS[kind]
    batch = SegmentCollator(extractor, per_token, per_inputs, 4096, source_samples)(rows)
    name, hop = extractor.model_input_names[0], per_token // per_inputs
    assert batch.keys() == {name, "attention_mask", "first_tokens", "waveforms", "num_samples", "seeds"}
    for index, row in enumerate(rows):
        whole = extractor([levelled(row)], sampling_rate=16000, return_tensors="pt")[name][0]
        length, real = int(batch["num_samples"][index]), int(batch["attention_mask"][index].sum())
        before = int(batch["first_tokens"][index]) * per_token
        start = start_of(batch["waveforms"][index, :length], levelled(row))
        first = (start - before) // hop
        assert start % per_token == 0 and before < real * hop
        assert torch.equal(batch[name][index, :real], whole[first : first + real])
        assert not batch[name][index, real:].any()
        wanted = min(source_samples or 4096, len(row["audio"]))  # and the rest of the last token
        assert wanted <= real * hop < wanted + per_token or first + real == len(whole)
        assert before + length <= real * hop


def test_the_encoder_hears_as_much_before_the_segment_as_behind_it_where_there_is_more(rows):
    collator = SegmentCollator(BestRQFeatureExtractor(8), segment_samples=1024, source_samples=5120)
    befores = set()
    for epoch in range(200):
        collator.set_epoch(epoch)
        segment, features, before = collator.cut(torch.from_numpy(rows[3]["audio"]))
        token = start_of(segment, levelled(rows[3])) // 512
        assert len(features) == 40 and before == min(max(4, token - 30), token)  # of the utterance's 40 tokens
        befores.add(before)
    assert befores == {0, 1, 2, 3, 4, 5, 6, 7}


def test_a_source_shorter_than_the_segment_is_refused():
    with pytest.raises(ValueError, match="at least segment_samples; got 4000 and 4096"):
        SegmentCollator(BestRQFeatureExtractor(8), segment_samples=4096, source_samples=4000)


def test_segments_begin_with_a_token_and_end_anywhere(rows):
    collator = SegmentCollator(BestRQFeatureExtractor(8), segment_samples=4000)
    for epoch in range(5):
        collator.set_epoch(epoch)
        segment, features, _ = collator.cut(torch.from_numpy(rows[3]["audio"]))
        assert start_of(segment, levelled(rows[3])) % 512 == 0
        assert len(segment) == 4000 and len(features) == 32  # eight tokens, the last of them cut off


def test_whole_utterances_are_padded_to_the_longest(rows, collator):
    batch = collator.of_whole_utterances()(rows)
    assert batch["waveforms"].shape == (4, 20000) and batch["num_samples"].tolist() == [9000, 1500, 4096, 20000]
    assert np.array_equal(batch["waveforms"][0, :9000], levelled(rows[0]))
    assert collator.segment_samples == 4096


def test_a_quiet_and_a_loud_copy_of_an_utterance_give_one_segment(rows, collator):
    """At -23 dB over the whole utterance; the features hear it at that level, too."""
    collator.feature_extractor = BestRQFeatureExtractor(8, normalization="global", mean=[0.0] * 8, std=[1.0] * 8)
    whole = collator.of_whole_utterances()
    audio = rows[3]["audio"]
    loud, quiet = (whole([{"audio": np.float32(gain) * audio}]) for gain in (1.0, 0.03))
    torch.testing.assert_close(quiet["waveforms"], loud["waveforms"])
    torch.testing.assert_close(quiet["input_features"], loud["input_features"], atol=1e-3, rtol=1e-3)
    assert 20 * torch.log10(loud["waveforms"].square().mean().sqrt()) == pytest.approx(-23.0, abs=0.01)


def test_seeds_are_those_of_the_utterances(rows, collator):
    """In any batch, epoch and segment."""
    seeds = collator(rows)["seeds"].tolist()
    collator.set_epoch(3)
    assert seeds == [int(collator([row])["seeds"]) for row in rows] and len(set(seeds)) == 4
    assert seeds == collator.of_whole_utterances()(rows)["seeds"].tolist()


def test_rows_may_be_memory_maps_and_are_not_changed(rows, collator):
    audio = rows[0]["audio"].copy()
    audio.setflags(write=False)
    collator([{"audio": audio}])["waveforms"].zero_()
    assert np.array_equal(audio, rows[0]["audio"])


def test_audio_that_is_no_speech_is_refused(collator):
    for audio, message in ((np.zeros(399), "at least one window of 400"), (np.full(4000, np.nan), "NaN or infinite")):
        with pytest.raises(ValueError, match=message):
            collator([{"audio": audio}])
