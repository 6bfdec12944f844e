"""Noise-aware consensus training (StableToken, sections 2.3 and 2.4)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import SchedulerType, TrainingArguments

from ..processing.perturbation import Perturber
from .losses import batch_entropy, bit_entropy, commitment_loss, consensus_loss, cross_entropy
from .metrics import codebook_statistics
from .speech_trainer import SpeechTrainer


@dataclass
class StableTokenTrainingArguments(TrainingArguments):
    """
    `TrainingArguments` with the paper's Table 8 as defaults, and what the paper leaves open.

    The learning rate follows `OneCycleLR` with `warmup_steps` of rise; another `lr_scheduler_type` is refused.
    A loss weight of 0 means that the term is not computed.
    """

    learning_rate: float = field(default=1.5e-5, metadata={"help": '"max_lr 1.5e-5"'})
    warmup_steps: float = field(default=1000, metadata={"help": '"warmup_steps 1000"; a share of all steps below 1.'})
    weight_decay: float = field(default=0.01, metadata={"help": '"weight_decay 0.01"'})
    max_grad_norm: float = field(default=1.0, metadata={"help": '"grad_clip 1.0"'})
    consensus_weight: float = field(default=0.25, metadata={"help": '"consensus_loss_weight 0.25"'})
    commitment_weight: float = field(default=0.25, metadata={"help": '"commitment_loss_weight 0.25"'})
    entropy_weight: float = field(default=1.0, metadata={"help": '"codebook_entropy_loss_weight 1.0"'})
    batch_entropy_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the batch entropy inside the codebook term. Open in the paper; 1 as in LFQ."},
    )
    entropy_temperature: float = field(
        default=0.01, metadata={"help": "Temperature of the soft assignment. Open in the paper; 0.01 as in LFQ."}
    )
    consensus_reduction: str = field(
        default="mean",
        metadata={"help": 'Over bits, "mean" or "sum". Eq. 4 reads as "sum", public code takes "mean".'},
    )
    consensus_detach: bool = field(
        default=True,
        metadata={"help": "No gradient through the voters' mean, so that it is an anchor. Open in eq. 4."},
    )
    num_noisy_voters: int | None = field(
        default=None,
        metadata={"help": "k of section 2.3. Open in the paper; the largest minority, 2 of 5, when not given."},
    )
    fit_quantizer_rows: int = field(
        default=0,
        metadata={
            "help": "Training rows from which the quantizer is first fitted (principal components); 0 for random."
        },
    )
    noise_as_augmentation: bool = field(
        default=False, metadata={"help": "A control without clean majority: all voters see the perturbed view alone."}
    )


class StableTokenTrainer(SpeechTrainer):
    """
    Trains `StableTokenForConditionalGeneration` on batches of `SpeechTextCollator`.

    Noise is drawn from the utterance's samples, the seed and the step; the noisy voters from seed and step, one draw
    for the whole batch. Neither depends on how the batch is cut into micro-batches or processes, and a resumed
    run repeats them. The batch entropy alone depends on the micro-batch (not on the number of processes).

    Args:
        perturber: the augmentation A(.); None trains on clean speech only.

    Raises:
        ValueError: the noisy voters are not a strict minority, `noise_as_augmentation` without a perturber, or a
            learning rate schedule other than the paper's.
    """

    def __init__(self, *args, perturber: Perturber | None, **kwargs):
        super().__init__(*args, **kwargs)
        config = self.model.config
        if self.args.lr_scheduler_type != SchedulerType.LINEAR:  # the default of `TrainingArguments`
            raise ValueError(
                "the learning rate follows the paper's OneCycleLR; got lr_scheduler_type "
                f"{self.args.lr_scheduler_type.value!r}: leave it out."
            )
        if self.args.noise_as_augmentation and perturber is None:
            raise ValueError("noise_as_augmentation needs a perturber; got None.")
        self.perturber = perturber
        self.num_noisy_voters = self.args.num_noisy_voters
        if self.num_noisy_voters is None:
            self.num_noisy_voters = (config.num_voters - 1) // 2
        if not 0 <= self.num_noisy_voters < config.num_voters / 2:
            raise ValueError(
                f"num_noisy_voters must be a strict minority of the {config.num_voters} voters; "
                f"got {self.num_noisy_voters}."
            )
        if self.feature_extractor.mel_frames_per_token != config.mel_frames_per_token:
            raise ValueError(
                f"the feature extractor pads to {self.feature_extractor.mel_frames_per_token} mel frames per token, "
                f"the model has {config.mel_frames_per_token}: set mel_frames_per_token of the feature extractor."
            )
        self._code_counts = torch.zeros(config.codebook_size, dtype=torch.long, device=self.args.device)

    def train(self, resume_from_checkpoint=None, **kwargs):
        """`SpeechTrainer.train`; a fresh run may first fit the quantizer to the data."""
        if self.args.fit_quantizer_rows and not resume_from_checkpoint:
            self.fit_quantizer()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    @torch.no_grad()
    def fit_quantizer(self):
        """
        A quantizer that passes on what it can from the first step, for runs too short to find one from random.

        Not in the paper: a random one erases the utterance, and the decoder unlearns to listen before it has learnt.

        Raises:
            ValueError: a streamed corpus, or too few rows.
        """
        if isinstance(self.train_dataset, IterableDataset):
            raise ValueError("fit_quantizer_rows needs a corpus with a length; got a stream: set it to 0.")
        model = self.model.eval()
        rows = torch.randperm(len(self.train_dataset), generator=torch.Generator().manual_seed(self.args.seed))
        rows = rows[: self.args.fit_quantizer_rows].tolist()
        frames = []
        size = self.args.train_batch_size
        for first in range(0, len(rows), size):
            batch = self.data_collator([self.train_dataset[row] for row in rows[first : first + size]])
            features, mask = self.feature_extractor.extract(batch["waveforms"], batch["num_samples"])
            states, mask = model.model.pooled_states(features.to(model.device), mask.to(model.device))
            frames.append(states[mask])
        mean = model.model.quantizer.fit(torch.cat(frames))
        if model.config.reinject_positions:
            model.upper_positions.weight += mean  # every frame of the upper layers starts from it

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Eq. 5 on one micro-batch; every mean is over the labels or frames of the whole optimizer step."""
        args, labels = self.args, inputs["labels"]
        num_labels, num_frames = num_items_in_batch["labels"], num_items_in_batch["frames"]
        outputs = model(**self.both_views(inputs), decoder_input_ids=self.model.shift_labels(labels))
        speech = outputs.speech
        projections, mask = speech.projections, speech.attention_mask

        terms = {"cross_entropy": (1.0, cross_entropy(outputs.logits, labels, num_labels))}
        if args.consensus_weight and projections.shape[0] > 1:
            consensus = consensus_loss(projections, mask, num_frames, args.consensus_reduction, args.consensus_detach)
            terms["consensus"] = (args.consensus_weight, consensus)
        if args.commitment_weight:
            commitment = commitment_loss(projections, speech.votes, mask, num_frames)
            terms["commitment"] = (args.commitment_weight, commitment)
        if args.entropy_weight:
            entropy = bit_entropy(projections, mask, args.entropy_temperature, num_frames)
            terms["bit_entropy"] = (args.entropy_weight, entropy)
        terms = {name: (weight, value * self.num_replicas) for name, (weight, value) in terms.items()}
        if args.entropy_weight and args.batch_entropy_weight:
            micro_batches = self.current_gradient_accumulation_steps if model.training else 1
            spread = batch_entropy(projections, mask, args.entropy_temperature) / micro_batches
            terms["batch_entropy"] = (-args.entropy_weight * args.batch_entropy_weight, spread)

        self.log_terms({name: value for name, (_, value) in terms.items()})
        if model.training:
            self._code_counts += torch.bincount(speech.audio_codes[mask], minlength=len(self._code_counts))
        loss = sum(weight * value for weight, value in terms.values())
        return (loss, outputs) if return_outputs else loss

    def both_views(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Features of the clean waveforms and, for the noisy voters, of the perturbed ones."""
        waveforms, num_samples = inputs["waveforms"], inputs["num_samples"]
        if self.args.noise_as_augmentation:
            seeds = [self.step_seed(seed) for seed in inputs["seeds"].tolist()]
            waveforms = self.perturber(waveforms, num_samples, seeds).waveforms
        features, mask = self.feature_extractor.extract(waveforms, num_samples)
        views = {"input_features": features, "attention_mask": mask}
        if self.perturber is not None and self.num_noisy_voters and not self.args.noise_as_augmentation:
            seeds = [self.step_seed(seed) for seed in inputs["seeds"].tolist()]
            perturbed = self.perturber(waveforms, num_samples, seeds).waveforms
            views["perturbed_input_features"] = self.feature_extractor.extract(perturbed, num_samples)[0]
            views["noisy_voters"] = self._draw_noisy_voters()
        return views

    def _draw_noisy_voters(self) -> Tensor:
        """`(voters,)` boolean, a random minority."""
        num_voters = self.model.config.num_voters
        generator = torch.Generator().manual_seed(self.step_seed())
        noisy = torch.zeros(num_voters, dtype=torch.bool)
        noisy[torch.randperm(num_voters, generator=generator)[: self.num_noisy_voters]] = True
        return noisy.to(self.args.device)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """The paper's "OneCycleLR" (Table 8), rising for `warmup_steps`; AdamW's momentum stays as it is."""
        if self.lr_scheduler is None:
            warmup = self.args.get_warmup_steps(num_training_steps)
            self.lr_scheduler = torch.optim.lr_scheduler.OneCycleLR(
                self.optimizer if optimizer is None else optimizer,
                max_lr=self.args.learning_rate,
                total_steps=num_training_steps + 1,  # Trainer steps once more after the last optimizer step's rate
                pct_start=min(max(warmup, 1) / num_training_steps, 0.9),
                cycle_momentum=False,
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the codebook's usage and perplexity since the last line."""
        if "loss" in logs:
            counts = self.accelerator.reduce(self._code_counts, reduction="sum")
            logs.update(codebook_statistics(counts.cpu()))
            self._code_counts.zero_()
        super().log(logs, start_time)
