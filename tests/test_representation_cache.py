"""Questions to the memory of representations: what it refuses to keep."""

import pytest
import torch
from tiny_hasrd_ctc import build_ctc_trainer

from clearspeech.modeling.modeling_hasrd_ctc import HasrdForCTC


@pytest.mark.parametrize("value", [70_000.0, float("nan")])
@pytest.mark.parametrize("representation", ["layers", "combined"])
def test_what_float16_cannot_hold_is_refused(representation, value, tmp_path, monkeypatch):
    trainer = build_ctc_trainer(tmp_path, representation=representation, keep_representations=True)
    batch = next(iter(trainer.get_train_dataloader()))
    represent = HasrdForCTC.represent

    def spoiled(model, **inputs):
        states, mask = represent(model, **inputs)
        states[1, 0, ..., 0] = value
        return states, mask

    monkeypatch.setattr(HasrdForCTC, "represent", spoiled)
    samples = int(batch["num_samples"][1])
    with pytest.raises(ValueError, match=f"the {representation} of an utterance of {samples} samples .* float16"):
        trainer.cache.represent(batch)
    monkeypatch.undo()
    states, mask = trainer.cache.represent(batch)
    expected, _ = trainer.model.represent(**{name: batch[name] for name in ("input_features", "attention_mask")})
    torch.testing.assert_close(states[mask], expected[mask], atol=1e-2, rtol=1e-2)
