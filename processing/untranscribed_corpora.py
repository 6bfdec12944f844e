"""Speech for training without transcripts: every row of a corpus with audio, whatever text it has."""

from datasets import Dataset, concatenate_datasets

from .audio_reading import AudioDecoder
from .corpora import load_corpus, load_noise, parse_source


def load_untranscribed(sources: list[str], split: str, *, on_error: str = "raise") -> Dataset:
    """
    Rows `audio` (float32 mono, 16 kHz, `(samples,)`, decoded when read) of several corpora, one after another.

    Sources, `split` and `on_error` are those of `load_corpus`, and so are the errors; but neither rows nor corpora
    need any text, unless the source is `embedded` or has a layout of its own. None is streamed.
    """
    if isinstance(sources, str) or not sources:
        raise ValueError(f"sources must be a list of at least one corpus, such as ['embedded'], not {sources!r}")
    parts = [_load_audio(source, split, on_error).with_format(None).select_columns("audio") for source in sources]
    return concatenate_datasets(parts).with_transform(AudioDecoder(", ".join(sources), skip=False).decode_batch)


def _load_audio(source: str, split: str, on_error: str) -> Dataset:
    parsed = parse_source(source)
    if parsed.name == "embedded" or parsed.layout is not None:  # their rows all have text
        return load_corpus(source, split, on_error=on_error, streaming=False)
    return load_noise(source, split, on_error=on_error)  # clips of any sound, which need nothing but audio
