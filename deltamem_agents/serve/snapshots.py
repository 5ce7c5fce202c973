"""`/v1/snapshots`: commits, and the lines that lead to them; for clients that read a store from afar."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import JsonValue
from starlette.responses import Response

from deltamem_agents.engine.wire import plain_snapshot
from deltamem_agents.errors import StoreError
from deltamem_agents.serve.errors import ApiError
from deltamem_agents.serve.service import TheNamespace, TheService, decoded
from deltamem_agents.store import Snapshot

router = APIRouter(prefix="/v1/snapshots", tags=["memory"])


def the_snapshot(id: str, service: TheService, namespace: TheNamespace) -> Snapshot:
    """The snapshot that a path names, if it is one of the caller's.

    Raises:
        ApiError: 404; it says the same of one that doesn't exist and of one that is somebody else's.
    """
    id = decoded(id)
    unknown = StoreError(f"snapshot {id!r} is not in this store: it was pruned, forgotten, or made elsewhere")
    try:
        found = service.engine.store.snapshot(id)
    except StoreError as error:
        if "is not in this store" not in str(error):
            raise
        found = None
    if found is None or not namespace.owns(found.session):
        raise ApiError(404, str(unknown), code="snapshot_not_found", exception="StoreError")
    return found


TheSnapshot = Annotated[Snapshot, Depends(the_snapshot)]


@router.get("/{id}")
def snapshot(snapshot: TheSnapshot, namespace: TheNamespace) -> dict[str, JsonValue]:
    """A commit, without its state."""
    return plain_snapshot(snapshot, namespace.shown)


@router.get("/{id}/state", response_class=Response)
def state(snapshot: TheSnapshot) -> Response:
    """The memory after it, as safetensors."""
    return Response(snapshot.state, media_type="application/octet-stream")


@router.get("/{id}/line")
def line(
    snapshot: TheSnapshot,
    service: TheService,
    namespace: TheNamespace,
    since: int = 0,
    thread: str | None = None,
    last: Annotated[int, Query(ge=0)] = 0,
) -> dict[str, object]:
    """It and what it continues, oldest first: all that ends after message `since`, or the last turns of a thread."""
    store = service.engine.store
    found = store.line(snapshot.id, since=since) if thread is None else store.thread(snapshot.id, thread, last=last)
    return {"object": "list", "data": [plain_snapshot(one, namespace.shown) for one in found]}


@router.get("/{id}/absorbed")
def absorbed(snapshot: TheSnapshot, service: TheService, key: str) -> dict[str, str | None]:
    """The snapshot on its line that holds what was absorbed under a key."""
    return {"snapshot": service.engine.store.absorbed(snapshot.id, key)}


@router.get("/{id}/through")
def through(snapshot: TheSnapshot, service: TheService, namespace: TheNamespace) -> dict[str, list[str]]:
    """The sessions whose lines go through it."""
    names = service.engine.store.through(snapshot.id)
    return {"data": [namespace.shown(name) for name in names if namespace.owns(name)]}
