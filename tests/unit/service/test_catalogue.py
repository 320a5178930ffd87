"""Changes of what is served, with a replica that refuses what the test tells it to."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from service import labels as label_files
from service import plans
from service.catalogue import Catalogue
from service.errors import Conflict, InvalidArgument, NotFound, PackageError, ServiceError, Unavailable
from service.plans import Plan, Policy
from service.stores import Directory
from tests import tiny


class FakeReplica:
    """Keeps what it is told, and that nothing is served that was not prepared."""

    def __init__(self) -> None:
        self.served: dict[str, Plan] = {}
        self.prepared: list[tuple[str, int]] = []
        self.waiting: set[tuple[str, int]] = set()
        self.refused: set[int] = set()
        self.forgotten: list[tuple[str, int]] = []
        self.lacking: set[int] = set()  # which one of several processes does
        self.unavailable = False

    def prepare(self, name: str, version: int) -> None:
        self.require_available()
        if version in self.refused:
            raise PackageError("encoder.onnx", "is refused by the test")
        self.prepared.append((name, version))
        self.waiting.add((name, version))

    def apply(self, plan: Plan) -> None:
        self.require_available()
        before = self.served.get(plan.name, Plan(name=plan.name)).versions
        assert all(version in before or (plan.name, version) in self.waiting for version in plan.versions)
        self.waiting.clear()
        self.served[plan.name] = plan

    def discard(self, name: str) -> None:
        self.require_available()
        self.waiting.clear()

    def forget(self, name: str, version: int) -> None:
        self.require_available()
        self.forgotten.append((name, version))

    def missing(self, name: str) -> set[int]:
        self.require_available()
        return {version for version in self.lacking if (name, version) not in self.prepared}

    def require_available(self) -> None:
        if self.unavailable:
            raise Unavailable("STARTING", "a worker is starting")


class Harness:
    """Packages of `tiny` as empty as a package can be that nobody reads."""

    def __init__(self, models: Path, *, versions: tuple[int, ...], policy: str = "all", max_models: int = 100) -> None:
        self.models = models
        for version in versions:
            self.write(version)
        self.replica = FakeReplica()
        self.catalogue = Catalogue(Directory(models), Policy.parse(policy), self.replica, max_models=max_models)
        for plan in self.catalogue.plan():
            for version in plan.versions:
                self.replica.prepare(plan.name, version)
            self.replica.apply(plan)
        self.replica.prepared.clear()
        self.catalogue.started([])

    def write(self, version: int, content: str = "x") -> Path:
        directory = self.models / "tiny" / str(version)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "encoder.onnx").write_text(content)
        files = [{"name": "encoder.onnx", "sizeBytes": str(len(content))}]
        (directory / plans.MANIFEST).write_text(json.dumps({"files": files}))
        return directory

    @property
    def served(self) -> list[int]:
        return list(self.replica.served["tiny"].versions)

    @property
    def labels(self) -> dict[str, int]:
        return dict(self.replica.served["tiny"].labels)

    def states(self) -> dict[int, str]:
        return {entry.version: entry.state for entry in self.catalogue.entries("tiny")}

    def scan(self) -> None:
        """Twice: a package is taken when it was the same at the last look."""
        self.catalogue.scan()
        self.catalogue.scan()


Make = Callable[..., Harness]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda *versions, **settings: Harness(tmp_path, versions=versions, **settings)


@pytest.mark.parametrize(("policy", "chosen"), [("all", [2, 3, 10]), ("latest:1", [10]), ("latest:2", [3, 10])])
def test_the_policy_chooses_by_number(make: Make, policy: str, chosen: list[int]) -> None:
    assert make(3, 10, 2, policy=policy).served == chosen


@pytest.mark.parametrize("text", ["", "latest", "latest:0", "latest:-1", "latest:x", "first:1", "latest:1.5"])
def test_a_policy_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be all or latest:N with N at least 1; got "):
        Policy.parse(text)


def test_a_label_keeps_its_version_whatever_the_policy(make: Make) -> None:
    subject = make(1, 2, policy="latest:1")
    subject.catalogue.label("tiny", "stable", "1")
    assert subject.served == [1, 2]
    subject.write(3)
    subject.catalogue.load("tiny", "")
    assert subject.served == [1, 3]
    assert subject.labels == {"stable": 1}


def test_labels_are_there_after_a_restart(make: Make, tmp_path: Path) -> None:
    subject = make(1, 2, 3, policy="latest:1")
    subject.catalogue.label("tiny", "stable", "1")
    subject.catalogue.label("tiny", "canary", "3")
    again = Harness(tmp_path, versions=(), policy="latest:1")
    assert again.labels == {"stable": 1, "canary": 3}
    assert again.served == [1, 3]


def test_a_label_goes_back_as_often_as_it_was_moved(make: Make) -> None:
    subject = make(1, 2, 3, policy="latest:1")
    for version in ("1", "2", "2", "3"):
        subject.catalogue.label("tiny", "stable", version)
    went = []
    for _ in range(2):
        subject.catalogue.rollback("tiny", "stable")
        assert subject.labels["stable"] in subject.served
        went.append(subject.labels["stable"])
    assert went == [2, 1]
    with pytest.raises(Conflict, match="stable has pointed at version 1 only"):
        subject.catalogue.rollback("tiny", "stable")


def test_a_label_may_be_given_another_and_deleted(make: Make) -> None:
    subject = make(1, 2)
    subject.catalogue.label("tiny", "canary", "2")
    subject.catalogue.label("tiny", "stable", "canary")
    subject.catalogue.unlabel("tiny", "canary")
    assert subject.labels == {"stable": 2}
    with pytest.raises(NotFound, match="tiny has no label 'canary'; it has stable"):
        subject.catalogue.unlabel("tiny", "canary")


def test_what_is_loaded_by_name_stays_beside_what_the_policy_chooses(make: Make) -> None:
    subject = make(1, 2, 3, policy="latest:1")
    subject.catalogue.load("tiny", "1")
    assert subject.served == [1, 3]
    subject.write(4)
    subject.catalogue.load("tiny", "4")
    assert subject.served == [1, 4]
    assert subject.states() == {1: "READY", 2: "AVAILABLE", 3: "AVAILABLE", 4: "READY"}
    subject.catalogue.load("tiny", "")
    assert subject.served == [4]


def test_what_is_unloaded_by_name_does_not_come_back_by_itself(make: Make) -> None:
    subject = make(1, 2)
    subject.catalogue.unload("tiny", "2")
    subject.scan()
    subject.catalogue.label("tiny", "stable", "1")
    assert subject.served == [1]
    subject.catalogue.load("tiny", "2")
    assert subject.served == [1, 2]


def test_a_version_under_a_label_is_not_unloaded_but_a_whole_model_is(make: Make) -> None:
    subject = make(1, 2)
    subject.catalogue.label("tiny", "stable", "1")
    with pytest.raises(Conflict, match="tiny version 1 is stable: move or delete the label first"):
        subject.catalogue.unload("tiny", "1")
    subject.catalogue.unload("tiny", "")
    assert subject.served == []
    with pytest.raises(NotFound, match="nothing is loaded of tiny"):
        subject.catalogue.unload("tiny", "")
    subject.catalogue.label("tiny", "stable", "1")
    assert subject.served == [1]


@pytest.mark.parametrize("change", ["load", "load-name", "label", "reload", "rollback"])
def test_a_load_that_fails_leaves_all_as_it_was_and_says_why(make: Make, change: str) -> None:
    subject = make(1, 2)
    subject.catalogue.label("tiny", "stable", "1")
    subject.catalogue.label("tiny", "stable", "2")
    subject.catalogue.unload("tiny", "1")
    subject.write(3)
    before = subject.replica.served["tiny"]
    kept = label_files.read(subject.models, "tiny")
    subject.replica.refused = {1, 3} if change != "reload" else {2}
    calls: dict[str, tuple[int, Callable[[], None]]] = {
        "load": (3, lambda: subject.catalogue.load("tiny", "3")),
        "load-name": (1, lambda: subject.catalogue.load("tiny", "")),
        "label": (3, lambda: subject.catalogue.label("tiny", "stable", "3")),
        "reload": (2, lambda: subject.catalogue.reload("tiny", "")),
        "rollback": (1, lambda: subject.catalogue.rollback("tiny", "stable")),
    }
    version, call = calls[change]
    with pytest.raises(Conflict, match=f"tiny version {version}: encoder.onnx: is refused by the test"):
        call()
    assert subject.replica.served["tiny"] == before
    assert not subject.replica.waiting
    assert label_files.read(subject.models, "tiny") == kept
    (entry,) = (entry for entry in subject.catalogue.entries("tiny") if entry.version == version)
    assert entry.reason == "encoder.onnx: is refused by the test"
    assert entry.state == ("READY" if change == "reload" else "FAILED")
    subject.replica.refused = set()
    subject.write(version, content="repaired")
    call()
    (entry,) = (entry for entry in subject.catalogue.entries("tiny") if entry.version == version)
    assert (entry.state, entry.reason) == ("READY", "")


@pytest.mark.parametrize(
    ("change", "loaded"),
    [("load", [2]), ("load-name", [1, 2]), ("label", [2]), ("rollback", [1]), ("unload", []), ("unlabel", [])],
)
def test_what_a_process_lacks_is_loaded_again_when_it_is_asked_for_and_only_that(
    make: Make, change: str, loaded: list[int]
) -> None:
    subject = make(1, 2, 3)
    for version in ("1", "2"):
        subject.catalogue.label("tiny", "stable", version)
    calls: dict[str, Callable[[], None]] = {
        "load": lambda: subject.catalogue.load("tiny", "2"),
        "load-name": lambda: subject.catalogue.load("tiny", ""),
        "label": lambda: subject.catalogue.label("tiny", "stable", "2"),
        "rollback": lambda: subject.catalogue.rollback("tiny", "stable"),
        "unload": lambda: subject.catalogue.unload("tiny", "3"),
        "unlabel": lambda: subject.catalogue.unlabel("tiny", "stable"),
    }
    subject.replica.lacking = subject.replica.refused = {1, 2}
    if loaded:
        with pytest.raises(Conflict, match=f"tiny version {loaded[0]}: encoder.onnx: is refused by the test"):
            calls[change]()
        assert label_files.current(label_files.read(subject.models, "tiny")) == {"stable": 2}
        subject.replica.refused = set()
    calls[change]()
    assert subject.replica.prepared == [("tiny", version) for version in loaded]


def test_a_moment_at_which_nothing_can_change_changes_nothing(make: Make) -> None:
    subject = make(1)
    subject.write(2)
    subject.replica.unavailable = True
    with pytest.raises(Unavailable):
        subject.catalogue.load("tiny", "2")
    assert subject.served == [1]
    subject.replica.unavailable = False
    subject.catalogue.load("tiny", "2")
    assert subject.served == [1, 2]


@pytest.mark.parametrize("change", ["unload", "label", "unlabel", "rollback"])
def test_at_such_a_moment_what_needs_no_loading_changes_nothing_either(make: Make, change: str) -> None:
    subject = make(1, 2, 3)
    for version in ("1", "2"):
        subject.catalogue.label("tiny", "stable", version)
    calls: dict[str, Callable[[], None]] = {
        "unload": lambda: subject.catalogue.unload("tiny", "3"),
        "label": lambda: subject.catalogue.label("tiny", "stable", "3"),
        "unlabel": lambda: subject.catalogue.unlabel("tiny", "stable"),
        "rollback": lambda: subject.catalogue.rollback("tiny", "stable"),
    }
    before, kept = subject.catalogue.plans, label_files.read(subject.models, "tiny")
    subject.replica.unavailable = True
    with pytest.raises(Unavailable):
        calls[change]()
    assert subject.catalogue.plans == before
    assert label_files.read(subject.models, "tiny") == kept
    subject.replica.unavailable = False
    calls[change]()
    assert subject.catalogue.plans == [subject.replica.served["tiny"]] != before


def test_a_reload_loads_again_what_is_served_and_only_that(make: Make) -> None:
    subject = make(1, 2)
    subject.catalogue.reload("tiny", "1")
    assert subject.replica.prepared == [("tiny", 1)]
    subject.catalogue.reload("tiny", "")
    assert subject.replica.prepared == [("tiny", 1), ("tiny", 1), ("tiny", 2)]
    subject.catalogue.unload("tiny", "2")
    with pytest.raises(NotFound, match="tiny version 2 is not loaded"):
        subject.catalogue.reload("tiny", "2")


def test_a_reload_of_which_one_version_fails_swaps_none(make: Make) -> None:
    subject = make(1, 2)
    subject.replica.refused = {2}
    with pytest.raises(Conflict, match="tiny version 2"):
        subject.catalogue.reload("tiny", "")
    assert subject.replica.prepared == [("tiny", 1)]
    assert not subject.replica.waiting, "what was prepared is discarded"


def test_a_package_that_is_refused_at_the_start_gives_its_place_to_the_next(make: Make) -> None:
    subject = make(1, 2, 3, policy="latest:2")
    assert subject.catalogue.plans[0].spares == (1,)
    subject.replica.prepare("tiny", 1)
    subject.catalogue.started([("tiny", 3, "encoder.onnx: is refused")])
    assert subject.served == [1, 2]
    assert subject.states() == {1: "READY", 2: "READY", 3: "FAILED"}


def test_labels_that_cannot_be_kept_do_not_move(make: Make) -> None:
    subject = make(1, 2)
    (subject.models / "tiny" / label_files.FILE).mkdir()
    with pytest.raises(Conflict, match=r"tiny: labels.json: is not a regular file"):
        subject.catalogue.label("tiny", "stable", "1")
    assert subject.labels == {}


def test_no_more_labels_are_kept_than_can_be_read_again(make: Make) -> None:
    subject = make(1)
    # 64 bytes each, of 65,536.
    many = {f"{'x' * 50}-{number:04}": [1] for number in range(1023)}
    label_files.write(subject.models, "tiny", many)
    with pytest.raises(Conflict, match=r"tiny: labels.json: must have at most 65536 bytes; so many labels"):
        subject.catalogue.label("tiny", "y" * 63, "1")
    assert label_files.read(subject.models, "tiny") == many


@pytest.mark.parametrize("content", ["", "[]", '{"stable": 1}', '{"stable": []}', '{"Stable": [1]}', '{"a": [true]}'])
def test_a_file_of_labels_that_is_none_is_refused_with_the_rule(make: Make, content: str) -> None:
    subject = make(1)
    (subject.models / "tiny" / label_files.FILE).write_text(content)
    with pytest.raises(Conflict, match=r"tiny: labels.json: (is not JSON|must be an object of labels)"):
        subject.catalogue.label("tiny", "stable", "1")
    assert (subject.models / "tiny" / label_files.FILE).read_text() == content


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda c: c.load("none", ""), NotFound, "there is no model 'none'"),
        (lambda c: c.load("../tiny", ""), NotFound, "there is no model '../tiny'"),
        (lambda c: c.load("tiny", "7"), NotFound, "tiny has no version 7; it has 1"),
        (lambda c: c.load("tiny", "01"), InvalidArgument, "must be a number or a label; got '01'"),
        (lambda c: c.label("tiny", "Stable", "1"), InvalidArgument, "got 'Stable'"),
        (lambda c: c.label("tiny", "1", "1"), InvalidArgument, "got '1'"),
        (lambda c: c.label("tiny", "stable", "7"), NotFound, "tiny has no version 7"),
        (lambda c: c.rollback("tiny", "stable"), NotFound, "tiny has no label 'stable'; it has none"),
        (lambda c: c.unload("tiny", "2"), NotFound, "tiny has no version 2"),
        (lambda c: c.entries("none"), NotFound, "there is no model 'none'"),
    ],
)
def test_what_cannot_be_asked_is_named(
    make: Make, call: Callable[[Catalogue], object], error: type[ServiceError], says: str
) -> None:
    with pytest.raises(error) as caught:
        call(make(1).catalogue)
    assert says in caught.value.text


def test_a_scan_takes_new_versions_when_they_are_complete_and_at_rest(make: Make) -> None:
    subject = make(1, policy="latest:1")
    directory = subject.write(2, content="xxxx")
    (directory / "encoder.onnx").write_text("xx")
    subject.scan()
    assert subject.served == [1], "half a package"
    (directory / "encoder.onnx").write_text("xxxx")
    subject.catalogue.scan()
    assert subject.served == [1], "it may still be written"
    subject.catalogue.scan()
    assert subject.served == [2]
    subject.scan()
    assert subject.replica.prepared == [("tiny", 2)]


def test_a_scan_loads_again_what_was_changed_and_keeps_what_is_refused(make: Make) -> None:
    subject = make(1, 2)
    subject.write(2, content="new")
    subject.replica.refused = {2}
    subject.scan()
    assert (subject.served, subject.replica.prepared) == ([1, 2], [])
    assert subject.catalogue.entries("tiny")[0].reason == "encoder.onnx: is refused by the test"
    subject.replica.refused = set()
    subject.scan()
    assert subject.replica.prepared == [], "the same files are refused again, so they are not tried"
    subject.write(2, content="newer")
    subject.scan()
    assert subject.replica.prepared == [("tiny", 2)]


def test_a_change_that_meets_an_unlucky_moment_is_made_at_the_next_look(make: Make) -> None:
    subject = make(1)
    subject.write(1, content="new")
    subject.replica.unavailable = True
    subject.scan()
    assert subject.replica.prepared == []
    subject.replica.unavailable = False
    subject.scan()
    assert subject.replica.prepared == [("tiny", 1)]


def test_labels_that_cannot_be_read_are_told_once(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    subject = make(1)
    os.mkfifo(subject.models / "tiny" / label_files.FILE)
    for _ in range(3):
        subject.scan()
    assert [record.__dict__["reason"] for record in caplog.records] == ["labels.json: is not a regular file"]


def test_a_scan_drops_what_is_gone_but_neither_labels_nor_the_last(make: Make) -> None:
    subject = make(1, 2, 3)
    subject.catalogue.label("tiny", "stable", "1")
    for version in (1, 2):
        (subject.models / "tiny" / str(version)).rename(subject.models / f"gone-{version}")
    subject.scan()
    assert subject.served == [1, 3]
    subject.catalogue.unlabel("tiny", "stable")
    (subject.models / "tiny" / "3").rename(subject.models / "gone-3")
    subject.scan()
    assert subject.served == [1, 3]


def test_a_scan_forgets_what_was_refused_and_is_gone(make: Make) -> None:
    subject = make(1)
    subject.replica.refused = {2, 3}
    for version in (2, 3):
        subject.write(version)
    subject.scan()
    assert subject.states() == {3: "FAILED", 2: "FAILED", 1: "READY"}
    (subject.models / "tiny" / "2").rename(subject.models / "gone-2")
    subject.replica.unavailable = True
    subject.scan()
    assert subject.states()[2] == "FAILED", "at the next look"
    subject.replica.unavailable = False
    subject.scan()
    assert subject.states() == {3: "FAILED", 1: "READY"}
    assert subject.replica.forgotten == [("tiny", 2)]
    (subject.models / "tiny").rename(subject.models / "gone")
    subject.scan()
    assert subject.states() == {1: "READY"}, "the last serves on"
    assert subject.replica.forgotten == [("tiny", 2), ("tiny", 3)]


def test_a_scan_follows_labels_that_somebody_else_moved(make: Make) -> None:
    subject = make(1, 2, policy="latest:1")
    label_files.write(subject.models, "tiny", {"stable": [1]})
    subject.scan()
    assert (subject.served, subject.labels) == ([1, 2], {"stable": 1})


def test_a_scan_finds_models_that_are_new(make: Make) -> None:
    subject = make(1)
    tiny.write(subject.models, "other")
    subject.scan()
    assert subject.replica.served["other"].versions == (1,)


def test_more_versions_than_may_be_loaded_are_refused_by_name(make: Make) -> None:
    subject = make(1, 2, max_models=2)
    subject.write(3)
    before = subject.replica.served["tiny"]
    with pytest.raises(Conflict, match=r"tiny: more versions than --max-models=2 would be loaded; unload some first"):
        subject.catalogue.load("tiny", "3")
    with pytest.raises(Conflict, match=r"--max-models=2"):
        subject.catalogue.load("tiny", "")
    with pytest.raises(Conflict, match=r"--max-models=2"):
        subject.catalogue.label("tiny", "canary", "3")
    assert subject.replica.served["tiny"] == before
    assert subject.replica.prepared == []
    subject.catalogue.reload("tiny", "2")
    subject.catalogue.unload("tiny", "1")
    subject.catalogue.load("tiny", "3")
    assert subject.served == [2, 3]


def test_a_look_at_the_directory_loads_no_more_than_may_be(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    subject = make(1, 2, max_models=3)
    for version in (3, 4):
        subject.write(version)
    subject.scan()
    subject.scan()
    assert subject.served == [1, 2, 4]
    assert subject.states()[3] == "FAILED"
    (told,) = [record for record in caplog.records if record.getMessage() == "what was served serves on"]
    assert "--max-models=3" in vars(told)["reason"]
    subject.write(2, content="changed")
    subject.scan()
    assert ("tiny", 2) in subject.replica.prepared, "what serves is followed all the same"


def test_the_newest_version_takes_the_place_of_the_last_where_no_more_may_be_loaded(make: Make) -> None:
    subject = make(1, policy="latest:1", max_models=1)
    subject.write(2)
    subject.scan()
    assert subject.served == [2]


def test_a_start_leaves_out_the_oldest_of_too_many(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    label_directory = Harness(tmp_path, versions=(1, 2, 3, 4))
    label_directory.catalogue.label("tiny", "stable", "1")
    subject = Harness(tmp_path, versions=(), max_models=2)
    assert subject.served == [1, 4], "the labelled and the largest"
    reasons = {entry.version: entry.reason for entry in subject.catalogue.entries("tiny")}
    assert reasons[2] == reasons[3] == "more versions than --max-models=2 would be loaded"
    assert any("--max-models=2" in str(vars(record).get("rule")) for record in caplog.records)
