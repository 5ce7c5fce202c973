"""One self-contained HTML page about a session."""

from deltamem_agents.report.page import session_page
from deltamem_agents.report.writes import recent_writes

__all__ = ["recent_writes", "session_page"]
