"""What counts as a change, and what a folder shows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from natterjack_files.changes import Change, Differences
from natterjack_files.folder import Folder, Listing, Seen
from natterjack_files.memory import Memory

A, B = Seen(1, 10, 100), Seen(2, 20, 200)


def look(known: dict[str, Seen], files: dict[str, Seen], *hidden: str) -> list[Change]:
    return Differences(0).look(known, Listing(files, list(hidden)), 0.0)


def test_what_is_equal_is_no_change() -> None:
    assert look({"a": A}, {"a": A}) == []
    assert look({"a": A}, {"a": A._replace(inode=9)}) == []  # e.g. restored from a backup


def test_created_modified_deleted() -> None:
    assert look({}, {"a": A}) == [Change("created", "a", A)]
    assert look({"a": A}, {"a": A._replace(mtime=101)}) == [Change("modified", "a", A._replace(mtime=101))]
    assert look({"a": A}, {}) == [Change("deleted", "a", A)]


def test_renamed_is_what_keeps_all_of_it() -> None:
    assert look({"a": A}, {"b": A}) == [Change("renamed", "b", A, "a")]
    written = A._replace(size=11)
    assert look({"a": A}, {"b": written}) == [Change("deleted", "a", A), Change("created", "b", written)]
    assert look({"a": A, "b": B}, {"b": A}) == [Change("deleted", "a", A), Change("modified", "b", A)]
    assert look({"a": A}, {"b": A, "c": A}) == [Change("renamed", "b", A, "a"), Change("created", "c", A)]


def test_two_that_change_names_are_two_changes() -> None:
    assert [change.kind for change in look({"a": A, "b": B}, {"a": B, "b": A})] == ["modified", "modified"]


def test_nothing_is_deleted_in_a_folder_that_cannot_be_read() -> None:
    assert look({"in/a": A, "b": B}, {}, "in/") == [Change("deleted", "b", B)]


def test_a_difference_counts_when_it_has_rested() -> None:
    differences = Differences(2.0)
    assert differences.due(0.0) is None
    assert differences.look({}, Listing({"a": A}), 10.0) == []
    assert differences.due(10.5) == 1.5
    assert differences.look({}, Listing({"a": B}), 11.5) == []  # written again
    assert differences.look({}, Listing({"a": B}), 13.0) == []
    assert differences.look({}, Listing({"a": B}), 13.5) == [Change("created", "a", B)]
    assert differences.look({}, Listing({"a": B}), 14.0) == [Change("created", "a", B)]  # nobody has recorded it
    assert differences.look({"a": B}, Listing({"a": B}), 14.0) == []
    assert differences.due(14.0) is None


def test_a_file_that_is_away_for_a_moment_is_not_deleted() -> None:
    differences = Differences(2.0)
    assert differences.look({"a": A}, Listing({}), 1.0) == []
    assert differences.look({"a": A}, Listing({"a": B}), 2.0) == []
    assert differences.look({"a": A}, Listing({"a": B}), 4.0) == [Change("modified", "a", B)]


def test_what_is_moved_is_not_deleted_before_it_rests_at_its_new_place() -> None:
    differences = Differences(2.0)
    assert differences.look({"a": A}, Listing({}), 1.0) == []
    assert differences.look({"a": A}, Listing({"b": A}), 2.0) == []
    assert differences.look({"a": A}, Listing({"b": A}), 3.0) == []
    assert differences.look({"a": A}, Listing({"b": A}), 4.0) == [Change("renamed", "b", A, "a")]


def test_a_folder_that_cannot_be_read_hides_what_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").touch()
    (tmp_path / "b").touch()
    scan = os.scandir

    def refused(path: Path) -> object:  # for root, all can be read
        if path.name == "in":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    folder = Folder(tmp_path, "*", recursive=True)
    monkeypatch.setattr("os.scandir", refused)
    listing = folder.read()
    assert listing is not None
    assert (list(listing.files), listing.hidden, listing.hides("in/a")) == (["b"], ["in/"], True)


def test_content_that_cannot_be_read_is_told_why(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").touch()
    folder = Folder(tmp_path, "*", recursive=False)
    assert folder.content("gone", 10) == {"omitted": "it cannot be read: No such file or directory"}
    assert "it cannot be read" in folder.content("link", 10)["omitted"]
    os.mkfifo(tmp_path / "pipe")
    assert folder.content("pipe", 10) == {"omitted": "it is no file any more"}


def test_what_was_being_fired_is_remembered(tmp_path: Path) -> None:
    memory = Memory.open(tmp_path / "deep" / "state")
    assert memory is not None
    assert memory.new
    memory.looked()
    changes = [Change("created", "a", A), Change("deleted", "b", B), Change("renamed", "c\udce9", A, "d")]
    firing = memory.begin(changes)
    assert Memory.open(tmp_path / "deep" / "state") is None  # this process has it
    memory.record(firing[:1])
    memory.close()
    again = Memory.open(tmp_path / "deep" / "state")
    assert again is not None
    assert (again.new, again.known, again.firing) == (False, {"a": A}, firing[1:])
    again.record(again.firing)
    assert again.known == {"a": A, "c\udce9": A}
    again.close()
