"""What a feature extractor asks of audio before it reads it, with errors that say what was received."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import FeatureExtractionMixin

SHORTEST_WAVEFORM = 0.025  # s: what the convolutions of the wav2vec 2.0 family need for one frame


def check_sampling_rate(sampling_rate: int | None, expected: int) -> None:
    """Raise ValueError for audio of a missing or wrong rate, in Hz."""
    if sampling_rate != expected:
        raise ValueError(
            f"Expected sampling_rate={expected} (Hz), got {sampling_rate}. Pass the audio's own rate; resample if it "
            f"is another (for example `soxr.resample(audio, rate, {expected})`)."
        )


def list_waveforms(raw_speech: np.ndarray | Tensor | Sequence) -> list:
    """One waveform `(samples,)` or a list of waveforms, as a list of waveforms. Raises ValueError for an empty one."""
    if isinstance(raw_speech, (np.ndarray, Tensor)):
        return [raw_speech]
    if len(raw_speech) > 0 and np.ndim(raw_speech[0]) == 0:
        return [np.asarray(raw_speech)]
    if len(raw_speech) == 0:
        raise ValueError("Got no audio: an empty list. Pass one waveform or a list with at least one.")
    return list(raw_speech)


def check_waveform(waveform: np.ndarray | Tensor | list, min_samples: int, shortest: str) -> Tensor:
    """
    The waveform as a float32 tensor `(samples,)` on the CPU; `shortest` names the stretch of `min_samples`.

    Raises:
        ValueError: several channels, integer samples, NaN or infinity, less audio than `min_samples`.
    """
    waveform = torch.as_tensor(waveform).detach().cpu()
    if waveform.ndim != 1:
        raise ValueError(
            f"Expected mono audio of shape (samples,), got {tuple(waveform.shape)}. Mix the channels down or pick "
            "one; pass a batch as a list of 1-d arrays."
        )
    if len(waveform) < min_samples:
        raise ValueError(
            f"Expected at least one {shortest} of {min_samples} samples, got {len(waveform)} samples. Leave out "
            "empty or cut-off recordings."
        )
    if not waveform.is_floating_point():
        raise ValueError(
            f"Expected floating-point samples in -1 to 1, got {waveform.dtype}. Divide integer PCM by its full "
            "scale first (32768 for int16)."
        )
    if not torch.isfinite(waveform).all():
        raise ValueError(
            f"Got audio with {int((~torch.isfinite(waveform)).sum())} samples that are NaN or infinite, of "
            f"{len(waveform)}. Repair or leave out the recording."
        )
    return waveform.float()


def check_waveform_for(feature_extractor: FeatureExtractionMixin, waveform: np.ndarray | Tensor | list) -> Tensor:
    """`check_waveform` as this feature extractor of the suite wants it; one of Transformers' checks nothing itself."""
    if hasattr(feature_extractor, "check_waveform"):
        return feature_extractor.check_waveform(waveform)
    return check_waveform(waveform, int(SHORTEST_WAVEFORM * feature_extractor.sampling_rate), "window")
