"""The scan as a table: a made-up disk, a made-up time, and what follows from them."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.config import AbsentVersions, AllVersions, LatestVersions, ModelConfig, SpecificVersions, VersionPolicy
from embedserve.lifecycle.scan import (
    Listing,
    ModelMemory,
    ModelScan,
    RootMemory,
    RootScan,
    diagnose,
    scan_model,
    scan_root,
)
from embedserve.saved_model.files.completeness import FileStamp, Look
from embedserve.saved_model.files.misplaced import Child

ROOT = Path("/models")
SETTLE = 1.0


@dataclass
class Version:
    """A version directory: any change of `contents` is a change of its files."""

    contents: int = 1
    lacking: str | None = None
    hidden: int = 0
    unreadable: bool = False
    is_file: bool = False
    too_large: bool = False


class FakeDisk:
    """Directories as a dictionary; None stands for one that cannot be read."""

    def __init__(self) -> None:
        self.now = 100.0
        self.models: dict[str, dict[str, Version] | None] = {}
        self.root_error: int | None = None
        self.device = 1
        self.checked: list[str] = []
        self.looked: list[str] = []
        self.dangling: list[str] = []

    def time(self) -> float:
        return self.now

    def _children(self, path: Path) -> Sequence[Child]:
        if path == ROOT:
            if self.root_error is not None:
                raise OSError(self.root_error, os.strerror(self.root_error), str(path))
            return [Child(name, True) for name in self.models]
        if path.name not in self.models:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        versions = self.models[path.name]
        if versions is None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return [Child(name, not version.is_file) for name, version in versions.items()]

    def listing(self, path: Path, follow: bool = True) -> Listing:
        dangling = [] if follow else [Child(name, True) for name in self.dangling]
        return Listing(self.device, 1, [*self._children(path), *(dangling if path == ROOT else [])])

    def leads_nowhere(self, path: Path) -> bool:
        return path.name not in self.models

    def _version(self, path: Path) -> Version:
        versions = self.models[path.parent.name]
        assert versions is not None
        return versions[path.name]

    def look(self, path: Path) -> Look:
        self.looked.append(path.name)
        version = self._version(path)
        if version.too_large:
            raise OSError(errno.EFBIG, "more than 20000 files are in it, so it is no version", str(path))
        stamp = FileStamp("saved_model.pb", version.contents, 0, "")
        return Look((stamp,), ((stamp, version.hidden),))

    def check(self, path: Path) -> str | None:
        self.checked.append(path.name)
        version = self._version(path)
        if version.unreadable:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path / "saved_model.pb"))
        return version.lacking


@dataclass(frozen=True)
class Scan:
    """What looks at everything found out."""

    configs: Mapping[str, ModelConfig]
    models: Mapping[str, ModelScan]
    diagnosis: str | None
    notices: tuple[str, ...]
    due: float | None


class Scanner:
    """Looks at the root, then at every model, again and again, as the source does."""

    def __init__(self, *configured: ModelConfig, root: Path | None = None) -> None:
        self.disk = FakeDisk()
        self.configured = {config.name: config for config in configured}
        self.policies: dict[str, VersionPolicy] = {}
        self.root = root
        self.root_scan = RootScan(RootMemory())
        self.memories: dict[str, ModelMemory] = {}
        self.directories: dict[str, Path] = {}
        self.last = Scan({}, {}, None, (), None)
        self.absent: AbsentVersions = "keep"
        self.misused = False

    def scan(self, after: float = 0.0) -> Scan:
        self.disk.now += after
        self.disk.checked.clear()
        self.disk.looked.clear()
        if self.root is not None:
            gone = {name for name, model in self.last.models.items() if model.gone}
            self.root_scan = scan_root(self.root_scan.memory, self.root, gone, self.disk, SETTLE, self.absent)
        names = self.root_scan.memory.names
        configs = {name: ModelConfig(name=name, base_path=ROOT / name) for name in names} | self.configured
        models = {name: self._model(config) for name, config in configs.items()}
        visible = [name for name, scan in models.items() if name in self.configured or scan.memory.is_model]
        diagnosis = self.root_scan.problem
        if self.root is not None and diagnosis is None and not any(models[name].memory.is_model for name in names):
            instead = [text for name in names if (text := models[name].instead) is not None]
            diagnosis, self.misused = diagnose(self.root, self.root_scan.children, instead)
        self.memories = {name: model.memory for name, model in models.items()}
        self.directories = {name: config.directory for name, config in configs.items()}
        notices = [notice for name in visible for notice in models[name].notices]
        dues = [due for due in (self.root_scan.due, *(models[name].due for name in visible)) if due is not None]
        self.last = Scan(
            {name: configs[name] for name in visible},
            models,
            diagnosis,
            tuple([] if diagnosis is None else [diagnosis]) + tuple(notices),
            min(dues, default=None),
        )
        return self.last

    def _model(self, config: ModelConfig) -> ModelScan:
        memory = self.memories.get(config.name, ModelMemory())
        if self.directories.get(config.name, config.directory) != config.directory:
            memory = replace(memory, device=None)
        policy = self.policies.get(config.name, config.version_policy)
        return scan_model(config, policy, memory, self.disk, SETTLE, self.absent)

    def settle(self) -> Mapping[int, int] | None:
        """Scan twice, a settle window apart."""
        self.scan()
        self.scan(after=SETTLE)
        return self.aspired()

    def aspired(self, name: str = "m") -> Mapping[int, int] | None:
        """Contents by version."""
        aspired = self.memories[name].aspired
        return None if aspired is None else {v: d.fingerprint[0].size for v, d in aspired.items()}

    def waiting(self, name: str = "m") -> Mapping[int, str]:
        return self.last.models[name].waiting

    def versions(self, name: str = "m") -> dict[str, Version]:
        versions = self.disk.models.setdefault(name, {})
        assert versions is not None
        return versions


def model(name: str = "m", policy: VersionPolicy | None = None) -> ModelConfig:
    return ModelConfig(name=name, base_path=ROOT / name, version_policy=policy or LatestVersions())


@pytest.fixture
def scanner() -> Scanner:
    scanner = Scanner(model())
    scanner.versions()
    return scanner


class TestSettling:
    def test_a_new_version_is_taken_when_it_was_quiet_for_the_settle_window(self, scanner: Scanner) -> None:
        scanner.versions()["1"] = Version()
        result = scanner.scan()
        assert scanner.aspired() == {}
        assert scanner.waiting() == {1: "/models/m/1 changed less than 1 s ago"}
        assert result.due == scanner.disk.now + SETTLE
        scanner.scan(after=SETTLE * 0.875)
        assert scanner.aspired() == {}
        result = scanner.scan(after=SETTLE * 0.125)
        assert scanner.aspired() == {1: 1}
        assert scanner.waiting() == {}
        assert result.due is None

    def test_every_change_begins_the_window_anew(self, scanner: Scanner) -> None:
        version = scanner.versions()["1"] = Version()
        for contents in range(2, 10):
            scanner.scan(after=SETTLE * 0.9)
            version.contents = contents
        assert scanner.aspired() == {}
        assert scanner.settle() == {1: 9}

    def test_temporary_files_begin_it_anew_too(self, scanner: Scanner) -> None:
        version = scanner.versions()["1"] = Version()
        scanner.scan()
        version.hidden = 1
        scanner.scan(after=SETTLE)
        assert scanner.aspired() == {}

    def test_contents_are_read_once_and_only_when_they_are_quiet(self, scanner: Scanner) -> None:
        version = scanner.versions()["1"] = Version(lacking="x is missing")
        scanner.scan()
        assert scanner.disk.checked == []
        scanner.scan(after=SETTLE)
        assert scanner.disk.checked == ["1"]
        scanner.scan(after=10)
        assert scanner.disk.checked == []
        assert scanner.waiting() == {1: "x is missing"}
        version.contents, version.lacking = 2, None
        assert scanner.settle() == {1: 2}

    def test_what_could_not_be_read_is_read_again(self, scanner: Scanner) -> None:
        version = scanner.versions()["1"] = Version(unreadable=True)
        assert scanner.settle() == {}
        assert scanner.waiting() == {1: "/models/m/1/saved_model.pb cannot be read: Permission denied"}
        assert scanner.last.due is None
        version.unreadable = False
        scanner.scan(after=1)
        assert scanner.aspired() == {1: 1}

    def test_only_versions_that_the_policy_asks_about_are_looked_at(self, scanner: Scanner) -> None:
        scanner.versions().update({str(number): Version() for number in range(1, 50)})
        assert scanner.settle() == {49: 1}
        assert scanner.disk.looked == ["49"]


class TestCopiesInProgress:
    def test_an_incomplete_version_leaves_the_older_one(self, scanner: Scanner) -> None:
        scanner.versions()["1"] = Version()
        scanner.settle()
        scanner.versions()["2"] = Version(lacking="half")
        assert scanner.settle() == {1: 1}
        assert scanner.waiting() == {2: "half"}
        scanner.versions()["2"] = Version(contents=2)
        scanner.scan()
        assert scanner.aspired() == {1: 1}
        scanner.scan(after=SETTLE)
        assert scanner.aspired() == {2: 2}

    def test_with_nothing_served_yet_the_next_lower_whole_version_is_taken(self, scanner: Scanner) -> None:
        scanner.versions().update(
            {"1": Version(), "2": Version(lacking="half"), "3": Version(is_file=True, lacking="file")}
        )
        scanner.settle()
        assert scanner.settle() == {1: 1}
        assert scanner.waiting() == {2: "half", 3: "file"}

    def test_overwritten_in_place_the_old_contents_stay_until_the_new_are_whole_and_quiet(
        self, scanner: Scanner
    ) -> None:
        version = scanner.versions()["1"] = Version()
        scanner.settle()
        version.contents, version.lacking = 2, "half"
        assert scanner.settle() == {1: 1}
        assert scanner.waiting() == {1: "half"}
        version.contents, version.lacking = 3, None
        scanner.scan()
        assert scanner.aspired() == {1: 1}
        scanner.scan(after=SETTLE)
        assert scanner.aspired() == {1: 3}

    def test_touched_temporary_files_are_no_new_contents(self, scanner: Scanner) -> None:
        version = scanner.versions()["1"] = Version()
        scanner.settle()
        before = scanner.memories["m"].aspired
        version.hidden = 7
        assert scanner.settle() == {1: 1}
        assert scanner.memories["m"].aspired == before
        assert scanner.waiting() == {}


class TestDeletions:
    def test_a_version_removed_file_by_file_stays_until_its_directory_is_gone(self, scanner: Scanner) -> None:
        version = scanner.versions()["1"] = Version()
        scanner.settle()
        for contents in (2, 3, 4):
            version.contents, version.lacking = contents, "gone"
            assert scanner.settle() == {1: 1}
        del scanner.versions()["1"]
        scanner.scan()
        assert scanner.aspired() == {}

    def test_the_version_before_is_there_before_the_deleted_one_goes(self, scanner: Scanner) -> None:
        scanner.versions()["2"] = Version(contents=2)
        assert scanner.settle() == {2: 2}
        scanner.versions()["1"] = Version()
        scanner.scan(after=10)
        del scanner.versions()["2"]
        scanner.scan()
        assert scanner.aspired() == {2: 2}  # The first look at 1: it has to be quiet for the settle window first.
        scanner.scan(after=SETTLE)
        assert scanner.aspired() == {1: 1}

    def test_a_deleted_version_does_not_wait_for_one_that_is_incomplete(self, scanner: Scanner) -> None:
        scanner.versions().update({"1": Version(lacking="half"), "2": Version(contents=2)})
        assert scanner.settle() == {2: 2}
        del scanner.versions()["2"]
        assert scanner.settle() == {}

    @pytest.mark.parametrize("state", ["missing", "unreadable"])
    def test_a_base_path_that_cannot_be_read_changes_nothing(self, scanner: Scanner, state: str) -> None:
        scanner.versions()["1"] = Version()
        scanner.settle()
        if state == "missing":
            del scanner.disk.models["m"]
        else:
            scanner.disk.models["m"] = None
        result = scanner.scan(after=100)
        assert scanner.aspired() == {1: 1}
        expected = "NOT_FOUND: /models/m not found" if state == "missing" else "Permission denied"
        assert result.models["m"].problem == (
            "FileSystemStoragePathSource encountered a filesystem access error: "
            f"Could not find base path /models/m for servable m with error {expected}"
        )
        assert result.notices == (result.models["m"].problem,)

    def test_nothing_is_said_of_a_base_path_that_was_never_read(self) -> None:
        scanner = Scanner(model())
        scanner.scan()
        assert scanner.aspired() is None

    def test_an_empty_base_path_unloads_everything(self, scanner: Scanner) -> None:
        scanner.versions()["1"] = Version()
        scanner.settle()
        scanner.versions().clear()
        result = scanner.scan()
        assert scanner.aspired() == {}
        assert result.models["m"].problem == (
            "No versions of servable m found under base path /models/m. "
            "Did you forget to name your leaf directory as a number (eg. '/1/')? "
            "tf.saved_model.save(model, '/models/m/1') makes version 1"
        )
        assert not result.models["m"].misplaced

    def test_a_base_path_that_loses_its_mount_is_unreadable_and_not_empty(self, scanner: Scanner) -> None:
        scanner.versions()["1"] = Version()
        scanner.settle()
        scanner.versions().clear()
        scanner.disk.device = 2
        for _ in range(2):
            result = scanner.scan(after=100)
            assert scanner.aspired() == {1: 1}
            assert "its mount is gone" in str(result.models["m"].problem)
        scanner.versions()["2"] = Version(contents=2)  # Another device is mounted.
        assert scanner.settle() == {2: 2}
        scanner.versions().clear()
        scanner.scan()
        assert scanner.aspired() == {}

    def test_with_last_what_is_deleted_serves_on(self) -> None:
        scanner = Scanner(model(), root=ROOT)
        scanner.absent = "last"
        for name in ("m", "other"):
            scanner.versions(name)["1"] = Version()
        scanner.settle()
        scanner.versions("m").clear()
        del scanner.disk.models["other"]
        scanner.scan()
        assert scanner.scan(after=100).due is None
        assert [scanner.aspired(name) for name in ("m", "other")] == [{1: 1}, {1: 1}]
        scanner.versions("m")["2"] = Version(contents=2)
        assert scanner.settle() == {2: 2}
        scanner.policies["m"] = SpecificVersions(versions=())
        scanner.scan()
        assert scanner.aspired() == {}

    def test_one_missing_base_path_does_not_freeze_the_others(self) -> None:
        scanner = Scanner(model("gone"), model())
        scanner.versions()["1"] = Version()
        assert scanner.settle() == {1: 1}


class TestPolicies:
    def test_latest_counts_versions_that_can_be_had(self) -> None:
        scanner = Scanner(model(policy=LatestVersions(num_versions=2)))
        scanner.versions().update(
            {str(n): Version(contents=n, lacking="half" if n == 3 else None) for n in range(1, 5)}
        )
        scanner.settle()
        assert scanner.settle() == {4: 4, 2: 2}

    def test_all(self) -> None:
        scanner = Scanner(model(policy=AllVersions()))
        scanner.versions().update({"1": Version(), "002": Version(), "2": Version(), "x": Version()})
        assert scanner.settle() == {1: 1, 2: 1}
        assert scanner.last.models["m"].found == {1: ROOT / "m" / "1", 2: ROOT / "m" / "002"}
        assert scanner.last.notices == (
            "Duplicate version directories detected. Version 2 will be loaded from 002, 2 will be ignored. "
            "(model m, /models/m)",
        )

    def test_specific_versions_that_are_missing_are_said_once_each(self) -> None:
        scanner = Scanner(model(policy=SpecificVersions(versions=(1, 17, 5))))
        scanner.versions().update({"1": Version(), "00017": Version()})
        assert scanner.settle() == {1: 1, 17: 1}
        assert scanner.last.notices == (
            "Version 5 of servable m, which was requested to be served as a 'specific' version in the servable's "
            "version policy, was not found in the file system (/models/m)",
        )

    def test_a_policy_that_names_only_absent_versions_changes_nothing_and_says_so(self, scanner: Scanner) -> None:
        scanner.versions().update({"1": Version(), "2": Version(contents=2)})
        scanner.settle()
        scanner.policies["m"] = SpecificVersions(versions=(9,))
        result = scanner.scan()
        assert scanner.aspired() == {2: 2}
        assert result.notices[-1] == (
            "The version policy of servable m names only versions that are not there, so it changes nothing: versions "
            "2 go on serving until one of those appears"
        )
        scanner.versions()["9"] = Version(contents=9)
        scanner.scan()
        assert scanner.aspired() == {2: 2}, "it is not quiet yet"
        scanner.scan(after=SETTLE)
        assert scanner.aspired() == {9: 9}

    def test_a_version_kept_for_want_of_those_that_are_named_goes_with_its_directory(self, scanner: Scanner) -> None:
        scanner.versions()["1"] = Version()
        scanner.settle()
        scanner.policies["m"] = SpecificVersions(versions=(9,))
        scanner.scan()
        del scanner.versions()["1"]
        scanner.scan()
        assert scanner.aspired() == {}

    def test_absent_versions_unload_what_serves_where_that_is_asked_for(self, scanner: Scanner) -> None:
        scanner.versions()["1"] = Version()
        scanner.settle()
        scanner.absent = "unload"
        scanner.policies["m"] = SpecificVersions(versions=(9,))
        scanner.scan()
        assert scanner.aspired() == {}

    def test_an_empty_list_of_versions_serves_nothing(self, scanner: Scanner) -> None:
        scanner.versions()["1"] = Version()
        scanner.settle()
        scanner.policies["m"] = SpecificVersions()
        result = scanner.scan()
        assert scanner.aspired() == {}
        assert result.notices == ("No specific versions requested for servable m.",)

    def test_a_policy_set_later_overrides_the_models_own(self, scanner: Scanner) -> None:
        scanner.versions()["2"] = Version(contents=2)
        scanner.settle()
        scanner.versions()["1"] = Version()
        scanner.policies["m"] = SpecificVersions(versions=(1,))
        scanner.scan()
        assert scanner.aspired() == {2: 2}
        scanner.scan(after=SETTLE)
        assert scanner.aspired() == {1: 1}
        scanner.policies.clear()
        scanner.scan()  # Seen before and not changed since: no second window.
        assert scanner.aspired() == {2: 2}

    def test_a_policy_that_asks_for_an_incomplete_version_keeps_what_serves(self, scanner: Scanner) -> None:
        scanner.versions().update({"1": Version(lacking="half"), "2": Version(contents=2)})
        scanner.settle()
        scanner.policies["m"] = SpecificVersions(versions=(1,))
        assert scanner.settle() == {2: 2}
        assert scanner.waiting() == {1: "half"}

    def test_another_base_path_with_the_same_version_takes_over_without_a_gap(self, scanner: Scanner) -> None:
        scanner.versions()["1"] = Version()
        scanner.settle()
        scanner.versions("other")["1"] = Version(contents=1)
        scanner.configured = {"m": ModelConfig(name="m", base_path=ROOT / "other")}
        scanner.scan()
        aspired = scanner.memories["m"].aspired
        assert aspired is not None
        assert aspired[1].path == ROOT / "m" / "1"
        scanner.scan(after=SETTLE)
        aspired = scanner.memories["m"].aspired
        assert aspired is not None
        assert aspired[1].path == ROOT / "other" / "1"


class TestDiscovery:
    def test_subdirectories_with_a_numeric_directory_are_models(self) -> None:
        scanner = Scanner(root=ROOT)
        scanner.versions("digits")["1"] = Version()
        scanner.versions("2024")["7"] = Version()
        scanner.versions("notes")["readme"] = Version()
        scanner.versions("files")["1"] = Version(is_file=True)
        scanner.versions(".hidden")["1"] = Version()
        scanner.disk.models["secret"] = None
        result = scanner.scan()
        assert result.configs == {name: ModelConfig(name=name, base_path=ROOT / name) for name in ("2024", "digits")}
        assert result.diagnosis is None
        scanner.versions("notes")["3"] = Version()
        assert set(scanner.scan().configs) == {"2024", "digits", "notes"}

    def test_a_directory_whose_name_cannot_be_a_models_is_none(self) -> None:
        scanner = Scanner(root=ROOT)
        for name in ("good", "a\nE forged", "b\x1b[2J", "c" * 256):
            scanner.versions(name)["1"] = Version()
        assert set(scanner.scan().configs) == {"good"}

    def test_a_configured_model_hides_a_discovered_one_of_its_name(self) -> None:
        scanner = Scanner(model("digits", AllVersions()), root=ROOT)
        scanner.versions("digits")["1"] = Version()
        assert scanner.scan().configs == {"digits": model("digits", AllVersions())}

    def test_a_model_is_gone_when_a_second_look_does_not_find_it(self) -> None:
        scanner = Scanner(root=ROOT)
        scanner.versions()["1"] = Version()
        scanner.settle()
        del scanner.disk.models["m"]
        assert scanner.scan().due == scanner.disk.now + SETTLE
        assert set(scanner.scan(after=SETTLE * 0.875).configs) == {"m"}  # Events may bring scans close together.
        assert scanner.aspired() == {1: 1}
        assert scanner.scan(after=SETTLE * 0.125).configs == {}

    def test_a_root_that_loses_its_mount_is_unreadable_and_not_empty(self) -> None:
        scanner = Scanner(root=ROOT)
        scanner.versions()["1"] = Version()
        scanner.settle()
        mounted, scanner.disk.models, scanner.disk.device = scanner.disk.models, {}, 2
        for _ in range(3):
            result = scanner.scan(after=100)
            assert set(result.configs) == {"m"}
            assert scanner.aspired() == {1: 1}
            assert "its mount is gone" in str(result.diagnosis)
        scanner.disk.models, scanner.disk.device = mounted, 3
        assert scanner.scan().diagnosis is None
        scanner.disk.models = {}
        scanner.scan()
        assert scanner.scan(after=SETTLE).configs == {}

    def test_a_model_that_is_replaced_by_two_renames_is_never_gone(self) -> None:
        scanner = Scanner(root=ROOT)
        scanner.versions()["1"] = Version()
        scanner.settle()
        old = scanner.disk.models.pop("m")
        scanner.scan()
        scanner.disk.models["m"] = old
        assert set(scanner.scan(after=SETTLE).configs) == {"m"}
        scanner.disk.models.pop("m")
        assert set(scanner.scan(after=SETTLE).configs) == {"m"}  # Missed for the first time, again.

    def test_a_model_without_versions_stays_a_model(self) -> None:
        scanner = Scanner(root=ROOT)
        scanner.versions()["1"] = Version()
        scanner.settle()
        scanner.versions().clear()
        assert set(scanner.scan(after=10).configs) == {"m"}
        assert scanner.aspired() == {}

    @pytest.mark.parametrize(
        ("error", "text"),
        [
            (errno.ENOENT, "models directory /models does not exist"),
            (errno.EACCES, "models directory /models cannot be read: Permission denied"),
        ],
    )
    def test_a_root_that_cannot_be_read_changes_nothing(self, error: int, text: str) -> None:
        scanner = Scanner(root=ROOT)
        scanner.versions()["1"] = Version()
        scanner.settle()
        scanner.disk.root_error = error
        for _ in range(3):
            result = scanner.scan(after=10)
            assert set(result.configs) == {"m"}
            assert scanner.aspired() == {1: 1}
            assert result.diagnosis == text
            assert result.notices == (text,)


class TestDiagnosis:
    @pytest.mark.parametrize(
        ("models", "text"),
        [
            (
                {},
                "no models found under /models; expected /models/<model name>/<version number>/saved_model.pb, "
                "as tf.saved_model.save(model, '/models/my_model/1') makes it",
            ),
            (
                {"1": {"saved_model.pb": Version(is_file=True)}, "2": {}},
                "/models holds version directories (1, 2), so it is not a directory of models. "
                "Pass / to find every model in it, or models=['/models'] to ModelRegistry, or --model_name=models "
                "--model_base_path=/models on the command line",
            ),
            (
                {"saved_model.pb": {}, "variables": {}},
                "/models holds a SavedModel itself, but a version needs a directory of its own. "
                "Run `mkdir -p /models/models/1 && mv /models/saved_model.pb /models/variables /models/models/1`",
            ),
            (
                {"digits": {"saved_model.pb": Version(is_file=True)}},
                "/models holds no models: /models/digits holds a SavedModel itself, but a version needs a directory of "
                "its own. Run `mkdir -p /models/digits/1 && mv /models/digits/saved_model.pb /models/digits/1`",
            ),
            (
                {"digits": {"digits.keras": Version(is_file=True)}},
                "/models holds no models: /models/digits/digits.keras is a Keras model, and a version is a SavedModel "
                "directory. Run `python -c 'import keras; "
                'keras.models.load_model("/models/digits/digits.keras").export("/models/digits/1")\'`',
            ),
        ],
    )
    def test_a_root_without_models_says_what_to_pass(self, models: dict[str, dict[str, Version]], text: str) -> None:
        scanner = Scanner(root=ROOT)
        scanner.disk.models.update(models)
        result = scanner.scan()
        assert result.diagnosis == text
        assert result.notices == (text,)
        assert scanner.misused == bool(models)

    def test_a_base_path_whose_contents_have_to_be_moved_is_told_from_an_empty_one(self, scanner: Scanner) -> None:
        scanner.versions()["m.zip"] = Version(is_file=True)
        result = scanner.scan()
        assert result.models["m"].misplaced
        assert "Run `mkdir -p /models/m/1 && unzip /models/m/m.zip -d /models/m/1`" in (
            result.models["m"].problem or ""
        )
        scanner.versions()["1"] = Version(lacking="half")
        scanner.settle()
        assert not scanner.last.models["m"].misplaced


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "change", "tear", "mend", "remove"]),
            st.integers(1, 3),
            st.sampled_from([0.3, 0.6, 1.0]),
        ),
        max_size=40,
    ),
    st.sampled_from(
        [LatestVersions(), LatestVersions(num_versions=2), AllVersions(), SpecificVersions(versions=(1, 3))]
    ),
)
def test_no_torn_or_changing_contents_are_ever_aspired(
    steps: list[tuple[str, int, float]], policy: VersionPolicy
) -> None:
    scanner = Scanner(model(policy=policy))
    versions = scanner.versions()
    whole: set[tuple[str, int]] = set()
    first_scan: dict[tuple[str, int], float] = {}
    for contents, (action, number, pause) in enumerate(steps):
        name, version = str(number), versions.get(str(number))
        if action == "add" and version is None:
            versions[name] = Version(contents, "half")
        elif action == "remove":
            versions.pop(name, None)
        elif version is not None:
            version.contents = contents
            version.lacking = {"tear": "half", "mend": None}.get(action, version.lacking)
        before = scanner.aspired() if scanner.last.models else {}
        scanner.scan(after=pause)
        for there, version in versions.items():
            first_scan.setdefault((there, version.contents), scanner.disk.now)
            if version.lacking is None:
                whole.add((there, version.contents))
        aspired = scanner.aspired() or {}
        for taken in ((str(number), contents) for number, contents in aspired.items()):
            assert taken in whole, "torn contents were taken"
            assert scanner.disk.now >= first_scan[taken] + SETTLE, "contents were taken too early"
        served_and_there = {number for number in before or {} if str(number) in versions}
        if served_and_there:
            assert aspired, "the model went dark although a version that served is still there"
