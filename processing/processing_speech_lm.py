"""Audio, speech units and text for SpeechLM."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoFeatureExtractor,
    AutoTokenizer,
    BatchFeature,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from ..configuration.configuration_speech_lm import NUM_END_TOKENS
from .speech_tasks import choose_prompt, find_task
from .text_encoding import check_text_rows, encode_known, normalize_transcript, refuse_special_tokens
from .unit_pieces import FILE_NAME, UnitPieces
from .unit_sources import check_pieces, load_audio_tokenizer, load_pieces, save_audio_tokenizer
from .waveform_checks import check_waveform_for, list_waveforms

AUDIO_TOKENIZER_FOLDER = "audio_tokenizer"
END_TOKENS = ("<text_end>", "<speech_end>")
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
CODE_OPTIONS = ("trust_remote_code", "code_revision")


class SpeechLMProcessor(ProcessorMixin):
    """
    Audio to speech units to a SpeechLM's ids (SLD, section 3.1), and its ids back to text.

    Audio becomes codes through an audio tokenizer (k-means of an encoder's layer, StableToken, DisentangledWhisper),
    codes may be merged to longer pieces ("further tokenized using subword modeling"), and one sequence is

        prompt, speech units, <speech_end>, answer, <text_end>

    where text keeps its ids and, with t the rows of the text model, `<text_end>` is t, `<speech_end>` t + 1 and speech
    unit u is t + 2 + u. Answers are normalized (`normalize_text`). Prompts stay as they are, for a text model has read
    sentences as people write them; where its tokenizer does not know their characters (one of lower-case letters),
    they are normalized as answers are.

    A folder holds `processor_config.json`, the audio tokenizer in `audio_tokenizer/`, `unit_pieces.model` where codes
    are merged, and the text tokenizer's files. Without a text tokenizer it makes units only; `with_text_model` adds
    one. `from_pretrained` also takes the folder of an audio tokenizer, whose codes then are the units.

    Args:
        feature_extractor: what the audio tokenizer reads.
        audio_tokenizer: of the suite. It stays in the precision that it was saved in, for another would change the
            units. Move it with `processor.audio_tokenizer.to(device)`.
        tokenizer: of the text model, with a padding or an end token; needs text_vocab_size.
        unit_pieces: merges codes; each code is a unit when None.
        text_vocab_size: t, the embedding rows of the text model, spare ones included; needs tokenizer.
        tasks: what the model answers, names of `TASKS`. Several are told apart by their prompts; one needs none.
        max_seconds: the longest audio that the model was trained on, at which the pipeline cuts; None where that is
            not known.

    Raises:
        ValueError: half of tokenizer and text_vocab_size, a tokenizer with more tokens than the text model has rows
            or with nothing to pad with, pieces of another audio tokenizer, an unknown task or none.
        TypeError: a feature extractor or a tokenizer of another kind.
    """

    def __init__(
        self,
        feature_extractor,
        audio_tokenizer: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        unit_pieces: UnitPieces | None = None,
        text_vocab_size: int | None = None,
        tasks: Sequence[str] = ("asr",),
        max_seconds: float | None = None,
    ):
        super().__init__(feature_extractor)
        if (tokenizer is None) != (text_vocab_size is None):
            raise ValueError(
                f"tokenizer and text_vocab_size belong together; got {type(tokenizer).__name__} and {text_vocab_size}."
            )
        if tokenizer is not None:
            self.check_argument_for_proper_class("tokenizer", tokenizer)
            check_text_rows(tokenizer, text_vocab_size)
        if unit_pieces is not None:
            check_pieces(unit_pieces, audio_tokenizer.config.codebook_size)
        if not tasks:
            raise ValueError("Got no task. Name at least one, such as asr.")
        self.audio_tokenizer = audio_tokenizer.eval()
        self.tokenizer = tokenizer
        self.unit_pieces = unit_pieces
        self.text_vocab_size = text_vocab_size
        self.tasks = tuple(find_task(name).name for name in tasks)
        self.max_seconds = max_seconds

    @classmethod
    def get_attributes(cls) -> list[str]:
        """What `ProcessorMixin` handles; the text tokenizer is optional and the audio tokenizer a model."""
        return ["feature_extractor"]

    def with_text_model(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_vocab_size: int,
        tasks: Sequence[str] = ("asr",),
        max_seconds: float | None = None,
    ) -> "SpeechLMProcessor":
        """The same units for another text model; arguments as above. The audio tokenizer is shared."""
        units = self.feature_extractor, self.audio_tokenizer
        return type(self)(*units, tokenizer, self.unit_pieces, text_vocab_size, tasks, max_seconds)

    @property
    def num_speech_units(self) -> int:
        """s: how many different units there are, pieces where codes are merged."""
        return self.audio_tokenizer.config.codebook_size if self.unit_pieces is None else self.unit_pieces.vocab_size

    @property
    def text_end_token_id(self) -> int:
        self._need_text()
        return self.text_vocab_size

    @property
    def speech_end_token_id(self) -> int:
        return self.text_end_token_id + 1

    @property
    def pad_token_id(self) -> int:
        """The text tokenizer's padding, its end of text where it has none, as in the released code."""
        self._need_text()
        padding = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if padding is None else padding

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask"]

    def check_waveform(self, waveform: np.ndarray | Tensor | list) -> Tensor:
        """
        The waveform as a float32 tensor `(samples,)` on the CPU.

        Raises:
            ValueError: several channels, integer samples, NaN or infinity, less audio than makes a unit.
        """
        return check_waveform_for(self.feature_extractor, waveform)

    @torch.no_grad()
    def units(self, audio: np.ndarray | Tensor | list, sampling_rate: int | None) -> list[list[int]]:
        """
        Speech units of a batch of utterances, in `[0, num_speech_units)`, made on the audio tokenizer's device.

        audio: one waveform `(samples,)` or a list of such, mono; sampling_rate: theirs, in Hz.

        Raises:
            ValueError: another sampling rate than the feature extractor's, audio that `check_waveform` refuses, or an
                audio tokenizer that does not give one code per frame.
        """
        if sampling_rate != self.feature_extractor.sampling_rate:
            raise ValueError(
                f"Expected sampling_rate={self.feature_extractor.sampling_rate} (Hz), got {sampling_rate}. Pass the "
                "audio's own rate; resample if it is another."
            )
        waveforms = [self.check_waveform(waveform).numpy() for waveform in list_waveforms(audio)]
        device, dtype = self.audio_tokenizer.device, self.audio_tokenizer.dtype
        padded = {"padding": "longest", "return_attention_mask": True, "return_tensors": "pt"}
        features = self.feature_extractor(waveforms, sampling_rate=sampling_rate, device=device, **padded)
        encoded = self.audio_tokenizer.encode(**features.to(device=device, dtype=dtype))
        if encoded.audio_codes.ndim != 2:
            raise ValueError(
                f"Expected one code per frame, (batch, frames), got {tuple(encoded.audio_codes.shape)} from "
                f"{type(self.audio_tokenizer).__name__}: a codec of several codebooks is no source of speech units."
            )
        rows = zip(encoded.audio_codes.cpu(), encoded.attention_mask.cpu().bool(), strict=True)
        codes = [row[mask].tolist() for row, mask in rows]
        return codes if self.unit_pieces is None else [self.unit_pieces.encode(row) for row in codes]

    def max_samples(self, num_units: int) -> int:
        """
        The longest audio, in samples, of which at most `num_units` speech units come, even when no two codes merge,
        and which the audio tokenizer sees at once.
        """
        config = self.audio_tokenizer.config
        if hasattr(config, "max_source_tokens"):  # encoders of waveforms have no position table
            num_units = min(num_units, config.max_source_tokens)
        return num_units * config.mel_frames_per_token * self.feature_extractor.sampling_rate // 100  # of 10 ms

    def speech_ids(self, units: Sequence[int]) -> list[int]:
        """
        Model ids of speech units.

        Raises:
            ValueError: no units, or some outside `[0, num_speech_units)`: they are another tokenizer's.
        """
        self._need_text()
        units = [int(unit) for unit in units]
        if not units:
            raise ValueError("Got no speech units: leave out empty recordings.")
        if min(units) < 0 or max(units) >= self.num_speech_units:
            raise ValueError(
                f"Speech units must be 0 to {self.num_speech_units - 1}; got {min(units)} to {max(units)}. They were "
                "made by another audio tokenizer or with other pieces: make them with this processor."
            )
        return [self.text_vocab_size + NUM_END_TOKENS + unit for unit in units]

    def text_ids(self, text: str) -> list[int]:
        """
        Ids of an answer after normalization, and `<text_end>`.

        Raises:
            ValueError: nothing is left after normalization, characters that the tokenizer does not know, or special
                tokens in the text.
        """
        end = self.text_end_token_id
        refuse_special_tokens(self.tokenizer, text or "", END_TOKENS)
        return [*encode_known(self.tokenizer, normalize_transcript(text), add_special_tokens=False), end]

    def prompt_ids(self, prompt: str) -> list[int]:
        """
        Ids of a prompt as it is; normalized where the tokenizer does not know its characters.

        Raises:
            ValueError: an empty one, and as `text_ids`.
        """
        self._need_text()
        refuse_special_tokens(self.tokenizer, prompt, END_TOKENS)
        if not prompt.strip():
            raise ValueError(f"Got the prompt {prompt!r}: ask something, or leave it out.")
        try:
            return encode_known(self.tokenizer, prompt, add_special_tokens=False)
        except ValueError:  # capitals and full stops are nothing to a tokenizer of lower-case letters
            return encode_known(self.tokenizer, normalize_transcript(prompt), add_special_tokens=False)

    def sequence(
        self, units: Sequence[int], text: str | None = None, prompt: str | None = None
    ) -> dict[str, list[int] | int]:
        """
        One utterance as the model reads it: `input_ids` (prompt, units, `<speech_end>`, answer and `<text_end>` where
        text is given), `num_prompt`, and `num_speech`, the number of units without `<speech_end>`.

        Raises:
            ValueError: see `speech_ids`, `text_ids` and `prompt_ids`.
        """
        asked = [] if prompt is None else self.prompt_ids(prompt)
        speech = self.speech_ids(units)
        answer = [] if text is None else self.text_ids(text)
        return {
            "input_ids": [*asked, *speech, self.speech_end_token_id, *answer],
            "num_prompt": len(asked),
            "num_speech": len(speech),
        }

    def __call__(
        self,
        audio: np.ndarray | Tensor | list | None = None,
        units: Sequence[int] | Sequence[Sequence[int]] | None = None,
        text: str | list[str] | None = None,
        prompt: str | list[str] | None = None,
        task: str | None = None,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        padding: bool | str = "longest",
    ) -> BatchFeature:
        """
        A batch for `generate`: sequences up to `<speech_end>`, padded on the left. With text they end in the answer.

        audio, sampling_rate: see `units`; units: of one utterance or of several, made before. One of the two.
        text: one answer per utterance; prompt: one for all, or one per utterance; task: see `choose_prompt`.

        Returns `input_ids` and `attention_mask` `(batch, tokens)`.

        Raises:
            ValueError: neither or both of audio and units, numbers that differ, a padding other than "longest", what
                `units`, `choose_prompt` and `sequence` refuse.
        """
        if padding not in (True, "longest"):
            raise ValueError(
                f'Sequences are padded to the longest of the batch; got padding={padding!r}. Pass "longest".'
            )
        if (audio is None) == (units is None):
            raise ValueError("Pass either `audio=` with `sampling_rate=`, or `units=`, not neither or both.")
        rows = self.units(audio, sampling_rate) if units is None else list_waveforms(units)
        asked = choose_prompt(self.tasks, task, prompt)
        prompts = list(asked) if isinstance(asked, list) else [asked] * len(rows)
        texts = [None] * len(rows) if text is None else [text] if isinstance(text, str) else list(text)
        for name, given in (("prompts", prompts), ("texts", texts)):
            if len(given) != len(rows):
                raise ValueError(f"Got {len(rows)} utterances and {len(given)} {name}. Pass one per utterance.")
        sequences = [self.sequence(*each)["input_ids"] for each in zip(rows, texts, prompts, strict=True)]
        width, padding = max(len(ids) for ids in sequences), self.pad_token_id
        batch = {
            "input_ids": [[padding] * (width - len(ids)) + ids for ids in sequences],
            "attention_mask": [[0] * (width - len(ids)) + [1] * len(ids) for ids in sequences],
        }
        return BatchFeature(batch, tensor_type=return_tensors)

    def decode(self, token_ids: Sequence[int] | Tensor, skip_special_tokens: bool = True) -> str:
        """Text of generated ids `(tokens,)` up to `<text_end>`; ids that are no text's are dropped."""
        ids, end = torch.as_tensor(token_ids).tolist(), self.text_end_token_id
        answer = ids[: ids.index(end)] if end in ids else ids
        text = [token for token in answer if 0 <= token < end]
        return self.tokenizer.decode(text, skip_special_tokens=skip_special_tokens).strip()

    def batch_decode(self, sequences: Sequence | Tensor, skip_special_tokens: bool = True) -> list[str]:
        """`decode` of each row of `(batch, tokens)`."""
        return [self.decode(row, skip_special_tokens) for row in sequences]

    def check_model(self, model: PreTrainedModel) -> None:
        """
        Refuse a model whose vocabulary is not made of this processor's text and units.

        Raises:
            ValueError: other numbers of speech units or of text rows.
        """
        self._need_text()
        for name, ours, theirs in (
            ("speech units", self.num_speech_units, model.config.num_speech_units),
            ("rows of text", self.text_vocab_size, model.config.text_vocab_size),
        ):
            if ours != theirs:
                raise ValueError(
                    f"The model has {theirs} {name}, this processor {ours}: they do not belong together. Take the "
                    "processor of the model's own folder."
                )

    def to_dict(self) -> dict[str, Any]:
        """What `processor_config.json` holds; models and files are saved beside it."""
        fields = {
            "processor_class": type(self).__name__,
            "feature_extractor": self.feature_extractor.to_dict(),
            "unit_pieces": None if self.unit_pieces is None else FILE_NAME,
            "text_vocab_size": self.text_vocab_size,
            "tasks": list(self.tasks),
            "max_seconds": self.max_seconds,
        }
        return fields | {name: value for name, value in vars(self).items() if name == "auto_map"}

    def save_pretrained(
        self,
        save_directory: str | Path,
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        **push_options: Any,
    ) -> list[str]:
        """
        Write the folder that `from_pretrained` reads; the audio tokenizer travels in it.

        push_to_hub: upload it, too, with push_options as `push_to_hub` takes them, `repo_id` the folder's name unless
        given. max_shard_size: of the audio tokenizer's weight files.
        """
        folder = Path(save_directory)
        files = super().save_pretrained(folder)
        save_audio_tokenizer(self.audio_tokenizer, folder / AUDIO_TOKENIZER_FOLDER, max_shard_size=max_shard_size)
        if self.unit_pieces is not None:
            self.unit_pieces.save(folder / FILE_NAME)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        if push_to_hub:
            self.push_to_hub(push_options.pop("repo_id", folder.name), **push_options)
        return files

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "SpeechLMProcessor":
        """
        Load a folder or Hub repo of `save_pretrained`, or of an audio tokenizer: then its codes are the units.

        options: where and how to find the files, as everywhere in Transformers (`revision`, `token`, `cache_dir`,
        `trust_remote_code`, ...). Those that concern models (`dtype`, ...) do not reach the audio tokenizer.

        Raises:
            ValueError: the audio tokenizer, or some of its weights, such as the centroids, are missing.
            OSError: the file of pieces is.
        """
        name = str(pretrained_model_name_or_path)
        hub = {option: options[option] for option in HUB_OPTIONS if option in options}
        code = {option: options[option] for option in CODE_OPTIONS if options.get(option) is not None}
        fields, _ = cls.get_processor_dict(name, **hub)
        feature_extractor = AutoFeatureExtractor.from_pretrained(name, **hub, **code)
        if fields.get("processor_class") != cls.__name__:
            return cls(feature_extractor, load_audio_tokenizer(name, **hub, **code))
        subfolder = f"{hub.get('subfolder', '')}/{AUDIO_TOKENIZER_FOLDER}".lstrip("/")
        audio_tokenizer = load_audio_tokenizer(name, **hub | {"subfolder": subfolder}, **code)
        has_text = fields["text_vocab_size"] is not None
        return cls(
            feature_extractor,
            audio_tokenizer,
            tokenizer=AutoTokenizer.from_pretrained(name, **hub, **code) if has_text else None,
            unit_pieces=None if fields["unit_pieces"] is None else load_pieces(name, fields["unit_pieces"], **hub),
            text_vocab_size=fields["text_vocab_size"],
            tasks=fields["tasks"],
            max_seconds=fields["max_seconds"],
        )

    def _need_text(self) -> None:
        if self.tokenizer is None:
            raise ValueError(
                "This processor makes speech units only. Add the text model's tokenizer first: "
                "processor.with_text_model(tokenizer, text_vocab_size)."
            )


__all__ = ["SpeechLMProcessor"]
