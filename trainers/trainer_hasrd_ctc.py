"""Training of the recognizer that HASRD's representations are measured with (HASRD, section 3, "Evaluation")."""

from dataclasses import dataclass, field

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor
from transformers import TrainingArguments

from ..modeling.modeling_hasrd_ctc import HasrdCTCOutput, read_off
from .losses import ctc_loss
from .representation_cache import RepresentationCache
from .speech_trainer import SpeechTrainer


@dataclass
class HasrdCTCTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the paper's settings as defaults; its Adam is AdamW without weight decay."""

    learning_rate: float = field(default=1e-4, metadata={"help": '"a learning rate of 1e-4"'})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "The paper names no schedule."})
    max_steps: int = field(default=30_000, metadata={"help": '"30K iterations"'})
    per_device_train_batch_size: int = field(default=32, metadata={"help": '"a batch size of 32", of all processes.'})
    max_grad_norm: float = field(default=0.0, metadata={"help": "0 is no bound: the paper names none."})
    keep_representations: bool = field(
        default=False, metadata={"help": "Compute the frozen representations once and keep them in memory."}
    )


class HasrdCTCTrainer(SpeechTrainer):
    """
    Trains `HasrdForCTC` on batches of `FeatureTextCollator`: CTC in nats per label, the mean over the labels of all
    micro-batches and processes of a step. What is measured is not trained.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model.freeze_speech_model()
        self.cache = RepresentationCache(self.model) if self.args.keep_representations else None

    def count_items(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Labels."""
        return {"labels": batch["labels"].ne(-100).sum()}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """CTC of one micro-batch, divided by the labels of the whole optimizer step."""
        outputs = self.recognize(model, inputs)
        loss = self.alignment(outputs, inputs["labels"], num_items_in_batch["labels"]) * self.num_replicas
        return (loss, outputs) if return_outputs else loss

    def recognize(self, model, inputs: dict[str, Tensor]) -> HasrdCTCOutput:
        """Logits of a batch."""
        if self.cache is not None:
            states, mask = self.cache.represent(inputs)
            return model(representation=states, attention_mask=mask)
        name = self.model.main_input_name
        return model(**{name: inputs[name]}, attention_mask=inputs["attention_mask"])

    def alignment(self, outputs: HasrdCTCOutput, labels: Tensor, num_labels: Tensor | int) -> Tensor:
        """CTC in nats, the sum over utterances divided by `num_labels`."""
        blank = self.model.config.pad_token_id
        return ctc_loss(outputs.logits, outputs.attention_mask, labels, blank, num_labels)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """
        The loss, and CER of the greedy path in percent, over the validation rows, each of which counts once in any
        number of processes.

        Raises:
            ValueError: fewer rows than processes.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        sums = self.sum_over_rows(dataset, self._evaluation_sums)
        metrics = {"loss": sums["ctc"] / sums["labels"], "cer": 100.0 * sums["edits"] / sums["labels"]}
        return self.report_evaluation({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})

    def _evaluation_sums(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of one batch: CTC, wrong, missing and added characters, and labels."""
        outputs, labels = self.recognize(self.model, batch), batch["labels"]
        written = read_off(outputs.logits, outputs.attention_mask, self.model.config.pad_token_id)
        expected = [row[row != -100].tolist() for row in labels]
        edits = sum(Levenshtein.distance(row.tolist(), right) for row, right in zip(written, expected, strict=True))
        sums = {"ctc": self.alignment(outputs, labels, 1), "edits": torch.tensor(edits, device=labels.device)}
        return sums | self.count_items(batch)
