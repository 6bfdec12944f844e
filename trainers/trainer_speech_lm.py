"""Smoothed Label Distillation and the speech losses that it is compared with (SLD, section 3.2)."""

from dataclasses import dataclass, field

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import TrainingArguments

from ..processing.processing_speech_lm import SpeechLMProcessor
from .losses import smoothed_label_divergence, token_cross_entropy
from .metrics import WordErrorRate
from .speech_trainer import SpeechTrainer

SPEECH_LOSSES = ("none", "ce", "label_smoothing", "kl", "sld")  # rows i to v of Table 1
KL_POSITIONS = ("speech", "reference")
KL_REDUCTIONS = ("batch", "token")
LOGITS_AT_ONCE = {"cpu": 2**21, "cuda": 2**26}  # 8 and 256 MB in float32; more are taken in parts


@dataclass
class SpeechLMTrainingArguments(TrainingArguments):
    """
    `TrainingArguments` with the paper's section 4.1 as defaults, and what the paper leaves open.

    Raises:
        ValueError: an unknown choice, or a share or temperature outside its range.
    """

    learning_rate: float = field(default=3e-4, metadata={"help": '"AdamW optimizer with a learning rate of 3e-4"'})
    num_train_epochs: float = field(default=10, metadata={"help": '"for 10 epochs"'})
    speech_loss: str = field(
        default="sld",
        metadata={
            "help": "Loss on units, the rows of Table 1; none is Loss Masking.",
            "choices": SPEECH_LOSSES,
        },
    )
    distillation_weight: float = field(default=0.008, metadata={"help": '"the weight alpha as 0.008"'})
    smoothing: float = field(default=0.1, metadata={"help": '"epsilon 0.1"; of label smoothing, too.'})
    temperature: float = field(default=1.0, metadata={"help": '"temperature 1"'})
    kl_positions: str = field(
        default="speech",
        metadata={
            "help": "Where eq. 4 is taken: at units, or as the released code does at text and end tokens, too, "
            "where the label is unit 0.",
            "choices": KL_POSITIONS,
        },
    )
    kl_reduction: str = field(
        default="batch",
        metadata={
            "help": "Eq. 4's sum over time is divided by the utterances (batch, the released code's, for which alpha "
            "is 0.008) or by its positions (token).",
            "choices": KL_REDUCTIONS,
        },
    )
    time_masking: float = field(
        default=0.3, metadata={"help": '"replacing each token with a special padding token with a probability of 0.3"'}
    )

    evaluation_wer_rows: int = field(
        default=0,
        metadata={"help": "Random validation rows to transcribe at each evaluation, for eval_wer; 0 for none."},
    )

    def __post_init__(self):
        super().__post_init__()
        for name, choices in (
            ("speech_loss", SPEECH_LOSSES),
            ("kl_positions", KL_POSITIONS),
            ("kl_reduction", KL_REDUCTIONS),
        ):
            value = self.__dict__[name]
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")
        for name in ("smoothing", "time_masking"):
            value = self.__dict__[name]
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1; got {value}.")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0; got {self.temperature}.")


class SpeechLMTrainer(SpeechTrainer):
    """
    Trains `SpeechLMForCausalLM`, with LoRA adapters or without, on batches of `UnitSequenceCollator`.

    Each term is a mean of its own, as in the released code: text over text tokens and `<text_end>`, speech over units
    and `<speech_end>`, both with the whole vocabulary in the denominator of p; the divergence of eq. 4 is over the
    units alone. Which inputs time masking hides follows from utterance, seed and step, not from the batch.

    Args:
        processor: reads the texts that the model writes; needed for `evaluation_wer_rows` alone.

    Raises:
        ValueError: time masking, but the model names no padding token, or rows to transcribe, but no processor.
    """

    length_column = "num_tokens"

    def __init__(self, *args, processor: SpeechLMProcessor | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.processor = processor
        if self.args.evaluation_wer_rows and processor is None:
            raise ValueError(f"evaluation_wer_rows={self.args.evaluation_wer_rows} needs a processor; got None.")
        self.model_config = self.accelerator.unwrap_model(self.model).config
        self.mask_token_id = self.model.generation_config.pad_token_id
        if self.args.time_masking and self.mask_token_id is None:
            raise ValueError(f"time_masking {self.args.time_masking} needs generation_config.pad_token_id; got None.")

    def count_items(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`text` and `speech` labels, those that are `distilled`, and `utterances`."""
        labels = batch["labels"]
        return {name: mask.sum() for name, mask in self.positions(labels[:, 1:]).items()} | {
            "utterances": torch.tensor(len(labels), device=labels.device)
        }

    def positions(self, labels: Tensor) -> dict[str, Tensor]:
        """Where labels `(...)` are text or `<text_end>`, units or `<speech_end>`, and where eq. 4 is."""
        config = self.model_config
        distilled = 0 if self.args.kl_positions == "reference" else config.first_unit_token_id
        return {
            "text": (labels >= 0) & (labels <= config.text_end_token_id),
            "speech": labels >= config.speech_end_token_id,
            "distilled": labels >= distilled,
        }

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Eq. 1, 3 or 6 on one micro-batch; means are over the tokens or utterances of the whole optimizer step."""
        terms, outputs = self.terms(model, inputs, num_items_in_batch)
        terms = {name: (weight, value * self.num_replicas) for name, (weight, value) in terms.items()}
        self.log_terms({name: value for name, (_, value) in terms.items()})
        loss = sum(weight * value for weight, value in terms.values())
        return (loss, outputs) if return_outputs else loss

    def terms(self, model, inputs: dict[str, Tensor], counts: dict[str, Tensor]):
        """Weight and value of each term, and the model's output. counts: what each sum is divided by."""
        args = self.args
        input_ids = self.mask_time(inputs) if model.training and args.time_masking else inputs["input_ids"]
        outputs = model(input_ids=input_ids, attention_mask=inputs["attention_mask"], use_cache=False)
        # labels move, not logits: without the last of each row those would be a copy
        labels = nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100)
        divisors = counts | {"divergence": counts["utterances" if args.kl_reduction == "batch" else "distilled"]}
        weights = {"text": 1.0, "speech": 1.0, "divergence": args.distillation_weight}
        sums = self.sums(outputs.logits, labels)
        return {name: (weights[name], value / divisors[name]) for name, value in sums.items()}, outputs

    def sums(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """
        Sum of each term over the tokens. logits: `(batch, tokens, vocabulary)`; labels: `(batch, tokens)`.

        A part of the tokens at a time, computed again in the backward pass: logits are the largest tensors of a step
        (1.8 GB for eight of the paper's sequences), and of their size nothing but their gradient is kept, twice while
        the parts' gradients are joined. Few logits, as of a small vocabulary, are no part: nothing is computed twice.
        """
        logits, labels = logits.flatten(0, 1), labels.flatten()
        num_parts = -(-logits.numel() // LOGITS_AT_ONCE.get(logits.device.type, LOGITS_AT_ONCE["cuda"]))
        if num_parts == 1:
            return self.sums_of_part(logits, labels)
        parts = [
            checkpoint(self.sums_of_part, *part, use_reentrant=False, preserve_rng_state=False)
            for part in zip(logits.chunk(num_parts), labels.chunk(num_parts))
        ]
        return {name: sum(part[name] for part in parts) for name in parts[0]}

    def sums_of_part(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Eq. 1, 2 and 4 summed over tokens. logits: `(tokens, vocabulary)`; labels: `(tokens,)`."""
        args, where = self.args, self.positions(labels)
        losses = token_cross_entropy(logits, labels)
        sums = {"text": (losses * where["text"]).sum()}
        if args.speech_loss == "label_smoothing":
            losses = token_cross_entropy(logits, labels, args.smoothing)
        if args.speech_loss in ("ce", "label_smoothing", "sld"):
            sums["speech"] = (losses * where["speech"]).sum()
        if args.speech_loss in ("kl", "sld") and args.distillation_weight:
            first = self.model_config.first_unit_token_id
            units = (labels - first).clamp_min(0)  # in the released code, text and ends count as unit 0
            sums["divergence"] = smoothed_label_divergence(
                logits[:, first:], units, where["distilled"], args.smoothing, args.temperature
            )
        return sums

    def mask_time(self, inputs: dict[str, Tensor]) -> Tensor:
        """Each real token of `input_ids` `(batch, tokens)` replaced with the padding token, by chance; labels stay."""
        input_ids, lengths = inputs["input_ids"], inputs["attention_mask"].sum(dim=1)
        drawn = torch.zeros(input_ids.shape, dtype=torch.bool)
        for row, (seed, length) in enumerate(zip(inputs["seeds"].tolist(), lengths.tolist())):
            generator = torch.Generator().manual_seed(self.step_seed(seed))
            drawn[row, :length] = torch.rand(length, generator=generator) < self.args.time_masking
        return input_ids.masked_fill(drawn.to(input_ids.device), self.mask_token_id)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """
        The loss and its terms over validation rows, no input masked, every row once in any number of processes.
        `text` is Fig. 3's "loss curve for L_CE,text".

        Raises:
            ValueError: fewer rows than processes.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        sums = self.sum_over_rows(dataset, self._evaluation_sums)
        means_over = {
            "text": (1.0, "text"),
            "speech": (1.0, "speech"),
            "divergence": (
                self.args.distillation_weight,
                "utterances" if self.args.kl_reduction == "batch" else "distilled",
            ),
        }
        metrics = {f"{metric_key_prefix}_loss": 0.0}
        for name, (weight, items) in means_over.items():
            if f"sum/{name}" in sums:
                metrics[f"{metric_key_prefix}_{name}"] = sums[f"sum/{name}"] / sums[items]
                metrics[f"{metric_key_prefix}_loss"] += weight * metrics[f"{metric_key_prefix}_{name}"]
        if self.args.evaluation_wer_rows:
            metrics[f"{metric_key_prefix}_wer"] = self.word_error_rate(dataset)
        return self.report_evaluation(metrics)

    @torch.no_grad()
    def word_error_rate(self, dataset) -> float:
        """
        In percent, of greedy search on `evaluation_wer_rows` transcripts, always the same, shared among the processes.

        Raises:
            ValueError: no transcript among the rows, which may be of other tasks.
        """
        transcripts = [row for row, task in enumerate(dataset.select_columns("task")["task"]) if task == "asr"]
        if not transcripts:
            raise ValueError("evaluation_wer_rows asks for transcripts, but no validation row is one: set it to 0.")
        order = torch.randperm(len(transcripts), generator=torch.Generator().manual_seed(0))
        chosen = [transcripts[place] for place in order[: self.args.evaluation_wer_rows].tolist()]
        first, world = self.args.process_index, self.args.world_size
        # as many on every process, so that with ZeRO-3 all of them generate together
        mine = [chosen[(start + first) % len(chosen)] for start in range(0, len(chosen), world)]
        was_training = self.model.training
        self.model.eval()
        texts = []  # (row, transcript, reference)
        for first in range(0, len(mine), self.args.eval_batch_size):
            rows = mine[first : first + self.args.eval_batch_size]
            texts.extend(zip(rows, *self.transcribe([dataset[row]["input_ids"] for row in rows]), strict=True))
        self.model.train(was_training)
        by_row = {row: pair for row, *pair in gather_object(texts)}
        predictions, references = zip(*by_row.values(), strict=True)
        return WordErrorRate().compute(predictions=predictions, references=references)["wer"]

    def transcribe(self, sequences: list[list[int]]) -> tuple[list[str], list[str]]:
        """What the model writes behind each sequence's `<speech_end>`, and what stands there."""
        config, pad = self.model_config, self.model.generation_config.pad_token_id
        starts = [ids.index(config.speech_end_token_id) + 1 for ids in sequences]
        prefixes = [torch.tensor(ids[:start], device=self.args.device) for ids, start in zip(sequences, starts)]
        width = max(starts)
        longest = 2 * max(len(ids) - start for ids, start in zip(sequences, starts))  # a loop ends there
        written = self.accelerator.unwrap_model(self.model).generate(
            input_ids=pad_sequence(prefixes, batch_first=True, padding_value=pad, padding_side="left"),
            attention_mask=pad_sequence([torch.ones_like(each) for each in prefixes], True, 0, "left"),
            max_new_tokens=min(longest, config.max_position_embeddings - width),
        )
        references = [ids[start:] for ids, start in zip(sequences, starts)]
        return self.processor.batch_decode(written[:, width:]), self.processor.batch_decode(references)

    def _evaluation_sums(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Numerators and denominators of one batch."""
        ones = dict.fromkeys(("text", "speech", "distilled", "utterances"), 1)
        terms, _ = self.terms(self.model, batch, ones)
        return {f"sum/{name}": value for name, (_, value) in terms.items()} | self.count_items(batch)
