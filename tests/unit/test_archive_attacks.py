"""Archives from strangers (rel:S15): whatever is in them, they are taken whole or refused with a sentence, in bounded
memory and time, and nothing is written, followed or executed. An attacker can make every checksum fit, and so do we.
"""

from __future__ import annotations

import gzip
import io
import os
import struct
import subprocess
import sys
import tarfile
import textwrap
import time
import zlib
from collections.abc import Sequence
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from archive_bombs import BEGAN, HEAD
from archive_shapes import exported, fill, imported, journal, memory, refused, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import perdure
from perdure import journal as j
from perdure.codec import Payload, dumps
from perdure.errors import ConfigError, PerdureError
from perdure.framing import frame
from perdure.model import Attribution, RunKey, Usage
from perdure.runtime.archive import header, padding
from perdure.stores.memory import MemoryStore
from perdure.testing.samples import HOSTILE_GOALS

KEY = RunKey("paper")
ONE = dumps(1, "value")[0]
BLOB = b"large" * 2000
DIGEST = sha256(BLOB).hexdigest()
Member = tuple[str, bytes]


def plain(members: Sequence[Member]) -> bytes:
    """The members as a tar file without an end."""
    return b"".join(header(name, len(body)) + body + bytes(padding(len(body))) for name, body in members)


def forged(*members: Member, tar: bytes = b"", **counts: int) -> bytes:
    """An archive of these members behind its head, with a last one that fits unless ``counts`` say otherwise."""
    before = plain([HEAD, *members]) + tar
    names = [name for name, _ in members]
    lines = {
        what: sum(b.count(b"\n") for n, b in members if n.endswith(f"{what}.jsonl")) for what in ("journal", "inbox")
    }
    end: dict[str, Any] = {
        "runs": sum(name.endswith("run.json") for name in names),
        "blobs": sum(name.startswith("blobs/") for name in names),
        "records": lines["journal"],
        "posts": lines["inbox"],
        "sha256": sha256(before).hexdigest(),
    }
    return gzip.compress(before + plain([("end.json", msgspec.json.encode(end | counts))]) + bytes(1024), mtime=0)


def a_run(
    lines: Sequence[bytes] | None = None,
    posts: Sequence[bytes] = (),
    key: RunKey = KEY,
    number: int = 1,
    named: bytes | None = None,
) -> list[Member]:
    """The members of one run."""
    return [
        (f"runs/{number}/run.json", msgspec.json.encode(key) if named is None else named),
        (f"runs/{number}/journal.jsonl", b"".join(journal(key, *life()) if lines is None else lines)),
        (f"runs/{number}/inbox.jsonl", b"".join(posts)),
    ]


def began(**more: Any) -> j.RunBegan:
    return j.RunBegan(**{"run_id": "r", "flow": "f", "epoch": 1, "pid": 1, "host": "h", **more})


def life() -> list[j.Entry]:
    return [began(), j.StepStarted(step=1, name="a"), j.StepCompleted(step=1, output=ONE), j.RunCompleted(output=ONE)]


def raw(*bodies: bytes, key: RunKey = KEY) -> list[bytes]:
    """Records with good checksums and any content."""
    return [frame(key, body) for body in bodies]


def test_the_forger_can_make_a_sound_one() -> None:
    blob = Payload(1, msgspec.Raw(b'{"~":"blob","as":"bytes","sha256":"%b","size":10000}' % DIGEST.encode()), (DIGEST,))
    lines = journal(KEY, began(inputs=blob), j.RunCompleted(output=ONE))
    done = imported(
        MemoryStore(memory()), forged((f"blobs/{DIGEST}", BLOB), *a_run(lines), *a_run(key=RunKey("b"), number=2))
    )
    assert [came.run for came in done.runs] == ["paper#0", "b#0"]
    assert imported(MemoryStore(memory()), forged()).runs == ()


# -- members that are no members ---------------------------------------------------------------------------------------


def _tarred(*infos: tuple[tarfile.TarInfo, bytes], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """Members as another program writes them."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for info, body in infos:
            tar.addfile(info, io.BytesIO(body))
    return file.getvalue().rstrip(b"\0") + bytes(512)


def _info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0, **pax: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode, info.pax_headers = kind, link, size, 0o600, pax
    return info


_OUTSIDE = ["../escaped", "/tmp/escaped", "runs/../../escaped", "runs/1/../../escaped", "..", "C:\\escaped", "runs\\1"]


@pytest.mark.parametrize(
    "name", [*_OUTSIDE, "runs/01/run.json", "runs/2/run.json", "Runs/1/run.json", "blobs/AB", "x" * 99]
)
def test_names_are_those_that_are_expected_and_no_others(name: str) -> None:  # rel:S5
    said = refused(forged((name, b"x")))
    assert "it has a member" in said and "where 'runs/1/run.json' belongs" in said
    assert "run paper#0 has a member" in refused(forged(a_run()[0], (name, b"x"), a_run()[2]))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.DIRTYPE, "a folder"),
        (tarfile.FIFOTYPE, "a named pipe"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
        (tarfile.XHDTYPE, "an extended header"),
        (tarfile.XGLTYPE, "an extended header"),
        (tarfile.GNUTYPE_LONGNAME, "an extended header"),
        (b"?", "a header that no Perdure writes"),
    ],
)
def test_members_are_plain_files_and_nothing_else(kind: bytes, said: str) -> None:  # rel:S5
    for name in ("runs/1/run.json", "runs/1", "end.json"):
        link = _tarred((_info(name, kind, link="/etc/passwd"), b""), (_info("runs/1/run.json"), b""))
        assert said in refused(forged(tar=link))


def test_extended_headers_of_any_size_are_not_read() -> None:
    pax = _tarred((_info("runs/1/run.json", path="../../escaped", comment="9" * 1800), b""), form=tarfile.PAX_FORMAT)
    assert "an extended header" in refused(forged(tar=pax))
    huge = bytearray(header("runs/1/run.json", 8**11 - 1))
    assert "which is too much" in refused(forged(tar=bytes(huge)))
    huge[156:157] = b"x"
    assert "an extended header" in refused(forged(tar=bytes(huge)))
    binary = bytearray(header("runs/1/run.json", 1))
    binary[124:136] = b"\x80" + bytes(3) + struct.pack(">Q", 1 << 62)
    assert "a header that no Perdure writes" in refused(forged(tar=bytes(binary)))


def test_a_sound_member_with_another_owner_mode_or_date_is_not_ours() -> None:
    for field in ("mode", "uid", "mtime"):
        info = _info("runs/1/run.json", size=1)
        setattr(info, field, 0o777)
        assert "no Perdure writes" in refused(forged(tar=_tarred((info, b"x"))))


def test_nothing_is_in_it_twice() -> None:
    blob = (f"blobs/{DIGEST}", BLOB)
    assert f"the blob {DIGEST} is in it twice" in refused(forged(blob, blob, *a_run()))
    assert "run paper#0 is in it twice" in refused(forged(*a_run(), *a_run(number=2)))
    assert "where 'runs/2/run.json' belongs" in refused(forged(*a_run(), *a_run()))
    assert "where 'runs/1/run.json' belongs" in refused(forged(HEAD, *a_run()))


def test_the_counts_and_the_checksum_at_the_end_fit() -> None:
    for what in ("runs", "blobs", "records", "posts"):
        assert "counts other" in refused(forged(*a_run(), **{what: 7}))
    assert "checksum does not match" in refused(forged(*a_run(), sha256="0" * 64))  # type: ignore[arg-type]
    assert "end.json is damaged" in refused(forged(*a_run(), runs=None))  # type: ignore[arg-type]


# -- bytes -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound() -> bytes:
    store = MemoryStore(memory())
    for goal in ("a", "b"):
        run(MemoryStore(store._backend), goal, ("work", 9_000), ("ask", None))
    return exported(store)


def test_an_archive_that_was_cut_anywhere_is_refused(sound: bytes) -> None:  # rel:B3
    for size in [*range(0, len(sound), 64), len(sound) - 1, len(sound) - 8, len(sound) - 9]:
        said = refused(sound[:size])
        assert "it ends in the middle" in said or size < 20, (size, said)
    tar = gzip.decompress(sound)
    for size in range(0, len(tar), 512):
        assert "it ends in the middle" in refused(gzip.compress(tar[:size]))
        assert size == len(tar) - 1024 or refused(gzip.compress(tar[:size] + bytes(1024)))


def _means_the_same(bad: bytes, sound: bytes) -> bool:
    """Some bits of a gzip file say nothing (its date), or the same in another way (an equal text further back)."""
    try:
        return gzip.decompress(bad) == gzip.decompress(sound)
    except (EOFError, OSError, zlib.error):
        return False


def test_an_archive_of_which_a_bit_was_flipped_is_refused(sound: bytes) -> None:
    for place in range(0, len(sound), 7):
        bad = bytearray(sound)
        bad[place] ^= 1 << place % 8
        if not _means_the_same(bytes(bad), sound):
            refused(bytes(bad))
    tar = gzip.decompress(sound)
    for place in range(0, len(tar), 37):
        bad = bytearray(tar)
        bad[place] ^= 1 << place % 8
        refused(gzip.compress(bytes(bad), mtime=0))


def test_nothing_follows_an_archive(sound: bytes) -> None:
    assert "something follows the end of the gzip file" in refused(sound + b"x")
    assert "something follows the end of the gzip file" in refused(sound + sound)
    assert "something follows its last member" in refused(gzip.compress(gzip.decompress(sound) + bytes(512)))
    tar = gzip.decompress(sound)
    assert "it ends in the middle" in refused(gzip.compress(tar[:2000]) + gzip.compress(tar[2000:]))


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"PK\3\4" + bytes(100), gzip.compress(b"", mtime=0), gzip.compress(bytes(10240), mtime=0)],
    ids=("nothing", "a byte", "zip", "empty gzip", "empty tar"),
)
def test_what_is_no_archive_is_told_so(data: bytes) -> None:
    said = refused(data)
    assert said.startswith("an archive: it ") and "Nothing was imported." in said


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    client = perdure.Client(MemoryStore(memory()))
    for place in (tmp_path, tmp_path / "gone", "nul\0"):
        with pytest.raises(ConfigError, match="cannot be read"):
            client.import_archive(place, by="eve")


# -- size --------------------------------------------------------------------------------------------------------------

_CHILD = """
import io, resource, sys, time
from perdure.clock import SYSTEM
from perdure.errors import ConfigError
from perdure.runtime.unpack import unpack
with open("/proc/self/status") as status:
    now = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (now + (200 << 20),) * 2)
sys.path.insert(0, {tests!r})
import archive_bombs as bombs
try:
    unpack({bomb}, now=SYSTEM.now(), max_size={most})
except ConfigError as problem:
    print(problem)
"""


def burst(bomb: str, max_size: int | None = None) -> str:
    """Why a bomb is refused in a process that may take 200 MiB more than it has."""
    code = _CHILD.format(tests=str(Path(__file__).parent), bomb=f"bombs.Bomb(bombs.{bomb}())", most=max_size)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    ("bomb", "most", "said"),
    [
        ("one_blob", None, "more than 100 times its size"),
        ("one_journal", None, "a record of more than 16,777,216 bytes"),
        pytest.param("one_line", None, "a record of more than 16,777,216 bytes", marks=pytest.mark.long),
        ("tiny_members", 8 << 20, "more than 8,388,608 bytes"),
        pytest.param("tiny_runs", 8 << 20, "more than 8,388,608 bytes", marks=pytest.mark.long),
        pytest.param("forever", None, "run 1 is damaged", marks=pytest.mark.long),
    ],
)
def test_an_archive_that_bursts_is_refused_in_bounded_memory(bomb: str, most: int | None, said: str) -> None:  # rel:B5
    assert said in burst(bomb, most)


@pytest.mark.long
@pytest.mark.parametrize("bomb", ["tiny_members", "tiny_runs"])
def test_a_million_members_are_refused_in_bounded_memory(bomb: str) -> None:  # rel:B5
    assert "more than 500,000 members" in burst(bomb)


# -- runs that no Perdure wrote ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (b'{"goal":"../../etc/passwd"}', "the path component '..'"),
        (b'{"goal":"a\\\\..\\\\b"}', "the path component '..'"),
        (b'{"goal":""}', "goal is empty"),
        (b'{"goal":"\\u001fworker"}', "control characters"),
        (b'{"goal":"\\u001fqueue/default"}', "control characters"),
        (b'{"goal":"a\\u0000b"}', "control characters"),
        (b'{"goal":"\\ud800"}', "damaged"),
        (b'{"goal":"%b"}' % (b"x" * 513), "the limit is 512"),
        (b'{"goal":"a","episode":-1}', "whole number from 0"),
        (b'{"goal":"a","episode":1e3}', "damaged"),
        (b'{"goal":"a","episode":99999999999999999999}', "whole number from 0"),
        (b'{"goal":7}', "damaged"),
        (b'["a",0]', "damaged"),
        (b"[" * 60_000, "damaged"),
        (b"x" * 70_000, "which is too much"),
    ],
)
def test_a_run_is_named_as_any_other(named: bytes, said: str) -> None:  # rel:B6
    assert said in refused(forged(*a_run(named=named)))


@pytest.mark.parametrize("goal", HOSTILE_GOALS)
def test_hostile_goals_name_a_run_or_are_refused(goal: str, tmp_path: Path) -> None:  # rel:S5
    key = RunKey(goal)
    archive = forged(*a_run(key=key))
    outside = tmp_path / "outside"
    outside.mkdir()
    store = perdure.open_store(f"file:{outside / 'store'}")
    try:
        imported(store, archive)
        assert store.read(key) == journal(key, *life())
    except ConfigError:
        assert store.runs() == []
    store.close()
    assert os.listdir(outside) == ["store"] and os.listdir(tmp_path) == ["outside"]


def _changed(entry: j.Entry, **fields: Any) -> list[j.Entry]:
    for name, value in fields.items():
        setattr(entry, name, value)
    return [began(), entry]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "has no records"),
        ([b"x\n"], "record 1 is damaged (the record is cut short)"),
        ([b"\n"], "record 1 is damaged"),
        ([*raw(BEGAN), raw(BEGAN)[0][:-1]], "record 2 is damaged"),
        ([raw(BEGAN)[0][:-1]], "record 1 is damaged (the record is cut short)"),
        ([b" " + raw(BEGAN)[0]], "record 1 is damaged"),
        (journal(RunKey("other"), began()), "the record belongs to another run"),
        (raw(BEGAN, BEGAN), "record 2 says it is number 1"),
        (raw(BEGAN.replace(b'"seq":1', b'"seq":2')), "record 1 says it is number 2"),
        ([*journal(KEY, *life())[:1], *journal(KEY, *life())[2:]], "record 2 says it is number 3"),
        (raw(BEGAN, b'{"kind":"run_began/1"}'), "record 2 is damaged"),
        (raw(b'{"kind":"run_completed/1","seq":1,"output":{}}'), "begins in the middle"),
        (raw(b'{"kind":"step_started/1","seq":1,"step":1}'), "begins in the middle"),
        (raw(b'{"kind":"scope_opened/1","seq":1,"path":"","name":""}', BEGAN.replace(b":1,", b":2,")), "in the middle"),
        (raw(BEGAN, b'{"kind":"step_completed/1","seq":2,"step":7,"output":{}}'), "step 7, which never started"),
        (raw(BEGAN, b"[" * 100_000), "damaged"),
        (raw(BEGAN, b'{"kind":"step_pending/1","seq":2,"step":1,"asked":{"prompt":"","schema":%b{}%b}}'
             % (b'{"a":' * 50_000, b"}" * 50_000)), "damaged"),
        (raw(BEGAN, b'{"kind":"step_started/1","seq":2,"step":%b}' % (b"9" * 4000)), "cannot be read"),
        (raw(BEGAN, b'{"kind":"step_started/1","seq":2,"step":%b}' % (b"9" * 5000)), "damaged"),
        (raw(BEGAN.replace(b'"at":1.0', b'"at":1e300')), "1e+300 as the at of entry 1"),
        (raw(BEGAN.replace(b'"at":1.0', b'"at":-1')), "-1 as the at of entry 1"),
        (raw(BEGAN.replace(b'"at":1.0', b'"at":1e999')), "damaged"),
        (raw(BEGAN.replace(b'"at":1.0', b'"at":NaN')), "damaged"),
        (raw(BEGAN.replace(b'"at":1.0', b'"at":9e9')), "is of the future"),
        (raw(BEGAN.replace(b'"f"', b'"\\u001fworker"')), "control characters in the flow of entry 1"),
        (raw(BEGAN.replace(b'"f"', b'"\\u001b[2J"')), "control characters in the flow of entry 1"),
        (raw(BEGAN, b'{"kind":"step_started/1","seq":2,"step":1,"name":"a\\nb"}'), "in the name of entry 2"),
        (journal(KEY, began(inputs=Payload(1, msgspec.Raw(b"1"), ("a" * 64,)))), "which is not in it"),
        (journal(KEY, began(inputs=Payload(1, msgspec.Raw(b"1"), ("../../etc/passwd",)))), "which is not in it"),
        (journal(KEY, began(attribution=Attribution(parent="a#" + "9" * 5000))), "begun by a run that can have no"),
        (journal(KEY, j.RunQueued(run_id="", flow="f", queue="q", wake=1.0, priority=2**31)), "the priority 2.1"),
        (journal(KEY, began(), j.StepStarted(step=1), j.StepUsage(step=1, usage=Usage(cost=1e308)),
                 j.StepUsage(step=1, usage=Usage(cost=1e308))), "numbers that nothing can count"),
        (raw(BEGAN, b'{"kind":"question_answered/1","seq":2,"post":1,"step":9,"question":"x","value":1}'),
         "does not wait for it"),
        (raw(BEGAN, b'{"kind":"signal_received/1","seq":2,"post":1,"name":"a"}'), "inbox of run paper#0 has 0 posts"),
        (raw(BEGAN, b'{"kind":"signal_received/1","seq":2,"post":5,"name":"a"}'), "is post 5 after post 0"),
    ],
)  # fmt: skip
def test_a_journal_is_what_some_life_may_have_written(lines: list[bytes], said: str) -> None:  # rel:S15 rel:B3
    assert said in refused(forged(*a_run(lines)))


@pytest.mark.parametrize(
    ("post", "said"),
    [
        (b'{"kind":"run_paused/1","reason":""}', "an entry that only the holder of a run writes"),
        (b'{"kind":"run_released/1","seq":4}', "says it is number 4"),
        (b'{"kind":"run_released/1","posted":9e9}', "is of the future"),
        (b'{"kind":"signal_received/1","name":"%b"}' % (b"x" * (1 << 20)), "a post of more than 1,048,576 bytes"),
        (b'{"kind":"signal_received/1","name":"\\u001f"}', "control characters in the name"),
        (b"{}", "damaged"),
    ],
)
def test_an_inbox_is_what_others_may_have_said(post: bytes, said: str) -> None:
    assert said in refused(forged(*a_run(posts=raw(post))))


def test_an_inbox_is_the_runs_own() -> None:
    other = raw(b'{"kind":"run_released/1"}', key=RunKey("other"))
    assert "belongs to another run" in refused(forged(*a_run(posts=other)))


@pytest.mark.parametrize("head", [{"by": "\x1b[2J"}, {"by": "a\nb"}, {"made": 1e300}, {"made": -1}, {"by": 7}])
def test_what_an_archive_says_of_itself_can_be_shown(head: dict[str, Any]) -> None:
    body = msgspec.json.encode({"archive": "perdure", "version": 1, **head})
    said = refused(gzip.compress(plain([("perdure.json", body), ("end.json", b"{}")]) + bytes(1024)))
    assert ("what no Perdure writes" in said or "is damaged" in said) and said.isprintable()


def test_what_is_quoted_of_an_archive_does_nothing_to_a_terminal() -> None:
    for lines in (raw(BEGAN, b'{"kind":"\\u001b[2J","seq":2}'), raw(b'{"kind":"run_began/1","run_id":{"\\u001b":1}}')):
        assert refused(forged(*a_run(lines))).isprintable()


def test_runs_that_say_that_they_began_each_other_are_paused_like_any() -> None:  # rel:S15
    one, two, three = RunKey("one"), RunKey("two"), RunKey("three")
    members = []
    for number, (key, parent) in enumerate(((one, two), (two, one), (three, three), (RunKey("x"), KEY)), 1):
        lines = journal(key, began(attribution=Attribution(parent=str(parent))))
        members += a_run(lines, key=key, number=number)
    done = imported(MemoryStore(memory()), forged(*members, *a_run(number=5)))
    assert done.paused == ["one#0", "two#0", "three#0", "x#0"], "and the parent of the last is over"


def test_a_kind_that_this_perdure_does_not_know_is_a_newer_ones() -> None:
    assert "does not know" in refused(forged(*a_run(raw(BEGAN, b'{"kind":"run_dreamt/1","seq":2}'))))


def test_a_blob_has_the_content_of_its_name_and_no_other() -> None:
    assert "not the one that it was stored with" in refused(forged((f"blobs/{DIGEST}", BLOB + b"x"), *a_run()))
    assert "and no value has more than" in refused(forged(tar=header(f"blobs/{DIGEST}", (256 << 20) + 1)))
    store = memory()
    imported(MemoryStore(store), forged((f"blobs/{DIGEST}", BLOB), *a_run()))
    assert store.blobs == {}, "a blob that nothing needs is not kept"


def test_nothing_is_executed_or_imported_by_an_archive() -> None:  # rel:S1
    """An audit hook is told of whatever is executed; it cannot be taken off, so it lives in a child."""
    hostile = (
        b'{"~":"data","type":"os:system","fields":{"command":"touch /tmp/owned"}}',
        b'{"~":"pickle","v":"Y29zCnN5c3RlbQo="}',
        b'{"__class__":"os.system","lc":1}',
    )
    lines = raw(BEGAN[:-1] + b',"target":"os:system","inputs":{"value":%b}}' % hostile[0])
    lines += raw(*(b'{"kind":"run_resumed/1","seq":%d,"epoch":1,"pid":1,"host":"h","inputs":{"value":%b}}' % (n, value)
                   for n, value in enumerate(hostile, 2)))  # fmt: skip
    code = """
    import io, sys
    import perdure
    from perdure.stores.memory import MemoryStore
    client = perdure.Client(MemoryStore())
    client.import_archive(io.BytesIO(ARCHIVE), by="eve", dry_run=True)
    seen = []
    sys.addaudithook(lambda event, args: seen.append(event))
    client.import_archive(io.BytesIO(ARCHIVE), by="eve")
    bad = [e for e in seen if e in ("exec", "compile", "import", "open", "marshal.loads") or e.split(".")[0] in
           ("os", "subprocess", "shutil", "socket", "pickle", "ctypes")]
    print(bad, client.find("paper").status)
    """
    code = textwrap.dedent(code).replace("ARCHIVE", repr(forged(*a_run(lines))))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "['socket.gethostname'] paused\n", done.stdout + done.stderr


# -- anything ----------------------------------------------------------------------------------------------------------


def _shapes() -> list[tuple[str, bytes]]:
    store = MemoryStore(memory())
    fill(store)
    with tarfile.open(fileobj=io.BytesIO(exported(store))) as tar:
        return [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()[1:-1]]  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def shapes() -> list[tuple[str, bytes]]:
    return _shapes()


def _survives(archive: bytes) -> None:
    """It is taken, and what came can be listed and shown; or it is refused and nothing was written. At once."""
    backend = memory()
    before = time.perf_counter()
    try:
        imported(MemoryStore(backend), archive)
    except PerdureError:
        assert not backend.runs and not backend.blobs
    else:
        client = perdure.Client(MemoryStore(backend))
        for row in client.runs():
            client.state(str(row.key))
        client.questions()
        assert client.due() == []
    assert time.perf_counter() - before < 5, "a small one takes no time"


_values = st.one_of(
    st.integers(-3, 12),
    st.sampled_from([None, True, 1e300, -1, 2**63, 10**30, "", "x", "\x1f", [], {}, [[]], {"~": "tuple", "v": []}]),
    st.sampled_from([str(kind.__struct_config__.tag) for kind in j.KINDS]),
)


@given(data=st.data())
@settings(max_examples=80, derandomize=True, suppress_health_check=list(HealthCheck))
def test_entries_that_were_changed_anyhow_are_taken_or_refused(
    shapes: list[tuple[str, bytes]], data: st.DataObject
) -> None:
    _change_entries(shapes, data)


def _change_entries(shapes: list[tuple[str, bytes]], data: st.DataObject) -> None:
    """Some records of one run are dropped, doubled, exchanged or changed in their fields, and everything is made to
    fit again."""
    number = data.draw(st.integers(1, sum(name.endswith("run.json") for name, _ in shapes)), "run")
    (key,) = [msgspec.json.decode(body, type=RunKey) for name, body in shapes if name == f"runs/{number}/run.json"]
    parts = {}
    for what in ("journal", "inbox"):
        (body,) = [body for name, body in shapes if name == f"runs/{number}/{what}.jsonl"]
        parts[what] = [msgspec.json.decode(line)["entry"] for line in body.splitlines()]
    for _ in range(data.draw(st.integers(1, 3), "changes")):
        lines = parts[data.draw(st.sampled_from(["journal", "journal", "journal", "inbox"]), "where")]
        if not lines:
            continue
        place = data.draw(st.integers(0, len(lines) - 1), "record")
        match data.draw(st.sampled_from(["drop", "double", "swap", "field", "field", "field", "field"]), "how"):
            case "drop":
                del lines[place]
            case "double":
                lines.insert(place, dict(lines[place]))
            case "swap":
                lines[place], lines[-1] = lines[-1], lines[place]
            case "field":
                at: Any = lines[place]
                field = data.draw(st.sampled_from(sorted(at)), "field")
                while isinstance(at[field], dict) and at[field] and data.draw(st.booleans(), "deeper"):
                    at = at[field]
                    field = data.draw(st.sampled_from(sorted(at)), "inner")
                at[field] = deepcopy(data.draw(_values, "value"))
    if data.draw(st.booleans(), "numbered"):
        for seq, entry in enumerate(parts["journal"], 1):
            entry["seq"] = seq
    members = []
    for name, body in shapes:
        what = name.rpartition("/")[2].partition(".")[0]
        if name.startswith(f"runs/{number}/") and what in parts:
            body = b"".join(frame(key, _json(entry)) for entry in parts[what])
        members.append((name, body))
    _survives(forged(*members))


def _json(entry: dict[str, Any]) -> bytes:
    import json

    return json.dumps(entry).encode()


@given(data=st.data())
@settings(max_examples=100, derandomize=True, suppress_health_check=list(HealthCheck))
def test_bytes_that_were_changed_anyhow_are_taken_or_refused(sound: bytes, data: st.DataObject) -> None:
    tar = bytearray(gzip.decompress(sound))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(tar) - 1))
        size = data.draw(st.sampled_from([0, 1, 8, 100, 512, 1024]))
        tar[place : place + size] = data.draw(st.one_of(st.binary(max_size=600), st.just(bytes(tar[:size]))))
    _survives(gzip.compress(bytes(tar), mtime=0))


@given(data=st.binary(max_size=3000), tarred=st.booleans())
@settings(max_examples=100, derandomize=True)
def test_any_bytes_are_refused(data: bytes, tarred: bool) -> None:  # rel:B3
    refused(gzip.compress(plain([HEAD]) + data) if tarred else data)


@pytest.mark.long
@given(data=st.data())
@settings(max_examples=10_000, suppress_health_check=list(HealthCheck))
def test_ten_thousand_changed_archives_are_taken_or_refused(
    shapes: list[tuple[str, bytes]], data: st.DataObject
) -> None:
    _change_entries(shapes, data)
