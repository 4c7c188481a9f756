"""Find pretrained weights: a file of the user, a local cache, or a download.

Names are `timm:NAME`, `torchvision:NAME` or a student family. No server is waited for longer than
REACH_SECONDS before a download starts. A key names weights by their content.
"""

from __future__ import annotations

import hashlib
import logging
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from kdsearch import downloads
from kdsearch.errors import SpecError, did_you_mean

REACH_SECONDS = 4.0
FLAG = "--pretrained-weights"
_SILENT_SECONDS = 60.0
_silent: dict[str, float] = {}  # until when a silent server is not tried again
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Remote:
    """A file in a local cache or on a server. repo: of the hub; None: `url` is the file itself."""

    url: str
    server: str
    cached: Path | None
    repo: str | None = None
    files: tuple[str, ...] = ()


class MissingWeightsError(SpecError):
    """Weights that a server did not send. urls: of the files, by network; why: it did not."""

    def __init__(self, urls: Mapping[str, str], server: str, why: str) -> None:
        files = ",".join(f"{name}=FILE" for name in urls)
        what, rest = next(iter(urls.values())), ""
        if len(urls) > 1:
            what, rest = "these", "".join(f"\n  {name}: {url}" for name, url in urls.items())
        super().__init__(
            f"the pretrained weights of {' and '.join(urls)} are not on this machine, and {server} "
            f"cannot send them ({why}). Download {what} elsewhere and give {FLAG} {files}, or "
            f"start from scratch: student.init scratch{rest}"
        )
        self.urls, self.server, self.why = urls, server, why


def joined(errors: Iterable[SpecError]) -> SpecError:
    """Return one error for several: one text for what a server did not send for one reason."""
    lines = []
    unsent: dict[tuple[str, str], dict[str, str]] = {}
    for error in errors:
        if isinstance(error, MissingWeightsError):
            unsent.setdefault((error.server, error.why), {}).update(error.urls)
        else:
            lines.append(str(error))
    lines += [str(MissingWeightsError(urls, *cause)) for cause, urls in unsent.items()]
    return SpecError("\n".join(dict.fromkeys(lines)))


def read_files(text: str | None, flag: str = FLAG, *, sole: str | None = None) -> dict[str, Path]:
    """Read `NAME=FILE,NAME=FILE`. sole: the name of a file without one. Raises SpecError.

    The files must exist.
    """
    found: dict[str, Path] = {}
    for part in filter(None, (part.strip() for part in (text or "").split(","))):
        name, equals, file = part.partition("=")
        if not equals and sole is not None:
            name, file = sole, part
        if not (name and file):
            raise SpecError(f"{flag} {part!r}: expected NAME=FILE, as timm:resnet18=weights.pth")
        if not Path(file).is_file():
            raise SpecError(f"{flag} {part}: there is no file {file!r}")
        found[name] = Path(file)
    return found


def file_of(name: str, files: Mapping[str, Path]) -> Path | None:
    """Return the user's file for a network; `timm:` and a tag as `.in1k` may be left out."""
    bare = name.partition(":")[2] or name
    known = (name, name.partition(".")[0], bare, bare.partition(".")[0])
    return next((files[each] for each in known if each in files), None)


def locate(names: Iterable[str], files: Mapping[str, Path]) -> dict[str, Path]:
    """Return the weights file of each network: the user's, a cached one, or one just downloaded.

    Raises one SpecError that names everything missing, what to download and the flag to give.
    """
    found, missing = {}, []
    for name in dict.fromkeys(names):
        try:
            found[name] = file_of(name, files) or _fetched(name)
        except SpecError as error:
            missing.append(error)
    if missing:
        raise joined(missing)
    return found


def cached(name: str) -> Path | None:
    """Return the weights file of a library's network in its local cache; None without one."""
    return _remote(name).cached


@lru_cache(maxsize=64)
def _key(file: Path, size: int, changed_ns: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]


def key_of(file: Path) -> str:
    """Return the first 16 digits of the SHA-256 of a file; read again only when it changes."""
    stat = file.stat()
    return _key(file.resolve(), stat.st_size, stat.st_mtime_ns)


def _fetched(name: str) -> Path:
    """Return the weights of a library's network from its cache or its server."""
    remote = _remote(name)
    if remote.cached is not None:
        return remote.cached
    why = unreachable(remote.server)
    if not why:
        _announce(name, remote)
        try:
            return _download(remote)
        except Exception as error:  # what a client raises for a broken line differs by client
            why = " ".join(str(error).split())[:200] or type(error).__name__
    raise MissingWeightsError({name: remote.url}, remote.server, why)


def announce_download(name: str, url: str | None = None) -> None:
    """Announce the weights that a library is about to download; nothing where they are cached.

    url: that of the file; None for a name of `locate`.
    """
    remote = _remote(name) if url is None else _url_remote(url)
    if remote.cached is None:
        _announce(name, remote)


def _announce(name: str, remote: _Remote) -> None:
    downloads.announce(f"the pretrained weights of {name} from {remote.server}")


def _remote(name: str) -> _Remote:
    library, _, network = name.partition(":")
    if library == "timm" and network:
        return _timm_remote(name, network)
    if library == "torchvision" and network:
        return _torchvision_remote(name, network)
    raise SpecError(f"there are no pretrained weights of {name!r}: give {FLAG} {name}=FILE")


def _timm_remote(name: str, network: str) -> _Remote:
    import timm
    from huggingface_hub import constants, try_to_load_from_cache

    config = timm.get_pretrained_cfg(network, allow_unregistered=False)
    if config is None or not (config.hf_hub_id or config.url):
        raise SpecError(f"timm has no pretrained weights of {name}: give {FLAG} {name}=FILE")
    if not config.hf_hub_id:
        return _url_remote(str(config.url))
    repo = config.hf_hub_id
    files = (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_FILES
    there = (try_to_load_from_cache(repo, file) for file in files)
    cached = next((Path(path) for path in there if isinstance(path, str)), None)
    endpoint = constants.ENDPOINT
    url = f"{endpoint}/{repo}/resolve/main/{files[0]}"
    return _Remote(url=url, server=endpoint, cached=cached, repo=repo, files=files)


def _torchvision_remote(name: str, network: str) -> _Remote:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if network not in known:
        raise SpecError(f"torchvision has no classifier {network!r}{did_you_mean(network, known)}")
    return _url_remote(torchvision.models.get_model_weights(network).DEFAULT.url)


def _url_remote(url: str) -> _Remote:
    scheme, _, rest = url.partition("://")
    file = _torch_file(url)
    server = f"{scheme}://{rest.partition('/')[0]}"
    return _Remote(url=url, server=server, cached=file if file.is_file() else None)


def _torch_file(url: str) -> Path:
    import torch

    return Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])


def _download(remote: _Remote) -> Path:
    if remote.repo is None:
        import torch

        file = _torch_file(remote.url)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(remote.url, str(file), progress=False)
        return file
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every retry
    for name in remote.files[:-1]:
        try:
            return Path(hf_hub_download(remote.repo, name))
        except EntryNotFoundError:
            continue
    return Path(hf_hub_download(remote.repo, remote.files[-1]))


def unreachable(server: str) -> str:
    """Return why a server cannot be reached within REACH_SECONDS, '' if it answers."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    found = [f"no answer within {REACH_SECONDS:g} s"]
    if time.monotonic() < _silent.get(server, 0.0):  # waited for once, not for each network
        return found[0]

    def ask() -> None:
        try:
            _open(server)
            found.append("")
        except urllib.error.HTTPError:  # an answer
            found.append("")
        except Exception as error:
            found.append(str(getattr(error, "reason", error)))

    # A thread: the time that a name server takes has no limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    if len(found) == 1:
        _silent[server] = time.monotonic() + _SILENT_SECONDS
    return found[-1]


@contextmanager
def quick_to_fail() -> Iterator[None]:
    """Let a library's downloads in this block fail soon without a network; cached files still load.

    huggingface_hub retries for minutes: it is offline for the block where its server is
    unreachable.
    """
    from huggingface_hub import constants

    before, timeout = constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    constants.HF_HUB_OFFLINE = bool(unreachable(constants.ENDPOINT))
    socket.setdefaulttimeout(REACH_SECONDS)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        socket.setdefaulttimeout(timeout)


def _open(server: str) -> None:
    request = urllib.request.Request(server, method="HEAD")
    urllib.request.urlopen(request, timeout=REACH_SECONDS).close()
