"""Tokens of audio of any length, from a tokenizer that sees one window at a time."""

from dataclasses import fields

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput


class WindowedEncodingMixin:
    """
    `encode` for a tokenizer whose `forward(input_features, attention_mask)` returns an output with per-token tensors.

    The model's configuration has `max_source_tokens`, `window_overlap` and `mel_frames_per_token`, as that of a
    `WhisperTokenizerConfig`. `padding_code` is the id behind the end of an utterance, `token_outputs` names the
    output's fields `(batch, frames, ...)`; others are dropped.
    """

    token_outputs: tuple[str, ...]
    padding_code: int

    @torch.no_grad()
    def encode(
        self, input_features: Tensor, attention_mask: Tensor | None = None, windows_per_batch: int = 8
    ) -> ModelOutput:
        """
        Tokens of audio of any length, one pass when it fits the position table, else overlapping windows.

        Every token of a long recording comes from the window in whose middle it lies; there are exactly as many as
        one pass would give, none lost or doubled at a seam. Windows are laid over an utterance's own frames, so its
        tokens do not depend on the batch it came in.

        Args:
            input_features, attention_mask: as in `forward`, any number of frames.
            windows_per_batch: how many windows of a long recording run at once; bounds the memory.

        Returns:
            The model's output with `token_outputs` alone.
        """
        num_frames = input_features.shape[-1]
        per_token = self.config.mel_frames_per_token
        if num_frames <= self.config.max_source_tokens * per_token:
            output = self(input_features, attention_mask)
            dropped = {each.name: None for each in fields(output) if each.name not in self.token_outputs}
            return type(output)(**{**output, **dropped})
        if attention_mask is None:
            attention_mask = torch.ones(input_features.shape[::2], dtype=torch.bool, device=input_features.device)
        rows = [
            self._encode_windows(features[:, : int(mask.sum())], windows_per_batch)
            for features, mask in zip(input_features, attention_mask.bool(), strict=True)
        ]
        padding = {"audio_codes": self.padding_code, "attention_mask": False}
        return type(rows[0])(
            **{
                name: nn.utils.rnn.pad_sequence([row[name] for row in rows], True, padding.get(name, 0.0))
                for name in rows[0]
            }
        )

    def _encode_windows(self, features: Tensor, windows_per_batch: int) -> ModelOutput:
        """One recording `(mel bins, mel frames)` in overlapping windows, joined at the overlaps' middles."""
        per_token = self.config.mel_frames_per_token
        total = -(-features.shape[-1] // per_token)
        window = min(self.config.max_source_tokens, total)
        hop = self.config.max_source_tokens - self.config.window_overlap
        starts = list(range(0, total - window, hop)) + [total - window]  # the last window is full, too
        seams = [0] + [(start + previous + window) // 2 for previous, start in zip(starts, starts[1:])] + [total]
        missing = total * per_token - features.shape[-1]
        mask = torch.ones(features.shape[-1], dtype=torch.bool, device=features.device)
        features, mask = nn.functional.pad(features, (0, missing)), nn.functional.pad(mask, (0, missing))
        pieces: dict[str, list[Tensor]] = {}
        for first in range(0, len(starts), windows_per_batch):
            group = starts[first : first + windows_per_batch]
            cuts = [slice(start * per_token, (start + window) * per_token) for start in group]
            output = self(torch.stack([features[:, cut] for cut in cuts]), torch.stack([mask[cut] for cut in cuts]))
            for row, start in enumerate(group):
                keep = slice(seams[first + row] - start, seams[first + row + 1] - start)
                for name in self.token_outputs:
                    pieces.setdefault(name, []).append(output[name][row, keep])
        return type(output)(**{name: torch.cat(parts) for name, parts in pieces.items()})
