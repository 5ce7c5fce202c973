"""What is beside a conversation: the line of turns, what the memory knows in words, its strength and its sizes."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.engine.inspection import replaced_share, stored_view
from deltamem_agents.engine.interface import QUESTIONS
from deltamem_agents.engine.last_turn import LastTurn, run_last_turn
from deltamem_agents.engine.prompts import PromptWriter
from deltamem_agents.serve.chat_schema import Strict
from deltamem_agents.serve.page.conversation import text_of
from deltamem_agents.serve.page.rendering import page
from deltamem_agents.serve.page.routing import PageRoute, form_of
from deltamem_agents.serve.page.sign_in import ThePageNamespace, ThePageSession
from deltamem_agents.serve.service import TheService
from deltamem_agents.serve.snapshots import TheSnapshot
from deltamem_agents.state import MemoryState
from deltamem_agents.store import SessionInfo, Snapshot, StateStore

router = APIRouter(route_class=PageRoute, include_in_schema=False)
SHARES = 40
"""Of how many commits the line tells what share of the memory they wrote: it loads their states."""
LONGEST_QUESTION = 500
