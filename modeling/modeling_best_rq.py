"""BEST-RQ: a speech encoder that learns to predict a random projection's labels of masked frames."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoderRelPositionalEncoding
from transformers.utils import ModelOutput

from ..configuration.configuration_best_rq import BestRQConfig
from .codec_layers import FbankFrontEnd, reset_convolution
from .conformer import ConformerLayers, reset_positions
from .mel_frames import check_features, stack_frames
from .random_projection import RandomProjectionQuantizer


@dataclass
class BestRQOutput(ModelOutput):
    """
    Args:
        last_hidden_state: `(batch, tokens, hidden_size)`; behind an utterance's end its values mean nothing.
        hidden_states: the front-end's output and that of each layer, as many as layers and one, when asked for.
        attention_mask: `(batch, tokens)` boolean, True on real tokens.
    """

    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attention_mask: torch.BoolTensor | None = None


@dataclass
class BestRQForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss: eq. 1, nats per masked token, unless it was not asked for.
        logits: `(masked tokens, codebook_size)`, utterance after utterance.
        labels: `(masked tokens,)`, int64.
        masked_tokens: `(batch, tokens)` boolean, True on those.
        hidden_states, attention_mask: as in `BestRQOutput`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    labels: torch.LongTensor | None = None
    masked_tokens: torch.BoolTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attention_mask: torch.BoolTensor | None = None


class BestRQPreTrainedModel(PreTrainedModel):
    """What both models share: how weights start, and what they can be loaded with."""

    config_class = BestRQConfig
    base_model_prefix = "model"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["ParakeetEncoderBlock"]
    _keep_in_fp32_modules_strict = {"quantizer"}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """
        Xavier for matrices, PyTorch's own ranges for convolutions: the small values of language models would leave
        little of a frame behind the front-end, which normalizes nothing.
        """
        super()._init_weights(module)
        reset_convolution(module)
        reset_positions(module)
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, RandomProjectionQuantizer):
            module.reset()


class BestRQModel(BestRQPreTrainedModel):
    """
    The encoder of HASRD (sections 2.1 and 3): log-mel frames -> two strided convolutional blocks -> Conformer.

    A token's states do not depend on its batch nor on how far that is padded. The Conformer's convolution modules
    normalize frames, not batches: see `ConformerLayers`.
    """

    def __init__(self, config: BestRQConfig):
        super().__init__(config)
        self.front_end = FbankFrontEnd(
            config.num_mel_bins,
            config.conv_channels,
            config.hidden_size,
            config.conv_kernel,
            config.conv_stride,
            config.residual_dilations,
            config.separable,
        )
        self.positions = ParakeetEncoderRelPositionalEncoding(config)
        self.layers = ConformerLayers(config)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.front_end.input_convolution

    def forward(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> BestRQOutput:
        """
        States of 512 samples each.

        Args:
            input_features: `(batch, mel frames, mel bins)`, 8 ms per frame and 4 frames per token, of
                `BestRQFeatureExtractor`.
            attention_mask: `(batch, mel frames)`, 1 on real frames; all real when None.
            output_hidden_states: as the configuration says when None.

        Raises:
            ValueError: other shapes.
        """
        check_features(input_features, attention_mask, self.config.num_mel_bins)
        input_features = input_features.to(self.front_end.input_convolution.weight.dtype)
        hidden_states, mask = self.front_end(input_features, attention_mask)
        if self.config.num_hidden_layers == 0:
            states = [hidden_states]
        else:
            states = self.layers(self.dropout(hidden_states), mask, self.positions(hidden_states))
            states[0] = hidden_states
        asked = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return BestRQOutput(
            last_hidden_state=states[-1], hidden_states=tuple(states) if asked else None, attention_mask=mask
        )


class BestRQForPreTraining(BestRQPreTrainedModel):
    """
    Masked prediction of a random projection quantizer's labels (HASRD, section 2.1, eq. 1; SpeechBrain's BEST-RQ).

    unmasked features -> stacks of 4 frames -> label of each token; features with noise in masked tokens -> encoder ->
    logits of those tokens -> cross-entropy.

    Deviation: each utterance has a mask of its own, over all of its tokens; SpeechBrain has one for the whole batch,
    within its shortest utterance.
    """

    def __init__(self, config: BestRQConfig):
        super().__init__(config)
        self.model = BestRQModel(config)
        self.quantizer = RandomProjectionQuantizer(
            config.frames_per_token * config.num_mel_bins, config.codebook_size, config.codebook_dim
        )
        self.head = nn.Linear(config.hidden_size, config.codebook_size)
        self.post_init()

    def stack(self, input_features: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        The frames of each token, one after another, `(batch, tokens, 4 x mel bins)`, zeros on padding, and which
        tokens are real `(batch, tokens)`; for arguments see `BestRQModel.forward`.
        """
        attention_mask = check_features(input_features, attention_mask, self.config.num_mel_bins)
        return stack_frames(input_features, attention_mask, self.config.frames_per_token)

    def token_mask(self, attention_mask: Tensor) -> Tensor:
        """Real tokens `(batch, tokens)` from a mask of mel frames: a token is real when its first frame is."""
        return attention_mask[:, :: self.config.frames_per_token].bool()

    def quantize(self, input_features: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Labels `(batch, tokens)`, int64, -100 on padding; for arguments see `BestRQModel.forward`."""
        stacked, mask = self.stack(input_features, attention_mask)
        return self.quantizer(stacked).masked_fill(~mask, -100)

    def draw_masks(self, mask: Tensor, seeds: Tensor) -> Tensor:
        """Which tokens are masked, `(batch, tokens)`, of the real ones `(batch, tokens)`, by a seed for each row."""
        masked = torch.zeros(mask.shape, dtype=torch.bool)
        for row, (num_tokens, seed) in enumerate(zip(mask.sum(dim=1).tolist(), seeds.tolist())):
            masked[row, :num_tokens] = draw_spans(num_tokens, self.config, Generator().manual_seed(seed))
        return masked.to(mask.device)

    def hide(self, stacked: Tensor, masked_tokens: Tensor, seeds: Tensor) -> Tensor:
        """Frames `(batch, 4 x tokens, mel bins)` with N(0, mask_std^2) in masked tokens, by a seed for each row."""
        noise = []
        for num_masked, seed in zip(masked_tokens.sum(dim=1).tolist(), seeds.tolist()):
            generator = Generator().manual_seed(seed ^ 0x5DEECE66D)  # not the numbers that drew the spans
            noise.append(torch.randn(num_masked, stacked.shape[2], generator=generator) * self.config.mask_std)
        noise = torch.cat(noise).to(stacked.device, stacked.dtype)
        hidden = stacked.masked_scatter(masked_tokens[:, :, None], noise)
        return hidden.unflatten(2, (self.config.frames_per_token, -1)).flatten(1, 2)

    def forward(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        masked_tokens: Tensor | None = None,
        labels: Tensor | None = None,
        seeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_loss: bool = True,
    ) -> BestRQForPreTrainingOutput:
        """
        Mask, encode, predict; in training and evaluation alike.

        Args:
            input_features, attention_mask, output_hidden_states: as in `BestRQModel.forward`.
            masked_tokens: `(batch, tokens)`, True on tokens to hide and predict; drawn when None.
            labels: `(batch, tokens)`, of which those at masked tokens are predicted; the quantizer's when None.
            seeds: `(batch,)` int64, from which each utterance's mask and noise are drawn, and from nothing else; from
                PyTorch's random state when None.
            return_loss: the mean over this batch's masked tokens.

        Raises:
            ValueError: other shapes, masked padding, or no masked token at all.
        """
        stacked, mask = self.stack(input_features, attention_mask)
        if seeds is None:
            seeds = torch.randint(2**32, (len(stacked),))
        if masked_tokens is None:
            masked_tokens = self.draw_masks(mask, seeds)
        check_tokens(masked_tokens, labels, mask)
        labels = self.quantizer(stacked[masked_tokens]) if labels is None else labels[masked_tokens]
        frames = self.hide(stacked, masked_tokens, seeds)[:, : input_features.shape[1]]
        outputs = self.model(frames, attention_mask, output_hidden_states)
        logits = self.head(outputs.last_hidden_state[masked_tokens])
        return BestRQForPreTrainingOutput(
            loss=nn.functional.cross_entropy(logits.float(), labels) if return_loss else None,
            logits=logits,
            labels=labels,
            masked_tokens=masked_tokens,
            hidden_states=outputs.hidden_states,
            attention_mask=mask,
        )


def draw_spans(num_tokens: int, config: BestRQConfig, generator: Generator) -> Tensor:
    """
    Which of an utterance's tokens `(num_tokens,)` are masked: at least one.

    As in SpeechBrain, there are `mask_probability * mel frames` spans, rounded up or down at random, whose places are
    drawn without replacement from a grid of steps of `mask_length`: none overlaps another.
    """
    span = config.mask_length // config.frames_per_token
    num_places = -(-num_tokens // span)
    expected = config.mask_probability * num_tokens * config.frames_per_token
    num_spans = max(1, int(expected + float(torch.rand((), generator=generator))))
    chosen = torch.zeros(num_places, dtype=torch.bool)
    chosen[torch.randperm(num_places, generator=generator)[:num_spans]] = True
    return chosen.repeat_interleave(span)[:num_tokens]


def check_tokens(masked_tokens: Tensor, labels: Tensor | None, mask: Tensor) -> None:
    """Raise ValueError for masked tokens or labels that are not `(batch, tokens)` as `mask`, or hide no real token."""
    for name, value in {"masked_tokens": masked_tokens, "labels": labels}.items():
        if value is not None and value.shape != mask.shape:
            raise ValueError(f"{name} must be (batch, tokens) = {tuple(mask.shape)}; got {tuple(value.shape)}.")
    if bool((masked_tokens & ~mask).any()):
        raise ValueError(f"masked_tokens hides {int((masked_tokens & ~mask).sum())} tokens of padding.")
    if not bool(masked_tokens.any()):
        raise ValueError("masked_tokens hides no token: there would be nothing to predict.")


__all__ = ["BestRQForPreTraining", "BestRQModel"]
