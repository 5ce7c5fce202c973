"""`deltamem chat`: a conversation with a session, in a terminal or through a pipe."""

import re
import sys
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated, cast

import typer

from deltamem_agents.cli.console import count, note, show_error
from deltamem_agents.cli.loading import BUNDLED, load_engine
from deltamem_agents.cli.options import (
    AdapterOption,
    DeviceOption,
    DtypeOption,
    ModelKwargsOption,
    ModelOption,
    StoreOption,
    WeightsOption,
)
from deltamem_agents.errors import DeltaMemError, MessageError

if TYPE_CHECKING:
    from deltamem_agents.engine import DeltaMemEngine, Turn
    from deltamem_agents.store import SessionInfo

COMMANDS = {
    "/help": "shows this",
    "/forget": "deletes the session",
    "/quit": "leaves, and so does Ctrl-D",
}


def chat(
    session: Annotated[str, typer.Option(help="Whose memory: any name; a new one starts a new session.")],
    model: ModelOption = BUNDLED,
    adapter: AdapterOption = None,
    store: StoreOption = None,
    recent_messages: Annotated[
        int, typer.Option(min=0, help="How many recent messages are also in the prompt; 0: the memory alone.")
    ] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest reply, in tokens.")] = 256,
    temperature: Annotated[float | None, typer.Option(min=0, help="Sample at this temperature; 0: greedy.")] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    model_kwargs: ModelKwargsOption = "{}",
    weights: WeightsOption = "full",
) -> None:
    """Chat with a session that remembers, one message a line; piped messages work too.

    /help lists the commands, /quit or Ctrl-D leaves, /forget deletes the session, Ctrl-C cancels a reply.
    """
    from deltamem_agents.engine.records import check_session_name

    check_session_name(session)
    loaded = load_engine(
        model,
        adapter=adapter,
        store=store,
        recent_messages=recent_messages,
        device=device,
        dtype=dtype,
        model_kwargs=model_kwargs,
        weights=weights,
    )
    with loaded as engine:
        Conversation(
            engine,
            session,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            interactive=sys.stdin.isatty(),
        ).run()


@dataclass(frozen=True)
class Conversation:
    """Reads messages from stdin until it ends, and streams the replies to stdout."""

    engine: "DeltaMemEngine"
    session: str
    _: KW_ONLY
    max_new_tokens: int = 256
    temperature: float | None = None
    interactive: bool = False
    """Whether somebody sits there: prompts, and goes on after an error or Ctrl-C."""

    def run(self) -> None:
        """Goes on until stdin ends or says /quit.

        Raises:
            DeltaMemError: a turn failed, and nobody sits there to try another.
        """
        if self.interactive:
            import readline  # noqa: F401  # makes input() edit lines

            info = self._info()
            known = f"{count(info.turns, 'turn')} remembered" if info else "new"
            note(f"Session {self.session}: {known}. /help lists the commands, Ctrl-C cancels a reply.")
        while (text := self._read()) is not None and text != "/quit":
            try:
                if text == "/help":
                    self._help()
                elif text == "/forget":
                    self._forget()
                elif re.match(r"/\w*(\s|$)", text):
                    raise MessageError(
                        f"{text.split()[0]} is no command, and was not said: expected {', '.join(COMMANDS)}; begin "
                        "with // to say something that begins with /"
                    )
                elif text:
                    self._reply(text[1:] if text.startswith("//") else text)
            except DeltaMemError as error:
                if not self.interactive:
                    raise
                show_error(error)

    def _read(self) -> str | None:
        """The next message, empty if there is nothing to say, or None at the end."""
        try:
            return input("> " if self.interactive else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            typer.echo()
            return ""
        except UnicodeDecodeError as error:
            raise MessageError(f"stdin holds bytes that are not text ({error}): pipe it in as UTF-8") from error

    def _reply(self, text: str) -> None:
        before, started = self._info(), time.monotonic()
        stream = self.engine.stream(
            [{"role": "user", "content": text}],
            session=self.session,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
        )
        turn: Turn | None = None
        try:
            with closing(cast("Generator[str | Turn]", stream)):  # leaving early cancels the turn
                for item in stream:
                    if isinstance(item, str):
                        typer.echo(item, nl=False)
                    else:
                        turn = item
        except KeyboardInterrupt:
            typer.echo()
            if not self.interactive:
                raise
            kept = self._info() != before  # Ctrl-C may come when all has been said
            note("The reply was complete and is kept." if kept else "Cancelled: the session is as it was.")
            return
        typer.echo()
        if turn is not None:
            self._status(turn, time.monotonic() - started)

    def _status(self, turn: "Turn", seconds: float) -> None:
        usage = turn.usage
        parts = [f"{usage.prompt_tokens} prompt tokens ({usage.cached_tokens} cached)", f"{seconds:.1f} s"]
        if turn.finish_reason == "length":
            parts.append("cut at --max-new-tokens")
        note(" · ".join(parts))

    def _help(self) -> None:
        for name, what in COMMANDS.items():
            note(f"{name:<8} {what}")
        note("Ctrl-C   cancels a reply; whatever else you type is said. // says something that begins with /.")

    def _forget(self) -> None:
        info = self._info()
        if info is None:
            note("There is nothing to forget yet.")
            return
        note(f"Delete session {self.session!r} ({count(info.turns, 'turn')}) for good? [y/N]")
        if (self._read() or "").lower() in ("y", "yes"):
            self.engine.forget(self.session)
            note("Forgotten.")

    def _info(self) -> "SessionInfo | None":
        return self.engine.store.session(self.session)
