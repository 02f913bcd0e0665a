"""The limits of a container, or of a job of a batch system, are those that count: cgroups of version 1 and 2."""

from pathlib import Path

import psutil
import pytest

from logtrain.readiness import container

GIB = 1 << 30
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def write_memory(folder: Path, version: tuple[str, str, str], limit: object, used: int, cached: int) -> None:
    write(folder, **{version[0]: limit, version[1]: used, "memory.stat": f"anon 5\n{version[2]} {cached}"})


@pytest.fixture
def groups(tmp_path, monkeypatch) -> Path:
    """The folder of all groups; `own` beside it says in which this process is. Of the machine 64 GiB are free."""
    monkeypatch.setattr(container, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(container, "OWN", tmp_path / "own")
    machine = psutil.virtual_memory()._replace(total=128 * GIB, available=64 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    monkeypatch.setattr(container.os, "sched_getaffinity", lambda _: range(16))
    return tmp_path / "cgroup"


def test_without_groups_it_is_the_machine(groups):
    assert container.memory() == (128 * GIB, 64 * GIB) and container.cores() == (16, 16.0)


def test_version_2_and_what_others_of_the_container_have(groups):
    groups.with_name("own").write_text("0::/\n")
    write_memory(groups, V2, 8 * GIB, 6 * GIB, GIB)
    write(groups, cpu__max="250000 100000")
    assert container.memory() == (8 * GIB, 3 * GIB) and container.cores() == (16, 2.5)
    write_memory(groups, V2, "max", 6 * GIB, GIB)
    write(groups, cpu__max="max 100000")
    assert container.memory() == (128 * GIB, 64 * GIB) and container.cores() == (16, 16.0)


def test_the_lowest_limit_of_all_groups_around_holds(groups):
    """A step of a job of Slurm is in the group of the job."""
    groups.with_name("own").write_text("0::/slurm/job_7/step_0\n")
    write_memory(groups / "slurm" / "job_7" / "step_0", V2, "max", GIB, 0)
    write_memory(groups / "slurm" / "job_7", V2, 32 * GIB, 30 * GIB, GIB)
    write_memory(groups / "slurm" / "job_8", V2, GIB, GIB, 0)
    assert container.memory() == (32 * GIB, 3 * GIB)


@pytest.mark.parametrize("inner", ["docker/1a2b", ""], ids=["as the machine sees it", "as the container sees it"])
def test_version_1(groups, inner):
    groups.with_name("own").write_text("9:name=systemd:/\n4:memory:/docker/1a2b\n2:cpu,cpuacct:/docker/1a2b\n0::/\n")
    write_memory(groups / "memory", V1, 9223372036854771712, 60 * GIB, 0)
    write_memory(groups / "memory" / inner, V1, 4 * GIB, 5 * GIB, GIB // 2)
    write(groups / "cpu" / inner, cpu__cfs_quota_us=150000, cpu__cfs_period_us=100000)
    assert container.memory() == (4 * GIB, 0) and container.cores() == (16, 1.5)
    write(groups / "cpu" / inner, cpu__cfs_quota_us=-1)
    assert container.cores() == (16, 16.0)
