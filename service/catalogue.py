"""What is served, and how that is changed: versions by policy and by hand, labels, and what could not be loaded.

One catalogue speaks for the whole service, however many processes serve: a change is made in all of them or in none.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Set
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from service import labels as label_files
from service.errors import Conflict, InvalidArgument, NotFound, PackageError, ServiceError, Unavailable
from service.labels import Labels
from service.plans import LABEL, NAME, Plan, Policy, Signature
from service.stores import Store
from service.versions import Entry, Versions

log = logging.getLogger(__name__)


class Replica(Protocol):
    """What serves; see `Repository`, of which there may be several behind this."""

    def prepare(self, name: str, version: int) -> None:
        """Raises PackageError, or Unavailable where nothing can be changed at this moment."""

    def apply(self, plan: Plan) -> None: ...

    def discard(self, name: str) -> None:
        """Raises Unavailable as `prepare` does."""

    def forget(self, name: str, version: int) -> None:
        """That a version, which is not served, was refused. Raises Unavailable as `prepare` does."""

    def missing(self, name: str) -> Set[int]:
        """The planned versions that are not loaded, in any process of several. Raises Unavailable as `prepare` does."""


class Catalogue:
    """For any thread; changes are made one after the other.

    A version serves where the policy chooses it, a label points at it or it was loaded by name, unless it was unloaded
    by name. What was done by name lasts as long as the service; labels are kept in files. A version that was refused is
    tried again when it is named, and by `load` and `scan` when its files have changed.

    Changes raise NotFound for what is not there, InvalidArgument for what cannot be, Conflict where a package is
    refused or the state does not allow it, and Unavailable at an unlucky moment. Then nothing has changed.
    """

    def __init__(self, store: Store, policy: Policy, replica: Replica, *, max_models: int) -> None:
        self._store = store
        self._policy = policy
        self._replica = replica
        self._max_models = max_models
        # Held while something changes; a supervisor holds it while it starts a worker with the plans of that moment.
        self.lock = threading.Lock()
        self._models: dict[str, Versions] = {}
        self._complaint = ""  # what was said in the log about the last look

    @property
    def plans(self) -> list[Plan]:
        return [model.plan for model in self._models.values()]

    def plan(self) -> list[Plan]:
        """Plan the start. Raises PackageError where the models cannot be read at all."""
        for name, on_disk in self._store.find(starting=True).items():
            try:
                labels = self._store.labels(name)
            except PackageError as error:
                log.error("labels refused", extra={"model": name, "file": error.file, "rule": error.rule})
                labels = {}
            model = self._models[name] = Versions(self._store, name, self._policy)
            model.known = {version: model.signature(version) for version in on_disk}
            model.plan = model.choose(on_disk, labels)
        self._limit_start()
        return self.plans

    def _limit_start(self) -> None:
        """Leave out what is too much: labelled versions come first, then the largest of each model."""
        ranked = sorted(
            (version not in model.plan.labels.values(), rank, model.name, version)
            for model in self._models.values()
            for rank, version in enumerate(sorted(model.plan.versions, reverse=True))
        )
        for _, _, name, version in ranked[self._max_models :]:
            model = self._models[name]
            model.failures[version] = self._too_many()
            log.error("model refused", extra={"model": name, "version": str(version), "rule": self._too_many()})
            left = tuple(other for other in model.plan.versions if other != version)
            model.plan = replace(model.plan, versions=left, spares=())

    def _too_many(self) -> str:
        return f"more versions than --max-models={self._max_models} would be loaded"

    def _has_room(self, model: Versions, versions: Set[int]) -> bool:
        """Whether these may serve of the model beside what serves of the others."""
        others = sum(len(other.served) for other in self._models.values() if other is not model)
        return others + len(versions) <= self._max_models

    def started(self, refused: Iterable[tuple[str, int, str]]) -> None:
        """What of the plans of the start was refused, and why."""
        with self.lock:
            names = set()
            for name, version, why in refused:
                names.add(name)
                self._models[name].failures[version] = why
            for model in (self._models[name] for name in names):
                candidates = {*model.plan.versions, *model.plan.spares}
                left = [version for version in model.plan.versions if version not in model.failures]
                model.plan = replace(model.plan, versions=tuple(left))
                model.plan = model.choose(candidates, {label: [v] for label, v in model.plan.labels.items()})
                self._replica.apply(model.plan)
            self._trim()

    def entries(self, name: str = "") -> list[Entry]:
        """All versions, served or not, of all models or of one, by name, the latest first. Raises NotFound."""
        found, known = self._find(), dict(self._models)
        names = sorted({*found, *known}) if not name else [name] if name in found or name in known else []
        if name and not names:
            raise _no_such_model(name)
        return [
            entry
            for each in names
            for entry in (known.get(each) or Versions(self._store, each, self._policy)).entries(found.get(each, []))
        ]

    def load(self, name: str, version: str) -> None:
        """Serve a version; with none given, what the policy chooses of what is on disk now."""
        with self.lock:
            model, labels, on_disk = self._model(name)
            if version:
                number = model.number(version, labels, on_disk)
                self._change(model, labels, by_hand={**model.by_hand, number: True}, named={number})
            else:
                changed = {v for v in model.failures if model.signature(v) != model.known.get(v)}
                named = changed & on_disk | self._replica.missing(name)
                self._change(model, labels, by_hand={}, named=named, candidates=on_disk)

    def reload(self, name: str, version: str) -> None:
        """Load from disk again what is served of a model, or one version of it, and swap it."""
        with self.lock:
            model, labels, on_disk = self._model(name)
            fresh = {_served(model, model.number(version, labels, on_disk))} if version else model.served
            if not fresh:
                raise NotFound("NOT_LOADED", f"nothing is loaded of {name}")
            self._change(model, labels, named=fresh, fresh=fresh)

    def unload(self, name: str, version: str) -> None:
        """Serve a version no more, or, with none given, the whole model."""
        with self.lock:
            model, labels, on_disk = self._model(name)
            if not version:
                if not model.served:
                    raise NotFound("NOT_LOADED", f"nothing is loaded of {name}")
                self._change(model, labels, by_hand=dict.fromkeys(on_disk | model.served, False))
                return
            number = _served(model, model.number(version, labels, on_disk))
            for label, (labelled, *_) in labels.items():
                if labelled == number:
                    raise Conflict("LABELLED", f"{name} version {number} is {label}: move or delete the label first")
            self._change(model, labels, by_hand={**model.by_hand, number: False})

    def label(self, name: str, label: str, version: str) -> None:
        """Point a label at a version, which is loaded where it is not."""
        if not LABEL.fullmatch(label):
            rule = "lower-case letters, digits and hyphens, starting with a letter, at most 63"
            raise InvalidArgument("BAD_LABEL", f"label: {rule}; got {label[:64]!r}")
        with self.lock:
            model, labels, on_disk = self._model(name)
            number = model.number(version, labels, on_disk)
            self._point(model, label_files.moved(labels, label, number), number)

    def unlabel(self, name: str, label: str) -> None:
        """Delete a label; its version serves on where the policy chooses it."""
        with self.lock:
            model, labels, _ = self._model(name)
            model.history(label, labels)
            self._change(model, {other: history for other, history in labels.items() if other != label})

    def rollback(self, name: str, label: str) -> None:
        """Point a label at where it pointed before."""
        with self.lock:
            model, labels, _ = self._model(name)
            now, *earlier = model.history(label, labels)
            if not earlier:
                raise Conflict("NO_EARLIER_VERSION", f"{name}: {label} has pointed at version {now} only")
            self._point(model, {**labels, label: earlier}, earlier[0])

    def scan(self) -> None:
        """Follow the directory: load new versions as the policy says, reload changed ones, drop those that are gone;
        what was refused and is gone is forgotten.

        A package is taken when it is complete and was the same at the last look. The last version of a model stays.
        """
        with self.lock:
            try:
                found = self._store.find()
            except PackageError as error:
                if str(error) != self._complaint:
                    log.error("models cannot be looked at", extra={"file": error.file, "rule": error.rule})
                self._complaint = str(error)
                return
            self._complaint = ""
            for name in self._models.keys() - found.keys():
                with suppress(Unavailable):  # at the next look then
                    self._forget(self._models[name], [])
            for name, on_disk in found.items():
                if name not in self._models:
                    self._models[name] = Versions(self._store, name, self._policy)
                model, reason = self._models[name], ""
                try:
                    self._follow(model, on_disk)
                except (PackageError, ServiceError) as error:
                    reason = str(error)
                    if reason != model.complaint:
                        log.warning("a model does not follow its directory", extra={"model": name, "reason": reason})
                model.complaint = reason

    def _forget(self, model: Versions, on_disk: list[int]) -> None:
        """What was refused and is not there any more."""
        for version in model.failures.keys() - model.served - {*on_disk}:
            self._replica.forget(model.name, version)
            del model.failures[version]

    def _follow(self, model: Versions, on_disk: list[int]) -> None:
        self._forget(model, on_disk)
        looks = {version: model.signature(version) for version in on_disk}
        settled = {version for version, look in looks.items() if look is not None and model.seen.get(version) == look}
        model.seen = looks
        changed = {version for version in settled if model.known.get(version) != looks[version]}
        labels = self._store.labels(model.name)
        labelled = set(label_files.current(labels).values())
        candidates = settled | model.served & (looks.keys() | labelled)
        chosen = {*model.choose(candidates, labels, named=changed).versions}
        for version in sorted(chosen, reverse=True):
            if version in changed or version not in model.served:
                both = replace(model.plan, versions=tuple(sorted({*model.served, version})))
                try:
                    if not self._has_room(model, {version, *chosen.intersection(model.served)}):
                        model.failures[version], model.known[version] = self._too_many(), looks.get(version)
                        raise Conflict("TOO_MANY_MODELS", f"{model.name} version {version}: {self._too_many()}")
                    self._replace(model, both, fresh={version})
                except Conflict as error:
                    log.warning("what was served serves on", extra={"model": model.name, "reason": error.text})
        wanted = model.choose(candidates, labels)
        if wanted.versions and (wanted.versions, wanted.labels) != (model.plan.versions, model.plan.labels):
            self._replace(model, wanted)

    def _point(self, model: Versions, labels: Labels, version: int) -> None:
        by_hand = {number: decision for number, decision in model.by_hand.items() if number != version or decision}
        self._change(model, labels, by_hand=by_hand, named={version})

    def _change(
        self,
        model: Versions,
        labels: Labels,
        *,
        by_hand: dict[int, bool] | None = None,
        named: Set[int] = frozenset(),
        fresh: Set[int] = frozenset(),
        candidates: Set[int] = frozenset(),
    ) -> None:
        by_hand = model.by_hand if by_hand is None else by_hand
        wanted = model.choose(candidates | model.served | named, labels, by_hand=by_hand, named=named)
        if not self._has_room(model, {*wanted.versions}):
            raise Conflict("TOO_MANY_MODELS", f"{model.name}: {self._too_many()}; unload some first")
        if named:  # where a worker that was replaced lacks what is asked for, it is loaded again in all
            fresh = fresh | named & self._replica.missing(model.name)
        self._replace(model, wanted, labels=labels, fresh=fresh)
        model.by_hand = by_hand

    def _replace(
        self, model: Versions, wanted: Plan, *, labels: Labels | None = None, fresh: Set[int] = frozenset()
    ) -> None:
        """Load what is not served yet, or `fresh`, beside the rest; keep `labels`; swap."""
        # Where nothing can be changed at this moment, this says so before labels are written or a plan is made.
        self._replica.discard(model.name)
        missing = {*wanted.versions} - model.served | {*wanted.versions} & fresh
        model.loading = frozenset(missing)
        looks = {version: model.signature(version) for version in sorted(missing)}
        try:
            for version, look in looks.items():
                self._prepare(model, version, look)
            if labels is not None:
                self._keep(model.name, labels)
        except BaseException:
            self._replica.discard(model.name)
            raise
        finally:
            model.loading = frozenset()
        for version in missing:
            model.failures.pop(version, None)
        model.known |= looks
        model.plan = wanted
        self._replica.apply(wanted)
        self._trim()
        facts = {"model": model.name, "versions": list(wanted.versions), "labels": dict(wanted.labels)}
        log.info("model changed", extra=facts)

    def _prepare(self, model: Versions, version: int, look: Signature | None) -> None:
        try:
            self._replica.prepare(model.name, version)
        except PackageError as error:
            model.failures[version], model.known[version] = str(error), look
            raise Conflict("PACKAGE_REFUSED", f"{model.name} version {version}: {error}") from error

    def _keep(self, name: str, labels: Labels) -> None:
        try:
            if labels != self._store.labels(name):
                self._store.write_labels(name, labels)
        except PackageError as error:
            raise Conflict("LABELS", f"{name}: {error}") from error

    def _trim(self) -> None:
        self._store.trim({name: model.served for name, model in self._models.items()})

    def _find(self) -> dict[str, list[int]]:
        try:
            return self._store.find()
        except PackageError as error:
            raise Conflict("MODELS", str(error)) from error

    def _model(self, name: str) -> tuple[Versions, Labels, set[int]]:
        """A model, its labels, and its versions on disk."""
        on_disk = self._find().get(name, [])
        if name not in self._models:
            if not on_disk or not NAME.fullmatch(name):
                raise _no_such_model(name)
            self._models[name] = Versions(self._store, name, self._policy)
        try:
            return self._models[name], self._store.labels(name), set(on_disk)
        except PackageError as error:
            raise Conflict("LABELS", f"{name}: {error}") from error


def _served(model: Versions, version: int) -> int:
    if version not in model.served:
        raise NotFound("NOT_LOADED", f"{model.name} version {version} is not loaded")
    return version


def _no_such_model(name: str) -> NotFound:
    return NotFound("NO_SUCH_MODEL", f"there is no model {name[:64]!r}")
