"""`python -m deltamem_agents.cli`."""

from deltamem_agents.cli.app import app

app()
