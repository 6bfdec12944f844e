"""Loading of models whose parts must all be there and belong to one another."""

import torch

from .pretrained_encoders import NOT_TRAINED


class CheckedLoadingMixin:
    """`from_pretrained` of a model that knows in `check_parts` whether its parts belong to one another."""

    def check_parts(self, name: str):
        """Raise ValueError for parts that do not belong to one another; `name` is where they were loaded from."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls,
        *args,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        output_loading_info: bool = False,
        **kwargs,
    ):
        """
        `PreTrainedModel.from_pretrained` in float32, or in `dtype` (once called `torch_dtype`) when it is given.

        Raises:
            ValueError: weights are missing, or parts do not belong to one another.
        """
        # a part that was cast while it was loaded could not be recognized
        model, report = super().from_pretrained(*args, dtype=torch.float32, output_loading_info=True, **kwargs)
        name = args[0] if args else model.name_or_path
        missing = {each for each in report["missing_keys"] if not each.endswith(NOT_TRAINED)}
        if missing:
            raise ValueError(
                f"{name} lacks weights of a {cls.__name__}: {', '.join(sorted(missing))}. Fetch it whole."
            )
        model.check_parts(name)
        dtype = torch_dtype if dtype is None else dtype
        if dtype not in (None, "auto"):
            model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        return (model, report) if output_loading_info else model
