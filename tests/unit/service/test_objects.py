"""Object storage and its cache, with fsspec's file system in memory; tests/integration/test_stores.py has a real S3."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from service import packages
from service.errors import PackageError, StartError
from service.objects import ObjectStore
from service.stores import open_store
from tests import tiny

URL = "memory://bucket/models"


class Counted:
    """A file system that counts what is asked of it, and is away when it is told to be."""

    async_impl = False

    def __init__(self, real: Any) -> None:
        self._real = real
        self.away = False
        self.read: list[str] = []
        self.read_bytes = 0

    def __getattr__(self, name: str) -> Any:
        if self.away:
            raise ConnectionError("is away by the test")
        return getattr(self._real, name)

    def cat_file(self, path: str, **options: Any) -> bytes:
        content: bytes = self.__getattr__("cat_file")(path, **options)
        self.read.append(path.rpartition("/")[2])
        self.read_bytes += len(content)
        return content


class Bucket:
    def __init__(self, folder: Path) -> None:
        self.fs = fsspec.filesystem("memory")
        self._folder = folder
        self.store = self.open()

    def open(self) -> ObjectStore:
        self.calls: list[tuple[bool, int]] = []
        store = open_store(
            URL,
            cache=str(self._folder / "cache"),
            timeout_s=5,
            on_call=lambda well, read_bytes: self.calls.append((well, read_bytes)),
        )
        assert isinstance(store, ObjectStore)
        store._fs = self.counted = Counted(store._fs)
        return store

    def put(self, name: str, content: bytes, version: int = 1) -> None:
        self.fs.pipe_file(f"/bucket/models/tiny/{version}/{name}", content)

    def write(self, version: int = 1, *, denoises: bool = True) -> None:
        source = tiny.write(self._folder / "source", version=version, denoises=denoises)
        for path in source.iterdir():
            self.put(path.name, path.read_bytes(), version)

    def get(self, name: str, version: int = 1) -> bytes:
        content: bytes = self.fs.cat_file(f"/bucket/models/tiny/{version}/{name}")
        return content

    def list_file(self, facts: dict[str, Any], content: bytes = b"") -> None:
        """Put one more file into the manifest of version 1, and an object under its name beside it."""
        manifest = json.loads(self.get("model.json"))
        listed = {"sizeBytes": str(len(content)), "sha256": hashlib.sha256(content).hexdigest()} | facts
        manifest["files"].append(listed)
        self.put("model.json", json.dumps(manifest).encode())

    def read(self, version: int = 1, *, starting: bool = False) -> packages.Package:
        with self.store.package("tiny", version, starting=starting, stop=lambda: False) as directory:
            return packages.read(directory)

    @property
    def cached(self) -> set[str]:
        folder = self.store._cache
        return {
            str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"
        }


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Bucket]:
    made = Bucket(tmp_path)
    made.write()
    yield made
    made.fs.rm("/bucket", recursive=True)


def test_a_package_is_fetched_once_and_is_the_local_one(bucket: Bucket, tmp_path: Path) -> None:
    assert bucket.store.find() == {"tiny": [1]}
    got, local = bucket.read(), packages.read(tmp_path / "source" / "tiny" / "1")
    assert (got.manifest, got.encoder, got.decoder) == (local.manifest, local.encoder, local.decoder)
    assert sorted(bucket.counted.read) == ["decoder.onnx", "encoder.onnx", "golden.npz", "model.json"]
    bucket.counted.read.clear()
    bucket.read()
    assert bucket.counted.read == ["model.json"]


def test_each_call_is_told_with_what_it_read_and_whether_it_went_well(bucket: Bucket) -> None:
    bucket.store.find()
    bucket.read()
    assert all(well for well, _ in bucket.calls)
    assert sum(read_bytes for _, read_bytes in bucket.calls) == bucket.counted.read_bytes > 0
    bucket.calls.clear()
    with pytest.raises(PackageError, match="is not in"):
        bucket.read(version=2)
    assert bucket.calls == [(True, 0)], "that there is none is an answer"
    bucket.calls.clear()
    bucket.counted.away = True
    with pytest.raises(PackageError, match="is away by the test"):
        bucket.store.find()
    assert bucket.calls == [(False, 0)]


def test_a_package_that_was_replaced_is_fetched_again(bucket: Bucket) -> None:
    assert bucket.read().manifest.HasField("corruption")
    bucket.store.find()
    before = bucket.store.signature("tiny", 1)
    assert before is not None
    bucket.write(denoises=False)
    bucket.store.find()
    assert bucket.store.signature("tiny", 1) not in (None, before)
    assert not bucket.read().manifest.HasField("corruption")


@pytest.mark.parametrize("name", ["encoder.onnx", "model.json"])
def test_a_corrupt_copy_is_fetched_again(bucket: Bucket, name: str) -> None:
    bucket.read()
    (copy,) = bucket.store._cache.rglob(name)
    copy.write_bytes(b"x" * copy.stat().st_size)
    bucket.read()
    assert copy.read_bytes() == bucket.get(name)


def test_objects_that_are_not_what_the_manifest_says_are_refused_and_leave_no_copy(bucket: Bucket) -> None:
    encoder = bucket.get("encoder.onnx")
    for content, says in (
        (encoder[:-1], f"has {len(encoder) - 1} bytes, the manifest says {len(encoder)}"),
        (encoder[:-1] + b"?", "sha256 is"),
        (b"x" * 100_000, f"has 100000 bytes, the manifest says {len(encoder)}"),
    ):
        bucket.put("encoder.onnx", content)
        bucket.counted.read_bytes = 0
        with pytest.raises(PackageError, match=f"encoder.onnx: {says}"):
            bucket.read()
        assert bucket.counted.read_bytes < 20_000, "no more is fetched than is declared"
        assert bucket.cached == set()
    bucket.fs.rm("/bucket/models/tiny/1/encoder.onnx")
    with pytest.raises(PackageError, match=r"encoder.onnx: is not in memory://bucket/models"):
        bucket.read()


def test_a_replacement_that_is_refused_leaves_the_copy(bucket: Bucket) -> None:
    bucket.read()
    before = bucket.cached
    encoder = bucket.get("encoder.onnx")
    bucket.write(denoises=False)
    bucket.put("encoder.onnx", encoder[:-1])
    with pytest.raises(PackageError, match=r"encoder.onnx: has \d+ bytes"):
        bucket.read()
    assert bucket.cached == before
    bucket.counted.away = True
    assert bucket.read(starting=True).manifest.HasField("corruption")


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "..\\evil", "a/b", "..", ".hidden", ""])
def test_a_name_that_leads_out_of_the_package_is_refused(bucket: Bucket, tmp_path: Path, name: str) -> None:
    bucket.list_file({"name": name}, b"evil")
    for place in ("/bucket/models/tiny/evil", "/bucket/models/tiny/1/a/b"):
        bucket.fs.pipe_file(place, b"evil")
    with pytest.raises(PackageError, match="files: a plain name inside the package"):
        bucket.read()
    assert bucket.cached == set()
    assert not [path for path in tmp_path.rglob("*evil*") if path.is_file()]


@pytest.mark.parametrize(("size", "says"), [(packages.MAX_FILE_BYTES + 1, "more than 1073741824"), (-1, "")])
def test_what_is_declared_too_large_is_not_asked_for(bucket: Bucket, size: int, says: str) -> None:
    bucket.list_file({"name": "big.bin", "sizeBytes": str(size)})
    with pytest.raises(PackageError, match=f"model.json: .*{says}"):
        bucket.read()
    assert bucket.counted.read == ["model.json"]


def test_a_manifest_that_is_too_large_is_not_read(bucket: Bucket) -> None:
    bucket.put("model.json", b" " * ((4 << 20) + 1))
    with pytest.raises(PackageError, match=r"model.json: has 4194305 bytes, more than the 4194304 allowed"):
        bucket.read()
    assert bucket.counted.read_bytes == 0
    bucket.store.find()
    assert bucket.store.signature("tiny", 1) is None


def test_a_package_is_complete_when_all_its_files_are_there(bucket: Bucket) -> None:
    decoder = bucket.get("decoder.onnx")
    bucket.put("decoder.onnx", decoder[:-1])
    bucket.store.find()
    assert bucket.store.signature("tiny", 1) is None
    bucket.put("decoder.onnx", decoder)
    bucket.store.find()
    assert bucket.store.signature("tiny", 1) is not None


def test_objects_that_are_no_packages_are_passed_over(bucket: Bucket) -> None:
    for path in ("README.md", "tiny/notes/x", "tiny/2", "tiny/01/model.json", "tiny/3/deep/er", "Tiny/1/model.json"):
        bucket.fs.pipe_file(f"/bucket/models/{path}", b"x")
    assert bucket.store.find() == {"tiny": [1]}


def test_a_start_without_the_store_has_its_copies_and_a_change_has_not(bucket: Bucket) -> None:
    bucket.store.write_labels("tiny", {"stable": [1]})
    bucket.read()
    bucket.store = bucket.open()
    bucket.counted.away = True
    with pytest.raises(PackageError, match="memory://bucket/models: find failed: ConnectionError: is away by the test"):
        bucket.store.find()
    assert bucket.store.find(starting=True) == {"tiny": [1]}
    assert bucket.store.labels("tiny") == {"stable": [1]}
    bucket.read(starting=True)
    with pytest.raises(PackageError, match="memory://bucket/models: info failed: ConnectionError"):
        bucket.read()
    (copy,) = bucket.store._cache.rglob("decoder.onnx")
    copy.write_bytes(copy.read_bytes()[:-1] + b"?")
    with pytest.raises(PackageError, match=r"decoder.onnx: sha256 is"):
        bucket.read(starting=True)


def test_a_start_without_store_and_copies_names_the_url(bucket: Bucket) -> None:
    bucket.counted.away = True
    with pytest.raises(PackageError, match="memory://bucket/models: find failed"):
        bucket.store.find(starting=True)


def test_labels_are_kept_in_the_store(bucket: Bucket) -> None:
    bucket.store.find()
    assert bucket.store.labels("tiny") == {}
    bucket.store.write_labels("tiny", {"stable": [2, 1]})
    other = bucket.open()
    other.find()
    assert other.labels("tiny") == {"stable": [2, 1]}
    bucket.fs.pipe_file("/bucket/models/tiny/labels.json", b"[]")
    other.find()
    with pytest.raises(PackageError, match=r"labels.json: must be an object of labels"):
        other.labels("tiny")


def test_what_does_not_serve_leaves_the_cache(bucket: Bucket) -> None:
    bucket.write(version=2)
    bucket.read(1)
    bucket.read(2)
    bucket.store.trim({"tiny": {2}})
    assert {name.split("/")[1] for name in bucket.cached} == {"2"}


def test_a_fetch_is_given_up_at_a_stop(bucket: Bucket) -> None:
    with (
        pytest.raises(PackageError, match="was not fetched: the service is stopping"),
        bucket.store.package("tiny", 1, starting=False, stop=lambda: True),
    ):
        pass
    assert bucket.cached == set()


def test_two_that_want_a_package_fetch_it_once(bucket: Bucket) -> None:
    def read() -> None:
        bucket.read()

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert bucket.counted.read.count("encoder.onnx") == 1
    with bucket.store.package("tiny", 1, starting=False, stop=lambda: False):
        (lock,) = bucket.store._cache.rglob(".1.lock")
        with open(lock) as held, pytest.raises(BlockingIOError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(("url", "library", "extra"), [("s3://a/b", "s3fs", "s3"), ("gs://a/b", "gcsfs", "gcs")])
def test_a_library_that_is_missing_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, library: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(StartError, match=rf"--models {url}: needs the extra {extra} \(pip install 'hourglass\[{extra}"):
        open_store(url, cache=str(tmp_path), timeout_s=1)


def test_an_unknown_scheme_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="--models ipod://a: ValueError: Protocol not known: ipod"):
        open_store("ipod://a", cache=str(tmp_path), timeout_s=1)


def test_a_cache_that_others_can_write_to_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    os.chmod(bucket.store._cache, 0o777)
    with pytest.raises(StartError, match="must be a directory of this user that no other can write to"):
        bucket.open()
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match=rf"--model-cache {tmp_path}/file: .* Not a directory"):
        open_store(URL, cache=str(tmp_path / "file"), timeout_s=1)
