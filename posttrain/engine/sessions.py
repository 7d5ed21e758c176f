"""Sessions: who is connected, and a durable record of who was.

A session lives in memory from its creation until it is finished; its record stays on disk, in
`<root>/sessions/<id>.json`. All methods are for the event loop's thread.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from posttrain.engine import limits
from posttrain.engine.durable import read_json, write_atomically
from posttrain.engine.errors import BusyError, GoneError, UserError
from posttrain.engine.paths import SESSION

logger = logging.getLogger(__name__)

FORGET = 6 * 3600.0  # seconds without a heartbeat after which a session is ended
PROJECT = "default"
REASONS = ("success", "errored", "interrupted")


@dataclass(frozen=True)
class SessionRecord:
    session_id: str
    created: float = field(default_factory=time.time)  # seconds since the epoch
    user_metadata: dict[str, str] | None = None
    display_name: str | None = None
    project_id: str = PROJECT
    finished: str | None = None  # one of REASONS, once the client has said so
    detail: str | None = None


@dataclass
class Session:
    record: SessionRecord
    samplers: dict[str, None] = field(default_factory=dict)  # ids, the last used last
    nameless: dict[str, None] = field(default_factory=dict)  # those of them that are snapshots
    made: int = 0  # samplers, those included that are forgotten
    runs: list[str] = field(default_factory=list)
    seen: float = field(default_factory=time.monotonic)  # its last sign of life
    ended: bool = False


class Sessions:
    def __init__(self, root: Path, ended: Callable[[Session], None]) -> None:
        """`ended` is called with every session that leaves memory."""
        self.directory, self.ended = root / "sessions", ended
        self.directory.mkdir(parents=True, exist_ok=True)
        self.live: dict[str, Session] = {}
        self.read: dict[str, tuple[int, SessionRecord]] = {}  # by file name, with its time

    def create(
        self,
        user_metadata: dict[str, str] | None = None,
        display_name: str | None = None,
        project_id: str | None = None,
    ) -> str:
        self.end_silent()
        if len(self.live) >= limits.SESSIONS:
            raise BusyError(f"{limits.SESSIONS} sessions are open; finish some with close()")
        record = SessionRecord(
            str(uuid.uuid4()),
            user_metadata=user_metadata,
            display_name=display_name,
            project_id=project_id or PROJECT,
        )
        self.put(record)
        self.live[record.session_id] = Session(record)
        return record.session_id

    def put(self, record: SessionRecord) -> None:
        """No work is lost with a record: it is not waited for, and a full disk does not stop us."""
        path = self.directory / f"{record.session_id}.json"
        try:
            write_atomically(path, asdict(record), durable=False)
        except OSError as error:
            logger.warning("%s could not be written: %s", path, error)

    def get(self, session_id: str) -> Session:
        """A live session. Raises UserError where there is none such."""
        if session_id not in self.live:
            raise UserError(f"there is no session {session_id!r}; was the engine restarted?")
        return self.live[session_id]

    def heartbeat(self, session_id: str) -> None:
        """Raises GoneError for a session that has ended, whose client need not go on."""
        if session_id not in self.live:
            raise GoneError(f"session {session_id!r} has ended, or the engine was restarted")
        self.live[session_id].seen = time.monotonic()

    def finish(self, session_id: str, reason: str | None, detail: str | None) -> None:
        """Forget what only this session's clients can reach. Unknown ones are ended already."""
        session = self.live.pop(session_id, None)
        if session is not None:
            session.ended = True
            self.ended(session)
            self.put(replace(session.record, finished=reason, detail=detail))

    def end_silent(self) -> None:
        """End the sessions whose clients have not been heard of for long."""
        now = time.monotonic()
        for old in [key for key, session in self.live.items() if now > session.seen + FORGET]:
            self.finish(old, None, None)

    def assign(self, session_id: str, project_id: str) -> None:
        record = replace(self.record(session_id), project_id=project_id)
        self.put(record)
        if session_id in self.live:
            self.live[session_id].record = record

    def record(self, session_id: str) -> SessionRecord:
        """Of a session alive or ended. Raises UserError where there was none such."""
        if session_id in self.live:
            return self.live[session_id].record
        found = self.load(f"{session_id}.json") if SESSION.fullmatch(session_id) else None
        if found is None:
            raise UserError(f"there is no session {session_id!r}")
        return found

    def load(self, file: str) -> SessionRecord | None:
        """A record from disk, read again only when the file has changed."""
        path = self.directory / file
        try:
            changed = path.stat().st_mtime_ns
        except OSError:
            return None
        if self.read.get(file, (0, None))[0] != changed:
            raw = read_json(path)
            if raw is None:
                return None
            self.read[file] = (changed, SessionRecord(**raw))
        return self.read[file][1]

    def records(self) -> list[SessionRecord]:
        """All, newest first; those of other engines over the same directory too."""
        files = [path.name for path in self.directory.glob("[!.]*.json")]
        read = [record for record in map(self.load, files) if record is not None]
        found = {record.session_id: record for record in read}
        found |= {key: session.record for key, session in list(self.live.items())}
        return sorted(found.values(), key=lambda record: (-record.created, record.session_id))
