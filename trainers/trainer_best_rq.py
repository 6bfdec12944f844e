"""Training of BEST-RQ (HASRD, section 2.1, eq. 1)."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from ..modeling.modeling_best_rq import BestRQForPreTrainingOutput
from .metrics import codebook_statistics
from .speech_trainer import SpeechTrainer


@dataclass
class BestRQTrainingArguments(TrainingArguments):
    """
    `TrainingArguments` with section 3 as defaults, and where it names none the values of the paper's reference [29],
    SpeechBrain's BEST-RQ.

    Transformers' `inverse_sqrt` is the Noam schedule: it grows linearly to the learning rate within the warm-up, and
    falls with the inverse square root of the step.
    """

    learning_rate: float = field(default=8e-4, metadata={"help": '"a learning rate of 0.0008", after the warm-up.'})
    lr_scheduler_type: str = field(default="inverse_sqrt", metadata={"help": '"a Noam scheduler"'})
    warmup_steps: float = field(default=25_000, metadata={"help": '"25K warmup steps", linear from 0.'})
    weight_decay: float = field(default=0.01, metadata={"help": "Of AdamW; SpeechBrain's."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Of AdamW; SpeechBrain's."})
    adam_epsilon: float = field(default=1e-9, metadata={"help": "Of AdamW; SpeechBrain's."})
    max_grad_norm: float = field(default=10.0, metadata={"help": "SpeechBrain's."})
    gradient_accumulation_steps: int = field(
        default=2, metadata={"help": '"gradient accumulation of 2", of batches of "600 seconds per GPU".'}
    )


class BestRQTrainer(SpeechTrainer):
    """
    Trains `BestRQForPreTraining` on batches of `FeatureCollator`: eq. 1, the mean over the masked tokens of all
    micro-batches and processes of a step.

    Masks and noise are drawn from each utterance's samples, the run's seed and the step, so a resumed run draws the
    same; in validation from the samples alone, so that each validation asks the same.

    Logged beside the loss: `accuracy` on masked tokens, percent; and of the labels of masked tokens since the last
    line, `target_entropy` in nats, below which no guess gets that does not look at the context, `target_perplexity`,
    and `target_usage`, the percentage of codes that occur.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._code_counts: Tensor | None = None

    def count_items(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Masked tokens."""
        mask = self.model.token_mask(batch["attention_mask"])
        return {"masked_tokens": self.model.draw_masks(mask, self.mask_seeds(batch)).sum()}

    def mask_seeds(self, batch: dict[str, Tensor]) -> Tensor:
        """One for each utterance `(batch,)`, at this step."""
        return torch.tensor([self.step_seed(seed) for seed in batch["seeds"].tolist()])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Eq. 1 on one micro-batch; the mean is over the masked tokens of the whole optimizer step."""
        outputs = self.predict(model, inputs, self.mask_seeds(inputs))
        cross_entropy, num_right = prediction_sums(outputs)
        divisor = num_items_in_batch["masked_tokens"] / self.num_replicas
        loss = cross_entropy / divisor
        self.log_terms({"accuracy": 100.0 * num_right / divisor})
        if self.model.training:
            counts = self.count_codes(outputs.labels)
            self._code_counts = counts if self._code_counts is None else self._code_counts + counts
        return (loss, outputs) if return_outputs else loss

    def predict(self, model, inputs: dict[str, Tensor], seeds: Tensor) -> BestRQForPreTrainingOutput:
        """Logits and labels of the tokens that `seeds` `(batch,)` mask."""
        features, mask = inputs["input_features"], inputs["attention_mask"]
        return model(features, attention_mask=mask, seeds=seeds, return_loss=False)

    def count_codes(self, labels: Tensor) -> Tensor:
        """How often each code occurs, `(codebook_size,)` float64."""
        return torch.bincount(labels, minlength=self.model.config.codebook_size).double()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the labels since the last line are like, over all processes."""
        if "loss" in logs and self._code_counts is not None:
            counts, self._code_counts = self._code_counts, None
            if self.args.world_size > 1:
                counts = self.accelerator.reduce(counts, reduction="sum")
            logs.update({name: round(value, 6) for name, value in target_statistics(counts).items()})
        super().log(logs, start_time)

    def train(self, *args, **kwargs):
        """`SpeechTrainer.train`; what an earlier run left uncounted is forgotten."""
        self._code_counts = None
        return super().train(*args, **kwargs)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """
        The loss, the accuracy and the labels' statistics over the validation rows, each of which counts once in any
        number of processes.

        Raises:
            ValueError: fewer rows than processes.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        cross_entropy, num_right, *counts = self.sum_over_rows(dataset, self._evaluation_sums)["all"]
        metrics = {"loss": cross_entropy / sum(counts), "accuracy": 100.0 * num_right / sum(counts)}
        metrics |= target_statistics(torch.tensor(counts))
        return self.report_evaluation({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})

    def _evaluation_sums(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of one batch, in one vector: cross-entropy, right predictions, and how often each code occurs."""
        outputs = self.predict(self.model, batch, batch["seeds"])
        return {"all": torch.cat([torch.stack(prediction_sums(outputs)).double(), self.count_codes(outputs.labels)])}


def prediction_sums(outputs: BestRQForPreTrainingOutput) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats, and how many labels are the likeliest code: sums over masked tokens."""
    cross_entropy = nn.functional.cross_entropy(outputs.logits.float(), outputs.labels, reduction="sum")
    return cross_entropy, (outputs.logits.argmax(dim=-1) == outputs.labels).sum().to(cross_entropy.dtype)


def target_statistics(counts: Tensor) -> dict[str, float]:
    """`target_entropy` (nats), `target_perplexity` and `target_usage` (percent) of counts `(codebook_size,)`."""
    statistics = codebook_statistics(counts)
    return {
        "target_entropy": statistics["codebook_entropy"] * math.log(2),
        "target_perplexity": statistics["codebook_perplexity"],
        "target_usage": statistics["codebook_usage"],
    }
