"""Training of DisentangledWhisper on pairs of clean and noisy speech (Explainable disentanglement, section II-D)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import TrainingArguments

from ..modeling.modeling_disentangled_whisper import DisentangledWhisperSeq2SeqOutput
from ..modeling.whisper_encoder import masked_mean_pool
from .losses import cross_entropy, masked_squared_error, noise_classification
from .metrics import codebook_statistics
from .speech_trainer import SpeechTrainer

NOISE_WEIGHT_SCHEDULES = ("inverse_accuracy", "constant")
COMMITMENT_TARGETS = ("clean_codes", "clean_latents", "own_codes")


@dataclass
class DisentangledWhisperTrainingArguments(TrainingArguments):
    """
    `TrainingArguments` with section III-B as defaults, and what the paper leaves open.

    A loss weight of 0 means that the term is not computed.
    """

    learning_rate: float = field(default=1e-3, metadata={"help": '"The initial learning rate was set to 1e-3"'})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": '"a cosine annealing schedule"'})
    warmup_steps: float = field(default=500, metadata={"help": '"first 500 steps"; a share of all steps below 1.'})
    adam_beta2: float = field(default=0.95, metadata={"help": '"AdamW (beta1 = 0.9, beta2 = 0.95)"'})
    per_device_train_batch_size: int = field(default=32, metadata={"help": '"64 (32 per GPU)", on two GPUs'})
    asr_weight: float = field(default=1.0, metadata={"help": '"setting W_ASR = 1.0 provides a stable direction"'})
    commitment_weight: float = field(default=0.5, metadata={"help": '"observed when W_alpha = 0.5"'})
    semantic_weight: float = field(default=0.5, metadata={"help": '"W_beta = 0.5 worked best"'})
    noise_weight: float = field(
        default=0.1,
        metadata={"help": "W_NC at a validation accuracy of 1. Open in the paper."},
    )
    noise_weight_schedule: str = field(
        default="inverse_accuracy",
        metadata={
            "help": '"inversely proportional to the classifier\'s validation accuracy": noise_weight / accuracy, from '
            "chance on; or constant.",
            "choices": list(NOISE_WEIGHT_SCHEDULES),
        },
    )
    commitment_target: str = field(
        default="clean_codes",
        metadata={
            "help": "What L_alpha pulls to what: the noisy latents to the clean speech's codes; as eq. 5 is printed, "
            "the noisy codes to the clean_latents, straight through; or the noisy latents to their own_codes, as a "
            "plain VQ-VAE and Speechless do.",
            "choices": list(COMMITMENT_TARGETS),
        },
    )
    unknown_share: float = field(
        default=0.05,
        metadata={"help": '"Some samples were relabeled as unknown": the share, which the paper does not say.'},
    )
    clean_is_unknown: bool = field(
        default=False,
        metadata={"help": "Also train the head to call the residue of clean speech unknown. Not in the paper."},
    )
    fit_bottleneck_rows: int = field(
        default=0,
        metadata={
            "help": "Training rows to whose clean halves both projections (principal components, least squares) and "
            "the codebook (k-means) are first fitted; 0 for random ones."
        },
    )


class DisentangledWhisperTrainer(SpeechTrainer):
    """
    Trains `DisentangledWhisperForConditionalGeneration` on batches of `NoisyPairCollator` or `EncoderStatesCollator`.

    The clean branch gives targets and takes no gradient. Eq. 5 as printed, `commitment_target="clean_latents"`, is the
    distance of the noisy speech's codes to the clean latents; straight through the quantizer its gradient is that of a
    commitment with its sign turned wherever noise changes little, and trainings diverged. The default keeps its
    purpose, "noisy embeddings [...] close to their clean counterparts", with the two sides' roles exchanged.

    The codebook's averages move once per micro-batch, over the real frames of all processes: two processes are one
    large batch to them, accumulated micro-batches are not.

    `evaluate` measures the loss terms and the noise head's accuracy on seen classes; W_NC follows the latter.

    Raises:
        ValueError: an unknown schedule, a noise weight that should follow an accuracy without rows to measure it on,
            or a noise weight for a model without noise head.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        config, arguments = self.model.config, self.args
        if arguments.noise_weight_schedule not in NOISE_WEIGHT_SCHEDULES:
            raise ValueError(
                f"noise_weight_schedule must be one of {', '.join(NOISE_WEIGHT_SCHEDULES)}; got "
                f"{arguments.noise_weight_schedule!r}."
            )
        if arguments.commitment_target not in COMMITMENT_TARGETS:
            raise ValueError(
                f"commitment_target must be one of {', '.join(COMMITMENT_TARGETS)}; got "
                f"{arguments.commitment_target!r}."
            )
        if not 0 <= arguments.unknown_share < 1:
            raise ValueError(f"unknown_share must be at least 0 and below 1; got {arguments.unknown_share}.")
        self.is_quantized = config.bottleneck == "quantizer"
        self.classifies_noise = bool(arguments.noise_weight and self.is_quantized)
        if self.classifies_noise and not config.noise_labels:
            raise ValueError(
                f"noise_weight is {arguments.noise_weight}, but the model has no noise head: set noise_labels or a "
                "weight of 0."
            )
        if self.is_quantized and config.noise_labels and not self.classifies_noise:
            self.model.model.noise_head.requires_grad_(False)
        follows = self.classifies_noise and arguments.noise_weight_schedule == "inverse_accuracy"
        if follows and (self.eval_dataset is None or len(self.eval_dataset) == 0):
            raise ValueError(
                "W_NC follows the noise head's accuracy on validation rows, and there are none: give an eval_dataset, "
                'or set noise_weight_schedule="constant".'
            )
        if follows and arguments.eval_strategy == "no":
            raise ValueError(
                "W_NC follows the noise head's validation accuracy, which is never measured with eval_strategy='no': "
                'set eval_strategy, or noise_weight_schedule="constant".'
            )
        self._code_counts = torch.zeros(config.codebook_size, dtype=torch.long, device=arguments.device)

    def train(self, resume_from_checkpoint=None, **kwargs):
        """`SpeechTrainer.train`; a fresh run may first fit the bottleneck to the data."""
        if self.args.fit_bottleneck_rows and self.is_quantized and not resume_from_checkpoint:
            self.fit_bottleneck()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    @torch.no_grad()
    def fit_bottleneck(self):
        """
        A bottleneck that passes on what it can from the first step, for runs too short to find one from random.

        Not in the paper. Codes become the k-means of clean speech, so the noisy side starts with clean targets.
        """
        model = self.model.eval()
        generator = torch.Generator().manual_seed(self.args.seed)
        rows = torch.randperm(len(self.train_dataset), generator=generator)[: self.args.fit_bottleneck_rows].tolist()
        frames, targets, size = [], [], self.args.train_batch_size
        for first in range(0, len(rows), size):
            batch = self.data_collator([self.train_dataset[row] for row in rows[first : first + size]])
            batch = {name: each.to(self.args.device) for name, each in batch.items()}
            clean, attention_mask = self.both_states(batch, needs_clean=True)[1:]
            mask = model.state_mask(clean, attention_mask)
            states, frame_mask = model.model.latent_encoder.downsampling(clean, mask)
            frames.append(states[frame_mask])
            targets.append(masked_mean_pool(clean, mask, 2)[0][frame_mask])
        frames, targets = torch.cat(frames), torch.cat(targets)
        latent_encoder, quantizer = model.model.latent_encoder, model.model.quantizer
        latent_encoder.fit(frames)
        latents = latent_encoder.to_latents(frames)
        quantizer.fit(latents, generator)
        model.latent_decoder.fit(quantizer.embed(quantizer.nearest(latents)), targets)

    def count_items(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Also Whisper's `states` (50 Hz) and the `utterances`."""
        states = -(-batch["num_samples"] // (self.feature_extractor.hop_length * self.model.mel_frames_per_state))
        return super().count_items(batch) | {
            "states": states.sum(),
            "utterances": torch.tensor(len(states), device=states.device),
        }

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Eq. 3 on one micro-batch; means are over the labels, frames or utterances of the whole optimizer step."""
        terms, outputs = self.terms(model, self._relabelled(inputs), num_items_in_batch)
        terms = {name: (weight, value * self.num_replicas) for name, (weight, value) in terms.items()}
        self.log_terms({name: value for name, (_, value) in terms.items()})
        if model.training and self.is_quantized:
            codes = outputs.speech.audio_codes[outputs.speech.attention_mask]
            self._code_counts += torch.bincount(codes, minlength=len(self._code_counts))
        loss = sum(weight * value for weight, value in terms.values())
        return (loss, outputs) if return_outputs else loss

    def terms(
        self, model, inputs: dict[str, Tensor], counts: dict[str, Tensor]
    ) -> tuple[dict[str, tuple[float, Tensor]], DisentangledWhisperSeq2SeqOutput]:
        """Weight and value of each term of eq. 3, and the model's output. counts: what each sum is divided by."""
        args, text = self.args, inputs["labels"]
        noisy, clean, attention_mask = self.both_states(inputs)
        outputs = model(
            encoder_states=noisy, attention_mask=attention_mask, decoder_input_ids=self.model.shift_labels(text)
        )
        speech = outputs.speech
        terms = {"cross_entropy": (args.asr_weight, cross_entropy(outputs.logits, text, counts["labels"]))}
        if not self.is_quantized:
            return terms, outputs
        mask = self.model.state_mask(noisy, attention_mask)
        clean_latents, clean_codes = self.clean_branch(clean, mask) if self.needs_clean_latents else (None, None)
        if args.commitment_weight:
            pulled, target = {
                "clean_codes": (speech.latents, clean_codes),
                "clean_latents": (speech.quantized, clean_latents),
                "own_codes": (speech.latents, speech.quantized.detach()),
            }[args.commitment_target]
            error = masked_squared_error(pulled, target, speech.attention_mask, counts["frames"])
            terms["commitment"] = (args.commitment_weight, error)
        if args.semantic_weight:
            error = masked_squared_error(speech.last_hidden_state, clean, mask, counts["states"])
            terms["semantic"] = (args.semantic_weight, error)
        if self.classifies_noise:
            value = noise_classification(speech.noise_logits, inputs["noise_labels"], counts["utterances"])
            if args.clean_is_unknown:
                residue = (clean_latents - clean_codes) * speech.attention_mask.unsqueeze(-1)
                logits, _ = self.model.model.noise_head(residue.to(speech.latents.dtype), speech.attention_mask)
                unknown = torch.full_like(inputs["noise_labels"], logits.shape[-1] - 1)
                silence = noise_classification(logits, unknown, counts["utterances"])
                value = value + silence / logits.shape[-1]  # one class among the others, not half of all examples
            terms["noise"] = (self.current_noise_weight, value)
        return terms, outputs

    @property
    def needs_clean_latents(self) -> bool:
        """Whether a term compares with the clean speech's latents or codes."""
        commits = self.args.commitment_weight and self.args.commitment_target != "own_codes"
        return bool(commits or self.classifies_noise and self.args.clean_is_unknown)

    @torch.no_grad()
    def both_states(
        self, inputs: dict[str, Tensor], needs_clean: bool | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """
        W(X) and W(X') `(batch, states, d_model)` of the noisy and the clean view, kept or computed now, and the mask
        `(batch, mel frames)`. The clean one is None where no term needs it, or as `needs_clean` says.
        """
        if needs_clean is None:
            needs_clean = self.is_quantized and (self.needs_clean_latents or bool(self.args.semantic_weight))
        dtype = self.model.dtype
        if "encoder_states" in inputs:
            clean = inputs["clean_encoder_states"].to(dtype) if needs_clean else None
            return inputs["encoder_states"].to(dtype), clean, inputs["attention_mask"]
        num_samples = inputs["num_samples"]
        features, attention_mask = self.feature_extractor.extract(inputs["waveforms"], num_samples)
        with self.accelerator.autocast():
            if not needs_clean:
                return self.model.model.encoder_states(features, attention_mask), None, attention_mask
            clean_features, _ = self.feature_extractor.extract(inputs["clean_waveforms"], num_samples)
            views = torch.cat([features, clean_features]), torch.cat([attention_mask, attention_mask])
            noisy, clean = self.model.model.encoder_states(*views).chunk(2)
        return noisy, clean, attention_mask

    @torch.no_grad()
    def clean_branch(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """
        Latents and their codes `(batch, frames, codebook_dim)` of the clean view, "only used for reference in loss
        computation": no gradient, and the codebook's averages do not see it.
        """
        model = self.model.model
        with self.accelerator.autocast():
            latents, _ = model.latent_encoder(states, mask)
        return latents.float(), model.quantizer.codebook[model.quantizer.nearest(latents)]

    @property
    def current_noise_weight(self) -> float:
        """W_NC: `noise_weight / accuracy` of the last evaluation, at least chance; a resume restores it."""
        if self.args.noise_weight_schedule == "constant":
            return self.args.noise_weight
        chance = 1 / len(self.model.config.noise_labels)
        measured = [line["eval_noise_accuracy"] for line in self.state.log_history if "eval_noise_accuracy" in line]
        return self.args.noise_weight / max(measured[-1] / 100 if measured else chance, chance)

    def _relabelled(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """A share of the utterances, the same in every epoch, gets the last class: "relabeled as unknown"."""
        if not self.classifies_noise or not self.model.training:
            return inputs
        drawn = (inputs["seeds"] * 2_654_435_761 % 2**32).double() / 2**32
        unknown = len(self.model.config.noise_labels)
        return inputs | {"noise_labels": inputs["noise_labels"].masked_fill(drawn < self.args.unknown_share, unknown)}

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """
        The loss and its terms over the validation rows, and `noise_accuracy`, the share in percent of rows with a seen
        noise whose class the head finds. Every row counts once, in any number of processes.

        Raises:
            ValueError: fewer rows than processes, or no row with a seen noise although W_NC is trained.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        sums = self.sum_over_rows(dataset, self._evaluation_sums)
        return self.report_evaluation(self._evaluation_means(sums, metric_key_prefix))

    def _evaluation_sums(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Numerators and denominators of one batch."""
        ones = dict.fromkeys(("labels", "frames", "states", "utterances"), 1)
        terms, outputs = self.terms(self.model, batch, ones)
        sums = {f"sum/{name}": value for name, (_, value) in terms.items()} | self.count_items(batch)
        if self.classifies_noise:
            seen = batch["noise_labels"] < len(self.model.config.noise_labels)
            found = outputs.speech.noise_logits.argmax(dim=-1) == batch["noise_labels"]
            sums |= {"seen": seen.sum(), "found": (found & seen).sum()}
        return sums

    def _evaluation_means(self, sums: dict[str, float], prefix: str) -> dict[str, float]:
        """What `evaluate` returns, from the sums over all rows."""
        args = self.args
        means_over = {
            "cross_entropy": ("labels", args.asr_weight),
            "commitment": ("frames", args.commitment_weight),
            "semantic": ("states", args.semantic_weight),
            "noise": ("utterances", self.current_noise_weight if self.classifies_noise else 0.0),
        }
        metrics = {f"{prefix}_loss": 0.0}
        for name, (items, weight) in means_over.items():
            if f"sum/{name}" in sums:
                metrics[f"{prefix}_{name}"] = sums[f"sum/{name}"] / sums[items]
                metrics[f"{prefix}_loss"] += weight * metrics[f"{prefix}_{name}"]
        if self.classifies_noise:
            if not sums["seen"]:
                raise ValueError(
                    "no validation row has a noise class that the head knows: W_NC has nothing to follow."
                )
            metrics[f"{prefix}_noise_accuracy"] = 100.0 * sums["found"] / sums["seen"]
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the codebook's usage and perplexity since the last line, and W_NC."""
        if "loss" in logs and self.is_quantized:
            counts = self.accelerator.reduce(self._code_counts, reduction="sum")
            logs.update(codebook_statistics(counts.cpu()))
            self._code_counts.zero_()
            if self.classifies_noise:
                logs["noise_weight"] = self.current_noise_weight
        super().log(logs, start_time)
