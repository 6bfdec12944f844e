"""The level at which a codec hears, and is measured on, every utterance."""

import numpy as np
import torch
from torch import Tensor

LEVEL_DB = -23.0  # dB below full scale: EBU R 128's, on which most recordings have room for their peaks
SILENT_RMS = 1e-5  # -100 dB: below the rounding of 16-bit audio there is nothing to bring to a level


def bring_to_level(waveform: Tensor | np.ndarray, level_db: float = LEVEL_DB) -> Tensor:
    """
    The waveform `(samples,)` in -1..1, scaled to a root mean square of `level_db` dB below full scale, or to a peak of
    1 where that level would clip it. An empty one, and one below `SILENT_RMS`, stays as it is.

    DAC brings what it is trained on to -16 dB of gated loudness (its `AudioLoader`). This is the plain root mean
    square: it needs no further package, has no shortest duration, and at -23 dB speech is seldom held back by a peak.
    """
    waveform = torch.from_numpy(np.array(waveform)) if isinstance(waveform, np.ndarray) else waveform
    rms = float(waveform.double().square().mean().sqrt()) if len(waveform) else 0.0
    if rms < SILENT_RMS:
        return waveform
    factor = min(10 ** (level_db / 20) / rms, 1.0 / float(waveform.abs().max()))
    return waveform * factor
