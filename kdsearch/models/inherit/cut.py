"""Cut a network after one of its stages: what followed is replaced by a mean and a linear head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdsearch.data.sizes import Size
from kdsearch.errors import SpecError
from kdsearch.models.maps import as_map

if TYPE_CHECKING:
    from kdsearch.models.features import Tapped


class Cut(nn.Module):
    """The layers of a network up to a stage, under a linear head on the mean over positions.

    `body` holds the layers under the names of the whole network. Raises SpecError for a network
    whose forward cannot be traced.
    """

    def __init__(
        self, whole: Tapped, stage: int, *, shape: tuple[int, int, int], num_classes: int
    ) -> None:
        super().__init__()
        from torchvision.models.feature_extraction import create_feature_extractor

        name = whole.stages[stage].name
        self.size: Size = shape[1:]
        try:
            self.body = create_feature_extractor(
                whole.module,
                {name: "stage"},
                tracer_kwargs={"leaf_modules": _leaves(whole.module, name)},
                suppress_diff_warning=True,
            )
        except Exception as error:  # what a trace raises depends on the network's own code
            reason = " ".join(str(error).split())[:200]
            raise SpecError(
                f"{type(whole.module).__name__} cannot be cut after its stage {stage + 1}: its "
                f"forward cannot be traced ({reason}); leave cut at 0"
            ) from error
        like = next(whole.parameters())
        with torch.no_grad():
            image = torch.zeros((1, *shape), dtype=like.dtype, device=like.device)
            self.body.eval()
            channels = self._embedding(image).shape[1]
            self.body.train(whole.module.training)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, K]."""
        logits: Tensor = self.head(self._embedding(x))
        return logits

    def _embedding(self, x: Tensor) -> Tensor:
        return as_map(self.body(x)["stage"], self.size).mean(dim=(2, 3))


def _leaves(module: nn.Module, stage: str) -> list[type[nn.Module]]:
    """Return the types of modules that are not traced: all but lists and what holds the stage."""
    holders = {type(part) for name, part in module.named_modules() if stage.startswith(f"{name}.")}
    kinds = {type(part) for name, part in module.named_modules() if name}
    return [*(kinds - holders - {nn.Sequential, nn.ModuleList})]
