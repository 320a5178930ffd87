"""What is served, and how that is changed: versions by policy and by hand, labels, and what could not be loaded.

One catalogue speaks for the whole service, however many processes serve: a change is made in all of them or in none.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from service import labels as label_files
from service import plans
from service.errors import Conflict, InvalidArgument, NotFound, PackageError, ServiceError
from service.labels import Labels
from service.plans import LABEL, VERSION, Plan, Policy, Signature

log = logging.getLogger(__name__)

LOADING, READY, FAILED, AVAILABLE = "LOADING", "READY", "FAILED", "AVAILABLE"


class Replica(Protocol):
    """What serves; see `Repository`, of which there may be several behind this."""

    def prepare(self, name: str, version: int) -> None:
        """Raises PackageError, or Unavailable where nothing can be changed at this moment."""

    def apply(self, plan: Plan) -> None: ...

    def discard(self, name: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One version of one model. `state`: READY serves, FAILED was refused for `reason`, AVAILABLE is only on disk.

    A version that serves may have a `reason` too: why it could not be loaded again.
    """

    name: str
    version: int
    state: str
    reason: str
    labels: tuple[str, ...]


@dataclass(kw_only=True)
class _Model:
    """`by_hand`: versions that were loaded (True) or unloaded (False) by name. `known`: how packages looked when they
    were loaded or refused; `seen`: when they were looked at last."""

    plan: Plan
    failures: dict[int, str] = field(default_factory=dict)
    by_hand: dict[int, bool] = field(default_factory=dict)
    known: dict[int, Signature | None] = field(default_factory=dict)
    seen: dict[int, Signature | None] = field(default_factory=dict)

    @property
    def served(self) -> frozenset[int]:
        return frozenset(self.plan.versions)


class Catalogue:
    """For any thread; changes are made one after the other.

    A version serves where the policy chooses it, a label points at it or it was loaded by name, unless it was unloaded
    by name. What was done by name lasts as long as the service; labels are kept in files. A version that was refused is
    tried again when it is named, and by `load` and `scan` when its files have changed.

    Changes raise NotFound for what is not there, InvalidArgument for what cannot be, Conflict where a package is
    refused or the state does not allow it, and Unavailable at an unlucky moment. Then nothing has changed.
    """

    def __init__(self, models: Path, policy: Policy, replica: Replica) -> None:
        self._directory = models
        self._policy = policy
        self._replica = replica
        # Held while something changes; a supervisor holds it while it starts a worker with the plans of that moment.
        self.lock = threading.Lock()
        self._models: dict[str, _Model] = {}
        self._loading: frozenset[tuple[str, int]] = frozenset()

    @property
    def plans(self) -> list[Plan]:
        return [model.plan for model in self._models.values()]

    def plan(self) -> list[Plan]:
        """Plan the start. Raises PackageError where the models cannot be read at all."""
        for name, versions in plans.find(self._directory).items():
            try:
                labels = label_files.read(self._directory, name)
            except PackageError as error:
                log.error("labels refused", extra={"model": name, "file": error.file, "rule": error.rule})
                labels = {}
            model = self._models[name] = _Model(plan=Plan(name=name))
            model.known = {version: self._signature(name, version) for version in versions}
            model.plan = self._choose(model, versions, labels)
        return self.plans

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
                model.plan = self._choose(model, candidates, {label: [v] for label, v in model.plan.labels.items()})
                self._replica.apply(model.plan)

    def entries(self, name: str = "") -> list[Entry]:
        """All versions, served or not, of all models or of one, by name, the latest first. Raises NotFound."""
        keys = {(model, version) for model, versions in self._find().items() for version in versions}
        for model in tuple(self._models.values()):
            keys |= {(model.plan.name, version) for version in (*model.plan.versions, *tuple(model.failures))}
        keys = {key for key in keys if name in ("", key[0])}
        if name and not keys:
            raise _no_such_model(name)
        return [self._entry(*key) for key in sorted(keys, key=lambda key: (key[0], -key[1]))]

    def load(self, name: str, version: str) -> None:
        """Serve a version; with none given, what the policy chooses of what is on disk now."""
        with self.lock:
            model, labels = self._model(name)
            if version:
                number = self._number(model, version, labels)
                self._change(model, labels, by_hand={**model.by_hand, number: True}, named={number})
            else:
                changed = {v for v in model.failures if self._signature(name, v) != model.known.get(v)}
                self._change(model, labels, by_hand={}, named=changed, candidates=self._candidates(model))

    def reload(self, name: str, version: str) -> None:
        """Load from disk again what is served of a model, or one version of it, and swap it."""
        with self.lock:
            model, labels = self._model(name)
            fresh = {self._served(model, version, labels)} if version else model.served
            if not fresh:
                raise NotFound("NOT_LOADED", f"nothing is loaded of {name}")
            self._change(model, labels, named=fresh, fresh=fresh)

    def unload(self, name: str, version: str) -> None:
        """Serve a version no more, or, with none given, the whole model."""
        with self.lock:
            model, labels = self._model(name)
            if not version:
                if not model.served:
                    raise NotFound("NOT_LOADED", f"nothing is loaded of {name}")
                self._change(model, labels, by_hand=dict.fromkeys(self._candidates(model), False))
                return
            number = self._served(model, version, labels)
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
            model, labels = self._model(name)
            number = self._number(model, version, labels)
            self._point(model, label_files.moved(labels, label, number), number)

    def unlabel(self, name: str, label: str) -> None:
        """Delete a label; its version serves on where the policy chooses it."""
        with self.lock:
            model, labels = self._model(name)
            _history(name, label, labels)
            self._change(model, {other: history for other, history in labels.items() if other != label})

    def rollback(self, name: str, label: str) -> None:
        """Point a label at where it pointed before."""
        with self.lock:
            model, labels = self._model(name)
            now, *earlier = _history(name, label, labels)
            if not earlier:
                raise Conflict("NO_EARLIER_VERSION", f"{name}: {label} has pointed at version {now} only")
            self._point(model, {**labels, label: earlier}, earlier[0])

    def scan(self) -> None:
        """Follow the directory: load new versions as the policy says, reload changed ones, drop those that are gone.

        A package is taken when it is complete and was the same at the last look. The last version of a model stays.
        """
        try:
            found = plans.find(self._directory)
        except PackageError as error:
            log.error("models cannot be looked at", extra={"file": error.file, "rule": error.rule})
            return
        with self.lock:
            for name, versions in found.items():
                try:
                    self._follow(self._models.setdefault(name, _Model(plan=Plan(name=name))), versions)
                except (PackageError, ServiceError) as error:
                    log.warning("a model does not follow its directory", extra={"model": name, "reason": str(error)})

    def _follow(self, model: _Model, on_disk: list[int]) -> None:
        name = model.plan.name
        looks = {version: self._signature(name, version) for version in on_disk}
        settled = {version for version, look in looks.items() if look is not None and model.seen.get(version) == look}
        model.seen = looks
        changed = {version for version in settled if model.known.get(version) != looks[version]}
        labels = label_files.read(self._directory, name)
        labelled = set(label_files.current(labels).values())
        candidates = settled | model.served & (looks.keys() | labelled)
        wanted = self._choose(model, candidates, labels, named=changed)
        for version in wanted.versions:
            if version in changed or version not in model.served:
                both = Plan(name=name, versions=tuple(sorted({*model.served, version})), labels=model.plan.labels)
                try:
                    self._replace(model, both, fresh={version})
                except Conflict as error:
                    log.warning("what was served serves on", extra={"model": name, "reason": error.text})
        wanted = self._choose(model, candidates, labels)
        if wanted.versions and wanted != model.plan:
            self._replace(model, wanted)

    def _change(
        self,
        model: _Model,
        labels: Labels,
        *,
        by_hand: dict[int, bool] | None = None,
        named: Set[int] = frozenset(),
        fresh: Set[int] = frozenset(),
        candidates: Set[int] = frozenset(),
    ) -> None:
        by_hand = model.by_hand if by_hand is None else by_hand
        candidates = candidates | model.served | named
        wanted = self._choose(model, candidates, labels, by_hand=by_hand, named=named)
        self._replace(model, wanted, labels=labels, fresh=fresh)
        model.by_hand = by_hand

    def _choose(
        self,
        model: _Model,
        candidates: Iterable[int],
        labels: Labels,
        *,
        by_hand: Mapping[int, bool] | None = None,
        named: Set[int] = frozenset(),
    ) -> Plan:
        by_hand = model.by_hand if by_hand is None else by_hand
        refused = model.failures.keys() - model.served - named
        usable = {version for version in candidates if by_hand.get(version) is not False} - refused
        current = label_files.current(labels)
        chosen = self._policy.choose(usable) | usable & {*current.values()} | {v for v in usable if by_hand.get(v)}
        return Plan(
            name=model.plan.name,
            versions=tuple(sorted(chosen)),
            labels=current,
            spares=tuple(sorted(usable - chosen, reverse=True)),
        )

    def _replace(
        self, model: _Model, wanted: Plan, *, labels: Labels | None = None, fresh: Set[int] = frozenset()
    ) -> None:
        """Load what is not served yet, or `fresh`, beside the rest; keep `labels`; swap."""
        name = model.plan.name
        missing = sorted({*wanted.versions} - model.served | {*wanted.versions} & fresh)
        self._loading = frozenset((name, version) for version in missing)
        try:
            for version in missing:
                self._prepare(model, version)
            if labels is not None:
                self._keep(name, labels)
        except BaseException:
            self._replica.discard(name)
            raise
        finally:
            self._loading = frozenset()
        for version in missing:
            model.failures.pop(version, None)
        model.plan = wanted
        self._replica.apply(wanted)
        log.info(
            "model changed", extra={"model": name, "versions": list(wanted.versions), "labels": dict(wanted.labels)}
        )

    def _prepare(self, model: _Model, version: int) -> None:
        name = model.plan.name
        model.known[version] = self._signature(name, version)
        try:
            self._replica.prepare(name, version)
        except PackageError as error:
            model.failures[version] = str(error)
            raise Conflict("PACKAGE_REFUSED", f"{name} version {version}: {error}") from error

    def _keep(self, name: str, labels: Labels) -> None:
        try:
            if labels != label_files.read(self._directory, name):
                label_files.write(self._directory, name, labels)
        except PackageError as error:
            raise Conflict("LABELS", f"{name}: {error}") from error

    def _point(self, model: _Model, labels: Labels, version: int) -> None:
        by_hand = {number: decision for number, decision in model.by_hand.items() if number != version or decision}
        self._change(model, labels, by_hand=by_hand, named={version})

    def _entry(self, name: str, version: int) -> Entry:
        model = self._models.get(name) or _Model(plan=Plan(name=name))
        reason = model.failures.get(version, "")
        if (name, version) in self._loading:
            state = LOADING
        elif version in model.served:
            state = READY
        else:
            state = FAILED if reason else AVAILABLE
        labels = tuple(sorted(label for label, labelled in model.plan.labels.items() if labelled == version))
        return Entry(name=name, version=version, state=state, reason=reason, labels=labels)

    def _find(self) -> dict[str, list[int]]:
        try:
            return plans.find(self._directory)
        except PackageError as error:
            raise Conflict("MODELS", str(error)) from error

    def _model(self, name: str) -> tuple[_Model, Labels]:
        if name not in self._models:
            if name not in self._find():
                raise _no_such_model(name)
            self._models[name] = _Model(plan=Plan(name=name))
        try:
            return self._models[name], label_files.read(self._directory, name)
        except PackageError as error:
            raise Conflict("LABELS", f"{name}: {error}") from error

    def _candidates(self, model: _Model) -> set[int]:
        return {*self._find().get(model.plan.name, []), *model.served}

    def _number(self, model: _Model, version: str, labels: Labels) -> int:
        """The number of a version that is on disk or served, given by its number or a label."""
        if not VERSION.fullmatch(version):
            if not LABEL.fullmatch(version):
                raise InvalidArgument("BAD_VERSION", f"version: must be a number or a label; got {version[:64]!r}")
            return _history(model.plan.name, version, labels)[0]
        candidates = self._candidates(model)
        if int(version) not in candidates:
            known = ", ".join(map(str, sorted(candidates))) or "none"
            raise NotFound("NO_SUCH_VERSION", f"{model.plan.name} has no version {version}; it has {known}")
        return int(version)

    def _served(self, model: _Model, version: str, labels: Labels) -> int:
        number = self._number(model, version, labels)
        if number not in model.served:
            raise NotFound("NOT_LOADED", f"{model.plan.name} version {number} is not loaded")
        return number

    def _signature(self, name: str, version: int) -> Signature | None:
        return plans.signature(self._directory / name / str(version))


def _no_such_model(name: str) -> NotFound:
    return NotFound("NO_SUCH_MODEL", f"there is no model {name[:64]!r}")


def _history(name: str, label: str, labels: Labels) -> list[int]:
    if label not in labels:
        known = ", ".join(sorted(labels)) or "none"
        raise NotFound("NO_SUCH_LABEL", f"{name} has no label {label[:64]!r}; it has {known}")
    return labels[label]
