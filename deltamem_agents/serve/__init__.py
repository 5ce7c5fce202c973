"""`deltamem serve`: one model, many users, over HTTP in OpenAI's shape, with a memory for each session."""

from deltamem_agents.serve.app import create_app
from deltamem_agents.serve.config import ServeConfig
from deltamem_agents.serve.run import serve

__all__ = ["ServeConfig", "create_app", "serve"]
