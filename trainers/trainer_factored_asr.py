"""Training of FactoredASR (section 2, eq. 3)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import TrainingArguments

from ..modeling.gradient_reversal import reverse_gradient
from ..modeling.modeling_factored_asr import FactoredASROutput
from ..processing.spec_augment import spec_augment
from .losses import background_contrast_loss, ctc_loss, masked_squared_error, transducer_loss
from .speech_trainer import SpeechTrainer

TARGET_GRADIENTS = ("reverse", "pass", "detach")


@dataclass
class FactoredASRTrainingArguments(TrainingArguments):
    """
    `TrainingArguments` with section 2.4 as defaults, and what the paper leaves open.

    A loss weight of 0 means that the term is not computed: `mi_weight` is FR of Table 1, `contrast_weight` BG-C,
    `mask_probability` MLM.
    """

    learning_rate: float = field(default=3e-4, metadata={"help": '"the Adam optimizer, with a learning rate of 3e-4"'})
    mi_weight: float = field(default=0.1, metadata={"help": '"lambda_mi = 0.1 to be optimal on a dev-set"'})
    contrast_weight: float = field(default=0.3, metadata={"help": '"lambda_contrast = 0.3"'})
    mask_probability: float = field(default=0.15, metadata={"help": '"a masking ratio of 0.15"'})
    spec_augment: bool = field(
        default=True, metadata={"help": '"augmented using SpecAugment"; encoders of samples as they are configured.'}
    )
    reversal_weight: float = field(default=1.0, metadata={"help": "Of the reversed gradients; open in the paper."})
    reversal_ramp_steps: int = field(default=0, metadata={"help": "Let it grow from 0 over so many steps."})
    target_grad: str = field(
        default="detach",
        metadata={
            "help": "Gradients into the factors that are reconstructed: none, reversed as in DiCyR, or passed on as "
            "eq. 1 is printed, which trains factors to be easy to guess.",
            "choices": list(TARGET_GRADIENTS),
        },
    )
    contrast_temperature: float = field(default=0.1, metadata={"help": "Of eq. 2's scores; the equation's own is 1."})
    contrast_normalize: bool = field(default=True, metadata={"help": "Unit vectors in eq. 2; not in the equation."})
    contrast_include_positive: bool = field(
        default=True, metadata={"help": "The positive in eq. 2's denominator, too; not in the equation."}
    )
    num_negatives: int = field(default=16, metadata={"help": "M of eq. 2, other utterances of the batch at most."})
    ctc_weight: float = field(
        default=0.0,
        metadata={
            "help": "Of an auxiliary CTC loss on the frames alone, which aligns early; not in the paper. Short "
            "trainings from random weights need it."
        },
    )


class FactoredASRTrainer(SpeechTrainer):
    """
    Trains `FactoredASRForRNNT` on batches of `FeatureTextCollator`: eq. 3.

    Two processes are one large batch to every term. Accumulated micro-batches are so to all but the contrast, whose
    negatives come from one micro-batch.

    Masks and pairs are drawn from each utterance's samples, the run's seed and the step, so a resumed run draws the
    same. Not so the features that an encoder of waveforms masks itself (`mask_feature_prob`): NumPy's generator has
    those.

    Raises:
        ValueError: an unknown `target_grad`, a probability outside 0..1, fewer than one negative, `mi_weight` for a
            model without factors, masking for an encoder of waveforms that was made without, features masked by such
            an encoder without `spec_augment`, or stacked frames to mask without their feature extractor.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        arguments, config = self.args, self.model.config
        if arguments.target_grad not in TARGET_GRADIENTS:
            raise ValueError(
                f"target_grad must be one of {', '.join(TARGET_GRADIENTS)}; got {arguments.target_grad!r}."
            )
        if not 0 <= arguments.mask_probability < 1:
            raise ValueError(f"mask_probability must be at least 0 and below 1; got {arguments.mask_probability}.")
        if arguments.contrast_weight and arguments.num_negatives < 1:
            raise ValueError(f"num_negatives must be at least 1; got {arguments.num_negatives}.")
        if arguments.mi_weight and not config.factorize:
            raise ValueError(
                f"mi_weight is {arguments.mi_weight}, but the model has no factors: build it with factorize=True, or "
                "set a weight of 0."
            )
        encoder = config.encoder_config
        if config.reads_waveforms:
            masks = encoder.apply_spec_augment and encoder.mask_time_prob + encoder.mask_feature_prob
            if arguments.mask_probability and not masks:
                raise ValueError(
                    f"mask_probability is {arguments.mask_probability}, but this {encoder.model_type} has nothing to "
                    "put in place of a frame: set apply_spec_augment and mask_time_prob in its configuration, or a "
                    "probability of 0."
                )
            if not arguments.spec_augment and encoder.apply_spec_augment and encoder.mask_feature_prob:
                raise ValueError(
                    f"spec_augment is off, but this {encoder.model_type} masks features itself (mask_feature_prob "
                    f"{encoder.mask_feature_prob}): set that to 0 in its configuration."
                )
            self.model.frame_encoder.draws_spans = False  # the trainer does, with the other masks
        elif self.model.frame_encoder.is_stacked and arguments.spec_augment and self.feature_extractor is None:
            raise ValueError("SpecAugment on stacked frames needs their feature_extractor; got None.")
        if config.factorize and not arguments.mi_weight:
            self.model.reconstruction.requires_grad_(False)
            if not arguments.contrast_weight:
                self.model.context_network.requires_grad_(False)

    def count_items(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Labels, frames of the encoder, and utterances."""
        frames = self.model.state_mask(batch["attention_mask"]).sum()
        return {
            "labels": batch["labels"].ne(-100).sum(),
            "frames": frames,
            "utterances": torch.tensor(len(batch["labels"]), device=frames.device),
        }

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Eq. 3 on one micro-batch; means are over the labels, frames or utterances of the whole optimizer step."""
        terms, outputs = self.terms(model, inputs, num_items_in_batch)
        terms = {name: (weight, value * self.num_replicas) for name, (weight, value) in terms.items()}
        self.log_terms({name: value for name, (_, value) in terms.items()})
        loss = sum(weight * value for weight, value in terms.values())
        return (loss, outputs) if return_outputs else loss

    def terms(
        self, model, inputs: dict[str, Tensor], counts: dict[str, Tensor]
    ) -> tuple[dict[str, tuple[float, Tensor]], FactoredASROutput]:
        """Weight and value of each term of eq. 3, and the model's output. counts: what each sum is divided by."""
        args, name = self.args, self.model.main_input_name
        masked, masked_frames, frames = self.masked_inputs(inputs)
        outputs = model(
            **{name: masked},
            attention_mask=inputs["attention_mask"],
            labels=inputs["labels"],
            masked_frames=masked_frames,
            frames=frames,
            return_loss=False,  # its mean would be over this micro-batch alone
            return_frame_logits=bool(args.ctc_weight),
            reversal_weight=self.current_reversal_weight if args.mi_weight else None,
        )
        speech, blank = outputs.speech, self.model.config.blank_token_id
        labels, mask = inputs["labels"], speech.attention_mask
        terms = {"transducer": (1.0, transducer_loss(outputs.logits, labels, mask, blank, counts["labels"]))}
        if args.ctc_weight:
            alignment = ctc_loss(outputs.frame_logits, mask, labels, blank, counts["labels"])
            terms["ctc"] = (args.ctc_weight, alignment)
        if args.mi_weight:
            terms["mi"] = (args.mi_weight, self.cyclic_error(outputs, counts["frames"]))
        if args.contrast_weight:
            terms["contrast"] = (args.contrast_weight, self.contrast(speech, inputs["seeds"], counts["utterances"]))
        return terms, outputs

    @property
    def current_reversal_weight(self) -> float:
        """Of the reversed gradients at this step."""
        ramp = self.args.reversal_ramp_steps
        return self.args.reversal_weight * (min(1.0, (self.state.global_step + 1) / ramp) if ramp else 1.0)

    def cyclic_error(self, outputs: FactoredASROutput, num_frames: Tensor) -> Tensor:
        """L_mi, eq. 1: the distances of content, context and input frames to their reconstructions."""
        speech = outputs.speech
        content, context = self.as_target(speech.content), self.as_target(speech.context)
        return sum(
            masked_squared_error(reconstruction, target, speech.attention_mask, num_frames)
            for reconstruction, target in zip(outputs.reconstructions, (content, context, outputs.frames), strict=True)
        )

    def as_target(self, factor: Tensor) -> Tensor:
        """A factor as what is reconstructed, with the gradients that `target_grad` says."""
        if self.args.target_grad == "reverse":
            return reverse_gradient(factor, self.current_reversal_weight)
        return factor.detach() if self.args.target_grad == "detach" else factor

    def contrast(self, speech, seeds: Tensor, num_utterances: Tensor) -> Tensor:
        """L_contrast, eq. 2, of the contexts; of the encoder's states where there are no factors."""
        args, lengths = self.args, speech.attention_mask.sum(dim=1)
        context = speech.last_hidden_state if speech.context is None else speech.context
        draws = self.draw_frames(seeds + 1, speech.attention_mask)  # others than those that mask
        num_processes = self.args.world_size if self.model.training else 1  # validation batches differ in size
        num_others = len(seeds) * num_processes - 1
        generator = torch.Generator().manual_seed(self.step_seed())
        shifts = 1 + torch.randperm(num_others, generator=generator)[: args.num_negatives]
        return background_contrast_loss(
            context,
            speech.attention_mask,
            (draws * lengths[:, None]).long().clamp_max(lengths[:, None] - 1),
            shifts,
            args.contrast_temperature,
            args.contrast_normalize,
            args.contrast_include_positive,
            num_utterances,
            across_processes=num_processes > 1,
        )

    def masked_inputs(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """
        In training: what the encoder sees, `(batch, states)` True at the states whose input frames it does without
        (section 2.3), and the frames before that, which are to be reconstructed. In evaluation: all of it.
        """
        encoder, given = self.model.frame_encoder, inputs[self.model.main_input_name]
        attention_mask, seeds = inputs["attention_mask"], inputs["seeds"]
        frames = encoder.input_frames(given, attention_mask) if self.args.mi_weight else None
        if not self.model.training:
            return given, None, frames
        step_seeds = [self.step_seed(seed) for seed in seeds.tolist()]
        masked_frames = None
        if self.args.spec_augment and encoder.masks_spans:
            masked_frames = encoder.draw_spans(encoder.state_mask(attention_mask), step_seeds)
        elif self.args.spec_augment and not encoder.reads_waveforms:
            num_bins = (self.feature_extractor if encoder.is_stacked else encoder.config).num_mel_bins
            given = encoder.frames_first(given)
            given = spec_augment(given, attention_mask.sum(dim=1), step_seeds, num_bins)
            given = encoder.frames_first(given)
        if self.args.mask_probability:
            draws = self.draw_frames(seeds + 2, encoder.state_mask(attention_mask)) < self.args.mask_probability
            masked_frames = draws if masked_frames is None else masked_frames | draws
        return given, masked_frames, frames

    def draw_frames(self, seeds: Tensor, mask: Tensor) -> Tensor:
        """A number in 0..1 for each frame `(batch, frames)`, from each utterance's seed and the step alone."""
        draws = torch.zeros(mask.shape)
        for row, (seed, length) in enumerate(zip(seeds.tolist(), mask.sum(dim=1).tolist())):
            generator = torch.Generator().manual_seed(self.step_seed(seed))
            draws[row, :length] = torch.rand(length, generator=generator)
        return draws.to(mask.device)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """
        The loss and its terms over the validation rows, each of which counts once in any number of processes. The
        contrast's negatives come from a row's own batch.

        Raises:
            ValueError: fewer rows than processes.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        sums = self.sum_over_rows(dataset, self._evaluation_sums)
        weights = {"transducer": (1.0, "labels"), "ctc": (self.args.ctc_weight, "labels")}
        weights["mi"] = (self.args.mi_weight, "frames")
        weights["contrast"] = (self.args.contrast_weight, "utterances")
        metrics = {f"{metric_key_prefix}_loss": 0.0}
        for name, (weight, items) in weights.items():
            if f"sum/{name}" in sums:
                metrics[f"{metric_key_prefix}_{name}"] = sums[f"sum/{name}"] / sums[items]
                metrics[f"{metric_key_prefix}_loss"] += weight * metrics[f"{metric_key_prefix}_{name}"]
        return self.report_evaluation(metrics)

    def _evaluation_sums(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Numerators and denominators of one batch."""
        terms, _ = self.terms(self.model, batch, dict.fromkeys(("labels", "frames", "utterances"), 1))
        return {f"sum/{name}": value for name, (_, value) in terms.items()} | self.count_items(batch)
