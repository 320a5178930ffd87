"""Model packages in object storage (S3, Google Cloud Storage, whatever fsspec knows), served from verified copies.

The cache of one URL is a directory of packages like any other: `<cache>/hourglass/<url>/<name>/<version>/`. A package
is copied file by file, none of which may be larger than its manifest says or have another hash, into a temporary
directory that is renamed at the end. A copy that is what the store's manifest says is not fetched again.

Where the store does not answer while a process starts, the copies are served; a change of what is served fails then.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service import files, plans
from service import labels as label_files
from service.errors import PackageError, StartError
from service.labels import Labels
from service.plans import MANIFEST, MAX_MANIFEST_BYTES, NAME, VERSION, Signature

if TYPE_CHECKING:
    from autoencoder.v1 import model_pb2

log = logging.getLogger(__name__)

# The extra that brings the library of a scheme.
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}

_CHUNK_BYTES = 8 << 20
# What libraries tell of an object that is another when its content is.
_IDENTITIES = ("ETag", "etag", "generation", "md5Hash", "LastModified", "last_modified", "updated", "created", "mtime")
_MAX_REASON = 300


@dataclass(frozen=True, kw_only=True)
class _Object:
    path: str
    size_bytes: int
    identity: str


class _Away(PackageError):
    """The store does not answer, or not in time."""


class ObjectStore:
    """A `stores.Store`. Raises StartError where the library of the URL is missing or the cache cannot be used."""

    def __init__(
        self,
        url: str,
        *,
        cache: Path,
        timeout_s: float,
        on_call: Callable[[bool, int], None] = lambda well, read_bytes: None,
    ) -> None:
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._on_call = on_call
        self._fs, root = _filesystem(self._url)
        self._root = root.rstrip("/")
        self._cache = _folder(cache, self._url)
        self._away = False
        # A look that began before another, and before what happened in between, must not end after it.
        self._looking = threading.Lock()
        # Of the last look.
        self._packages: dict[tuple[str, int], dict[str, _Object]] = {}
        self._label_files: dict[str, _Object] = {}
        # What was read of those, with the state in which it was.
        self._sizes: dict[tuple[str, int], tuple[_Object, dict[str, int]]] = {}
        self._labels: dict[str, tuple[_Object, Labels]] = {}

    def find(self, *, starting: bool = False) -> dict[str, list[int]]:
        with self._looking:
            return self._find(starting)

    def _find(self, starting: bool) -> dict[str, list[int]]:
        try:
            listing = self._call("find", self._root, detail=True)
        except FileNotFoundError as error:
            raise PackageError(self._url, f"is not there: {error}") from error
        except _Away as error:
            found = plans.find(self._cache) if starting else {}
            if not found:
                raise
            self._tell_away(error)
            return found
        packages: dict[tuple[str, int], dict[str, _Object]] = {}
        labelled: dict[str, _Object] = {}
        for path, info in listing.items():
            match path.removeprefix(self._root).lstrip("/").split("/"):
                case [name, label_files.FILE] if NAME.fullmatch(name):
                    labelled[name] = _object(path, info)
                case [name, version, file] if NAME.fullmatch(name) and VERSION.fullmatch(version) and file:
                    packages.setdefault((name, int(version)), {})[file] = _object(path, info)
        self._packages, self._label_files, self._away = packages, labelled, False
        self._sizes = {key: known for key, known in self._sizes.items() if key in packages}
        found = {name: [] for name, _ in sorted(packages)}
        for name, version in sorted(packages):
            found[name].append(version)
        return found

    def signature(self, name: str, version: int) -> Signature | None:
        objects = {} if self._away else self._packages.get((name, version), {})
        manifest = objects.get(MANIFEST)
        if manifest is None:
            return None
        known = self._sizes.get((name, version))
        if known is None or known[0] != manifest:
            try:
                sizes = plans.listed_sizes(self._read(manifest.path, MAX_MANIFEST_BYTES))
            except (PackageError, ValueError):
                return None
            known = self._sizes[name, version] = manifest, sizes
        sizes = known[1]
        if any(file not in objects or objects[file].size_bytes != size for file, size in sizes.items()):
            return None
        present = [objects[file] for file in sorted({MANIFEST, *sizes})]
        return tuple((file.path, file.size_bytes, file.identity) for file in present)

    def labels(self, name: str) -> Labels:
        if self._away:
            return label_files.read(self._cache, name)
        file = self._label_files.get(name)
        if file is None:
            return {}
        known = self._labels.get(name)
        if known is None or known[0] != file:
            labels = label_files.parse(self._read(file.path, label_files.MAX_BYTES))
            self._keep_labels(name, labels)
            known = self._labels[name] = file, labels
        return known[1]

    def write_labels(self, name: str, labels: Labels) -> None:
        try:
            self._call("pipe_file", f"{self._root}/{name}/{label_files.FILE}", label_files.text(labels))
        except FileNotFoundError as error:
            raise PackageError(label_files.FILE, f"cannot be written in {self._url}: {error}") from error
        self._keep_labels(name, labels)

    @contextmanager
    def package(self, name: str, version: int, *, starting: bool, stop: Callable[[], bool]) -> Iterator[Path]:
        copy = self._cache / name / str(version)
        # Several processes serve from one cache: the first of them fetches, and none reads while it does.
        with self._locked(name, version):
            if not (starting and self._away):
                try:
                    self._renew(copy, name, version, stop)
                except _Away as error:
                    if not (starting and copy.is_dir()):
                        raise
                    self._tell_away(error)
            yield copy

    def trim(self, serving: Mapping[str, Collection[int]]) -> None:
        try:
            for model in self._cache.iterdir():
                versions = {str(version) for version in serving.get(model.name, ())}
                for path in model.iterdir():
                    if path.is_dir() and path.name not in versions:
                        shutil.rmtree(path, ignore_errors=True)
        except OSError as error:
            log.warning("the cache cannot be trimmed", extra={"cache": str(self._cache), "reason": error.strerror})

    def _renew(self, copy: Path, name: str, version: int, stop: Callable[[], bool]) -> None:
        """See to it that the copy is what the store has now. Raises PackageError; then the copy is as it was."""
        # Not before it is needed: a supervisor does without numpy and onnx.
        from service import packages

        where = f"{self._root}/{name}/{version}"
        content = self._read(f"{where}/{MANIFEST}", MAX_MANIFEST_BYTES)
        manifest = packages.parse_manifest(content)
        try:
            if files.read(copy, MANIFEST, MAX_MANIFEST_BYTES) == content:
                for file in manifest.files:
                    packages.read_listed(copy, file)
                return
            why = "another manifest"
        except PackageError as error:
            why = str(error) if copy.is_dir() else "no copy"
        try:
            staging = Path(tempfile.mkdtemp(prefix=".new-", dir=copy.parent))
            try:
                package = staging / copy.name
                package.mkdir()
                for file in manifest.files:
                    self._fetch(f"{where}/{file.name}", package / file.name, file, stop)
                (package / MANIFEST).write_bytes(content)
                if copy.exists():
                    copy.rename(staging / "old")
                package.rename(copy)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        except OSError as error:
            raise PackageError(f"--model-cache {self._cache}", f"cannot be written: {error.strerror}") from error
        fetched_bytes = sum(file.size_bytes for file in manifest.files)
        facts = {"model": name, "version": str(version), "bytes": fetched_bytes, "because": why}
        log.info("model fetched", extra=facts)

    def _fetch(self, path: str, target: Path, file: model_pb2.File, stop: Callable[[], bool]) -> None:
        size_bytes = self._size(path, file.name)
        if size_bytes != file.size_bytes:
            raise PackageError(file.name, f"has {size_bytes} bytes, the manifest says {file.size_bytes}")
        digest = hashlib.sha256()
        with open(target, "xb") as stream:
            for start in range(0, size_bytes, _CHUNK_BYTES):
                if stop():
                    raise PackageError(file.name, "was not fetched: the service is stopping")
                end = min(start + _CHUNK_BYTES, size_bytes)
                chunk = self._call("cat_file", path, start=start, end=end)
                if len(chunk) != end - start:
                    raise PackageError(file.name, f"gave {len(chunk)} bytes from {start} to {end}")
                digest.update(chunk)
                stream.write(chunk)
        if digest.hexdigest() != file.sha256:
            raise PackageError(file.name, f"sha256 is {digest.hexdigest()}, the manifest says {file.sha256!r}")

    def _read(self, path: str, limit_bytes: int) -> bytes:
        """A small file. Raises PackageError where there is none of at most so many bytes."""
        name = path.rpartition("/")[2]
        size_bytes = self._size(path, name)
        if size_bytes > limit_bytes:
            raise PackageError(name, f"has {size_bytes} bytes, more than the {limit_bytes} allowed")
        if not size_bytes:
            return b""  # no range of it can be asked for
        content: bytes = self._call("cat_file", path, start=0, end=size_bytes)
        return content[:limit_bytes]

    def _size(self, path: str, name: str) -> int:
        try:
            return int(self._call("info", path)["size"])
        except FileNotFoundError as error:
            raise PackageError(name, f"is not in {self._url}") from error

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """As `_reach`; whether it went well is told. That a file is not there is an answer."""
        try:
            answer = self._reach(method, *arguments, **options)
        except FileNotFoundError:
            self._on_call(True, 0)
            raise
        except _Away:
            self._on_call(False, 0)
            raise
        self._on_call(True, len(answer) if isinstance(answer, bytes) else 0)
        return answer

    def _reach(self, method: str, *arguments: Any, **options: Any) -> Any:
        """A method of the file system, bounded in time where its library is asynchronous. Raises FileNotFoundError,
        or _Away for everything else."""
        from fsspec.asyn import sync
        from fsspec.exceptions import FSTimeoutError

        try:
            if not self._fs.async_impl:
                return getattr(self._fs, method)(*arguments, **options)
            coroutine = getattr(self._fs, f"_{method}")
            return sync(self._fs.loop, coroutine, *arguments, timeout=self._timeout_s, **options)
        except FileNotFoundError:
            raise
        except FSTimeoutError as error:
            raise _Away(self._url, f"{method} took longer than --store-timeout-s={self._timeout_s:g}") from error
        except Exception as error:  # what the libraries raise has no common base
            reason = f"{type(error).__name__}: {error}"[:_MAX_REASON]
            raise _Away(self._url, f"{method} failed: {reason}") from error

    def _tell_away(self, error: _Away) -> None:
        self._away = True
        facts = {"url": self._url, "reason": error.rule, "cache": str(self._cache)}
        log.warning("the store is away: copies in the cache are served", extra=facts)

    def _keep_labels(self, name: str, labels: Labels) -> None:
        """For a start without the store; it does without them where they cannot be kept."""
        try:
            (self._cache / name).mkdir(exist_ok=True)
            label_files.write(self._cache, name, labels)
        except (OSError, PackageError) as error:
            log.warning("labels are not in the cache", extra={"model": name, "reason": str(error)})

    @contextmanager
    def _locked(self, name: str, version: int) -> Iterator[None]:
        try:
            (self._cache / name).mkdir(exist_ok=True)
            descriptor = os.open(
                self._cache / name / f".{version}.lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise PackageError(f"--model-cache {self._cache}", f"cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _object(path: str, info: Mapping[str, Any]) -> _Object:
    identity = " ".join(f"{key}={info[key]}" for key in _IDENTITIES if key in info)
    return _Object(path=path, size_bytes=int(info["size"]), identity=identity)


def _filesystem(url: str) -> tuple[Any, str]:
    """A file system of fsspec, and the path that it has for the URL."""
    scheme = url.partition("://")[0]
    extra = EXTRAS.get(scheme)
    try:
        from fsspec.core import url_to_fs

        # Listings are looked at to see what has changed.
        fs, root = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        needs = f"the extra {extra} (pip install 'hourglass[{extra}]')" if extra else "a library that is not installed"
        raise StartError(f"--models {url}: needs {needs}: {error}") from error
    except Exception as error:  # an unknown scheme, a part of the URL that the library does not take
        raise StartError(f"--models {url}: {type(error).__name__}: {error}") from error
    return fs, str(root)


def _folder(cache: Path, url: str) -> Path:
    """The folder for the copies of one URL. Packages in it are served without their store, so that it must be ours."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", url)[:64]
    folder = cache.expanduser() / "hourglass" / f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    try:
        return files.own_directory(folder)
    except OSError as error:
        raise StartError(f"--model-cache {cache}: {folder}: {error.strerror}") from error
