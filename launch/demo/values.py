"""Random values of the demo's logs: addresses, sizes, names."""

import re
from random import Random
from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of random value: what it is called, the grok pattern that matches it, and how one is made (see `draw`)."""

    noun: str
    grok: str
    form: str


KINDS: dict[str, Kind] = {
    "ip": Kind("IP address", "IP", "10.<0 77 251>.<0-255>.<1-254>"),
    "port": Kind("port", "POSINT", "<32768-60999>"),
    "pid": Kind("process id", "POSINT", "<300-32767>"),
    "uid": Kind("user id of a process", "POSINT", "<10000-10199>"),
    "index": Kind("index", "INT", "<0-3>"),
    "number": Kind("number", "INT", "<2-9999>"),
    "build": Kind("number", "INT", "<100-999>"),
    "fails": Kind("count", "INT", "<4-9>"),
    "limit": Kind("limit", "INT", "<512 768 1024 2048 4096>"),
    "percent": Kind("percentage", "INT", "<1-99>"),
    "sec": Kind("time in seconds", "INT", "<10-900>"),
    "ms": Kind("time in milliseconds", "INT", "<100-999>"),
    "slow_ms": Kind("time in milliseconds", "INT", "<5000-60000>"),
    "size": Kind("size in bytes", "INT", "<200-99999>"),
    "kib": Kind("size in KB", "INT", "<2-64>"),
    "mib": Kind("size in MB", "INT", "<2050-4000>"),
    "total_mib": Kind("size in MB", "INT", "<32768 64172 128345 257820>"),
    "inode": Kind("inode", "INT", "<10000-999999>"),
    "block": Kind("block id", "NOTSPACE", "blk_<digits 19>"),
    "task": Kind("task", "INT", "<0-199>"),
    "stage": Kind("stage", "INT", "<0-40>"),
    "id": Kind("task id", "INT", "<200-9999>"),
    "job": Kind("job id", "NOTSPACE", "1445062781478_00<10-99>"),
    "session": Kind("session id", "NOTSPACE", "0x14f05578bd8<hex 4>"),
    "hex": Kind("hexadecimal number", "BASE16NUM", "<hex 8>"),
    "address": Kind("memory address", "NOTSPACE", "0x00<hex 6>"),
    "uuid": Kind("UUID", "UUID", "<hex 8>-<hex 4>-4<hex 3>-9<hex 3>-<hex 12>"),
    "day": Kind("date", "NOTSPACE", "2016/<1-12>/<1-28>"),
    "node": Kind("node", "NOTSPACE", "R<10-63>-M<0-1>-N<0-15>-C:J<10-17>"),
    "host": Kind("host", "HOSTNAME", "<mesos-slave worker node>-<10-48>"),
    "user": Kind("user", "USERNAME", "<alice deploy hdfs jenkins oracle postgres spark webapp yarn zabbix>"),
    "bad_user": Kind("user", "USERNAME", "<admin ftpuser guest info pi support test ubnt user0 webmaster>"),
    "process": Kind("program", "NOTSPACE", "<backupd chrome crond indexer java mysqld reportd searchd updater>"),
    "path": Kind("directory", "PATH", "/<etc/cron.daily mnt/data1 opt/app/cache srv/www/html var/lib/nova/_base>"),
    "disk": Kind("disk", "WORD", "<sda sdb sdc nvme0n1p vda>"),
    "package": Kind("application", "NOTSPACE", "com.<android example>.<chrome gallery maps phone player>"),
    "image": Kind("image", "NOTSPACE", "<centos-7-base cirros-0.4 registry/api:1.8 registry/web:2.3 ubuntu-22.04>"),
    "namespace": Kind("namespace", "NOTSPACE", "<default kube-system monitoring payments shop staging>"),
    "pod": Kind("pod", "NOTSPACE", "<api cart checkout search web>-<hex 6>"),
    "database": Kind("database", "WORD", "<billing catalog inventory metrics orders>"),
    "table": Kind("table", "WORD", "<accounts events invoices items sessions shipments>"),
    "url": Kind("path of the request", "NOTSPACE", "/<api/v1/items api/v1/orders cart healthz login search>"),
}


def draw(kind: Kind, rng: Random) -> str:
    """Fill in the `<...>` of a form: `<4-9>` is a number of that range, `<hex 8>` 8 digits, `<a b c>` one of these."""

    def fill(match: re.Match[str]) -> str:
        if bounds := re.fullmatch(r"(\d+)-(\d+)", match[1]):
            return str(rng.randint(int(bounds[1]), int(bounds[2])))
        words = match[1].split()
        if words[0] in ("digits", "hex"):
            return "".join(rng.choices("0123456789abcdef"[: 10 if words[0] == "digits" else 16], k=int(words[1])))
        return rng.choice(words)

    return re.sub("<(.+?)>", fill, kind.form)


def kind_of(field: str) -> Kind:
    """The longest tail of the field's name that is a kind: `bad_user` is one itself, `src_ip` is an `ip`."""
    while field not in KINDS:
        field = field.split("_", 1)[1]
    return KINDS[field]
