import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from exporter.machine import cores
from exporter.machine.cores import cpu_quota, usable_cores

# As the kernel writes them: proc(5), cgroups(7).
V1 = "9:name=systemd:/\n4:memory:{0}\n3:cpuset:{0}\n2:cpu,cpuacct:{0}\n"
V2 = "0::{0}\n"
MOUNT_V1 = (
    "24 1 0:21 / /proc rw - proc proc rw\n"
    "33 25 0:29 {root} {point}/memory rw,nosuid shared:10 - cgroup cgroup rw,memory\n"
    "34 25 0:30 {root} {point} rw,nosuid shared:11 - cgroup cgroup rw,cpu,cpuacct\n"
)
MOUNT_V2 = "30 23 0:26 {root} {point} rw,nosuid,nodev shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


class Machine:
    """A folder with files as in /proc/self and /sys/fs/cgroup."""

    def __init__(self, folder: Path, group: str, mount: str, path: str, root: str = "/") -> None:
        self.proc, self.point = folder / "proc", folder / "cgroup"
        self.proc.mkdir()
        (self.proc / "cgroup").write_text(group.format(path))
        (self.proc / "mountinfo").write_text(mount.format(root=root, point=self.point))

    def write(self, place: str, **files: str) -> None:
        folder = self.point / place
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_text(f"{content}\n")


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)


@pytest.mark.parametrize(
    ("written", "quota", "expected"),
    [
        ("max 100000", None, 4),
        ("100000 100000", 1, 1),
        ("200000 100000", 2, 2),
        ("150000 100000", 1.5, 1),
        ("50000 100000", 0.5, 1),
        ("800000 100000", 8, 4),
        ("nonsense", None, 4),
    ],
)
def test_a_container_of_version_2_has_the_cores_of_its_quota(
    tmp_path, four_cores, written, quota, expected
):
    machine = Machine(tmp_path, V2, MOUNT_V2, "/")
    machine.write("", cpu__max=written)
    assert cpu_quota(machine.proc) == quota
    assert usable_cores(machine.proc) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", None), ("250000", 2.5), ("0", None)])
def test_version_1_has_its_quota_in_two_files(tmp_path, quota, expected):
    machine = Machine(tmp_path, V1, MOUNT_V1, "/jobs/a")
    machine.write("jobs/a", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    assert cpu_quota(machine.proc) == expected


def test_a_container_that_mounts_its_own_group_as_the_root_has_its_quota(tmp_path):
    machine = Machine(tmp_path, V1, MOUNT_V1, "/docker/1f", root="/docker/1f")
    machine.write("", cpu__cfs_quota_us="300000", cpu__cfs_period_us="100000")
    assert cpu_quota(machine.proc) == 3


def test_the_least_quota_of_a_group_and_those_above_it_counts(tmp_path):
    machine = Machine(tmp_path, V2, MOUNT_V2, "/kube/pod/box")
    machine.write("kube/pod/box", cpu__max="max 100000")
    machine.write("kube/pod", cpu__max="150000 50000")
    machine.write("kube", cpu__max="900000 100000")
    assert cpu_quota(machine.proc) == 3


def test_a_system_without_cgroups_has_no_quota(tmp_path, four_cores):
    assert cpu_quota(tmp_path) is None
    assert usable_cores(tmp_path) == 4


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("7", "7")])
def test_the_quota_sets_the_threads_of_the_libraries_unless_the_user_did(
    monkeypatch, given, expected
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr(cores, "cpu_quota", lambda *_: 1.0)
    cores.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == expected


def test_without_a_quota_the_libraries_choose_their_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cores, "cpu_quota", lambda *_: None)
    cores.limit_threads()
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.fixture
def real_group():
    """A cgroup of version 1 or 2 with a quota of one CPU, where this machine lets one be made."""
    name = f"tsformer-test-{os.getpid()}"
    for parent, files in (
        (Path("/sys/fs/cgroup/cpu"), {"cpu.cfs_quota_us": "100000"}),
        (Path("/sys/fs/cgroup"), {"cpu.max": "100000 100000"}),
    ):
        group = parent / name
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            for file, content in files.items():
                if not (group / file).exists():
                    break
                (group / file).write_text(content)
            else:
                yield group
                return
        except OSError:
            pass
        finally:
            with suppress(OSError):
                group.rmdir()
    pytest.skip("this machine lets no cgroup be made")


def test_a_process_in_a_real_cgroup_of_one_cpu_uses_one_core(real_group):
    program = "from exporter.machine.cores import usable_cores; print(usable_cores())"
    join = f"echo $$ > {real_group}/cgroup.procs && exec {sys.executable} -c '{program}'"
    done = subprocess.run(["sh", "-c", join], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "1", done.stderr
