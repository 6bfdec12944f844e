"""The states of all layers of a pretrained encoder, of log-mel frames or samples, one for every token begun."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from .mel_frames import check_features
from .padding_masks import check_padding
from .waveform_encoding import check_waveforms, encode_waveforms


def check_inputs(
    config: PreTrainedConfig,
    input_features: Tensor | None,
    attention_mask: Tensor | None,
    input_values: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """
    What the encoder of a `HasrdConfig` reads, `(batch, mel frames, mels)` or `(batch, samples)`, and the mask of its
    frames or samples, int64, all real when None.

    Raises:
        ValueError: the other kind of input or both, wrong shapes, an utterance without a frame or sample, padding
            before an utterance's end, NaN or infinity in it.
    """
    inputs, others = (input_values, input_features) if config.reads_waveforms else (input_features, input_values)
    if inputs is None or others is not None:
        wanted = "input_values" if config.reads_waveforms else "input_features"
        raise ValueError(
            f"a {config.encoder_config.model_type} encoder takes {wanted} alone: use the feature extractor saved with "
            "this model."
        )
    if config.reads_waveforms:
        attention_mask = check_waveforms(inputs, attention_mask)
    else:
        attention_mask = check_features(inputs, attention_mask, config.encoder_config.num_mel_bins)
    mask = check_padding(attention_mask, "audio")
    is_finite = inputs.isfinite() if config.reads_waveforms else inputs.isfinite().all(dim=2)
    broken = (mask & ~is_finite).any(dim=1).nonzero().flatten().tolist()
    if broken:
        raise ValueError(
            f"the utterances {broken} of this batch have NaN or infinity: repair the recordings or leave them out."
        )
    return inputs, mask.long()


def layer_states(encoder: PreTrainedModel, inputs: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """
    `hidden_states` `(batch, tokens, layers + 1, dim)`, zeros on padding, and their mask `(batch, tokens)`, True on
    real ones; for arguments see `check_inputs`.
    """
    if encoder.main_input_name == "input_values":
        states, mask = waveform_states(encoder, inputs, attention_mask)
    else:
        output = encoder(inputs.to(encoder.dtype), attention_mask=attention_mask, output_hidden_states=True)
        states, mask = torch.stack(output.hidden_states, dim=2), output.attention_mask
    return states.masked_fill(~mask[..., None, None], 0.0), mask


def waveform_states(encoder: PreTrainedModel, samples: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """
    `layer_states` of samples, with as many zeros behind each utterance as the encoder's convolutions need to give a
    state for every token begun: by themselves they leave the end out.
    """
    reach, hop = receptive_field(encoder.config)
    num_tokens = (attention_mask.sum(dim=1) + hop - 1) // hop
    lengths = (num_tokens - 1) * hop + reach
    samples = samples.masked_fill(~attention_mask.bool(), 0.0)
    longest = int(lengths.max())
    samples = nn.functional.pad(samples, (0, longest - samples.shape[1]))  # cuts when there is too much padding
    samples_mask = (torch.arange(longest, device=samples.device) < lengths[:, None]).long()

    def run(samples: Tensor, mask: Tensor | None, rows: slice) -> Tensor:
        return torch.stack(encoder(samples, mask, output_hidden_states=True).hidden_states, dim=2)

    states = encode_waveforms(encoder, samples, samples_mask, run)
    return states, torch.arange(states.shape[1], device=samples.device) < num_tokens[:, None]


def receptive_field(config: PreTrainedConfig) -> tuple[int, int]:
    """Samples that a state of an encoder of waveforms sees, and samples between two states: HuBERT's 400 and 320."""
    samples, hop = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples += (kernel - 1) * hop
        hop *= stride
    return samples, hop
