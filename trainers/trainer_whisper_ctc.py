"""Training a small Whisper from scratch with an auxiliary CTC loss."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchaudio.functional import mask_along_axis_iid
from transformers import TrainingArguments

from ..processing.perturbation import change_speed
from .losses import cross_entropy, ctc_loss
from .speech_trainer import SpeechTrainer


@dataclass
class WhisperCTCTrainingArguments(TrainingArguments):
    """`TrainingArguments` plus what joint CTC/attention training and its augmentation need."""

    ctc_weight: float = field(default=0.5, metadata={"help": "Share of CTC in the loss; cross-entropy has the rest."})
    speed_factors: list[float] = field(
        default_factory=lambda: [0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15],
        metadata={"help": "Playback speeds; one is drawn per batch."},
    )
    augmentation_start: int = field(
        default=800, metadata={"help": "Step of the first speed change and mask; before it the alignment is learnt."}
    )
    mask_time: int = field(default=25, metadata={"help": "Longest masked stretch in mel frames (10 ms), 0 for none."})
    mask_mel: int = field(default=18, metadata={"help": "Widest masked band in mel bins, 0 for none."})
    mask_text: float = field(
        default=0.2, metadata={"help": "Share of decoder inputs hidden, so that it listens instead of reciting."}
    )
    num_masks: int = field(default=2, metadata={"help": "Masked stretches and bands per utterance (SpecAugment)."})


class WhisperCTCTrainer(SpeechTrainer):
    """
    Joint training of `WhisperForJointCTC`: `(1 - w) * cross-entropy + w * CTC` in nats per label.

    Speed and masks are drawn from the seed and the step, the same in all processes; a resumed run repeats them.
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Scalar loss of one micro-batch, divided by the label count of the whole step."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.args.seed * 1_000_003 + self.state.global_step)
            features, mask = self._augmented_features(inputs["waveforms"], inputs["num_samples"])
            decoder_input_ids = self._masked_inputs(inputs["labels"])
        outputs = model(features, mask, labels=inputs["labels"], decoder_input_ids=decoder_input_ids)
        labels, weight = inputs["labels"], self.args.ctc_weight
        count = num_items_in_batch["labels"]
        blank = self.model.config.pad_token_id
        terms = {
            "cross_entropy": cross_entropy(outputs.logits, labels, count) * self.num_replicas,
            "ctc": ctc_loss(outputs.ctc_logits, outputs.frame_mask, labels, blank, count) * self.num_replicas,
        }
        self.log_terms(terms)
        loss = (1 - weight) * terms["cross_entropy"] + weight * terms["ctc"]
        return (loss, outputs) if return_outputs else loss

    def _masked_inputs(self, labels: Tensor) -> Tensor:
        """Decoder inputs `(batch, tokens)` for `labels`, a share of them replaced by the unknown token."""
        inputs = self.model.shift_labels(labels)
        hidden = torch.rand(inputs.shape, device=inputs.device) < self.args.mask_text
        hidden[:, 0] = False
        return inputs.masked_fill(hidden, self.processing_class.unk_token_id)

    def _augmented_features(self, waveforms: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Speed perturbation of `(batch, samples)` waveforms, log-mel, SpecAugment."""
        if self.state.global_step < self.args.augmentation_start:
            return self.feature_extractor.extract(waveforms, num_samples)
        speeds = self.args.speed_factors
        speed = speeds[int(torch.randint(len(speeds), ()))]
        if speed != 1.0:
            waveforms = change_speed(waveforms, speed)
            num_samples = (num_samples / speed).long().clamp(max=waveforms.shape[-1])
        features, mask = self.feature_extractor.extract(waveforms, num_samples)
        features = features.unsqueeze(1)
        for _ in range(self.args.num_masks):
            for axis, width in ((2, self.args.mask_mel), (3, self.args.mask_time)):
                if width:
                    features = mask_along_axis_iid(features, width, 0.0, axis)
        return features.squeeze(1), mask
