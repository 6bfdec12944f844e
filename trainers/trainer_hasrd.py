"""Training of HASRD's quantizers and decoder against discriminators (section 2.3)."""

from dataclasses import dataclass, field

import torch
from datasets import IterableDataset
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments

from ..modeling.discriminators import CodecDiscriminators
from ..modeling.hasrd_outputs import HasrdOutput
from ..processing.segment_collator import SegmentCollator
from .codec_losses import MEL_BINS, MEL_WINDOWS, multi_scale_mel_loss
from .codec_metrics import mel_distance, stft_distance
from .discriminator_training import DiscriminatorTraining
from .metrics import codebook_statistics
from .speech_trainer import SpeechTrainer

LOSS_WEIGHTS = ("mel", "feature_matching", "generator", "commitment", "codebook")


@dataclass
class HasrdTrainingArguments(TrainingArguments):
    """
    `TrainingArguments` with section 3 as defaults, and DAC's values for what the paper takes over from it.

    A loss weight of 0 means that the term is not computed; without `generator` and `feature_matching` there are no
    discriminators.
    """

    max_steps: int = field(default=100_000, metadata={"help": '"100K iterations"; 30 000 for Table 1.'})
    per_device_train_batch_size: int = field(default=8, metadata={"help": '"a batch size of 8", over all processes.'})
    learning_rate: float = field(default=1e-4, metadata={"help": '"a learning rate of 1 x 10^-4", of both networks.'})
    learning_rate_decay: float = field(
        default=0.999996, metadata={"help": '"exponential learning rate schedule": the factor of every step.'}
    )
    lr_scheduler_type: str = field(
        default="constant", metadata={"help": "constant: learning_rate_decay says the rest."}
    )
    adam_beta1: float = field(default=0.8, metadata={"help": "DAC's, of both optimizers."})
    adam_beta2: float = field(default=0.99, metadata={"help": "DAC's, of both optimizers."})
    weight_decay: float = field(default=0.01, metadata={"help": "PyTorch's own, which DAC leaves as it is."})
    max_grad_norm: float = field(default=1e3, metadata={"help": "Of the codec; DAC's."})
    discriminator_max_grad_norm: float = field(default=10.0, metadata={"help": "Of the discriminators; DAC's."})
    freeze_encoder: bool = field(default=True, metadata={"help": '"the encoder (CNN + Conformer) is frozen"'})
    mel_weight: float = field(default=15.0, metadata={"help": "DAC's."})
    feature_matching_weight: float = field(default=2.0, metadata={"help": "DAC's."})
    generator_weight: float = field(default=1.0, metadata={"help": "DAC's."})
    commitment_weight: float = field(default=0.25, metadata={"help": "DAC's."})
    codebook_weight: float = field(default=1.0, metadata={"help": "DAC's."})
    mel_windows: list[int] = field(default_factory=lambda: [*MEL_WINDOWS], metadata={"help": "In samples."})
    mel_bins: list[int] = field(default_factory=lambda: [*MEL_BINS], metadata={"help": "Of each window."})
    discriminator_periods: list[int] = field(
        default_factory=lambda: [2, 3, 5, 7, 11], metadata={"help": "Of the multi-period discriminators, in samples."}
    )
    discriminator_fft_sizes: list[int] = field(
        default_factory=lambda: [2048, 1024, 512], metadata={"help": "Of the spectrogram discriminators, in samples."}
    )
    discriminator_rates: list[int] = field(
        default_factory=list, metadata={"help": "Of multi-scale discriminators, of which no released DAC has any."}
    )
    discriminator_channel_factor: float = field(default=1.0, metadata={"help": "1 gives DAC's widths."})


class HasrdTrainer(SpeechTrainer):
    """
    Trains `HasrdModel` on batches of `SegmentCollator`: DAC's losses, and discriminators that learn along.

    At each step the discriminators learn to tell this batch from its reconstructions, then the codec learns from them
    on the same batch. Both have an optimizer, a schedule and a bound of the gradient's norm of their own.
    Micro-batches and processes are one large batch to both: the discriminators see all micro-batches of a step before
    the codec learns from the first. With several, each but the first is reconstructed twice. How many acoustic books
    an utterance uses (quantizer dropout) is drawn from its samples, the run's seed and the step, so that it is the
    same in all of these passes and in any division of the batch.

    Utterances come at one level, as in DAC's data (see `SegmentCollator`; there it is loudness, here the root mean
    square), in training and in validation. A checkpoint also holds `discriminators.safetensors` and their optimizer
    and schedule.

    Raises:
        ValueError: DeepSpeed or FSDP, which Transformers' Trainer sets up for one network; fp16, which scales the
            gradients of one optimizer; a streamed corpus or lasting workers, whose segments would be the same in each
            epoch; another schedule; negative weights; another collator; a codec whose encoder is trained while its
            semantic book is fitted to it.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._check_arguments()
        arguments = self.args
        if arguments.freeze_encoder:
            self.model.encoder.requires_grad_(False)
        is_adversarial = arguments.generator_weight or arguments.feature_matching_weight
        self.discriminators = self._build_discriminators() if is_adversarial else None
        self._micro_batches: list[dict[str, Tensor]] = []
        self._code_counts: list[Tensor] = []

    def _build_discriminators(self) -> DiscriminatorTraining:
        """Random ones; what the codec draws does not depend on there being any."""
        arguments = self.args
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(arguments.seed)  # `torch.manual_seed` would seed the GPUs as well
            network = CodecDiscriminators(
                arguments.discriminator_periods,
                arguments.discriminator_fft_sizes,
                arguments.discriminator_rates,
                arguments.discriminator_channel_factor,
            )
        return DiscriminatorTraining(network.to(arguments.device), arguments.discriminator_max_grad_norm)

    def _check_arguments(self):
        arguments, config = self.args, self.model.config
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError(
                "HASRD trains two networks with an optimizer each, but Transformers' Trainer builds one DeepSpeed "
                "engine and wraps one model in FSDP: start with recipes/accelerate/ddp.yaml or cpu.yaml."
            )
        if arguments.fp16:
            raise ValueError("fp16 scales one optimizer's gradients, and here are two: use --bf16, or neither.")
        if isinstance(self.train_dataset, IterableDataset):
            raise ValueError("A streamed corpus would give the same segments in each pass: load it whole.")
        if arguments.dataloader_persistent_workers:
            raise ValueError("Persistent workers would draw the same segments in each epoch: leave them out.")
        if arguments.lr_scheduler_type != "constant":
            raise ValueError(
                f"The rates decay by learning_rate_decay at every step; got lr_scheduler_type="
                f"{arguments.lr_scheduler_type.value!r}."
            )
        negative = [f"{name}_weight" for name in LOSS_WEIGHTS if self.weight_of(name) < 0]
        if negative or not 0 < arguments.learning_rate_decay <= 1:
            raise ValueError(
                f"Weights must not be negative and learning_rate_decay lies in 0..1; got negative {negative} and "
                f"{arguments.learning_rate_decay}."
            )
        collator = self.data_collator
        if not isinstance(collator, SegmentCollator):
            raise ValueError(f"Batches come from a SegmentCollator; got {type(collator).__name__}.")
        for name in ("samples_per_token", "inputs_per_token"):
            if getattr(collator, name) != getattr(config, name):
                raise ValueError(
                    f"The collator's {name} is {getattr(collator, name)}, the codec's {getattr(config, name)}."
                )
        if config.num_semantic_codes and not arguments.freeze_encoder:
            raise ValueError("The semantic book belongs to a frozen encoder: set freeze_encoder, or train without it.")

    def weight_of(self, term: str) -> float:
        """Of one of `LOSS_WEIGHTS`."""
        return vars(self.args)[f"{term}_weight"]

    # --- what a step's means are over ---

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        """`Trainer`'s; the discriminators learn from all micro-batches of a step at once."""
        self._micro_batches, counts = super().get_batch_samples(epoch_iterator, num_batches, device)
        return self._micro_batches, counts

    def count_items(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Segments, and the tokens that are quantized around them."""
        tokens = -(-batch["attention_mask"].sum(dim=1) // self.model.config.inputs_per_token)
        return {"segments": torch.tensor(len(tokens), device=tokens.device), "tokens": tokens.sum()}

    # --- one step ---

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """One micro-batch; before the first of a step the discriminators learn from all of them."""
        model.train()
        is_first = inputs is self._micro_batches[0]
        inputs = self._prepare_inputs(inputs)
        outputs = self.reconstruct(model, inputs)
        if is_first and self.discriminators is not None:
            self.train_discriminators(inputs["waveforms"], outputs.audio_values.detach(), num_items_in_batch)
        loss = self.codec_loss(inputs["waveforms"], outputs, num_items_in_batch)
        self.accelerator.backward(loss)
        self.count_codes(outputs)
        return loss.detach()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The codec's loss on one micro-batch; means are over the segments and tokens of the whole step."""
        outputs = self.reconstruct(model, inputs)
        loss = self.codec_loss(inputs["waveforms"], outputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def reconstruct(self, model, inputs: dict[str, Tensor]) -> HasrdOutput:
        """The codec's output, its `audio_values` those of the segments, cut to their length."""
        name, samples = self.model.main_input_name, inputs["waveforms"].shape[1]
        outputs = model(
            **{name: inputs[name]},
            attention_mask=inputs["attention_mask"],
            depths=self.draw_depths(inputs["seeds"]),
            first_tokens=inputs["first_tokens"],
            num_tokens=-(-samples // self.model.config.samples_per_token),
        )
        outputs.audio_values = outputs.audio_values[:, :samples]
        return outputs

    def draw_depths(self, seeds: Tensor) -> Tensor | None:
        """
        How many acoustic books each utterance uses at this step `(batch,)`: `quantizer_dropout` as `HasrdModel` has
        it, but drawn for each utterance from its seed `(batch,)`. None, all of them, when not in training.
        """
        config = self.model.config
        if not (self.model.training and config.quantizer_dropout and config.num_acoustic_books):
            return None
        fewest, most = 0 if config.num_semantic_codes else 1, config.num_acoustic_books
        depths = []
        for seed in seeds.tolist():
            generator = torch.Generator().manual_seed(self.step_seed(seed))
            is_short = float(torch.rand((), generator=generator)) < config.quantizer_dropout
            depths.append(int(torch.randint(fewest, most + 1, (), generator=generator)) if is_short else most)
        return torch.tensor(depths, device=seeds.device)

    def codec_loss(self, waveforms: Tensor, outputs: HasrdOutput, counts: dict[str, Tensor]) -> Tensor:
        """Weighted sum of `terms`, which are logged; multiplied by the processes whose gradients are averaged."""
        terms = {name: value * self.num_replicas for name, value in self.terms(waveforms, outputs, counts).items()}
        self.log_terms(terms)
        return sum(self.weight_of(name) * value for name, value in terms.items())

    def terms(self, waveforms: Tensor, outputs: HasrdOutput, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Those of the codec's losses that have a weight. counts: what each sum is divided by."""
        args, made, terms = self.args, outputs.audio_values, {}
        if args.mel_weight:
            terms["mel"] = multi_scale_mel_loss(
                made, waveforms, args.mel_windows, args.mel_bins, self.model.config.sampling_rate, counts["segments"]
            )
        if self.discriminators is not None:
            names = {name for name in ("generator", "feature_matching") if self.weight_of(name)}
            terms |= self.discriminators.codec_terms(waveforms, made, counts["segments"], names)
        if args.commitment_weight:
            terms["commitment"] = outputs.commitment_loss.sum() / counts["tokens"]
        if args.codebook_weight:
            terms["codebook"] = outputs.codebook_loss.sum() / counts["tokens"]
        return terms

    def train_discriminators(self, waveforms: Tensor, made: Tensor, counts: dict[str, Tensor]):
        """
        Their step, on all micro-batches.

        waveforms, made: of the first micro-batch `(batch, samples)`; the others are reconstructed here.
        """
        pairs = [(waveforms, made)]
        for batch in self._micro_batches[1:]:
            batch = self._prepare_inputs(batch)
            with torch.no_grad():
                pairs.append((batch["waveforms"], self.reconstruct(self.model, batch).audio_values))
        self.log_terms(self.discriminators.step(pairs, counts["segments"], self.num_replicas))

    # --- optimizers, schedules, checkpoints ---

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """`exponential_schedule` of the codec's optimizer."""
        if self.lr_scheduler is None:
            self.lr_scheduler = self.exponential_schedule(optimizer or self.optimizer, num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def exponential_schedule(self, optimizer: torch.optim.Optimizer, num_training_steps: int) -> LambdaLR:
        """The learning rate falls by `learning_rate_decay` at each step, after a linear warm-up where one is set."""
        warmup, decay = self.args.get_warmup_steps(num_training_steps), self.args.learning_rate_decay
        return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(warmup, 1)) * decay**step)

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        if self.discriminators is not None:
            self._prepare_discriminators(max_steps)
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _prepare_discriminators(self, max_steps: int):
        """Their optimizer, of the codec's kind, and what makes them one over all processes."""
        network = self.discriminators.network
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, network)
        decayed = set(self.get_decay_parameter_names(network))
        groups = [
            dict(
                params=[each for name, each in network.named_parameters() if (name in decayed) == is_decayed],
                weight_decay=self.args.weight_decay * is_decayed,
            )
            for is_decayed in (True, False)
        ]
        self.discriminators.prepare(
            self.accelerator, kind(groups, **options), lambda made: self.exponential_schedule(made, max_steps)
        )

    def _save_optimizer_and_scheduler(self, output_dir: str):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.discriminators is not None and self.args.should_save:
            self.discriminators.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.discriminators is not None:
            self.discriminators.load(checkpoint)

    def _run_epoch(self, *, epoch: int, **kwargs):
        self.data_collator.set_epoch(epoch)
        super()._run_epoch(epoch=epoch, **kwargs)

    def train(self, *args, **kwargs):
        """`SpeechTrainer.train`; codes that an earlier run left uncounted are forgotten."""
        self._code_counts = []
        return super().train(*args, **kwargs)

    # --- what is logged and measured ---

    @torch.no_grad()
    def count_codes(self, outputs: HasrdOutput):
        """Add up how often each code of each book was chosen since the last logged line."""
        codes = outputs.audio_codes.movedim(1, 0)  # (books, batch, tokens)
        counts = [
            torch.bincount(of_book[outputs.attention_mask.bool()], minlength=size)
            for of_book, size in zip(codes, self.model.config.book_sizes, strict=True)
        ]
        self._code_counts = [sum(each) for each in zip(self._code_counts, counts)] if self._code_counts else counts

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The named terms, and of each book its usage in percent and its perplexity over the steps since."""
        if "loss" in logs and self._code_counts:
            for name, counts in zip(self.book_names, self._code_counts):
                if self.args.world_size > 1:
                    counts = self.accelerator.reduce(counts, reduction="sum")
                figures = codebook_statistics(counts)
                logs[f"usage/{name}"] = round(figures["codebook_usage"], 3)
                logs[f"perplexity/{name}"] = round(figures["codebook_perplexity"], 3)
            self._code_counts = []
        super().log(logs, start_time)

    @property
    def book_names(self) -> list[str]:
        """Of `audio_codes`, in their order."""
        acoustic = [f"acoustic_{number}" for number in range(1, self.model.config.num_acoustic_books + 1)]
        return ["semantic"] * bool(self.model.config.num_semantic_codes) + acoustic

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """
        Mel and STFT distance of whole validation utterances to their reconstructions, each of which counts once in any
        number of processes, whatever it is batched with. `eval_loss` is the mel distance.

        Raises:
            ValueError: fewer rows than processes.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        segments, self.data_collator = self.data_collator, self.data_collator.of_whole_utterances()
        try:
            sums = self.sum_over_rows(dataset, self._evaluation_sums)
        finally:
            self.data_collator = segments
        metrics = {
            f"{metric_key_prefix}_{name}": sums[name] / sums["utterances"]
            for name in ("mel_distance", "stft_distance")
        }
        return self.report_evaluation(
            {f"{metric_key_prefix}_loss": metrics[f"{metric_key_prefix}_mel_distance"], **metrics}
        )

    def _evaluation_sums(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Numerators and denominators of one batch."""
        made = self.reconstruct(self.model, batch).audio_values
        sums = {"utterances": torch.tensor(len(batch["waveforms"]))}
        pairs = [
            (ours[None, :length], theirs[None, :length])
            for ours, theirs, length in zip(made, batch["waveforms"], batch["num_samples"].tolist())
        ]
        for name, distance in (("mel_distance", mel_distance), ("stft_distance", stft_distance)):
            sums[name] = sum(distance(*pair).sum() for pair in pairs)
        return {name: value.to(made.device) for name, value in sums.items()}
