"""The cache key: everything that decides a teacher's outputs except the view.

Of a user's teacher its file counts too; the modules that the file imports do not.
"""

from __future__ import annotations

from hashlib import blake2b

import torch

from kdsearch.data.feed import Feed
from kdsearch.models.model import Model, eval_batch
from kdsearch.registry import sources_of

# Raise it with any change of a view's pixels; a test pins their digest.
VIEWS_VERSION = 1


def key_of(teacher: Model, feed: Feed, *, view_seed: int, data_key: str) -> str:
    """Return a digest of the teacher, its weights and input, the images, the views, the machine.

    feed: the images, on the teacher's device, known by `data_key` and their shape [N, C, S, S].
    """
    device = feed.device
    if device.type == "cuda":
        hardware = (torch.cuda.get_device_name(device), torch.version.cuda)
    else:
        hardware = (device.type, torch.backends.cpu.get_cpu_capability())
    facts = (
        VIEWS_VERSION,
        eval_batch(feed.images.shape[2:]),
        view_seed,
        data_key,
        feed.images.shape,
        torch.__version__,
        torch.get_float32_matmul_precision(),
        hardware,
        teacher.preprocess,
        teacher.known,
        teacher.network,
        *filter(None, [sources_of([teacher.name])]),
    )
    digest = blake2b(repr(facts).encode(), digest_size=16)
    for name, tensor in teacher.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
