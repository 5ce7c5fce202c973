"""The command line: `deltamem`."""

from deltamem_agents.cli.app import app

__all__ = ["app"]
