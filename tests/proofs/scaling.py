"""Turns a second of one replica and of two on Ray Serve, one PostgreSQL: `python -m tests.proofs.scaling`.

The clients, the proxy and PostgreSQL share the machine with the replicas, so that on few cores this is what one
machine gets out of a second replica, and a lower bound of what a second machine gives.
"""

import argparse
import os
import statistics

from deltamem_agents.bench.serving.run import Load, run_load
from tests.postgresql import free_port, started
from tests.proofs import cluster


def main() -> None:
    """Deploys, asks and prints, round by round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--model", default="bundled")
    asked = parser.parse_args()
    rates: dict[int, list[float]] = {1: [], 2: []}
    with started() as server, cluster.started(free_port()) as serving:
        for number in range(asked.rounds):
            for replicas in rates:
                arguments = {
                    "model": asked.model,
                    "store": server.fresh(),
                    "serve": {"max_batch": 16},
                    "replicas": {"min_replicas": replicas, "max_replicas": replicas, "num_cpus": 0},
                }
                failed = serving.deploy(arguments)
                assert failed is None, failed
                serving.wait_for(replicas)
                load = Load(
                    clients=asked.clients,
                    sessions=2 * asked.clients,
                    seconds=asked.seconds,
                    tokens=asked.tokens,
                    seed=number,
                )
                report = run_load(load, url=serving.url)
                assert not report.broken, report.broken
                rates[replicas].append(report.ledger.kept / report.seconds)
                print(f"{replicas} replica(s): {rates[replicas][-1]:.2f} turns a second", flush=True)
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    print(f"two ÷ one: {statistics.median(ratios):.2f} (of {len(ratios)} rounds: {min(ratios):.2f}–{max(ratios):.2f})")
    print(f"{os.cpu_count()} cores; {asked.clients} clients, replies of at most {asked.tokens} tokens, {asked.model}")


if __name__ == "__main__":
    main()
