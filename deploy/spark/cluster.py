"""A Spark cluster on this machine: a standalone master, workers with a Python worker pool each, and Beam's
job server. For trying out and for the tests; a real cluster is README.md's.

    python -m deploy.spark.cluster --workers 2 -- python -m pipeline prepare --manifest ... --shared

runs the command with the options that send its job to the cluster, and ends the cluster with it. As root
every worker is a host of its own, a network namespace with its address and its name; else all are processes
on loopback, and executors start their Python workers themselves, for they would all find one and the same
pool at localhost.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from deploy.spark import hosts

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quovadis" / "spark"
POOL_PORT = 50000
START_SECONDS = 120.0  # a process of the cluster that is not ready by then has failed
FETCH_SECONDS = 900.0  # Maven gets some 120 MB the first time
OPENED = (
    *("java.lang", "java.lang.invoke", "java.lang.reflect", "java.io", "java.net", "java.nio", "java.util"),
    *("java.util.concurrent", "java.util.concurrent.atomic", "sun.nio.ch", "sun.nio.cs"),
    *("sun.security.action", "sun.util.calendar"),
)
"""Packages of java.base that Spark 3.5 reaches into on Java 17."""


class Missing(Exception):
    """This machine lacks what a cluster needs: one sentence with the remedy."""


class NotReady(Exception):
    """A process of the cluster did not start: one sentence with the end of its log."""


def require() -> None:
    """Raise `Missing` unless Java 17 or later, Maven (or what it once fetched) and pyspark are here."""
    java = shutil.which("java")
    if java is None:
        raise Missing("no java on PATH; Spark 3.5 needs Java 17 (Debian: openjdk-17-jre-headless).")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60).stderr
    version = said.partition('version "')[2].partition('"')[0]
    major = version.partition(".")[0]
    if not major.isdigit() or int(major) < 17:
        raise Missing(f"java is {version or 'of unknown version'}; Spark 3.5 needs Java 17.")
    if shutil.which("mvn") is None and not _jar_folder().is_dir():
        raise Missing("no mvn on PATH to fetch Beam's job server with (Debian: maven).")


def _pyspark() -> Path:
    found = find_spec("pyspark")
    if found is None or not found.submodule_search_locations:
        raise Missing("no pyspark, which brings Spark itself: in a checkout, pip install '.[spark]'.")
    return Path(found.submodule_search_locations[0])


def _jar_folder() -> Path:
    """Where the job server's jars are kept: by what Maven is asked for and the Spark they go with."""
    spark = sorted(jar.name for jar in (_pyspark() / "jars").glob("*.jar"))
    wanted = hashlib.sha256((HERE / "pom.xml").read_bytes() + "\n".join(spark).encode()).hexdigest()
    return CACHE / wanted[:16]


def jars() -> Path:
    """The folder with the job server's jars; fetched once, whole or not at all.

    Raises:
        Missing: Maven could not get them.
    """
    folder = _jar_folder()
    if folder.is_dir():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock, tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():  # another process was faster
            return folder
        parts = Path(scratch) / "jars"
        goal = ["dependency:copy-dependencies", f"-DoutputDirectory={parts}", "-DincludeScope=runtime"]
        command = ["mvn", "-q", "-B", "-f", str(HERE / "pom.xml"), *goal]
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS)
        if done.returncode:
            first = (done.stdout.strip().splitlines() or ["it said nothing"])[0]
            raise Missing(f"Maven could not get Beam's job server: {first}")
        for jar in parts.iterdir():  # Spark refuses a jar registered twice, and has its own logging
            if (_pyspark() / "jars" / jar.name).exists() or jar.name.startswith("log4j"):
                jar.unlink()
        os.replace(parts, folder)
    return folder


@dataclass
class Process:
    """One process group of the cluster, with its log."""

    name: str
    popen: subprocess.Popen
    log: Path

    def kill(self) -> None:
        """SIGKILL the whole group; once, for its number may be another's afterwards."""
        if self.popen.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Raise `NotReady` unless `ready()` comes true in time, and while the process lives."""
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            ended = self.popen.poll() is not None
            if ended or time.monotonic() > deadline:
                last = " / ".join(self.log.read_text(errors="replace").splitlines()[-5:])
                what = "ended" if ended else f"was not ready after {START_SECONDS:g} s"
                raise NotReady(f"the cluster's {self.name} {what}; its log ends: {last}")
            time.sleep(0.1)


@dataclass
class Worker:
    """One worker of the cluster; `host` is None on loopback."""

    number: int
    address: str
    host: hosts.Host | None
    environment: Mapping[str, str]
    processes: list[Process] = field(default_factory=list)

    def kill(self) -> None:
        """SIGKILL all that runs here, as a power cut would."""
        for process in self.processes:
            process.kill()
        if self.host is not None:  # what began a session of its own, too
            self.host.kill()


class Cluster:
    """A cluster that lasts as long as the context.

    Args:
        workers: how many.
        cores: tasks that each of them runs at a time, each in a Python worker of its own.
        parallelism: tasks that a shuffle is spread over; None: two a core. See README.md.
        environments: variables for the Python workers of each worker in turn.
        namespaces: whether workers are hosts of their own; None: where the machine allows.

    Attributes:
        host: the address at which workers reach this machine.
        options: what ``python -m pipeline prepare`` must be given to run here.
        workers: as started.
        folder: of the logs, one file a process.

    Raises:
        Missing, NotReady: as named.
    """

    def __init__(
        self,
        workers: int = 2,
        cores: int = 1,
        *,
        parallelism: int | None = None,
        environments: Sequence[Mapping[str, str]] = (),
        namespaces: bool | None = None,
    ):
        require()
        self.namespaces = hosts.possible() if namespaces is None else namespaces
        self.host = "127.0.0.1"
        self.workers: list[Worker] = []
        self._cores, self._parallelism = cores, parallelism or 2 * workers * cores
        self._environments = [*environments, *[{}] * (workers - len(environments))]
        self._processes: list[Process] = []
        self._hosts: hosts.Hosts | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """Beam's options for this cluster."""
        environment = ("--environment_type=EXTERNAL", f"--environment_config=localhost:{POOL_PORT}")
        if not self.namespaces:
            command = json.dumps({"command": str(HERE / "worker.py")})
            environment = ("--environment_type=PROCESS", f"--environment_config={command}")
        server = ("--runner=PortableRunner", f"--job_endpoint=localhost:{self._job_port}")
        return (*server, f"--sdk_worker_parallelism={self._cores}", *environment)

    def __enter__(self) -> Cluster:
        self.folder = Path(tempfile.mkdtemp(prefix="quovadis-spark-"))
        try:
            self._start(jars())
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill all that runs, and take away hosts and files."""
        for worker in self.workers:
            worker.kill()
        for process in self._processes:
            process.kill()
        if self._hosts is not None:
            self._hosts.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_pool(self, worker: Worker, port: int = POOL_PORT, **environment: str) -> None:
        """Start a Python worker pool on a worker's host, with more environment than the worker's own."""
        pool = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main"]
        options = ["--service_port", str(port), "--container_executable", str(HERE / "worker.py")]
        process = self._run(f"pool-{worker.number}-{port}", [*pool, *options], environment, worker)
        process.wait_until(lambda: _answers(worker.address, port))

    def _start(self, folder: Path) -> None:
        if self.namespaces:
            self._hosts = hosts.Hosts()
            self.host = self._hosts.gateway
        self._job_port = _free_port("127.0.0.1")
        port, page = _free_port(self.host), _free_port(self.host)
        url = f"spark://{self.host}:{port}"
        ports = ["--host", self.host, "--port", str(port), "--webui-port", str(page)]
        master = self._run("master", [*_java("256m"), "org.apache.spark.deploy.master.Master", *ports])
        master.wait_until(lambda: _answers(self.host, port))
        for number, environment in enumerate(self._environments):
            self._start_worker(number, environment, url)
        server = self._run("job-server", self._job_server(folder, url), {"SPARK_LOCAL_IP": self.host})
        server.wait_until(lambda: _answers("127.0.0.1", self._job_port))
        for worker in self.workers if self.namespaces else ():
            self.start_pool(worker)
        master.wait_until(lambda: _alive(f"http://{self.host}:{page}/json/") == len(self.workers))

    def _start_worker(self, number: int, environment: Mapping[str, str], master: str) -> None:
        host = self._hosts.add() if self._hosts else None
        worker = Worker(number, host.address if host else "127.0.0.1", host, environment)
        self.workers.append(worker)
        folder = {"SPARK_WORKER_DIR": str(self.folder / f"worker-{number}")}
        has = ["--cores", str(self._cores), "--memory", "16g", "--host", worker.address, "--webui-port", "0"]
        spark = [*_java("256m"), "org.apache.spark.deploy.worker.Worker", *has, master]
        self._run(f"worker-{number}", spark, folder, worker)

    def _job_server(self, folder: Path, master: str) -> list[str]:
        first = [str(next(folder.glob(f"{name}-*.jar"))) for name in ("guava", "failureaccess")]
        properties = {
            "spark.driver.host": self.host,
            "spark.driver.bindAddress": self.host,
            "spark.ui.enabled": "false",
            "spark.default.parallelism": str(self._parallelism),
            "spark.executor.extraClassPath": ":".join(first),  # Beam's guava, before Spark's older one
        }
        return [
            *_java("1g", folder),
            *(f"-D{name}={value}" for name, value in properties.items()),
            "org.apache.beam.runners.spark.SparkJobServerDriver",
            f"--spark-master-url={master}",
            *(f"--job-port={self._job_port}", "--artifact-port=0", "--expansion-port=0"),
            f"--artifacts-dir={self.folder / 'artifacts'}",
        ]

    def _run(
        self,
        name: str,
        argv: Sequence[str],
        environment: Mapping[str, str] | None = None,
        worker: Worker | None = None,
    ) -> Process:
        command = worker.host.command(argv) if worker and worker.host else list(argv)
        if shutil.which("setpriv"):  # whatever becomes of us, it does not outlive us
            command = ["setpriv", "--pdeathsig", "KILL", *command]
        every = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "PYTHONPATH": str(REPOSITORY),
            "SPARK_HOME": str(_pyspark()),
            "SPARK_SCALA_VERSION": "2.12",
            "SPARK_LOCAL_DIRS": str(self.folder / "scratch"),
        }
        own = {"SPARK_LOCAL_IP": worker.address, **worker.environment} if worker else {}
        log = self.folder / f"{name}.log"
        with open(log, "wb") as file:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env={**every, **own, **(environment or {})},
            )
        process = Process(name, popen, log)
        (worker.processes if worker else self._processes).append(process)
        return process


def _java(memory: str, first: Path | None = None) -> list[str]:
    opened = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in OPENED]
    path = ":".join([*([f"{first}/*"] if first else []), f"{_pyspark()}/jars/*"])
    return ["java", f"-Xmx{memory}", *opened, "-cp", path]


def _alive(page: str) -> int:
    """Workers that the master with this page knows."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(page, timeout=5) as answer:
            return sum(worker["state"] == "ALIVE" for worker in json.load(answer)["workers"])
    except (OSError, ValueError):
        return 0


def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def _free_port(host: str) -> int:
    with socket.socket() as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command against a cluster of its own; its exit code is ours."""
    parser = argparse.ArgumentParser(prog="python -m deploy.spark.cluster", description=__doc__.split(".")[0])
    parser.add_argument("--workers", type=int, default=2, help="how many (default 2)")
    parser.add_argument("--cores", type=int, default=1, help="tasks that each runs at a time (default 1)")
    parser.add_argument("--parallelism", type=int, help="tasks of a shuffle (default 2 a core)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what is run on it")
    arguments = parser.parse_args(argv)
    command = arguments.command[arguments.command[:1] == ["--"] :]
    if not command:
        parser.error("no command is given; end with: -- python -m pipeline prepare ...")
    try:
        with Cluster(arguments.workers, arguments.cores, parallelism=arguments.parallelism) as cluster:
            return subprocess.run([*command, *cluster.options]).returncode
    except (Missing, NotReady) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
