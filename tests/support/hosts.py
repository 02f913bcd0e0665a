"""Several machines on this one: network namespaces with addresses and names of their own, joined by a switch. Needs
root, iproute2 and iptables.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

NET, PORT = "10.77.0", 29500
TOOLS = ("ip", "unshare", "iptables", "tc")


def missing() -> str:
    """Why hosts are not to be had here; "" where they are."""
    if absent := [tool for tool in TOOLS if not shutil.which(tool)]:
        return f"needs {', '.join(absent)}"
    name = f"probe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return "" if made.returncode == 0 else f"no network namespaces: {made.stderr.strip()}"


def sh(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr}"
    return done.stdout


class Hosts:
    """node0, node1, ...: each reaches the others by name."""

    def __init__(self, count: int):
        self.names = [f"node{i}" for i in range(count)]
        self.spaces = [f"lt{os.getpid()}-{i}" for i in range(count)]
        self.switch = f"lt{os.getpid()}-sw"
        self.processes: list[subprocess.Popen] = []
        sh("ip", "netns", "add", self.switch)
        sh("ip", "-n", self.switch, "link", "add", "br0", "type", "bridge")
        sh("ip", "-n", self.switch, "link", "set", "br0", "up")
        table = "127.0.0.1 localhost\n" + "".join(f"{NET}.{i + 1} {name}\n" for i, name in enumerate(self.names))
        for i, space in enumerate(self.spaces):
            sh("ip", "netns", "add", space)
            sh("ip", "-n", space, "link", "add", "eth0", "type", "veth", "peer", f"port{i}", "netns", self.switch)
            sh("ip", "-n", self.switch, "link", "set", f"port{i}", "master", "br0", "up")
            sh("ip", "-n", space, "link", "set", "lo", "up")
            sh("ip", "-n", space, "addr", "add", f"{NET}.{i + 1}/24", "dev", "eth0")
            sh("ip", "-n", space, "link", "set", "eth0", "up")
            Path("/etc/netns", space).mkdir(parents=True)
            Path("/etc/netns", space, "hosts").write_text(table)

    def start(
        self, host: int, command: Sequence[object], output: Path, environment: Mapping[str, str], before: str = ""
    ) -> subprocess.Popen:
        """A command on a host; what it prints goes to a file. `before`: shell text that comes first, to mount, say."""
        script = f'hostname "$0"; {before} exec "$@"'
        alone = ["ip", "netns", "exec", self.spaces[host], "unshare", "--uts", "--mount", "sh", "-c", script]
        with open(output, "wb") as stream:
            process = subprocess.Popen(
                [*alone, self.names[host], *map(str, command)],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def cut_off(self, host: int) -> None:
        """Its cable is pulled."""
        sh("ip", "-n", self.switch, "link", "set", f"port{host}", "down")

    def connect(self, host: int) -> None:
        sh("ip", "-n", self.switch, "link", "set", f"port{host}", "up")

    def spoil(self, host: int, rate: str, loss: float) -> None:
        """A slow link that loses packets: so many of a hundred that come, at random."""
        sh("tc", "-n", self.spaces[host], "qdisc", "replace", "dev", "eth0", *f"root tbf rate {rate}".split(),
           *["burst", "20kb", "latency", "200ms"])  # fmt: skip
        drop = f"-A INPUT -i eth0 -m statistic --mode random --probability {loss / 100} -j DROP"
        sh("ip", "netns", "exec", self.spaces[host], "iptables", *drop.split())

    def kill(self, host: int) -> None:
        """Every process on it at once, as when it loses power."""
        for pid in sh("ip", "netns", "pids", self.spaces[host]).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def close(self) -> None:
        for i, space in enumerate(self.spaces):
            self.kill(i)
            sh("ip", "netns", "del", space)
            shutil.rmtree(Path("/etc/netns", space))
        for process in self.processes:
            process.wait()
        sh("ip", "netns", "del", self.switch)


@contextlib.contextmanager
def hosts(count: int) -> Iterator[Hosts]:
    """So many of them, for a block."""
    there = Hosts(count)
    try:
        yield there
    finally:
        there.close()


def ended(processes: Sequence[subprocess.Popen], seconds: float) -> list[int | None]:
    """Exit statuses of processes within so many seconds; None: it has not ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(process.poll() is None for process in processes):
        time.sleep(0.05)
    return [process.poll() for process in processes]


def rendezvous(hosts: Hosts, ranks: int) -> dict[str, str]:
    """The environment in which launch/run.sh meets the others, as its help says."""
    meeting = {"PET_NNODES": len(hosts.names), "PET_RDZV_BACKEND": "c10d", "PET_RDZV_ID": "test"}
    meeting |= {"PET_RDZV_ENDPOINT": f"{hosts.names[0]}:{PORT}", "PET_NPROC_PER_NODE": ranks}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**{key: str(value) for key, value in meeting.items()}, "VIRTUAL_ENV": sys.prefix, "PATH": path}
