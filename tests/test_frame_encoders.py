"""Frames and spans that the encoders of FactoredASR do without in training."""

import pytest
import torch
from tiny_frame_encoders import WAVEFORMS, alone, build, make_inputs
from transformers import Wav2Vec2Config

from clearspeech.modeling.frame_encoders import FrameEncoder


@pytest.mark.parametrize("encoder", ["lstm", "conformer", "whisper", "parakeet", "wav2vec2"])
def test_a_masked_frame_changes_the_states(encoder):
    model = build(encoder)
    inputs = make_inputs(model, lengths=(24,))
    masked = torch.zeros(model.state_mask(inputs["attention_mask"]).shape, dtype=torch.bool)
    plain = model.factors(**inputs, masked_frames=masked).content
    torch.testing.assert_close(model.factors(**inputs).content, plain)
    masked[0, 0] = True
    assert not torch.allclose(model.factors(**inputs, masked_frames=masked).content[0, 0], plain[0, 0])


def test_masked_frames_come_on_top_of_the_spans_that_an_encoder_of_waveforms_draws():
    model = build("wav2vec2")
    inputs = make_inputs(model, lengths=(400, 300))
    mask = model.state_mask(inputs["attention_mask"])
    model.frame_encoder.config.mask_time_prob = 0.3
    model.frame_encoder.train()
    given = []
    encoder = model.frame_encoder.encoder
    encoder.register_forward_pre_hook(
        lambda module, args, options: given.append(options["mask_time_indices"]), with_kwargs=True
    )
    masked = torch.zeros_like(mask)
    masked[:, 3] = True
    model.factors(**inputs, masked_frames=masked)
    model.frame_encoder.draws_spans = False
    model.factors(**inputs, masked_frames=masked)
    model.factors(**inputs)
    assert given[0][:, 3].all() and given[0].sum() > masked.sum()
    assert torch.equal(given[1], masked) and not given[2].any()
    model.frame_encoder.draws_spans = True
    model.eval().factors(**inputs, masked_frames=masked)
    assert torch.equal(given[3], masked)


def test_spans_are_as_long_and_as_many_as_the_configuration_asks_for():
    spans = dict(mask_time_prob=0.2, mask_time_length=4, mask_time_min_masks=1)
    encoder = FrameEncoder(Wav2Vec2Config(**WAVEFORMS, **spans))
    lengths = torch.tensor([400, 100, 5, 4, 3])
    mask = torch.arange(400) < lengths[:, None]
    draws = torch.stack([encoder.draw_spans(mask, [seed, 1, seed, seed, seed]) for seed in range(200)])
    assert not (draws & ~mask).any() and not draws[:, lengths <= 4].any()
    assert (draws[:, 2].sum(dim=1) == 4).all()
    assert 0.15 < float(draws[:, 0].float().mean()) < 0.2 and draws[:, 0].any(dim=0).all()  # they overlap
    assert (draws[:, 1] == draws[0, 1]).all()  # of its own seed, whatever the others'
    starts = (draws[:, 0] & ~torch.nn.functional.pad(draws[:, 0], (1, -1))).nonzero().tolist()
    assert all(draws[row, 0, place : place + 4].all() for row, place in starts)


def test_an_encoder_of_waveforms_trains_without_any_masks():
    encoder = FrameEncoder(Wav2Vec2Config(**WAVEFORMS, mask_time_prob=0.0)).train()
    assert encoder(torch.randn(1, 400), None)[0].isfinite().all()


@pytest.mark.parametrize("encoder", ["wav2vec2", "wav2vec2, group norm"])
def test_utterances_shorter_than_a_span_train_without_one(encoder):
    model = build(encoder).train()
    inputs = make_inputs(model, lengths=(24, 4))
    assert model.state_mask(inputs["attention_mask"])[1].sum() < model.config.encoder_config.mask_time_length
    for given in (inputs, alone(model, inputs, 1)):
        assert model.factors(**given).content.isfinite().all()
