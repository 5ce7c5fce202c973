"""The page at `/`: people talk to a session, see its memory, and change it."""

from deltamem_agents.serve.page import assets, changes, docs, home, panels, sign_in, talk

ROUTERS = (home.router, talk.router, panels.router, changes.router, sign_in.router, assets.router, docs.router)

__all__ = ["ROUTERS"]
