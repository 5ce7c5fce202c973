"""A server's store: it can be read, and its sessions forked and forgotten; only an engine's calls change it else."""

from collections.abc import Collection, Sequence
from typing import cast

from pydantic import JsonValue

from deltamem_agents.engine.remote.connection import Connection, part
from deltamem_agents.engine.wire import INFO, INFOS, SNAPSHOT, SNAPSHOTS
from deltamem_agents.errors import SessionNotFoundError, StoreError
from deltamem_agents.store import SessionInfo, Snapshot, StateStore
from deltamem_agents.store.checks import check_limit

PAGE = 1000


class RemoteStore(StateStore):
    """A `StateStore` that asks a server.

    Args:
        connection: the server.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def session(self, name: str) -> SessionInfo | None:
        """Looks a session up; see `StateStore.session`."""
        try:
            return INFO.validate_python(self._connection.data("GET", f"/v1/sessions/{part(name)}"))
        except SessionNotFoundError:
            return None

    def sessions(self, *, prefix: str = "", after: str | None = None, limit: int | None = None) -> list[SessionInfo]:
        """Lists sessions; see `StateStore.sessions`."""
        check_limit(limit)
        found: list[SessionInfo] = []
        while limit is None or len(found) < limit:
            last = found[-1].name if found else after or ""
            size = PAGE if limit is None else min(PAGE, limit - len(found))
            page = self._get("/v1/sessions", prefix=prefix, after=last, limit=size)
            found += INFOS.validate_python(page["data"])
            if not page["has_more"]:
                break
        return found

    def snapshot(self, id: str) -> Snapshot:
        """Loads a snapshot; see `StateStore.snapshot`."""
        found = self._get(f"/v1/snapshots/{part(id)}")
        state = self._connection.request("GET", f"/v1/snapshots/{part(id)}/state").content
        return SNAPSHOT.validate_python({**found, "state": state})

    def line(self, head: str, *, since: int = 0) -> list[Snapshot]:
        """Lists a line; see `StateStore.line`."""
        return SNAPSHOTS.validate_python(self._get(f"/v1/snapshots/{part(head)}/line", since=since)["data"])

    def thread(self, head: str, thread: str, *, last: int) -> list[Snapshot]:
        """Lists a thread's newest turns; see `StateStore.thread`."""
        found = self._get(f"/v1/snapshots/{part(head)}/line", thread=thread, last=max(0, last))
        return SNAPSHOTS.validate_python(found["data"])

    def find(self, name: str, message_ids: Collection[str]) -> dict[str, Snapshot]:
        """Finds messages by their ids; see `StateStore.find`."""
        body = {"ids": sorted(message_ids)}
        found = cast("dict[str, JsonValue]", self._connection.data("POST", f"/v1/sessions/{part(name)}/find", body))
        pairs = cast("dict[str, JsonValue]", found["data"]).items()
        return {id: SNAPSHOT.validate_python(snapshot) for id, snapshot in pairs}

    def absorbed(self, head: str, key: str) -> str | None:
        """Finds an absorption; see `StateStore.absorbed`."""
        return cast("str | None", self._get(f"/v1/snapshots/{part(head)}/absorbed", key=key)["snapshot"])

    def through(self, id: str) -> list[str]:
        """Lists the sessions that go through a snapshot; see `StateStore.through`."""
        return cast("list[str]", self._get(f"/v1/snapshots/{part(id)}/through")["data"])

    def log(self, name: str) -> list[Snapshot]:
        """Lists a session's own snapshots; see `StateStore.log`."""
        return SNAPSHOTS.validate_python(self._get(f"/v1/sessions/{part(name)}/log")["data"])

    def fork(self, name: str, new_name: str, *, at: str | None = None) -> None:
        """Creates a session on another one's line; see `StateStore.fork`."""
        self._connection.data("POST", f"/v1/sessions/{part(name)}/fork", {"name": new_name, "at": at})

    def forget(self, name: str) -> None:
        """Deletes a session; see `StateStore.forget`."""
        self._connection.data("DELETE", f"/v1/sessions/{part(name)}")

    def commit(self, name: str, snapshot: Snapshot, *, expected: str | None) -> None:
        """Refuses: the server commits."""
        raise _servers_own("commit")

    def add_line(self, name: str, line: Sequence[Snapshot], *, expected: str | None) -> None:
        """Refuses: the server commits."""
        raise _servers_own("add_line")

    def move_head(self, name: str, to: str | None, *, expected: str | None) -> None:
        """Refuses: `rollback` moves heads."""
        raise _servers_own("move_head")

    def erase(self, name: str, ids: Collection[str]) -> int:
        """Refuses: `forget_message` erases."""
        raise _servers_own("erase")

    def prune(self, name: str, *, keep: int) -> int:
        """Refuses: the server prunes."""
        raise _servers_own("prune")

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def _get(self, path: str, **params: str | int | bool) -> dict[str, JsonValue]:
        return cast("dict[str, JsonValue]", self._connection.data("GET", path, None, **params))


def _servers_own(method: str) -> StoreError:
    return StoreError(f"{method} of a server's store is the server's own: use the engine's methods")
