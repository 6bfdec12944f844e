"""Waveform to Whisper's log-mel features, such that an utterance's features never depend on its batch."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, WhisperFeatureExtractor

from .waveform_checks import check_sampling_rate, check_waveform, list_waveforms

FRAMES_AT_ONCE = 6000  # a spectrum is five times its audio in memory: one minute at a time


class StableTokenFeatureExtractor(WhisperFeatureExtractor):
    """
    Whisper's log-mel spectrogram at the utterance's real length (StableToken, section 3: 16 kHz, 10 ms hop).

    Reads any Whisper checkpoint's `preprocessor_config.json`. On speech followed by silence the values are those of
    `WhisperFeatureExtractor`; three things differ, so that an utterance alone and in a batch give the same numbers:

    * at least `n_fft / 2` zero samples follow the speech before the spectrum is taken, and the length is then padded
      to whole tokens: the last real frame sees zeros, never a reflection of the speech;
    * the floor, 8 (80 dB) below the loudest bin, is taken over the utterance's own frames;
    * nothing is padded to, or cut at, 30 s. Frames behind the speech are 0.0, and the mask marks them.

    Args:
        feature_size: number of mel bins.
        sampling_rate: in Hz.
        hop_length: in samples; 160 gives frames of 10 ms.
        n_fft: window of the spectrum in samples.
        mel_frames_per_token: every length is a multiple of this: convolution stride 2 times pooling 2.
        kwargs: further fields of a Whisper checkpoint's file, kept as they are.
    """

    model_input_names = ["input_features", "attention_mask"]

    def __init__(
        self,
        feature_size: int = 128,
        sampling_rate: int = 16000,
        hop_length: int = 160,
        n_fft: int = 400,
        mel_frames_per_token: int = 4,
        **kwargs: Any,
    ):
        if kwargs.get("dither", 0.0) != 0.0:
            raise ValueError(f"dither must be 0.0, got {kwargs['dither']}: random noise would change the tokens.")
        kwargs["return_attention_mask"] = True  # Whisper's files say False: it pads everything to 30 s
        super().__init__(
            feature_size=feature_size, sampling_rate=sampling_rate, hop_length=hop_length, n_fft=n_fft, **kwargs
        )
        self.mel_frames_per_token = mel_frames_per_token

    def __call__(
        self,
        raw_speech: np.ndarray | Tensor | list,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool = True,
        padding: bool | str = "longest",
        device: str | torch.device = "cpu",
    ) -> BatchFeature:
        """
        Features of one waveform, or of a list of waveforms padded to the longest.

        raw_speech: mono floating-point samples in -1 to 1, `(samples,)`, or a list of such.
        sampling_rate: of `raw_speech`, in Hz; must be given.
        device: where the spectrum is computed; results come back on the CPU.

        Returns `input_features` `(batch, mel bins, frames)` float32 and `attention_mask` `(batch, frames)` int64, 1 on
        the `ceil(samples / hop_length)` frames that hold speech.

        Raises:
            ValueError: missing or wrong sampling rate, several channels, integer samples, NaN or infinity, less than
                one hop of audio, or a padding other than "longest".
        """
        check_sampling_rate(sampling_rate, self.sampling_rate)
        if padding not in (True, "longest"):
            raise ValueError(
                f'Only padding="longest" exists, got {padding!r}: features have the real length of the audio, and '
                "tokens do not depend on padding. Call once per utterance for unpadded features."
            )
        waveforms = [self.check_waveform(waveform) for waveform in list_waveforms(raw_speech)]
        num_samples = torch.tensor([len(waveform) for waveform in waveforms])
        padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True).to(device)
        input_features, attention_mask = self.extract(padded, num_samples.to(device))
        features = {"input_features": input_features.cpu().numpy()}
        if return_attention_mask:
            features["attention_mask"] = attention_mask.cpu().numpy()
        return BatchFeature(features, tensor_type=return_tensors)

    def extract(self, waveforms: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """
        The same on tensors, on their device and without checks: for trainers.

        waveforms: `(batch, samples)`; num_samples: `(batch,)`, real samples per row. What lies behind them is ignored.

        Returns `input_features` `(batch, mel bins, frames)` float32 and `attention_mask` `(batch, frames)` int64.
        """
        num_tokens = -(-waveforms.shape[1] // (self.hop_length * self.mel_frames_per_token))
        num_frames = num_tokens * self.mel_frames_per_token  # 30 s are 3000 frames: no token of mere padding follows
        waveforms = self._pad_to_tokens(waveforms.float(), num_samples)
        log_mel = self._log_mel(waveforms)
        frames = torch.arange(log_mel.shape[-1], device=log_mel.device)
        num_samples = num_samples[:, None]

        # frames that touch speech, a little beyond the last real one: all that Whisper's maximum would see
        touches_speech = frames * self.hop_length < num_samples + self.n_fft // 2
        loudest = log_mel.masked_fill(~touches_speech[:, None], -torch.inf).amax(dim=(1, 2), keepdim=True)
        log_mel = (torch.maximum(log_mel, loudest - 8.0) + 4.0) / 4.0

        attention_mask = frames * self.hop_length < num_samples  # (batch, frames)
        log_mel = log_mel.masked_fill(~attention_mask[:, None], 0.0)
        return log_mel[..., :num_frames], attention_mask[:, :num_frames].long()

    def _pad_to_tokens(self, waveforms: Tensor, num_samples: Tensor) -> Tensor:
        """Silence behind each utterance: at least half a window, and up to a whole number of tokens."""
        samples_per_token = self.hop_length * self.mel_frames_per_token
        needed = waveforms.shape[1] + self.n_fft // 2
        padded_length = -(-needed // samples_per_token) * samples_per_token
        waveforms = torch.nn.functional.pad(waveforms, (0, padded_length - waveforms.shape[1]))
        is_real = torch.arange(padded_length, device=waveforms.device) < num_samples[:, None]
        return waveforms.masked_fill(~is_real, 0.0)

    def _log_mel(self, waveforms: Tensor) -> Tensor:
        """Whisper's log10 mel power. waveforms: `(batch, samples)`; returns `(batch, mel bins, frames)`."""
        window = torch.hann_window(self.n_fft, device=waveforms.device)
        mel_filters = torch.from_numpy(self.mel_filters).to(waveforms)  # (n_fft / 2 + 1, mel bins)
        num_frames = waveforms.shape[1] // self.hop_length  # one fewer than fit: the last is centred on the end
        waveforms = torch.nn.functional.pad(waveforms, (self.n_fft // 2, self.n_fft // 2), mode="reflect")
        pieces = []
        with torch.autocast(waveforms.device.type, enabled=False):  # half precision cannot hold 80 dB of power
            for first in range(0, num_frames, FRAMES_AT_ONCE):
                last = min(first + FRAMES_AT_ONCE, num_frames) - 1
                piece = waveforms[:, first * self.hop_length : last * self.hop_length + self.n_fft]
                spectrum = torch.stft(
                    piece, self.n_fft, self.hop_length, window=window, center=False, return_complex=True
                )
                power = spectrum.real.square() + spectrum.imag.square()
                pieces.append((mel_filters.T @ power).clamp(min=1e-10).log10())
        return torch.cat(pieces, dim=-1)

    def check_waveform(self, waveform: np.ndarray | Tensor | list) -> Tensor:
        """
        The waveform as a float32 tensor `(samples,)` on the CPU.

        Raises:
            ValueError: several channels, integer samples, NaN or infinity, less than one hop of audio.
        """
        return check_waveform(waveform, self.hop_length, "hop")


__all__ = ["StableTokenFeatureExtractor"]
