"""Speech encoders of the kinds that HASRD is built on, from a configuration or a folder."""

import zlib

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from .modeling_best_rq import BestRQModel

NOT_TRAINED = ("masked_spec_embed",)  # what a pretrained encoder may lack: it serves pre-training alone


def build_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """An encoder of random weights, in PyTorch's default type: else it would have its checkpoint's."""
    if config.model_type == "best_rq":
        return BestRQModel(config)
    return AutoModel.from_config(config, dtype=torch.get_default_dtype())


def load_encoder_weights(encoder: PreTrainedModel, folder: str) -> None:
    """
    Take over a pretrained encoder's weights, in float32.

    folder: or Hub id, of a model of this kind or of one that has it inside.

    Raises:
        ValueError: it lacks weights.
    """
    source, report = type(encoder).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    missing = set(report["missing_keys"]) - set(NOT_TRAINED)
    if missing:
        raise ValueError(f"{folder} is no pretrained encoder: it has no weights for {', '.join(sorted(missing))}.")
    encoder.load_state_dict(source.state_dict())


def weights_checksum(module: nn.Module) -> str:
    """Of frozen weights, to know them again; as float32, whatever they are kept in, and without `NOT_TRAINED`."""
    checksum = 0
    for name, weights in module.state_dict().items():
        if name.endswith(NOT_TRAINED):  # drawn anew at each loading where a checkpoint lacks it
            continue
        checksum = zlib.crc32(weights.detach().float().cpu().flatten().view(torch.uint8).numpy(), checksum)
    return f"{checksum:08x}"
