"""The models that are loaded, by name and version."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from autoencoder.v1 import autoencoder_pb2, model_pb2
from service import packages
from service.calls import Work
from service.devices import Device
from service.errors import InvalidArgument, NotFound, PackageError, StartError, Unavailable
from service.metrics import Metrics
from service.model import ServedModel
from service.plans import LABEL, Plan
from service.session import OnnxSession, Session
from service.stores import Store
from service.tensors import Rows

log = logging.getLogger(__name__)

Refusals = dict[tuple[str, int], PackageError]


@dataclass(frozen=True, kw_only=True)
class _Served:
    """What is served of one name. Never changed, only replaced: whoever looks something up sees one state.

    `missing`: versions that were planned and are not loaded here; other processes of the service may have them.
    """

    versions: Mapping[int, ServedModel] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    missing: frozenset[int] = frozenset()


_NOTHING = _Served()


class Repository:
    """Loads packages, hands out models and closes them. `get` and `all` may be called from any thread.

    `on_change` is told the name whenever what is served of it has changed, and whether any version is left. `settle` is
    called when a change is over, the start among them.
    """

    def __init__(
        self,
        *,
        store: Store,
        device: Device,
        threads: int,
        max_batch_rows: int,
        max_queue_rows: int,
        metrics: Metrics,
        work: Work | None = None,
        shadow_share: float = 0.0,
        on_change: Callable[[str, bool], None] = lambda name, served: None,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._work = work
        self._shadow_share = shadow_share
        self._device = device
        self._threads = threads
        self._max_batch_rows = max_batch_rows
        self._max_queue_rows = max_queue_rows
        self._metrics = metrics
        self._on_change = on_change
        self._settle = settle
        self._changing = threading.Lock()
        self._closing = threading.Event()
        self._served: dict[str, _Served] = {}
        self._prepared: dict[str, dict[int, ServedModel]] = {}
        self._retiring: list[ServedModel] = []
        self._complete = False

    def load_all(self, plans: Iterable[Plan], *, stop: Callable[[], bool]) -> Refusals:
        """Load what is planned until `stop()`. Returns why packages were refused; the others serve."""
        refused: Refusals = {}
        for plan in plans:
            waiting, spares, ready = list(plan.versions), list(plan.spares), []
            while waiting and not stop():
                version = waiting.pop(0)
                try:
                    self._prepare(plan.name, version, starting=True, stop=stop)
                except PackageError as error:
                    refused[plan.name, version] = error
                    waiting += spares[:1]
                    del spares[:1]
                else:
                    ready.append(version)
                    self.apply(replace(plan, versions=tuple(sorted(ready))))
            if {*plan.versions} - {*ready}:
                self.apply(replace(plan, versions=tuple(sorted({*plan.versions, *ready}))))
        self._complete = True
        self._settle()
        return refused

    def prepare(self, name: str, version: int) -> None:
        """Verify, load and warm a version beside what is served; `apply` puts it in its place.

        Raises PackageError; then nothing has changed.
        """
        self._prepare(name, version, starting=False, stop=self._closing.is_set)

    def _prepare(self, name: str, version: int, *, starting: bool, stop: Callable[[], bool]) -> None:
        with self._changing:
            try:
                model = self._load(name, version, starting=starting, stop=stop)
            except PackageError as error:
                raise self._refuse(name, version, error) from error
            except StartError:
                raise
            except Exception as error:  # a fault of ours must not cost the other models
                why = PackageError(packages.MANIFEST, f"cannot be loaded: {type(error).__name__}: {error}")
                raise self._refuse(name, version, why, traceback=True) from error
            before = self._prepared.setdefault(name, {}).pop(version, None)
            self._prepared[name][version] = model
        if before is not None:
            before.close()

    def apply(self, plan: Plan) -> None:
        """Serve exactly what is planned of a name: prepared versions and those that are served already.

        The change is seen by all requests at once; requests under way end on the version that they began with, and
        then what is not served any more is closed.
        """
        with self._changing:
            before = self._served.get(plan.name, _NOTHING).versions
            prepared = self._prepared.pop(plan.name, {})
            models = {**before, **prepared}
            after = {version: models[version] for version in plan.versions if version in models}
            missing = frozenset(plan.versions) - after.keys()
            if after or missing:
                self._served[plan.name] = _Served(versions=after, labels=dict(plan.labels), missing=missing)
            else:
                self._served.pop(plan.name, None)
            kept = {id(model) for model in after.values()}
            self._retiring = [model for model in (*before.values(), *prepared.values()) if id(model) not in kept]
            for version, model in before.items():
                if after.get(version) is not model:
                    self._hide(model)
            for version, model in after.items():
                if before.get(version) is not model:
                    self._show(model)
            self._on_change(plan.name, bool(after))
            for model in self._retiring:
                model.retire()
                log.info("model closed", extra={"model": model.name, "version": str(model.version)})
            self._retiring = []
        del before, prepared, models  # so that what was closed is freed
        if self._complete:
            self._settle()

    def discard(self, name: str) -> None:
        """Close what was prepared of a name and is not to be served."""
        with self._changing:
            for model in self._prepared.pop(name, {}).values():
                model.close()

    def forget(self, name: str, version: int) -> None:
        """That a version, which is not served, was refused."""
        with self._changing:
            if version not in self._served.get(name, _NOTHING).versions:
                self._metrics.model_ready.remove(name, str(version))

    def missing(self, name: str) -> frozenset[int]:
        """The versions that were planned of a name and are not loaded here."""
        return self._served.get(name, _NOTHING).missing

    def get(self, selector: autoencoder_pb2.ModelSelector) -> ServedModel:
        """The model that is asked for. Raises InvalidArgument, NotFound, or Unavailable: while models load, and where
        what was planned is not loaded here."""
        name, asked = selector.name, selector.version
        if not name:
            raise InvalidArgument("NO_MODEL_NAME", "model.name: must be given")
        served = self._served.get(name, _NOTHING)
        versions = served.versions
        if not versions and not served.missing:
            self._require_complete()
            raise NotFound("NO_SUCH_MODEL", f"there is no model {name[:64]!r}")
        if not asked:
            latest = max(versions, default=0)
            if served.missing and max(served.missing) > latest:
                # Another process may have it, and an older version here would answer in its place by chance.
                self._require_complete()
                raise _not_loaded(name, max(served.missing))
            return versions[latest]
        if asked.isascii() and asked.isdecimal():
            # At most 9 digits, as in a package: anything longer cannot exist, nor can version 0.
            number = int(asked) if len(asked) <= 9 else 0
            model = versions.get(number)
            if model is None:
                self._require_complete()
                if number in served.missing:
                    raise _not_loaded(name, number)
                known = ", ".join(map(str, sorted({*versions, *served.missing})))
                raise NotFound("NO_SUCH_VERSION", f"{name} has no version {asked[:64]}; it has {known}")
            return model
        if not LABEL.fullmatch(asked):
            raise InvalidArgument(
                "BAD_VERSION", f"model.version: must be a decimal number, a label or empty; got {asked[:64]!r}"
            )
        if asked not in served.labels:
            known = ", ".join(sorted(served.labels)) or "none"
            raise NotFound("NO_SUCH_LABEL", f"{name} has no label {asked!r}; it has {known}")
        model = versions.get(served.labels[asked])
        if model is None:
            self._require_complete()
            raise Unavailable("LABEL_NOT_LOADED", f"{name}: {asked} is version {served.labels[asked]}, not loaded here")
        return model

    def models(self) -> list[ServedModel]:
        """All models, by name, the latest version first."""
        served = dict(self._served)
        return [
            served[name].versions[version]
            for name in sorted(served)
            for version in sorted(served[name].versions, reverse=True)
        ]

    def all(self) -> list[model_pb2.Model]:
        """The cards of all models, in the same order."""
        return [model.manifest for model in self.models()]

    def close(self) -> None:
        """Run what waits in each model, then free all of them. The transport has stopped."""
        self._closing.set()  # a package that is being fetched is given up
        for model in tuple(self._retiring):
            model.close()  # `apply` waits for it
        with self._changing:
            models = [model for served in self._served.values() for model in served.versions.values()]
            models += [model for prepared in self._prepared.values() for model in prepared.values()]
            self._served.clear()
            self._prepared.clear()
        for model in models:
            model.close()

    def _require_complete(self) -> None:
        if not self._complete:
            raise Unavailable("LOADING", "models are being loaded; try again")

    def _load(self, name: str, version: int, *, starting: bool, stop: Callable[[], bool]) -> ServedModel:
        began = time.monotonic()
        with self._store.package(name, version, starting=starting, stop=stop) as directory:
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
                shadow_share=self._shadow_share,
            )
        except PackageError:
            session.close()
            raise
        except Exception as error:  # onnxruntime's errors have no common base
            session.close()
            raise PackageError(f"{packages.ENCODER} or {packages.DECODER}", f"cannot be run: {error}") from error
        runtime = package.manifest.runtime
        runtime.provider = self._device.provider
        runtime.max_batch_rows = model.max_batch_rows
        runtime.load_seconds = time.monotonic() - began
        return model

    def _refuse(self, name: str, version: int, why: PackageError, *, traceback: bool = False) -> PackageError:
        if version not in self._served.get(name, _NOTHING).versions:
            self._metrics.model_ready.labels(name, str(version)).set(0)
        log.error(
            "model refused",
            extra={"model": name, "version": str(version), "file": why.file, "rule": why.rule},
            exc_info=traceback,
        )
        return why

    def _show(self, model: ServedModel) -> None:
        version, manifest = str(model.version), model.manifest
        manifest.runtime.ready_time.GetCurrentTime()
        load_s = manifest.runtime.load_seconds
        self._metrics.model_load_duration.labels(model.name).observe(load_s)
        self._metrics.model_ready.labels(model.name, version).set(1)
        self._metrics.model_info.labels(model.name, version, manifest.variant, self._device.provider).set(1)
        self._metrics.queue_rows.labels(model.name, version).set_function(lambda: model.queued_rows)
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

    def _hide(self, model: ServedModel) -> None:
        version = str(model.version)
        self._metrics.model_ready.remove(model.name, version)
        self._metrics.model_info.remove(model.name, version, model.manifest.variant, self._device.provider)
        self._metrics.queue_rows.remove(model.name, version)

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


def _not_loaded(name: str, version: int) -> Unavailable:
    return Unavailable(
        "VERSION_NOT_LOADED", f"{name} version {version} is to be served, and could not be loaded here; see the log"
    )
