"""What is beside a conversation: the line of turns, what the memory says in words, its strength and its sizes."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from deltamem_agents.engine.inspection import stored_view
from deltamem_agents.engine.interface import QUESTIONS
from deltamem_agents.errors import SessionError
from deltamem_agents.report.history import turn_changes
from deltamem_agents.report.page import darkest, layer_pictures, sizes_of
from deltamem_agents.report.writes import turn_writes
from deltamem_agents.serve.chat_schema import Strict
from deltamem_agents.serve.page.rendering import page
from deltamem_agents.serve.page.routing import PageRoute, form_of
from deltamem_agents.serve.page.sign_in import ThePageNamespace, ThePageSession
from deltamem_agents.serve.service import Service, TheService
from deltamem_agents.store import Snapshot
from deltamem_agents.store.records import age

router = APIRouter(route_class=PageRoute, include_in_schema=False)
SHARES = 40
"""Of how many commits the line tells what share of the memory they wrote: their states are loaded for that."""


class Question(Strict):
    """A question of one's own."""

    question: str = Field(default="", max_length=2000)
    """Empty: those that a memory is asked where nobody says."""


@router.get("/page/line")
def line(request: Request, session: ThePageSession, service: TheService, namespace: ThePageNamespace) -> Response:
    """All commits, newest first: where each is, what it wrote, and what can be done there."""
    store, info = service.engine.store, service.engine.store.session(session)
    log = [] if info is None else store.log(session)
    here = [] if info is None or info.head is None else store.line(info.head)
    changes = turn_changes(store, here[-SHARES:]) if here else []
    return page(
        request,
        "line.html",
        name=namespace.shown(session),
        head=None if info is None else info.head,
        commits=sorted(log, key=age, reverse=True),
        line={turn.id for turn in here},
        shares={change.turn.id: change.new for change in changes},
        most=max((change.new or 0.0 for change in changes if change.turn.turn > 1), default=1.0) or 1.0,
        whole=not here or here[0].start == 0,
    )


@router.get("/page/remembers")
def remembers(request: Request, session: ThePageSession, service: TheService, namespace: ThePageNamespace) -> Response:
    """The memory's answers, once it is asked, and the texts that are kept."""
    info = service.engine.store.session(session)
    here = [] if info is None or info.head is None else service.engine.store.line(info.head)
    return page(
        request,
        "remembers.html",
        name=namespace.shown(session),
        exists=info is not None,
        questions=QUESTIONS,
        turns=here[::-1],
    )


@router.post("/page/ask")
async def ask(
    form: Annotated[Question, Depends(form_of(Question))],
    request: Request,
    session: ThePageSession,
    service: TheService,
) -> Response:
    """Asks the memory, each question by itself and with nothing else in the prompt. Nothing is kept."""
    questions = (form.question,) if form.question.strip() else QUESTIONS
    with service.gate.call():
        answers = await run_in_threadpool(service.engine.remembered, session, questions)
    return page(request, "answers.html", answers=answers)


@router.get("/page/memory")
def memory(request: Request, session: ThePageSession, service: TheService, namespace: ThePageNamespace) -> Response:
    """How strong the memory is and where, how much of it is new, and what is kept."""
    engine = service.engine
    info = engine.store.session(session)
    if info is None or info.head is None:
        return page(request, "memory.html", name=namespace.shown(session), info=info, view=None)
    view = stored_view(engine.store, session)
    norms = [norm for heads in view.norms for norm in heads]
    used = [use for heads in view.directions for use in heads]
    return page(
        request,
        "memory.html",
        name=namespace.shown(session),
        info=info,
        view=view,
        strength=sum(norm**2 for norm in norms) ** 0.5,
        directions=sum(used) / len(used),
        layers=layer_pictures(engine.store, view),
        sizes=sizes_of(info.state_bytes, engine.store.log(session), engine.store.line(info.head)),
    )


@router.get("/page/writes")
async def writes(request: Request, session: ThePageSession, service: TheService, snapshot: str) -> Response:
    """What each message of a turn wrote and how strongly, and how far it read, word by word: the turn is run again."""
    turn = await run_in_threadpool(_commit, service, session, snapshot)
    with service.gate.call():
        last = (await run_in_threadpool(turn_writes, service.engine, session, [turn]))[turn.id]
    return page(request, "writes.html", turn=turn, last=last, darkest=darkest([last]))


def _commit(service: Service, session: str, id: str) -> Snapshot:
    """A commit of a session."""
    found = next((turn for turn in service.engine.log(session) if turn.id == id), None)
    if found is None:
        raise SessionError("this turn is not kept in the session any more: load the page again")
    return found
