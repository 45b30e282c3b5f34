"""A real object server that speaks S3: OpenStack Swift with its ``s3api``, on loopback ports.

Five processes: memcached, and Swift's proxy, account, container and object server with one replica. All
state is in one folder, whose file system must take ``user.*`` extended attributes; nothing is left when the
block ends. By hand::

    python -m tests.cluster.object_server
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ranks import free_port

PROGRAMS = ("memcached", "swift-proxy-server", "swift-object-server", "setpriv")
ACCESS_KEY = "test:tester"
NEXT_KEY = "test:renewed"  # another key to the same objects
SECRET_KEY = "testing"
REGION = "us-east-1"
PYTHON = "/usr/bin/python3"  # Debian's: Swift is one of its packages
TIMEOUT_S = 60.0
_KINDS = ("account", "container", "object")
_RINGS = """
import sys
from swift.common.ring import RingBuilder
for kind, port in zip(("account", "container", "object"), sys.argv[2:]):
    builder = RingBuilder(part_power=4, replicas=1, min_part_hours=1)
    builder.add_dev(dict(region=1, zone=1, ip="127.0.0.1", port=int(port), device="disk", weight=1))
    builder.rebalance()
    builder.get_ring().save(f"{sys.argv[1]}/{kind}.ring.gz")
"""
_CLUSTER = """
[swift-hash]
swift_hash_path_suffix = tests
swift_hash_path_prefix = tests
[storage-policy:0]
name = one
default = yes
"""
_DEFAULT = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
workers = 0
fallocate_reserve = 0
# A busy machine is no fault: a listing has an object as soon as its writer has the answer.
conn_timeout = 20
node_timeout = 60
container_update_timeout = 60
"""
_PROXY = """
[pipeline:main]
pipeline = head_answers catch_errors healthcheck cache s3api tempauth bulk slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
conn_timeout = 20
node_timeout = 60
recoverable_node_timeout = 60
error_suppression_limit = 100000
[filter:head_answers]
paste.filter_factory = head_answers:factory
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{memcached}
[filter:s3api]
use = egg:swift#s3api
location = {region}
[filter:tempauth]
use = egg:swift#tempauth
user_{key} = {secret} .admin
user_{next_key} = {secret} .admin
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
"""
# Swift 2.30 ends an error's answer to HEAD with the chunk "0", which the client reads as its next answer.
_HEAD_ANSWERS = """
def factory(_, **options):
    def filter(application):
        def answer(environment, start):
            def started(status, headers, *rest):
                if not any(name.lower() == "content-length" for name, _ in headers):
                    headers = [*headers, ("Content-Length", "0")]
                return start(status, headers, *rest)
            return application(environment, started if environment["REQUEST_METHOD"] == "HEAD" else start)
        return answer
    return filter
"""
_STORAGE = """
[pipeline:main]
pipeline = healthcheck {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
[filter:healthcheck]
use = egg:swift#healthcheck
"""


class ObjectServer:
    """A running server; ``stop`` ends it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ports = {name: free_port() for name in ("proxy", *_KINDS, "memcached")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._configure()

    @property
    def port(self) -> int:
        """Of the S3 interface."""
        return self._ports["proxy"]

    @property
    def endpoint(self) -> str:
        """What clients are given as endpoint URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What the processes have said."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """Variables with which any client of AWS finds this server, or a proxy of it at ``endpoint``."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        """Start all processes; returns when each of them answers."""
        self._start(
            "memcached", "memcached", "-l", "127.0.0.1", "-p", self._ports["memcached"], "-u", _user()
        )
        for kind in (*_KINDS, "proxy"):
            self._start(kind, PYTHON, f"/usr/bin/swift-{kind}-server", self.folder / f"{kind}.conf", "-v")
        deadline = time.monotonic() + TIMEOUT_S
        for kind in (*_KINDS, "proxy"):
            self._wait_for(kind, deadline)

    def stop(self) -> None:
        """End all processes at once; the folder is kept."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()

    def _configure(self) -> None:
        (self.folder / "devices" / "disk").mkdir(parents=True, exist_ok=True)
        (self.folder / "swift.conf").write_text(_CLUSTER)
        (self.folder / "head_answers.py").write_text(_HEAD_ANSWERS)
        facts = {"folder": self.folder, "user": _user(), "region": REGION, "secret": SECRET_KEY}
        facts |= {"key": ACCESS_KEY.replace(":", "_"), "next_key": NEXT_KEY.replace(":", "_")}
        facts |= {"memcached": self._ports["memcached"]}
        for kind in (*_KINDS, "proxy"):
            text = _DEFAULT + (_PROXY if kind == "proxy" else _STORAGE)
            text = text.format(kind=kind, port=self._ports[kind], **facts)
            (self.folder / f"{kind}.conf").write_text(text)
        ports = [str(self._ports[kind]) for kind in _KINDS]
        command = [PYTHON, "-c", _RINGS, str(self.folder), *ports]
        subprocess.run(command, env=self._environment(), check=True, timeout=TIMEOUT_S)

    def _environment(self) -> dict[str, str]:
        """For Debian's Python: nothing of the virtual environment's."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        return kept | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(self.folder)}

    def _start(self, name: str, *command: object) -> None:
        words = ["setpriv", "--pdeathsig", "KILL", *map(str, command)]
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(words, env=self._environment(), stdout=log, stderr=log)

    def _wait_for(self, kind: str, deadline: float) -> None:
        url = f"http://127.0.0.1:{self._ports[kind]}/healthcheck"
        while True:
            try:
                with urllib.request.urlopen(url, timeout=0.5):  # what asks too early gets no answer at all
                    return
            except OSError:
                assert self._processes[kind].poll() is None, f"the {kind} server has ended:\n{self.log}"
                assert time.monotonic() < deadline, f"no {kind} server:\n{self.log}"
                time.sleep(0.05)


@contextmanager
def object_server(folder: Path) -> Iterator[ObjectServer]:
    """A server with its state in ``folder``, ended with the block."""
    server = ObjectServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def main() -> None:
    """Serve until interrupted; says what a client needs."""
    with tempfile.TemporaryDirectory() as folder, object_server(Path(folder)) as server:
        for name, value in server.environment().items():
            print(f"export {name}={value}", flush=True)
        ends = {signal.SIGINT, signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # not before: the server's processes would inherit it
        signal.sigwait(ends)


if __name__ == "__main__":
    main()
