"""What a frozen model makes of each utterance, computed once and kept in memory."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..modeling.modeling_hasrd_ctc import HasrdForCTC

KEPT_TYPE = torch.float16  # half the memory; recognizers do not see more than three digits


class RepresentationCache:
    """
    `HasrdForCTC.represent` of batches of `FeatureTextCollator`, for corpora whose representations fit into memory:
    2000 strings of spoken digits, 90 minutes, take 50 MB for each layer of 144 dimensions.

    Utterances are known again by their samples (`seeds`, `num_samples`), in any batch. What is given is always what
    was kept, rounded to three digits, so that an utterance is the same in every epoch.
    """

    def __init__(self, model: HasrdForCTC):
        self.model = model
        self.kept: dict[tuple[int, int], Tensor] = {}

    def represent(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """
        The representation and its mask, as `HasrdForCTC.represent` has them; only of what is new is it computed.

        Raises:
            ValueError: what is new is NaN, infinite or beyond float16.
        """
        utterances = list(zip(inputs["seeds"].tolist(), inputs["num_samples"].tolist(), strict=True))
        new = [row for row, utterance in enumerate(utterances) if utterance not in self.kept]
        if new:
            name = self.model.main_input_name
            given = {name: inputs[name][new], "attention_mask": inputs["attention_mask"][new]}
            for row, states, mask in zip(new, *self.model.represent(**given)):
                self.kept[utterances[row]] = self._keep(states[mask], num_samples=utterances[row][1])
        rows, device = [self.kept[utterance] for utterance in utterances], inputs["labels"].device
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        return pad_sequence(rows, batch_first=True).to(device).float(), mask.to(device)

    def _keep(self, states: Tensor, num_samples: int) -> Tensor:
        """States `(tokens, ...)` of an utterance as they are kept."""
        kept = states.to("cpu", KEPT_TYPE)
        if not bool(kept.isfinite().all()):
            raise ValueError(
                f"the {self.model.config.representation} of an utterance of {num_samples} samples has NaN, infinity "
                "or values beyond float16: repair the recording or leave it out; if all are like that, train without "
                "keep_representations."
            )
        return kept
