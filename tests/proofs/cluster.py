"""Ray Serve on this machine, in a process of its own, which is told what to deploy and says which replicas there are.

Run as a module, it takes one JSON object a line on stdin and answers with one. `Cluster` is who talks to it.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deltamem_agents.serve.ray_proxy.middlewares",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A machine with two cores, and the tests beside it, isn't quick.
    "RAY_worker_niceness": "0",
    "RAY_agent_register_timeout_ms": "120000",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "2",
    "RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "5",
    "OMP_NUM_THREADS": "1",
}
WAIT = 600.0


class Cluster:
    """A cluster that runs; its proxy listens at `url`."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self._process = process
        self.url = f"http://127.0.0.1:{port}"

    def deploy(self, args: dict[str, object], *, name: str = "deltamem", prefix: str = "/") -> str | None:
        """Deploys an application, and waits until it is there; why it isn't, or None."""
        return self._ask(do="deploy", args=args, name=name, prefix=prefix)["failed"]  # type: ignore[no-any-return]

    def replicas(self, name: str = "deltamem") -> dict[str, int]:
        """The replicas that run, and their processes."""
        return self._ask(do="replicas", name=name)["replicas"]  # type: ignore[no-any-return]

    def wait_for(self, replicas: int) -> float:
        """Waits until so many run, and are alive; seconds that it took."""
        begun = time.monotonic()
        while sum(map(alive, self.replicas().values())) < replicas:
            assert time.monotonic() - begun < WAIT, "no new replica came"
            time.sleep(0.2)
        return time.monotonic() - begun

    def _ask(self, **request: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the cluster has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


def alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def started(port: int) -> Iterator[Cluster]:
    """A cluster for as long as the block runs."""
    folder = Path(tempfile.mkdtemp(prefix="dm-ray-"))  # short: sockets lie in it
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "tests.proofs.cluster", str(folder), str(port)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)  # type: ignore[call-overload]
        try:
            assert process.stdout.readline() == "ready\n", (folder / "log").read_text()[-3000:]
            yield Cluster(process, port)
        finally:
            process.stdin.close()
            process.wait(120)
            shutil.rmtree(folder, ignore_errors=True)


def run(folder: str, port: int) -> None:
    """Starts Ray, and does what stdin says until that ends."""
    import ray
    from ray import serve
    from ray.serve.context import _get_global_client

    from deltamem_agents.serve.ray import app

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what else is printed is for the log
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False, _temp_dir=folder)
    with suppress(TimeoutError):  # after a minute; the proxy comes all the same, and who deploys waits for it
        serve.start(http_options={"host": "127.0.0.1", "port": port})

    def deployments(name: str) -> list[dict[str, Any]]:
        details = _get_global_client().get_serve_details()["applications"].get(name, {"deployments": {}})
        return list(details["deployments"].values())

    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request, answer = json.loads(line), dict[str, object]()
        if request["do"] == "deploy":
            try:
                serve.run(app(request["args"]), name=request["name"], route_prefix=request["prefix"])
                answer["failed"] = None
            except Exception as error:
                answer["failed"] = "\n".join([str(error), *(one["message"] for one in deployments(request["name"]))])
        else:
            found = [one for deployment in deployments(request["name"]) for one in deployment["replicas"]]
            answer["replicas"] = {one["replica_id"]: one["pid"] for one in found if one["state"] == "RUNNING"}
        print(json.dumps(answer), file=answers, flush=True)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]))
