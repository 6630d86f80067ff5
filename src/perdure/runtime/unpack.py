"""Reading an archive that may come from anybody: whole, into a file without a name, before anything is done with it.

See archive.py for the theory. Whatever is wrong raises ConfigError with a sentence that says what, and NewerFormat for
what a newer Perdure wrote. Nothing else is raised, but StoreError when the temporary file cannot be written.
"""

from __future__ import annotations

import re
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import IO, Final, NamedTuple, Self, TypeVar

import msgspec

from perdure import inbox, states
from perdure import journal as j
from perdure.codec import MAX_BYTES
from perdure.errors import ConfigError, NewerFormat, PerdureError
from perdure.fold import State
from perdure.model import RunKey, RunMeta
from perdure.runtime.archive import END, HEAD, VERSION, Bounds, End, Head, names_of_run
from perdure.runtime.export import Progress
from perdure.runtime.settle import with_posts
from perdure.runtime.untar import PIECE, Refused, Unpacked, too_large
from perdure.stores import disk

_SMALL: Final = 1 << 16
"""bytes of a member that says one thing: far more than it takes"""
_IN_MEMORY: Final = 16 << 20
"""bytes that are unpacked without a file"""
_LATEST: Final = 253402300799.0
"""seconds since 1970 that no date is after, and no number of seconds above: the end of the year 9999"""
_AHEAD: Final = 86400.0
"""seconds that the clock of another machine may be ahead: what was recorded later than that is made up"""
_BLOB = re.compile(r"blobs/([0-9a-f]{64})")
_LONG_EPISODE = re.compile(r"#\d{11,}$")
_TEXTS: Final = frozenset({"reason", "why", "text", "flagged", "outputs", "by", "outcome"})
"""fields of entries that hold free text; all others name something"""
_T = TypeVar("_T")


class Place(NamedTuple):
    """Where the content of a member stands in the temporary file."""

    offset: int
    size: int


class Packed(NamedTuple):
    """A run of an archive that is sound."""

    key: RunKey
    journal: Place
    inbox: Place
    records: int
    posts: int
    over: bool
    """it has ended, and nothing from outside changes it"""
    parent: str
    """the run that began it"""
    queued: bool
    """workers execute it, whatever became of its parent"""


class Archive:
    """An archive that was read to its end and found sound. Close it, or use it in a ``with``."""

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self.name = name
        self.head = Head("perdure", VERSION)
        self.runs: list[Packed] = []
        self.records = self.posts = 0
        self._blobs: dict[bytes, Place] = {}
        self._file = file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    @property
    def blobs(self) -> int:
        return len(self._blobs)

    def has(self, digest: str) -> bool:
        return bytes.fromhex(digest) in self._blobs

    def blob(self, digest: str) -> bytes:
        """The content of a blob that it has."""
        return self._content(self._blobs[bytes.fromhex(digest)])

    def lines(self, place: Place, longest: int = -2) -> Iterator[bytes]:
        """The records of a journal or inbox. One that is longer than ``longest`` is given without its end."""
        at, end = place.offset, place.offset + place.size
        while at < end:
            self._file.seek(at)
            line = self._file.readline(min(longest + 1, end - at) if longest >= 0 else end - at)
            at += len(line)
            yield line

    def _content(self, place: Place) -> bytes:
        self._file.seek(place.offset)
        return self._file.read(place.size)


def unpack(
    source: str | Path | IO[bytes], *, now: float, max_size: int | None = None, progress: Progress = lambda runs: None
) -> Archive:
    """The archive in a file, or in what is left of a stream. ``max_size``: bytes that it may unpack to, instead of what
    Bounds allow. ``now``: seconds since 1970.

    Raises ConfigError for anything that is no sound archive, NewerFormat, StoreError.
    """
    if isinstance(source, str | Path):
        with _opened(Path(source)) as stream:
            return _Reader(stream, Path(source).name, Bounds.of(max_size), now, progress).archive()
    name = "standard input" if getattr(source, "name", None) in ("<stdin>", 0) else "an archive"
    return _Reader(source, name, Bounds.of(max_size), now, progress).archive()


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        stream = open(path, "rb")  # noqa: SIM115 - closed below; what reading it raises is not caught here
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    with stream:
        yield stream


class _Reader:
    """Reads one archive."""

    def __init__(self, source: IO[bytes], name: str, bounds: Bounds, now: float, progress: Progress) -> None:
        self._bounds, self._now, self._progress = bounds, now, progress
        self._tar = Unpacked(source, bounds)
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - by Archive.close
        self._size = 0
        self._made = Archive(name, self._file)
        self._keys: set[RunKey] = set()

    def archive(self) -> Archive:
        try:
            self._read()
        except BaseException as error:
            self._made.close()
            if isinstance(error, Refused):
                said = "".join("?" if _is_control(sign) else sign for sign in str(error))  # it may quote the archive
                raise ConfigError(f"{self._made.name}: {said} Nothing was imported.", hint=error.hint) from None
            raise
        return self._made

    def _read(self) -> None:
        made = self._made
        made.head = self._head()
        while True:
            before = self._tar.digest()
            expected, *rest = names_of_run(len(made.runs) + 1)
            name, size = self._tar.member()
            blob = _BLOB.fullmatch(name)
            if blob is not None:
                self._blob(blob[1], size)
            elif name == expected:
                self._run(size, *rest)
            elif name == END:
                break
            else:
                raise Refused(f"it has a member {name[:80]!r} where {expected!r} belongs.")
        end = self._small(size, End, name)
        if (end.runs, end.blobs, end.records, end.posts) != (len(made.runs), made.blobs, made.records, made.posts):
            raise Refused("its last member counts other runs, blobs, records or posts than there are.")
        if end.sha256 != before:
            raise Refused("its checksum does not match: bytes were changed since it was written.")
        self._tar.end()

    def _head(self) -> Head:
        name, size = self._tar.member()
        if name != HEAD:
            raise Refused(f"its first member is {name[:80]!r}, not {HEAD}: it is no archive of Perdure.")
        found = self._small(size, Head, name)
        if found.archive != "perdure" or found.version < 1:
            raise Refused("it is another program's.")
        if found.version > VERSION:
            raise NewerFormat(
                f"{self._made.name} has format {found.version}; this Perdure knows formats up to {VERSION}. Nothing "
                "was imported.",
                hint="Use the newer Perdure.",
            )
        if any(map(_is_control, found.by)) or not 0 <= found.made < _LATEST:
            raise Refused("its first member says what no Perdure writes.")
        return found

    def _small(self, size: int, kind: type[_T], name: str) -> _T:
        if size > _SMALL:
            raise Refused(f"{name} has {size:,} bytes, which is too much.")
        text = self._tar.read(size)
        self._tar.pad(size)
        try:
            return msgspec.json.decode(text, type=kind)
        except (ValueError, msgspec.MsgspecError, RecursionError) as problem:
            raise Refused(f"{name} is damaged ({problem}).") from None

    def _keep(self, size: int) -> tuple[Place, str]:
        """Put a member's content into the temporary file: where, and its sha256."""
        place, found, left = Place(self._size, size), sha256(), size
        try:
            self._file.seek(self._size)
            while left:
                piece = self._tar.read(min(left, PIECE))
                found.update(piece)
                self._file.write(piece)
                left -= len(piece)
            self._size += size
        except OSError as error:
            problem = disk.failure("unpack into a temporary file in", Path(tempfile.gettempdir()), error)
            problem.hint = "Nothing was imported. Free some space there, or name another folder in TMPDIR."
            raise problem from error
        self._tar.pad(size)
        return place, found.hexdigest()

    def _blob(self, digest: str, size: int) -> None:
        if size > MAX_BYTES:
            raise Refused(f"a blob has {size:,} bytes, and no value has more than {MAX_BYTES:,}.")
        if self._made.has(digest):
            raise Refused(f"the blob {digest} is in it twice.")
        place, found = self._keep(size)
        if found != digest:
            raise Refused(f"the content of the blob {digest} is not the one that it was stored with.")
        self._made._blobs[bytes.fromhex(digest)] = place

    def _run(self, size: int, journal: str, posts: str) -> None:
        key = self._small(size, RunKey, f"the name of run {len(self._made.runs) + 1}")
        try:
            key = RunKey.of(key.goal, key.episode)
        except ConfigError as problem:
            raise Refused(f"it has a run that can have no such name: {problem.args[0]}") from None
        if key in self._keys:
            raise Refused(f"run {key} is in it twice.")
        self._keys.add(key)
        places = [self._lines(key, what, name) for what, name in (("journal", journal), ("inbox", posts))]
        found = self._checked(key, *places)
        self._made.runs.append(found)
        self._made.records += found.records
        self._made.posts += found.posts
        self._progress(len(self._made.runs))

    def _lines(self, key: RunKey, what: str, expected: str) -> Place:
        name, size = self._tar.member()
        if name != expected:
            raise Refused(f"run {key} has a member {name[:80]!r} where {expected!r} belongs.")
        if size > self._bounds.journal:
            raise too_large(f"run {key}, whose {what} has {size:,} bytes")
        return self._keep(size)[0]

    def _checked(self, key: RunKey, journal: Place, posts: Place) -> Packed:
        """Whether a run could be gone on with as it stands there."""
        try:
            return self._folded(key, journal, posts)
        except (Refused, NewerFormat):
            raise
        except PerdureError as problem:
            raise Refused(problem.args[0].replace(" Nothing was changed.", "")) from None
        except Exception as problem:  # entries that follow no life of any run may lead the fold anywhere
            raise Refused(f"run {key} cannot be read ({type(problem).__name__}).") from None

    def _folded(self, key: RunKey, journal: Place, posts: Place) -> Packed:
        state = State(key)
        for line in self._made.lines(journal, self._bounds.record):
            if len(line) > self._bounds.record:
                raise too_large(f"run {key}, which has a record of more than {self._bounds.record:,} bytes")
            entry = j.decode(key, line, state.seq + 1)
            self._check(key, entry)
            if entry.seq == 1 and not isinstance(entry, j.First):
                raise Refused(f"the journal of run {key} begins in the middle.")
            missing = [digest for digest in j.refs(entry) if not _is_digest(digest) or not self._made.has(digest)]
            if missing:
                raise Refused(f"run {key} needs the blob {missing[0][:64]!r}, which is not in it.")
            state.apply(entry)
        if not state.seq:
            raise Refused(f"run {key} has no records.")
        records, taken, count = state.seq, state.posts, 0
        for count, line in enumerate(self._made.lines(posts, inbox.MAX_POST), 1):
            if len(line) > inbox.MAX_POST:
                raise Refused(f"run {key} has a post of more than {inbox.MAX_POST:,} bytes.")
            self._check(key, inbox.decode(state, line, count))
            if count > taken:
                with_posts(state, [line])
        if count < taken:
            raise Refused(f"the inbox of run {key} has {count} posts, and its journal tells of {taken}.")
        if not _is_row(state.meta()):
            raise Refused(f"run {key} has numbers that nothing can count.")
        parent = state.attribution.parent
        over = state.status in states.RUN_OVER
        return Packed(key, journal, posts, records, count, over, parent, bool(state.queue))

    def _check(self, key: RunKey, entry: j.Entry) -> None:
        """An entry is what a Perdure may have written, as far as the rest of a store depends on that: dates that are
        ones, and names that can be shown and looked for."""
        for field in entry.__struct_fields__:
            value = getattr(entry, field)
            if isinstance(value, str):
                if field not in _TEXTS and any(map(_is_control, value)):
                    raise Refused(f"run {key} has control characters in the {field} of entry {entry.seq}.")
            elif isinstance(value, int | float) and not 0 <= value < _LATEST and field != "priority":
                raise Refused(f"run {key} has {value:g} as the {field} of entry {entry.seq}.")
        if max(entry.at, getattr(entry, "posted", 0.0)) > self._now + _AHEAD:
            raise Refused(f"run {key} has an entry {entry.seq} that is of the future.")
        if isinstance(entry, j.RunQueued) and abs(entry.priority) >= 2**31:
            raise Refused(f"run {key} has the priority {entry.priority:g}.")
        if isinstance(entry, j.First) and _LONG_EPISODE.search(entry.attribution.parent):
            raise Refused(f"run {key} was begun by a run that can have no such name.")


def _is_control(sign: str) -> bool:
    return unicodedata.category(sign) in ("Cc", "Cs")


def _is_row(row: RunMeta) -> bool:
    """Whether a row of a listing reads as it was written."""
    try:
        return msgspec.json.decode(msgspec.json.encode(row), type=RunMeta) == row
    except (ValueError, OverflowError, msgspec.MsgspecError):
        return False


def _is_digest(text: str) -> bool:
    return _BLOB.fullmatch(f"blobs/{text}") is not None
