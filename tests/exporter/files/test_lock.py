"""Test that a lock excludes other holders until it is closed."""

import pytest

from exporter.files.lock import Lock, have_locks


@pytest.fixture(params=["file", "directory"])
def place(request, tmp_path):
    if request.param == "file":
        (tmp_path / "lock").touch()
        return tmp_path / "lock"
    return tmp_path


def test_this_system_has_locks():
    assert have_locks()


def test_an_exclusive_lock_excludes_another(place):
    with Lock(place) as first, Lock(place) as second:
        first.exclusive()
        with pytest.raises(BlockingIOError):
            second.exclusive(wait=False)
        first.close()
        second.exclusive(wait=False)


def test_shared_locks_exclude_an_exclusive_one(place):
    with Lock(place) as first, Lock(place) as second:
        first.exclusive()
        first.shared()
        second.shared()
        with pytest.raises(BlockingIOError):
            second.exclusive(wait=False)


def test_the_end_of_the_block_releases_the_lock(place):
    with Lock(place) as first:
        first.exclusive()
    with Lock(place) as second:
        second.exclusive(wait=False)
    second.close()  # a second close has no effect


def test_a_missing_file_is_created_only_on_request(tmp_path):
    with pytest.raises(FileNotFoundError):
        Lock(tmp_path / "none")
    Lock(tmp_path / "made", create=True).close()
    assert (tmp_path / "made").read_bytes() == b""
