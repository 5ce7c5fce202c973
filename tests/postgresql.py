"""A PostgreSQL of the tests' own, from the machine's packages: no server that runs already is ever touched."""

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

USER, PASSWORD = "deltamem", "a secret: p@ss/word"
WAIT = 60.0

# An order in which "a" < "B" < "b": a store that leaned on the database's own would list and page wrongly.
LOCALE = ["--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en"]
SETTINGS = {
    "fsync": "off",  # nobody pulls the plug
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_connections": "200",
    "deadlock_timeout": "100ms",
    "lc_messages": "C",
}


def programs() -> Path | None:
    """The folder with Debian's `initdb` and `postgres`, or whatever is on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(shutil.which("initdb") or "")]
    return found[-1].parent if found[-1].name else None


def require(module: str) -> None:
    """Skips, unless a module is there."""
    pytest.importorskip(module, reason=f"{module} is not installed: pip install 'deltamem-agents[postgres]'")


class Server:
    """A server on a free port of this machine, with its data in a folder of its own."""

    def __init__(self, folder: Path, bin: Path) -> None:
        self.folder, self.bin = folder, bin
        self.port = free_port()
        self._numbers = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        secret = folder / "password"
        secret.write_text(PASSWORD)
        give(folder)
        give(secret)
        logins = ["--auth=scram-sha-256", f"--username={USER}", f"--pwfile={secret}"]
        command = [bin / "initdb", "--no-sync", "-D", folder / "data", *logins, *LOCALE]
        subprocess.run([*drop_root(), *command], check=True, capture_output=True)
        self.start()

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
        places = ["-D", self.folder / "data", "-k", self.folder, "-h", "127.0.0.1", "-p", str(self.port)]
        with (self.folder / "log").open("ab") as log:
            command = [*drop_root(), self.bin / "postgres", *places, *settings]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(self._answers, self.folder / "log")

    def _answers(self) -> bool:
        asked = subprocess.run([self.bin / "pg_isready", "-h", "127.0.0.1", "-p", str(self.port)], capture_output=True)
        return asked.returncode == 0

    def stop(self, mode: str = "immediate") -> None:
        """Stops it: "immediate" is what a crash is."""
        command = [self.bin / "pg_ctl", "stop", "-m", mode, "-D", self.folder / "data"]
        subprocess.run([*drop_root(), *command], check=True, capture_output=True)
        assert self._process is not None
        self._process.wait(WAIT)

    def run(self, statement: str, *, database: str = "postgres") -> str:
        """Runs a statement as the owner; the rows, as text."""
        command = [self.bin / "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement, database]
        where = {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": USER, "PGPASSWORD": PASSWORD}
        done = subprocess.run(command, env=os.environ | where, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def database(self, template: str = "template1") -> str:
        """Creates a database, and gives its name."""
        name = f"store_{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def url(self, database: str, *, user: str = USER, password: str = PASSWORD, port: int | None = None) -> str:
        """What opens a store there."""
        return f"postgresql://{user}:{quote(password, safe='')}@127.0.0.1:{port or self.port}/{database}"

    def fresh(self) -> str:
        """The URL of a new, empty database."""
        return self.url(self.database())


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """A server for the whole run."""
    with started() as server:
        yield server


@pytest.fixture(scope="session")
def pgbouncer(postgresql: Server) -> Iterator[int]:
    """A pgbouncer in front of it, for the whole run."""
    with pooled(postgresql) as port:
        yield port


@contextmanager
def pooled(server: Server) -> Iterator[int]:
    """A pgbouncer in transaction mode, with fewer connections than the tests have threads; its port."""
    program = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
    if program is None:
        pytest.skip("pgbouncer is not installed: apt-get install pgbouncer")
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="deltamem-pgbouncer-"))
    (folder / "users").write_text(f'"{USER}" "{PASSWORD}"\n')
    (folder / "pgbouncer.ini").write_text(
        f"""
        [databases]
        * = host=127.0.0.1 port={server.port}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = scram-sha-256
        auth_file = {folder}/users
        pool_mode = transaction
        default_pool_size = 3
        max_client_conn = 500
        server_idle_timeout = 1
        """.replace("        ", "")
    )
    for path in (folder, *folder.iterdir()):
        give(path)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*drop_root(), program, folder / "pgbouncer.ini"], stdout=log, stderr=log)
    try:
        wait_for(lambda: listens(port), folder / "log")
        yield port
    finally:
        process.terminate()
        process.wait(WAIT)
        shutil.rmtree(folder)


@contextmanager
def started() -> Iterator[Server]:
    """A server for as long as the block runs; skips where there are no programs for one."""
    require("psycopg")
    bin = programs()
    if bin is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="deltamem-postgresql-"))
    server = Server(folder, bin)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


def drop_root() -> list[str]:
    """PostgreSQL refuses to run as root: what goes before a command so that it runs as Debian's user for it."""
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"] if os.getuid() == 0 else []


def give(path: Path) -> None:
    """Gives a file or folder to whom the server runs as."""
    if os.getuid() == 0:
        shutil.chown(path, "postgres", "postgres")
    path.chmod(0o700 if path.is_dir() else 0o600)


def free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def listens(port: int) -> bool:
    with closing(socket.socket()) as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


def wait_for(ready: Callable[[], bool], log: Path) -> None:
    end = time.monotonic() + WAIT
    while not ready():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)
