"""Plug-ins by name: one file each, named like the file, without registration.

Listing the names only reads the folder; a plug-in is imported when its class is looked up. A user's
own plug-in is written `package.module:Class` or `path/to/file.py:Class`. Such a file may import the
modules of its folder. The base class may be given in that form too, so that listing a package
imports nothing that its plug-ins need.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from pkgutil import iter_modules
from types import MappingProxyType, ModuleType
from typing import Generic, TypeVar, cast

from kdsearch.errors import SpecError, did_you_mean, explained

T = TypeVar("T")
_NOT_PLUGINS = frozenset({"base"})
_SHOWN = 10
_folders: set[Path] = set()  # of users' files


def import_object(path: str, *, what: str) -> object:
    """Import `package.module:name` or `path/to/file.py:name`.

    Raises SpecError when the file, the module or the name does not exist.
    """
    source, _, attribute = path.rpartition(":")
    if not source or not attribute:
        raise SpecError(
            f"{what} {path!r}: expected 'package.module:name' or 'path/to/file.py:name'"
        )
    module = _load_file(Path(source), what) if source.endswith(".py") else _load(source, what)
    try:
        found: object = getattr(module, attribute)
    except AttributeError:
        public = [name for name in vars(module) if not name.startswith("_")]
        hint = did_you_mean(attribute, public)
        own = [
            name
            for name in public
            if getattr(vars(module)[name], "__module__", "") == module.__name__
        ]
        found = f"; it defines {', '.join(own[:_SHOWN])}" if own else ""
        raise SpecError(
            f"{what} {path!r}: {source} defines no {attribute!r}{hint}{found}"
        ) from None
    return found


def sources_of(names: Iterable[str]) -> str:
    """Return a digest of the user's files among names such as `path/to/file.py:Class`, or ''."""
    files = sorted({name.rpartition(":")[0] for name in names if ".py:" in name})
    contents = [Path(file).read_bytes() for file in files if Path(file).is_file()]
    return blake2b(b"".join(contents), digest_size=8).hexdigest() if contents else ""


def _load(name: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise SpecError(f"{what}: cannot import {name!r}: {explained(error)}") from error


def _load_file(path: Path, what: str) -> ModuleType:
    if not path.is_file():
        raise SpecError(f"{what}: there is no file {str(path)!r}")
    name = f"{_package_of(path.resolve().parent)}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    try:
        with neighbours(str(path)):
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise SpecError(f"{what}: {path} fails to import: {explained(error)}") from error
    return module


def _package_of(folder: Path) -> str:
    """Return an empty package whose modules are a folder's: `from .neighbour import x` works."""
    name = f"user_{blake2b(str(folder).encode(), digest_size=4).hexdigest()}"
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    return name


@contextmanager
def neighbours(source: str) -> Iterator[None]:
    """Let `import neighbour` find the modules in the folder of a user's file.

    source: as in `import_object`; only a file has neighbours. Equal names in two folders are two
    modules.
    """
    path = Path(source.rpartition(".py")[0] + ".py").resolve()
    if not path.is_file():
        yield
        return
    folder = path.parent
    others = [other for other in _folders if other != folder]
    own = {module.name for module in iter_modules([str(folder)])}
    for name in [name for name in sys.modules if name.partition(".")[0] in own]:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if any(Path(file).is_relative_to(other) for other in others):
            del sys.modules[name]
    _folders.add(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


class Registry(Generic[T]):
    """The subclasses of `base` in the modules of one package, by module name."""

    def __init__(
        self,
        package: str,
        base: type[T] | str,
        *,
        what: str,
        aliases: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._package = package
        self._base = base
        self._what = what
        self._aliases = aliases

    def names(self) -> tuple[str, ...]:
        """Return the built-in names in alphabetical order, without importing anything."""
        package = importlib.import_module(self._package)
        found = (module.name for module in iter_modules(package.__path__))
        return tuple(
            sorted(name for name in found if name not in _NOT_PLUGINS and not name.startswith("_"))
        )

    def canonical(self, name: str) -> str:
        """Resolve an alias; return a built-in name or a user's `...:Class` as it is.

        Raises SpecError that lists the known names for an unknown one.
        """
        name = self._aliases.get(name, name)
        known = self.names()
        if name not in known and ":" not in name:
            hint = did_you_mean(name, [*known, *self._aliases])
            raise SpecError(f"unknown {self._what} {name!r}{hint}; known: {', '.join(known)}")
        return name

    def get(self, name: str) -> type[T]:
        """Return the class of a built-in name or of a user's `...:Class`. Raises SpecError."""
        name = self.canonical(name)
        base = self._base_class()
        if ":" in name:
            found = import_object(name, what=self._what)
            if not (inspect.isclass(found) and issubclass(found, base)):
                raise SpecError(f"{self._what} {name!r} is not a {base.__name__} class")
            return found
        module = importlib.import_module(f"{self._package}.{name}")
        (plugin,) = (
            value
            for key, value in vars(module).items()
            if inspect.isclass(value)
            and issubclass(value, base)
            and value.__module__ == module.__name__
            and not key.startswith("_")
        )
        return plugin

    def _base_class(self) -> type[T]:
        if isinstance(self._base, str):
            return cast("type[T]", import_object(self._base, what=self._what))
        return self._base
