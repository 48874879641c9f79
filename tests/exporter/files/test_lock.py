"""A lock keeps other holders out, until it is closed."""

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


def test_one_holder_keeps_the_other_out(place):
    with Lock(place) as first, Lock(place) as second:
        first.exclusive()
        with pytest.raises(BlockingIOError):
            second.exclusive(wait=False)
        first.close()
        second.exclusive(wait=False)


def test_those_who_share_keep_out_who_does_not(place):
    with Lock(place) as first, Lock(place) as second:
        first.exclusive()
        first.shared()
        second.shared()
        with pytest.raises(BlockingIOError):
            second.exclusive(wait=False)


def test_the_end_of_the_block_gives_it_back(place):
    with Lock(place) as first:
        first.exclusive()
    with Lock(place) as second:
        second.exclusive(wait=False)
    second.close()  # again: nothing to do


def test_a_file_is_made_only_on_request(tmp_path):
    with pytest.raises(FileNotFoundError):
        Lock(tmp_path / "none")
    Lock(tmp_path / "made", create=True).close()
    assert (tmp_path / "made").read_bytes() == b""
