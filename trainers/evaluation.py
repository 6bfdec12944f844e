"""Running a model over a corpus: transcripts, tokens, and both under noise."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..processing.audio_reading import SAMPLING_RATE
from ..processing.corpora import ESC10_CLASSES, leave_out_long, load_corpus, load_noise
from ..processing.feature_extraction_stable_token import StableTokenFeatureExtractor
from ..processing.perturbation import EVALUATION_PERTURBATIONS, Perturbation, Perturber, utterance_seed
from ..processing.pipeline_speech_recognition import cut_at_quiet_places
from .metrics import CodebookUsage, UnitEditDistance, WordErrorRate, vote_statistics

TABLE_13 = {row.name: row for row in EVALUATION_PERTURBATIONS}
SNR_KINDS = tuple(name for name, row in TABLE_13.items() if row.kind != "bit_crush")  # bits are no SNR


def spread_rows(corpus: Dataset, max_rows: int) -> Dataset:
    """At most so many rows, at equal distances: of every corpus where several follow one another."""
    return corpus.select(range(0, len(corpus), -(-len(corpus) // max_rows)))


def length_batches(rows: Sequence, batch_size: int, title: str) -> Iterator[list[int]]:
    """Positions in `rows` in batches of similar `len`, the shortest first, with a progress bar."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    for first in tqdm(range(0, len(order), batch_size), desc=title, leave=False):
        yield order[first : first + batch_size]


def feature_batches(
    waveforms: list, feature_extractor: StableTokenFeatureExtractor, device: torch.device, batch_size: int, title: str
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """
    Batches of similar length, with a progress bar: the rows' positions in `waveforms`, and their features.

    waveforms: float arrays `(samples,)` at 16 kHz.
    """
    for rows in length_batches(waveforms, batch_size, title):
        features = feature_extractor(
            [waveforms[row] for row in rows],
            sampling_rate=SAMPLING_RATE,
            padding="longest",
            return_tensors="pt",
            device=device,
        )
        yield rows, features.to(device)


@torch.no_grad()
def transcribe(
    model: PreTrainedModel,
    feature_extractor: StableTokenFeatureExtractor,
    tokenizer: PreTrainedTokenizerBase,
    waveforms: list,
    batch_size: int = 32,
    num_beams: int = 1,
) -> list[str]:
    """
    Transcripts of `waveforms` (16 kHz), in their order; what exceeds the model's window is cut at pauses.

    num_beams: of the beam search; 1 is greedy.
    """
    was_training = model.training
    model.eval()
    extractor, window = feature_extractor, model.config.max_source_positions * 2  # mel frames
    longest = window * extractor.hop_length - extractor.n_fft // 2
    cut = [cut_at_quiet_places(torch.as_tensor(waveform), longest) for waveform in waveforms]
    pieces = [piece.numpy() for row in cut for piece in row]
    texts = [""] * len(pieces)
    for rows, features in feature_batches(pieces, feature_extractor, model.device, batch_size, "transcribe"):
        limit = model.config.max_target_positions - len(model.prompt_ids())
        ids = model.generate(**features, num_beams=num_beams, do_sample=False, max_new_tokens=limit)
        for row, text in zip(rows, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
            texts[row] = text
    model.train(was_training)
    following = iter(texts)
    return [" ".join(next(following) for _ in row) for row in cut]


@dataclass
class Tokens:
    """
    Per utterance: `codes` `(frames,)` int64 and `votes` `(frames, bits)` in [-1, 1], which stays empty for a tokenizer
    whose bits are not voted on.
    """

    codes: list[Tensor]
    votes: list[Tensor]


@torch.no_grad()
def tokenize(
    model: PreTrainedModel, feature_extractor: StableTokenFeatureExtractor, waveforms: list, batch_size: int = 32
) -> Tokens:
    """Tokens of `waveforms` (16 kHz, any length) by a tokenizer with `encode`, in their order."""
    was_training = model.training
    model.eval()
    codes, votes = {}, {}  # by row
    for rows, features in feature_batches(waveforms, feature_extractor, model.device, batch_size, "tokenize"):
        output = model.encode(**features)
        for index, row in enumerate(rows):
            real = output.attention_mask[index]
            codes[row] = output.audio_codes[index, real].cpu()
            if "votes" in output:
                votes[row] = output.votes[index, real].float().cpu()
    model.train(was_training)
    return Tokens(*([values[row] for row in sorted(values)] for values in (codes, votes)))


def open_short(source: str, split: str, max_seconds: float, max_utterances: int | None) -> Dataset:
    """The first `max_utterances` rows (all if None) of at most `max_seconds`; prints how many were too long."""
    corpus = load_corpus(source, split, streaming=False)
    short = leave_out_long(corpus, max_seconds)
    if len(short) < len(corpus):
        print(f"{source}, {split}: left out {len(corpus) - len(short)} utterances of over {max_seconds} s")
    return short.select(range(min(max_utterances or len(short), len(short))))


def load_noise_conditions(sources: list[str], split: str) -> dict[str, list]:
    """
    Waveforms `(samples,)` of real noise for Table 13: `real`, of the classes that training may meet, and `real_ood`,
    of the ESC-10 classes, which it never meets. A condition without clips is left out.
    """
    clips = [row for source in sources for row in load_noise(source, split)]
    noise = {"real": [], "real_ood": []}
    for row in clips:
        noise["real_ood" if row["noise"] in ESC10_CLASSES else "real"].append(row["audio"])
    return {name: waveforms for name, waveforms in noise.items() if waveforms}


def snr_sweep(kinds: Iterable[str], snrs_db: Iterable[float]) -> dict[str, Perturbation]:
    """
    Table 13's noises at other SNRs, in dB: rows by the name `<kind>@<SNR>`, such as `pink@7.5`.

    An utterance meets the same noise at every SNR, only louder. Raises ValueError for a kind outside `SNR_KINDS`.
    """
    kinds, snrs_db = list(kinds), list(snrs_db)
    unknown = [kind for kind in kinds if kind not in SNR_KINDS]
    if unknown:
        raise ValueError(f"Unknown kinds of noise {', '.join(unknown)}: choose from {', '.join(SNR_KINDS)}.")
    return {
        f"{kind}@{snr_db:g}": replace(TABLE_13[kind], minimum=snr_db, maximum=snr_db)
        for kind in kinds
        for snr_db in snrs_db
    }


def perturbed_views(
    waveforms: list, noise: dict[str, list], perturbations: Mapping[str, Perturbation] = TABLE_13
) -> Iterator[tuple[str, list]]:
    """
    The conditions of StableToken's Table 13, or others, in turn: name and perturbed waveforms, seeded per utterance.

    noise: waveforms of real noise for the conditions `real` and `real_ood`; a condition without is left out.
    perturbations: rows by the conditions' names; a row of real noise draws from `noise` by its own name.
    """
    for condition, perturbation in perturbations.items():
        clips = noise.get(perturbation.name)
        if perturbation.kind == "real" and not clips:
            continue
        perturber = Perturber([perturbation], clips)
        views = []
        for waveform in waveforms:
            waveform = torch.tensor(np.asarray(waveform))  # a copy: arrays mapped from a file are read-only
            views.append(perturber.perturb(waveform, utterance_seed(waveform))[0].numpy())
        yield condition, views


def noise_table(
    tokenizer_model: PreTrainedModel,
    feature_extractor: StableTokenFeatureExtractor,
    waveforms: list,
    noise: dict[str, list],
    recognizer: PreTrainedModel | None = None,
    text_tokenizer: PreTrainedTokenizerBase | None = None,
    texts: list[str] | None = None,
    wer_conditions: Iterable[str] = ("clean", "real"),
    batch_size: int = 32,
) -> dict[str, float]:
    """
    Table 4's columns for one corpus, in percent: `ued/<condition>`, `ued_mean`, and with a recognizer `wer` (clean)
    and `wer/<condition>`; beside them the codebook's usage on clean speech and, of voters, the unanimous bits.

    waveforms: `(samples,)` at 16 kHz; noise: see `perturbed_views`; texts: references of the same length.
    """

    def word_error_rate(views: list) -> float:
        predictions = transcribe(recognizer, feature_extractor, text_tokenizer, views, batch_size)
        return WordErrorRate().compute(predictions=predictions, references=texts)["wer"]

    clean = tokenize(tokenizer_model, feature_extractor, waveforms, batch_size)
    clean_codes = [codes.tolist() for codes in clean.codes]
    usage = CodebookUsage().compute(predictions=clean_codes, codebook_size=tokenizer_model.config.codebook_size)
    table = dict(usage)
    if clean.votes:
        votes = vote_statistics(torch.cat(clean.votes))
        table |= {name: votes[name] for name in ("vote_margin", "unanimous_bits")}
    if recognizer is not None and "clean" in wer_conditions:
        table["wer"] = word_error_rate(waveforms)
    distances = []
    for condition, views in perturbed_views(waveforms, noise):
        noisy = tokenize(tokenizer_model, feature_extractor, views, batch_size)
        codes = [codes.tolist() for codes in noisy.codes]
        distances.append(UnitEditDistance().compute(predictions=codes, references=clean_codes)["ued"])
        table[f"ued/{condition}"] = distances[-1]
        if recognizer is not None and condition in wer_conditions:
            table[f"wer/{condition}"] = word_error_rate(views)
    table["ued_mean"] = sum(distances) / len(distances)
    return table
