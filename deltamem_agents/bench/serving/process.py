"""A server as a process of its own, that can be killed and started again."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from deltamem_agents.errors import StoreError

START_SECONDS = 600.0
"""In which a server must have loaded its model."""
STOP_SECONDS = 120.0


class ServerProcess:
    """`deltamem serve`, always at the same port and on the same store.

    Args:
        folder: where its store and its log are.
        options: of the command, such as the model.
    """

    def __init__(self, folder: Path, options: Sequence[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.starts = 0
        self._log = folder / "server.log"
        place = ["--port", str(port), "--store", str(folder / "sessions.db")]
        self._command = [sys.executable, "-m", "deltamem_agents.cli", "serve", *place, *options]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, and waits until it is ready.

        Raises:
            StoreError: it ended, or was not ready in time; with the end of its log.
        """
        self.starts += 1
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stderr=log, stdout=log)
        until = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < until:
            try:
                if httpx.get(f"{self.url}/ready", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        self.kill()
        end = self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise StoreError(f"the server was not ready within {START_SECONDS:.0f} s; its log ends with:\n{end}")

    def kill(self) -> None:
        """Ends it by SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> int:
        """Asks it to drain and end; gives its exit status, that of a kill where it doesn't end in time."""
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def resident(self) -> float | None:
        """Its resident memory now, in MB; None where that cannot be read."""
        if self._process is None or self._process.poll() is not None:
            return None
        try:
            pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        except OSError:
            return None
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20
