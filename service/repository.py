"""The models that are loaded, by name and version."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from autoencoder.v1 import autoencoder_pb2, model_pb2
from service import packages
from service.calls import Work
from service.errors import InvalidArgument, NotFound, PackageError, StartError, Unavailable
from service.metrics import Metrics
from service.model import ServedModel
from service.session import Device, OnnxSession, Session
from service.tensors import Rows

log = logging.getLogger(__name__)


class Repository:
    """Loads packages, hands out models and closes them. `get` and `all` may be called from any thread."""

    def __init__(
        self,
        *,
        device: Device,
        threads: int,
        max_batch_rows: int,
        max_queue_rows: int,
        metrics: Metrics,
        work: Work | None = None,
    ) -> None:
        self._work = work
        self._device = device
        self._threads = threads
        self._max_batch_rows = max_batch_rows
        self._max_queue_rows = max_queue_rows
        self._metrics = metrics
        self._lock = threading.Lock()
        self._models: dict[str, dict[int, ServedModel]] = {}
        self._complete = False

    def load_all(self, models: Path, *, stop: Callable[[], bool]) -> list[PackageError]:
        """Load every package under `models` until `stop()`. Returns why packages were refused; the others serve.

        Raises PackageError where `models` cannot be read at all.
        """
        refused = []
        for directory in packages.find(models):
            if stop():
                break
            try:
                self.load(directory)
            except PackageError as error:
                refused.append(self._refuse(directory, error))
            except StartError:
                raise
            except Exception as error:  # a fault of ours must not cost the other models
                why = PackageError(packages.MANIFEST, f"cannot be loaded: {type(error).__name__}: {error}")
                refused.append(self._refuse(directory, why, traceback=True))
        self._complete = True
        return refused

    def _refuse(self, directory: Path, why: PackageError, *, traceback: bool = False) -> PackageError:
        name, version = directory.parent.name, directory.name
        self._metrics.model_ready.labels(name, version).set(0)
        log.error(
            "model refused",
            extra={"model": name, "version": version, "file": why.file, "rule": why.rule},
            exc_info=traceback,
        )
        return why

    def load(self, directory: Path) -> ServedModel:
        """Verify, load and warm one package; only then can it be found. Raises PackageError."""
        began = time.monotonic()
        package = packages.read(directory)
        session = OnnxSession(package, self._device, threads=self._threads, max_batch_rows=self._max_batch_rows)
        try:
            self._verify(package, session)
            model = ServedModel(
                package,
                session,
                max_batch_rows=self._max_batch_rows,
                max_queue_rows=self._max_queue_rows,
                metrics=self._metrics,
                work=self._work,
            )
        except PackageError:
            session.close()
            raise
        except Exception as error:  # onnxruntime's errors have no common base
            session.close()
            raise PackageError(f"{packages.ENCODER} or {packages.DECODER}", f"cannot be run: {error}") from error
        load_s = time.monotonic() - began
        manifest = package.manifest
        manifest.runtime.provider = self._device.provider
        manifest.runtime.max_batch_rows = model.max_batch_rows
        manifest.runtime.load_seconds = load_s
        manifest.runtime.ready_time.GetCurrentTime()
        with self._lock:
            self._models.setdefault(model.name, {})[model.version] = model
        version = str(model.version)
        self._metrics.model_load_duration.labels(model.name).observe(load_s)
        self._metrics.model_ready.labels(model.name, version).set(1)
        self._metrics.model_info.labels(model.name, version, manifest.variant, self._device.provider).set(1)
        log.info(
            "model ready",
            extra={
                "model": model.name,
                "version": version,
                "variant": manifest.variant,
                "provider": self._device.provider,
                "load_s": round(load_s, 3),
                "batch_rows": model.max_batch_rows,
            },
        )
        return model

    def get(self, selector: autoencoder_pb2.ModelSelector) -> ServedModel:
        """The model that is asked for. Raises InvalidArgument, NotFound, or Unavailable while models load."""
        if not selector.name:
            raise InvalidArgument("NO_MODEL_NAME", "model.name: must be given")
        with self._lock:
            versions = dict(self._models.get(selector.name, {}))
        if not selector.version and versions:
            return versions[max(versions)]
        if selector.version and not (selector.version.isascii() and selector.version.isdecimal()):
            raise InvalidArgument(
                "BAD_VERSION", f"model.version: must be a decimal number or empty; got {selector.version[:64]!r}"
            )
        # At most 9 digits, as in a package: anything longer cannot exist.
        model = versions.get(int(selector.version)) if 0 < len(selector.version) <= 9 else None
        if model is not None:
            return model
        if not self._complete:
            raise Unavailable("LOADING", "models are being loaded; try again")
        if versions:
            known = ", ".join(map(str, sorted(versions)))
            raise NotFound("NO_SUCH_VERSION", f"{selector.name} has no version {selector.version[:64]}; it has {known}")
        raise NotFound("NO_SUCH_MODEL", f"there is no model {selector.name[:64]!r}")

    def all(self) -> list[model_pb2.Model]:
        """The cards of all models, by name, the latest version first."""
        with self._lock:
            return [
                self._models[name][version].manifest
                for name in sorted(self._models)
                for version in sorted(self._models[name], reverse=True)
            ]

    def close(self) -> None:
        """Run what waits in each model, then free all of them."""
        with self._lock:
            models = [model for versions in self._models.values() for model in versions.values()]
            self._models.clear()
        for model in models:
            model.close()

    def _verify(self, package: packages.Package, session: Session) -> None:
        def padded(graph: Callable[[Rows], Rows]) -> Callable[[Rows], Rows]:
            def run(rows: Rows) -> Rows:
                results = []
                for start in range(0, len(rows), self._max_batch_rows):
                    piece = rows[start : start + self._max_batch_rows]
                    batch = np.zeros((session.padded_rows(len(piece)), *rows.shape[1:]), np.float32)
                    batch[: len(piece)] = piece
                    results.append(graph(batch)[: len(piece)])
                return np.concatenate(results)

            return run

        packages.check_golden(package, padded(session.encode), padded(session.decode))
