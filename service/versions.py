"""What is known of the versions of one model: which serve, which were refused and why, and which are to serve."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from service import labels as label_files
from service.errors import InvalidArgument, NotFound
from service.labels import Labels
from service.plans import LABEL, VERSION, Plan, Policy, Signature
from service.stores import Store

LOADING, READY, FAILED, AVAILABLE = "LOADING", "READY", "FAILED", "AVAILABLE"


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


class Versions:
    """Touched under the catalogue's lock; `plan`, `failures` and `loading` may be looked at without it.

    `by_hand`: versions that were loaded (True) or unloaded (False) by name. `known`: how packages looked when they were
    loaded or refused; `seen`: when they were looked at last.
    `complaint`: what was said in the log about the last look.
    """

    def __init__(self, store: Store, name: str, policy: Policy) -> None:
        self._store = store
        self._policy = policy
        self.name = name
        self.plan = Plan(name=self.name)
        self.failures: dict[int, str] = {}
        self.loading: frozenset[int] = frozenset()
        self.by_hand: dict[int, bool] = {}
        self.known: dict[int, Signature | None] = {}
        self.seen: dict[int, Signature | None] = {}
        self.complaint = ""

    @property
    def served(self) -> frozenset[int]:
        return frozenset(self.plan.versions)

    def signature(self, version: int) -> Signature | None:
        return self._store.signature(self.name, version)

    def choose(
        self,
        candidates: Iterable[int],
        labels: Labels,
        *,
        by_hand: Mapping[int, bool] | None = None,
        named: Set[int] = frozenset(),
    ) -> Plan:
        """What is to serve: of the candidates those that the policy chooses, that a label points at or that were loaded
        by hand; but none that was unloaded by hand, or refused and is not named again."""
        by_hand = self.by_hand if by_hand is None else by_hand
        refused = self.failures.keys() - self.served - named
        usable = {version for version in candidates if by_hand.get(version) is not False} - refused
        current = label_files.current(labels)
        chosen = self._policy.choose(usable) | usable & {*current.values()} | {v for v in usable if by_hand.get(v)}
        spares = tuple(sorted(usable - chosen, reverse=True))
        return Plan(name=self.name, versions=tuple(sorted(chosen)), labels=current, spares=spares)

    def number(self, version: str, labels: Labels, on_disk: Iterable[int]) -> int:
        """The number of a version that is on disk or served, given by its number or a label. Raises NotFound and
        InvalidArgument."""
        if not VERSION.fullmatch(version):
            if not LABEL.fullmatch(version):
                raise InvalidArgument("BAD_VERSION", f"version: must be a number or a label; got {version[:64]!r}")
            return self.history(version, labels)[0]
        candidates = {*on_disk, *self.served}
        if int(version) not in candidates:
            known = ", ".join(map(str, sorted(candidates))) or "none"
            raise NotFound("NO_SUCH_VERSION", f"{self.name} has no version {version}; it has {known}")
        return int(version)

    def history(self, label: str, labels: Labels) -> list[int]:
        """Where a label points, and pointed before. Raises NotFound."""
        if label not in labels:
            known = ", ".join(sorted(labels)) or "none"
            raise NotFound("NO_SUCH_LABEL", f"{self.name} has no label {label[:64]!r}; it has {known}")
        return labels[label]

    def entries(self, on_disk: Iterable[int]) -> list[Entry]:
        """All versions, the latest first."""
        versions = {*on_disk, *self.plan.versions, *tuple(self.failures)}
        return [self._entry(version) for version in sorted(versions, reverse=True)]

    def _entry(self, version: int) -> Entry:
        plan, reason = self.plan, self.failures.get(version, "")
        if version in self.loading:
            state = LOADING
        elif version in plan.versions:
            state = READY
        else:
            state = FAILED if reason else AVAILABLE
        labels = tuple(sorted(label for label, labelled in plan.labels.items() if labelled == version))
        return Entry(name=self.name, version=version, state=state, reason=reason, labels=labels)
