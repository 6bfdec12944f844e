"""Losses: functions on tensors that return a scalar."""

import torch
import torch.distributed.nn.functional
from torch import Tensor, nn
from transformers.loss.loss_rnnt import rnnt_loss


def cross_entropy(logits: Tensor, labels: Tensor, num_labels: Tensor | int | None = None) -> Tensor:
    """
    Recognizer's cross-entropy in nats per label.

    logits: `(batch, tokens, vocabulary)`; labels: `(batch, tokens)`, -100 on padding; num_labels: divisor of the sum,
    the labels of this batch when None.
    """
    total = nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum")
    return total / (labels.ne(-100).sum() if num_labels is None else num_labels)


def token_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """
    Each token's cross-entropy `(tokens,)` in nats, 0 where there is no label.

    logits: `(tokens, vocabulary)`; labels: `(tokens,)`, -100 where there is none; smoothing: the share of a label that
    is spread over the whole vocabulary ("Label Smoothing CE loss" of SLD's Table 1).
    """
    return nn.functional.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=smoothing)


def smoothed_label_divergence(
    unit_logits: Tensor,
    units: Tensor,
    mask: Tensor,
    smoothing: float = 0.1,
    temperature: float = 1.0,
    divisor: Tensor | int = 1,
) -> Tensor:
    """
    Divergence of the units' distribution from smoothed, tempered labels (SLD, eq. 4 and 5). In nats, the sum over
    positions divided by `divisor`, times `temperature` squared as in distillation (Hinton et al., 2015).

    Eq. 5's target takes two values only, one for the label and one for all other units, so that
    `KL = -H - other * sum(log p) - (target - other) * log p(label)`, and no target distribution is ever built.

    unit_logits: `(..., units)`, those of speech units alone, over which p is normalized; units: `(...)` labels, any
    value where `mask` `(...)` is False. At 6000 units, smoothing 0.1 and temperature 1 the target is nearly uniform
    (4.1e-4 against 1.7e-4): the term is a penalty on confidence.
    """
    num_units = unit_logits.shape[-1]
    smoothed = torch.tensor([1 - smoothing + smoothing / num_units, smoothing / num_units], dtype=torch.float64)
    weights = torch.tensor([1.0, num_units - 1.0], dtype=torch.float64)  # how many units have each value
    log_values = smoothed / temperature - torch.logsumexp(smoothed / temperature + weights.log(), dim=0)
    target, other = log_values.exp().tolist()
    negative_entropy = float((weights * log_values.exp() * log_values).sum())

    logits = unit_logits.float()
    normalizer = logits.logsumexp(dim=-1)  # (...)
    label_logits = logits.gather(-1, units.clamp(0, num_units - 1).unsqueeze(-1)).squeeze(-1)
    cross = other * (logits.sum(dim=-1) - num_units * normalizer) + (target - other) * (label_logits - normalizer)
    divergence = (negative_entropy - cross).masked_fill(~mask, 0.0)
    return temperature**2 * divergence.sum() / divisor


def ctc_loss(
    logits: Tensor, frame_mask: Tensor, labels: Tensor, blank_id: int, num_labels: Tensor | int | None = None
) -> Tensor:
    """
    Connectionist temporal classification in nats per label (Graves et al., 2006).

    logits: `(batch, frames, vocabulary)`; frame_mask: `(batch, frames)`, True on real ones; labels: `(batch, tokens)`,
    -100 on padding, its end tokens (`blank_id`) are dropped. Utterances with more labels than frames count as zero.
    """
    targets = labels.masked_fill(labels.eq(-100), blank_id)
    log_probabilities = logits.float().log_softmax(dim=-1).transpose(0, 1)
    total = nn.functional.ctc_loss(
        log_probabilities,
        targets,
        input_lengths=frame_mask.sum(dim=1),
        target_lengths=targets.ne(blank_id).sum(dim=1),
        blank=blank_id,
        reduction="sum",
        zero_infinity=True,
    )
    return total / (labels.ne(-100).sum() if num_labels is None else num_labels)


def transducer_loss(
    logits: Tensor,
    labels: Tensor,
    frame_mask: Tensor,
    blank_id: int,
    num_labels: Tensor | int | None = None,
) -> Tensor:
    """
    RNN-T loss in nats per label (Graves, 2012; L_asr of FactoredASR): the utterances' sum over the number of labels.

    logits: `(batch, frames, tokens + 1, vocabulary)`; labels: `(batch, tokens)`, -100 on padding; frame_mask: `(batch,
    frames)`, True on real ones; num_labels: divisor, the labels of this batch when None. Torchaudio's kernel under
    Transformers' `rnnt_loss`, whose `mean_volume` this is.
    """
    frame_counts, label_counts = frame_mask.sum(dim=1), labels.ne(-100).sum(dim=1)
    total = rnnt_loss(
        logits[:, : int(frame_counts.max()), : int(label_counts.max()) + 1],
        labels[:, : int(label_counts.max())].clamp_min(0),
        frame_counts,
        label_counts,
        blank_token_id=blank_id,
        reduction="sum",
    )
    return total / (label_counts.sum() if num_labels is None else num_labels)


def background_contrast_loss(
    context: Tensor,
    mask: Tensor,
    positions: Tensor,
    shifts: Tensor,
    temperature: float = 1.0,
    normalize: bool = False,
    include_positive: bool = False,
    num_utterances: Tensor | int | None = None,
    across_processes: bool = True,
) -> Tensor:
    """
    Frames of one utterance have the same context, those of others another (FactoredASR, eq. 2). In nats, mean over the
    utterances and the sampled pairs of each.

    The equation's double sum over the frames of an utterance is sampled: one frame j for each frame i. So are its M
    negatives, frames `min(j, |l|)` of the utterances `l`: memory is linear in frames and in M. Utterances without
    negatives, a batch of one, count as 0.

    Args:
        context: `(batch, frames, dim)`, of this process.
        mask: `(batch, frames)`, True on real frames.
        positions: `(batch, frames)`, the frame j drawn for each frame i.
        shifts: `(negatives,)`, where the negatives are: utterance `k + shift` of all processes' utterances, cyclic.
        temperature, normalize, include_positive: the equation's own are 1, False and False; as in SimCLR, which it
            builds on, scores are of unit vectors, sharpened, and the positive stands in the denominator, too.
        num_utterances: divisor of the sum, this batch's when None.
        across_processes: negatives come from the batches of all processes, which are of one size; else from this one.
    """
    values = nn.functional.normalize(context.float(), dim=-1) if normalize else context.float()
    everyone, lengths, first = values, mask.sum(dim=1), 0
    if across_processes:
        everyone, lengths, first = gather_utterances(values, lengths)
    own = torch.arange(len(values), device=values.device)
    positive = (values * values[own[:, None], positions]).sum(dim=-1) / temperature  # (batch, frames)
    scores = [positive] if include_positive else []
    for shift in shifts.tolist():
        others = (first + own + shift) % len(everyone)
        frames = torch.minimum(positions, lengths[others, None] - 1)  # min(j, |l|)
        scores.append((values * everyone[others[:, None], frames]).sum(dim=-1) / temperature)
    if not len(shifts):
        return values.sum() * 0.0
    per_pair = torch.stack(scores).logsumexp(dim=0) - positive
    per_utterance = (per_pair * mask).sum(dim=1) / mask.sum(dim=1)
    return per_utterance.sum() / (len(values) if num_utterances is None else num_utterances)


def frame_mean(values: Tensor, mask: Tensor, num_frames: Tensor | int | None = None) -> Tensor:
    """Mean of `values` `(batch, frames)` over real frames; with `num_frames` their sum divided by that number."""
    total = (values * mask).sum()
    return total / (mask.sum() if num_frames is None else num_frames)


def consensus_loss(
    projections: Tensor,
    mask: Tensor,
    num_frames: Tensor | int | None = None,
    reduction: str = "mean",
    detach: bool = True,
) -> Tensor:
    """
    Pull every voter towards the mean of all voters (StableToken, eq. 4). Unitless, mean over real frames and voters.

    projections: `(voters, batch, frames, bits)` before binarization; mask: `(batch, frames)`, True on real frames.
    reduction: over bits. The equation's squared norm is "sum"; "mean", 1 / bits of it, is what public code uses the
    weight 0.25 with. detach: no gradient through the mean, so that the clean majority anchors it.

    Raises:
        ValueError: unknown reduction.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction must be "mean" or "sum"; got {reduction!r}.')
    consensus = projections.mean(dim=0)
    consensus = consensus.detach() if detach else consensus
    squared_distance = (projections - consensus).pow(2).mean(dim=0)  # (batch, frames, bits)
    per_frame = squared_distance.mean(dim=-1) if reduction == "mean" else squared_distance.sum(dim=-1)
    return frame_mean(per_frame, mask, num_frames)


def commitment_loss(
    projections: Tensor, scores: Tensor, mask: Tensor, num_frames: Tensor | int | None = None
) -> Tensor:
    """
    Keep the projections near the vote they led to (StableToken, eq. 5). Unitless, mean over voters, bits, real frames.

    projections: `(voters, batch, frames, bits)`; scores: `(batch, frames, bits)`, the mean vote, taken as constant.
    """
    per_frame = (projections - scores.detach()).pow(2).mean(dim=(0, -1))
    return frame_mean(per_frame, mask, num_frames)


def masked_squared_error(
    prediction: Tensor, target: Tensor, mask: Tensor, num_frames: Tensor | int | None = None
) -> Tensor:
    """
    Squared L2 distance per dimension (Explainable disentanglement, eq. 5 and 6). Mean over dimensions and real frames.

    The equations' squared norm is a sum over dimensions; the mean, as in the code that the paper builds on, gives
    their weight of 0.5 one meaning at any width. prediction, target: `(batch, frames, dim)`; mask: `(batch, frames)`.
    """
    return frame_mean((prediction.float() - target.float()).pow(2).mean(dim=-1), mask, num_frames)


def noise_classification(logits: Tensor, labels: Tensor, num_utterances: Tensor | int | None = None) -> Tensor:
    """
    Cross-entropy of the noise head in nats per utterance (Explainable disentanglement, eq. 7).

    logits: `(batch, classes)`; labels: `(batch,)`; num_utterances: divisor of the sum, this batch's when None.
    """
    total = nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
    return total / (len(labels) if num_utterances is None else num_utterances)


def bit_entropy(
    projections: Tensor, mask: Tensor, temperature: float, num_frames: Tensor | int | None = None
) -> Tensor:
    """
    Entropy in nats of a frame's soft code assignment, mean over voters and real frames (LFQ, Yu et al., 2023).

    The assignment is a softmax over all `2**bits` codes of `2 x.c / temperature`. It factorises over bits with
    `p(bit j = 1) = sigmoid(4 x_j / temperature)`, so its entropy is the sum of the bits' own, exactly.
    """
    logits = (4.0 * projections / temperature).abs()  # the entropy is even; of one sign, nothing cancels below
    entropies = nn.functional.softplus(-logits) + logits * (-logits).sigmoid()  # Bernoulli entropy from its logit
    return frame_mean(entropies.sum(dim=-1).mean(dim=0), mask, num_frames)


def batch_entropy(projections: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """
    Entropy in nats of the mean code assignment over the real frames of all processes, mean over voters.

    Subtracted, it spreads codes over the codebook. With the bits in two halves, frames x (2**low + 2**high) numbers
    replace frames x 2**bits: the mean over frames of the outer products is one matrix product. Gradients flow through
    the sum over processes, so every process gets the gradient of the whole batch.

    Not additive: the mean of micro-batches' entropies is below the entropy of their union.
    """
    valid = projections[:, mask]  # (voters, frames, bits)
    probabilities = (4.0 * valid / temperature).sigmoid()
    split = (projections.shape[-1] + 1) // 2
    low, high = code_distribution(probabilities[..., :split]), code_distribution(probabilities[..., split:])
    with torch.autocast(projections.device.type, enabled=False):
        counts = high.transpose(1, 2) @ low  # expected uses of each code
    counts = sum_over_processes(counts).flatten(1)  # (voters, codes)
    distribution = counts / counts.sum(dim=-1, keepdim=True)
    return -(distribution * distribution.clamp_min(1e-12).log()).sum(dim=-1).mean()


def code_distribution(probabilities: Tensor) -> Tensor:
    """`(..., 2**bits)` distribution over codes of independent bits with `p(bit = 1)` of `(..., bits)`, LSB first."""
    distribution = probabilities.new_ones(*probabilities.shape[:-1], 1)
    for bit in range(probabilities.shape[-1]):
        one = probabilities[..., bit : bit + 1]
        distribution = torch.cat([distribution * (1 - one), distribution * one], dim=-1)
    return distribution


def gather_utterances(values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, int]:
    """
    The utterances of all processes, in the order of the processes, and the place of this process's first one.

    values: `(batch, frames, dim)`, gathered with gradients; lengths: `(batch,)`. Batches are of one size, as
    accelerate's data loaders make them; frames may differ.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values, lengths, 0
    longest = torch.tensor(values.shape[1], device=values.device)
    torch.distributed.all_reduce(longest, torch.distributed.ReduceOp.MAX)
    padded = nn.functional.pad(values, (0, 0, 0, int(longest) - values.shape[1]))
    everyone = torch.cat(torch.distributed.nn.functional.all_gather(padded.contiguous()))
    counts = [torch.zeros_like(lengths) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(counts, lengths.contiguous())
    return everyone, torch.cat(counts), torch.distributed.get_rank() * len(values)


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum of `values` over all processes of a distributed run, with gradients; `values` itself in a single process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.nn.functional.all_reduce(values)
    return values
