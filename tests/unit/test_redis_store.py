"""What is particular to the Redis store: lost replies, leases that expire, an index beside the runs, its server."""

from __future__ import annotations

import hashlib
import os
import queue
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from math import inf
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from perdure.clock import Clock
from perdure.errors import (
    ConfigError,
    CorruptStore,
    LeaseHeld,
    LeaseLost,
    NewerFormat,
    RunNotFound,
    StoreBusy,
    StoreError,
)
from perdure.model import Lease, RunKey, RunMeta
from perdure.stores import redis_link, redis_look, redis_news, redis_setup
from perdure.stores.base import Append, Which
from perdure.stores.redis import RedisStore
from perdure.stores.redis_link import Link
from perdure.stores.redis_url import target
from perdure.testing.samples import item, meta, posts, records, snapshots
from perdure.testing.servers import Valkey

KEY = RunKey("paper")
PATIENCE = 20.0
"""Seconds until a test that waits for something has failed."""


class Place:
    """A prefix of its own on a server, and what another program sees there."""

    def __init__(self, url: str, prefix: str) -> None:
        self.server, self.prefix = url, prefix
        self.raw = redis.Redis.from_url(url)
        self.opened: list[RedisStore] = []

    def open(self, more: str = "", server: str = "", **options: Any) -> RedisStore:
        store = RedisStore(f"{server or self.server}?prefix={self.prefix}{more}", **options)
        self.opened.append(store)
        return store

    def expire(self, *stores: RedisStore) -> None:
        """Let the time pass after which these have not said that they live."""
        assert self.raw.delete(*(store._keys.owner(str(store._owner)) for store in stores)) == len(stores)

    def names(self) -> set[str]:
        return {name.decode().removeprefix(self.prefix) for name in self.raw.scan_iter(f"{self.prefix}:*")}

    def close(self) -> None:
        for store in self.opened:
            store.close()
        self.raw.close()


@pytest.fixture
def place(valkey: Callable[[], str], tmp_path: Path) -> Iterator[Place]:
    made = Place(valkey(), f"unit-{os.getpid()}-{abs(hash(tmp_path))}")
    yield made
    made.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Valkey]]:
    """A server of the test's own, to be killed or set otherwise."""
    started: list[Valkey] = []

    def start(**settings: str) -> Valkey:
        started.append(Valkey({name.replace("_", "-"): value for name, value in settings.items()}))
        return started[-1]

    yield start
    for server in started:
        server.throw_away()


class Proxy:
    """Stands between a store and its server, and spoils what the test asks for, once each time."""

    def __init__(self, url: str) -> None:
        self._port = redis.connection.parse_url(url)["port"]
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listening.getsockname()[1]}/0"
        self._spoil: tuple[str, bytes] | None = None
        self._kept: tuple[socket.socket, bytes] | None = None
        self.silent = False
        self.spoilt = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def spoil(self, how: str, script: str) -> None:
        """``reply``: the next request with this script is executed, and its reply lost with the connection.
        ``request``: it is lost itself. ``keep``: it is kept, and delivered when the test says so."""
        self._spoil = (how, redis_link._DIGESTS.get(script, script).encode())

    def deliver(self) -> None:
        assert self._kept is not None
        server, request = self._kept
        server.sendall(request)
        assert server.recv(1 << 16)
        server.close()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listening.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                self._forward(client, socket.create_connection(("127.0.0.1", self._port)))
            except OSError:
                pass

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        while True:
            for ready in select.select([client, server], [], [])[0]:
                data = ready.recv(1 << 16)
                if ready is client and self._spoil is not None and self._spoil[1] in data:
                    how, self._spoil = self._spoil[0], None
                    self.spoilt += 1
                    if how == "reply":
                        server.sendall(data)
                        server.recv(1 << 16)
                    if how == "keep":
                        self._kept = (server, data)
                    else:
                        server.close()
                    return
                if not data:
                    server.close()
                    return
                if not self.silent:
                    (server if ready is client else client).sendall(data)


@pytest.fixture
def proxy(place: Place) -> Iterator[Proxy]:
    made = Proxy(place.server)
    yield made
    made.close()


def row(key: RunKey, seq: int, wake: float = 0.0, begun: float = 0.0, read: int = 0) -> RunMeta:
    return msgspec.structs.replace(meta(key, seq), wake=wake, begun=begun, posts=read)


def one(lease: Lease, seq: int, wake: float = 0.0, begun: float = 0.0, read: int = 0) -> Append:
    return msgspec.structs.replace(item(lease, seq), meta=row(lease.key, seq + 1, wake, begun, read))


def eventually(told: queue.SimpleQueue[bool], posted: bool = True) -> None:
    """News arrives, and whether of a post."""
    assert told.get(timeout=PATIENCE) == posted


# -- the URL -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("prefix=a%20b", "prefix"),
        ("prefix=", "prefix"),
        ("prefix=%7Ba%7D", "prefix"),
        ("lease=0.4", "lease"),
        ("lease=nan", "lease"),
        ("lease=soon", "lease"),
        ("waitaof=perhaps", "waitaof"),
        ("socket_timeout=0", "socket_timeout"),
        ("retry_on_timeout=yes", "retry_on_timeout"),
        ("decode_responses=yes", "decode_responses"),
        ("ssl_keyfile=x", "ssl_keyfile"),
        ("lease=5&lease=6", "'lease' is given twice"),
        ("db=none", "parameters"),
    ],
)
def test_a_parameter_that_is_wrong_is_named(query: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        RedisStore(f"redis://127.0.0.1:1/0?{query}", patience=0)


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:s3cret@localhost/0",
        "redis://:s3cret@localhost:6379",
        "valkeys://:s3cret@localhost/1?ssl_cert_reqs=none",
        "redis://localhost?password=s3cret&username=me",
        "rediss://localhost?ssl_password=s3cret",
    ],
)
def test_a_password_is_in_no_url_that_is_shown(url: str) -> None:  # rel:S8
    assert "s3cret" in target(url).url
    assert "s3cret" not in target(url).shown and "***" in target(url).shown


@pytest.mark.parametrize("sign", "#/?:&")
def test_a_password_with_signs_that_belong_encoded_is_not_shown_either(sign: str) -> None:  # rel:S8
    for secret in (f"12{sign}s3cret", f"s3cret{sign}12", f"s3cret{sign}s3cret=1"):
        try:
            shown = target(f"redis://:{secret}@localhost/0").shown
        except ConfigError as error:
            shown = f"{error!r} {error} {error.__cause__!r}"
        assert "s3cret" not in shown


def test_a_wrong_password_is_a_matter_of_configuration_and_is_not_shown(start: Callable[..., Valkey]) -> None:
    server = start()
    with redis.Redis.from_url(server.url) as raw:
        raw.acl_setuser("me", enabled=True, passwords=["+pa55word"], keys=["*"], channels=["*"], categories=["+@all"])
        raw.acl_setuser(
            "reader", enabled=True, passwords=["+pa55word"], keys=["*"], categories=["+@read", "+@connection"]
        )
    place = server.url.removeprefix("redis://")
    began = time.monotonic()
    for user, password in (("me", "s3cret"), ("nobody", "s3cret"), ("reader", "pa55word")):
        with pytest.raises(ConfigError) as caught:
            RedisStore(f"redis://{user}:{password}@{place}")
        assert password not in str(caught.value)
    assert time.monotonic() - began < 4, "there is no point in trying again"
    store = RedisStore(f"redis://me:pa55word@{place}")
    assert "pa55word" not in store.url and store.append([item(store.claim(KEY), 0)]) == [None]
    store.close()


def test_a_server_that_is_not_there_is_told_soon() -> None:  # rel:C7
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(StoreError, match="Connection refused"):
        RedisStore(f"redis://127.0.0.1:{port}/0", patience=0.3)
    assert time.monotonic() - began < 5


def test_a_database_that_the_server_does_not_have_is_a_matter_of_configuration(start: Callable[..., Valkey]) -> None:
    server = start()
    with pytest.raises(ConfigError, match="out of range"):
        RedisStore(f"redis://127.0.0.1:{server.port}/999")


# -- formats -------------------------------------------------------------------------------------------------------


def test_nothing_is_made_where_nothing_is_to_be_made(place: Place) -> None:
    with pytest.raises(ConfigError, match="no store"):
        place.open(create=False)
    assert place.names() == set()
    place.open().close()
    place.open(create=False)
    assert place.names() == {":format"}


def test_a_newer_format_is_refused_and_not_touched(place: Place) -> None:  # rel:R6
    place.raw.set(f"{place.prefix}:format", 3)
    for create in (True, False):
        with pytest.raises(NewerFormat, match="format 3"):
            place.open(create=create)
    assert place.names() == {":format"} and place.raw.get(f"{place.prefix}:format") == b"3"


def test_a_store_of_the_first_format_learns_which_runs_were_given_a_blob(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:  # X13 K5
    monkeypatch.setattr(redis_setup, "_PAGE", 2)
    store, digest = place.open(), hashlib.sha256(b"large").hexdigest()
    lease = store.claim(KEY)
    (record,) = records(KEY, 0, 1, pad=digest)
    assert store.append([Append(lease, 0, (record,), meta(KEY, 1), {digest: b"large"})]) == [None]
    for goal in "abc":
        assert store.append([item(store.claim(RunKey(goal)), 0)]) == [None]
    (row,) = store.runs(Which(goal=KEY.goal))
    store.close()
    ask, left = Link.ask, inf

    def killed(link: Link, commands: Any, **how: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return ask(link, commands, **how)

    monkeypatch.setattr(Link, "ask", killed)
    for cut in count():
        place.raw.delete(store._keys.given(KEY), store._keys.marks(digest))
        place.raw.hdel(store._keys.run(KEY), "size")
        place.raw.set(f"{place.prefix}:format", 1)
        left = cut
        try:
            place.open().close()
        except KeyboardInterrupt:
            left = inf
        else:
            break
        again = place.open()
        assert again.runs(Which(goal=KEY.goal)) == [msgspec.structs.replace(row, holder=None)]
        other = again.claim(RunKey("other"))
        assert again.append([item(other, 0, shared=b"large")]) == [None]
        again.delete(other)
        assert again.blob(digest) == b"large"
        again.close()
    left = inf
    assert cut > 8
    store = place.open()
    store.delete(store.claim(KEY))
    with pytest.raises(CorruptStore, match="missing"):
        store.blob(digest)


def test_keys_of_others_are_no_store(place: Place) -> None:
    place.raw.set(f"{place.prefix}:format", "mine")
    with pytest.raises(CorruptStore):
        place.open()
    place.raw.delete(f"{place.prefix}:format")
    place.raw.rpush(f"{place.prefix}:format", "mine")
    with pytest.raises(ConfigError, match="wrong kind"):
        place.open()


def test_stores_of_two_prefixes_do_not_see_each_other(place: Place) -> None:
    one_, two = place.open(), place.open(":more")
    assert one_.append([item(one_.claim(KEY), 0, blob=b"mine")]) == [None]
    assert two.runs() == [] and two.read(KEY) == [] and two.claim(KEY)


def test_braces_and_percents_in_a_goal_stay_within_its_tag(place: Place) -> None:  # rel:S4
    goals = ["{a}", "a}:{b", "%7Ba%7D", "{", "}", "%", "{index}:runs", "a#1", "a"]
    store = place.open()
    for goal in goals:
        assert store.append([item(store.claim(RunKey(goal)), 0)]) == [None]
    assert [found.goal for found in store.runs()] == sorted(goals)
    for goal in goals:
        assert store.read(RunKey(goal)) == list(records(RunKey(goal), 0, 1))
        assert [found.goal for found in store.runs(Which(goal=goal))] == [goal]
    runs = [name for name in place.names() if name.endswith((":run", ":journal"))]
    assert len(runs) == 2 * len(goals)
    assert all(name.count("{") == name.count("}") == 1 for name in runs)


def test_damage_is_told_with_the_run(place: Place) -> None:  # rel:D9
    store = place.open()
    lease = store.claim(KEY)
    store.append([item(lease, 0, 3)])
    place.raw.rpop(store._keys.journal(KEY))
    with pytest.raises(CorruptStore, match="run paper#0 should have record 3"):
        store.read(KEY)
    assert isinstance(store.append([item(lease, 3)])[0], CorruptStore)
    place.raw.hset(store._keys.run(KEY), "meta", b"\xff{")
    healthy = RunKey("healthy")
    store.append([item(store.claim(healthy), 0)])
    place.raw.zadd(store._keys.runs, {b"no name of a run": 0, b"\xff": 0})
    for field, value in (("meta", b"\xff{"), ("meta", msgspec.json.encode(meta(healthy, 3))), ("epoch", b"many")):
        place.raw.hset(store._keys.run(KEY), field, value)
        sound, bad = store.runs()
        assert (sound.key, sound.reason, bad.key) == (healthy, "", KEY) and "paper#0 is damaged" in bad.reason
        assert bad.reason in store.warnings()
    place.raw.hset(store._keys.run(KEY), "epoch", 1)
    store.post(KEY, 1, posts(KEY, 1)[0])
    place.raw.delete(store._keys.inbox(KEY))
    with pytest.raises(CorruptStore, match="posts of run paper#0"):
        store.posts({KEY: 0})


# -- leases --------------------------------------------------------------------------------------------------------


def test_a_late_heartbeat_loses_all_leases_and_a_new_claim_works(place: Place) -> None:  # rel:C2, rel:C4
    store, other = place.open(), place.open()
    lease, kept = store.claim(KEY), store.claim(RunKey("kept"))
    assert abs(store.heartbeat() - time.time()) < 60 and place.raw.pttl(store._keys.owner(lease.owner)) > 11_000
    place.expire(store)
    taken = other.claim(KEY)
    with pytest.raises(LeaseLost, match="in time"):
        store.heartbeat()
    assert store.heartbeat() > 0
    for old in (lease, kept):
        assert isinstance(store.append([item(old, 0)])[0], LeaseLost)
        store.release(old)
        with pytest.raises(LeaseLost):
            store.delete(old)
    again = store.claim(RunKey("kept"))
    assert again.epoch > kept.epoch and again.owner != kept.owner and store.append([item(again, 0)]) == [None]
    with pytest.raises(LeaseHeld):
        store.claim(KEY)
    assert other.append([item(taken, 0)]) == [None]


def test_leases_that_a_claim_finds_lost_are_told_by_the_next_heartbeat(place: Place) -> None:  # rel:C2
    store = place.open()
    lost = store.claim(KEY)
    place.expire(store)
    new = store.claim(RunKey("new"))
    assert store.append([item(new, 0)]) == [None]
    assert isinstance(store.append([item(lost, 0)])[0], LeaseLost)
    with pytest.raises(LeaseLost):
        store.heartbeat()
    assert isinstance(store.append([item(new, 1)])[0], LeaseLost), "every lease, so that nobody need tell them apart"
    assert store.claim(RunKey("new")).epoch > new.epoch
    assert store.heartbeat() > 0


def test_a_stale_owners_append_is_fenced_and_nothing_of_it_kept(place: Place) -> None:  # rel:C1, rel:C2
    store, other = place.open(), place.open()
    lease = store.claim(KEY)
    assert store.append([item(lease, 0)]) == [None]
    place.expire(store)
    taken = other.claim(KEY)
    assert other.append([item(taken, 1)]) == [None]
    assert isinstance(store.append([item(lease, 1, secret=b"never kept")])[0], LeaseLost)
    assert isinstance(store.append([item(lease, 2)])[0], LeaseLost)
    with pytest.raises(LeaseLost):
        store.delete(lease)
    assert store.read(KEY) == list(records(KEY, 0, 2))
    assert not [name for name in place.names() if ":blob:" in name]


def test_an_epoch_that_was_granted_twice_is_told_apart_by_its_owner(place: Place) -> None:  # rel:C1
    store = place.open()
    lease = store.claim(KEY)
    assert store.append([item(lease, 0)]) == [None]
    place.raw.hset(store._keys.run(KEY), "owner", "other")  # as after a replica took over that lacked the first grant
    assert isinstance(store.append([item(lease, 1)])[0], LeaseLost)
    with pytest.raises(LeaseLost):
        store.delete(lease)
    assert len(store.read(KEY)) == 1


def test_without_a_heartbeat_a_lease_ends_by_itself(place: Place) -> None:  # rel:C4
    store, other = place.open("&lease=0.5"), place.open("&lease=0.5")
    assert (store.capabilities.lease, store.capabilities.trust) == (0.5, 0.3)
    store.claim(KEY)
    with pytest.raises(LeaseHeld):
        other.claim(KEY)
    owner = store._keys.owner(str(store._owner))
    assert 0 < place.raw.pttl(owner) <= 375
    end = time.monotonic() + PATIENCE
    while place.raw.exists(owner):
        assert time.monotonic() < end
    assert other.claim(KEY).epoch == 2


class AnHourOff(Clock):
    def now(self) -> float:
        return super().now() - 3600


def test_all_times_are_the_servers(place: Place) -> None:  # rel:C4
    store = place.open(clock=AnHourOff())
    before = store.heartbeat()
    lease = store.claim(KEY)
    assert before <= lease.since <= store.heartbeat()
    assert place.open().append([]) == [] and abs(lease.since - time.time()) < 60


def test_a_heartbeat_is_bounded_and_breaks_nothing(place: Place, proxy: Proxy) -> None:  # rel:C7
    store = place.open("&socket_timeout=0.2", server=proxy.url)
    lease = store.claim(KEY)
    proxy.silent = True
    began = time.monotonic()
    with pytest.raises(StoreBusy):
        store.heartbeat()
    assert time.monotonic() - began < 3
    proxy.silent = False
    assert store.heartbeat() > 0 and store.append([item(lease, 0)]) == [None]


def test_heartbeats_of_another_thread_disturb_no_verb(place: Place) -> None:
    store, over = place.open(), threading.Event()
    told: list[float] = []

    def beat() -> None:
        while not over.is_set():
            told.append(store.heartbeat())

    thread = threading.Thread(target=beat)
    thread.start()
    for n in range(40):
        lease = store.claim(RunKey("paper", n))
        assert store.append([item(lease, 0, 2)]) == [None] and len(store.read(lease.key)) == 2
        store.release(lease)
    over.set()
    thread.join()
    assert told == sorted(told) and len(store.runs()) == 40


# -- lost replies --------------------------------------------------------------------------------------------------

SPOILT = ("reply", "request", "keep")


@pytest.fixture(params=SPOILT)
def spoilt(request: pytest.FixtureRequest, place: Place, proxy: Proxy) -> tuple[RedisStore, Proxy, str]:
    """A store behind a proxy, which loses a reply or a request, or keeps a request until a later one was executed."""
    how: str = request.param
    more = "&socket_timeout=0.2" if how == "keep" else ""
    return place.open(more, server=proxy.url), proxy, how


def deliver(proxy: Proxy, how: str) -> None:
    assert proxy.spoilt == 1
    if how == "keep":
        proxy.deliver()


def test_an_append_is_written_once(spoilt: tuple[RedisStore, Proxy, str]) -> None:  # rel:D12
    store, proxy, how = spoilt
    one_, two = store.claim(KEY), store.claim(RunKey("two"))
    proxy.spoil(how, "append")
    batch = [item(one_, 0, 2), item(two, 0), item(one_, 2, 1, blob=b"large"), item(one_, 7)]
    assert [type(result).__name__ for result in store.append(batch)] == ["NoneType", "NoneType", "NoneType", "Bug"]
    assert store.append([one(one_, 3, wake=5.0)]) == [None]
    deliver(proxy, how)
    assert store.append([item(one_, 4)]) == [None]
    assert store.read(KEY) == list(records(KEY, 0, 5)) and len(store.read(RunKey("two"))) == 1


def test_an_append_sent_again_takes_nothing_but_its_own_records_for_done(place: Place, proxy: Proxy) -> None:
    store = place.open(server=proxy.url)
    lease = store.claim(KEY)
    assert store.append([item(lease, 0, 2)]) == [None]
    proxy.spoil("request", "append")
    wrong = msgspec.structs.replace(item(lease, 0), records=records(KEY, 0, 1, pad="other"))
    assert "to be continued after record 0" in str(store.append([wrong])[0])
    assert store.read(KEY) == list(records(KEY, 0, 2))


def test_a_post_is_taken_once(spoilt: tuple[RedisStore, Proxy, str]) -> None:  # rel:H3
    store, proxy, how = spoilt
    store.append([item(store.claim(KEY), 0)])
    first, second, other = *posts(KEY, 2), posts(KEY, 2, "another")[1]
    proxy.spoil(how, "post")
    assert store.post(KEY, 1, first)
    deliver(proxy, how)
    assert store.post(KEY, 2, second) and not store.post(KEY, 2, other)
    assert not store.post(KEY, 2, second), "whoever posts it anew has not posted it"
    assert store.posts({KEY: 0}) == {KEY: [first, second]}


def test_a_post_sent_again_after_anothers_is_refused(place: Place, proxy: Proxy) -> None:
    store, other = place.open(server=proxy.url), place.open()
    other.append([item(other.claim(KEY), 0)])
    mine, theirs = posts(KEY, 1)[0], posts(KEY, 1, "another")[0]
    look = store._link.ask

    def race(commands: Any, **options: Any) -> Any:
        if options.get("synced"):
            store._link.ask = look
            assert other.post(KEY, 1, theirs)
            proxy.spoil("request", "post")
        return look(commands, **options)

    store._link.ask = race
    assert not store.post(KEY, 1, mine) and proxy.spoilt == 1
    assert store.posts({KEY: 0}) == {KEY: [theirs]}


def test_a_claim_is_granted(spoilt: tuple[RedisStore, Proxy, str], place: Place) -> None:
    store, proxy, how = spoilt
    proxy.spoil(how, "claim")
    lease = store.claim(KEY)
    deliver(proxy, how)
    assert store.append([item(lease, 0)]) == [None]
    with pytest.raises(LeaseHeld):
        store.claim(KEY)
    with pytest.raises(LeaseHeld):
        place.open().claim(KEY)
    store.release(lease)
    assert place.open().claim(KEY).epoch > lease.epoch


def test_an_owner_is_registered(spoilt: tuple[RedisStore, Proxy, str]) -> None:
    store, proxy, how = spoilt
    proxy.spoil(how, ":owner:")
    assert store.append([item(store.claim(KEY), 0)]) == [None]
    deliver(proxy, how)
    assert [found.holder is not None for found in store.runs()] == [True] and store.heartbeat() > 0


def test_a_release_is_done_and_a_later_claim_not_undone(spoilt: tuple[RedisStore, Proxy, str]) -> None:
    store, proxy, how = spoilt
    lease = store.claim(KEY)
    store.append([item(lease, 0)])
    proxy.spoil(how, "release")
    store.release(lease)
    assert [found.holder for found in store.runs()] == [None]
    again = store.claim(KEY)
    deliver(proxy, how)
    assert store.append([item(again, 1)]) == [None]


def test_a_deletion_is_done_and_a_later_run_not_deleted(spoilt: tuple[RedisStore, Proxy, str]) -> None:
    store, proxy, how = spoilt
    lease = store.claim(KEY)
    store.append([item(lease, 0, 3)])
    proxy.spoil(how, "delete")
    store.delete(lease)
    assert store.read(KEY) == []
    again = store.claim(KEY)
    assert again.epoch > lease.epoch and store.append([item(again, 0)]) == [None]
    deliver(proxy, how)
    assert store.append([item(again, 1)]) == [None] and len(store.runs()) == 1


def test_a_snapshot_is_kept_and_none_of_an_earlier_lease_comes_back(spoilt: tuple[RedisStore, Proxy, str]) -> None:
    store, proxy, how = spoilt  # rel:C1
    lease = store.claim(KEY)
    assert store.append([item(lease, 0)]) == [None]
    proxy.spoil(how, "snapshot")
    snapshots(store).save(lease, 1, b"old")
    assert snapshots(store).load(KEY) == (1, b"old")
    store.delete(lease)
    again = store.claim(KEY)
    assert store.append([item(again, 0)]) == [None]
    deliver(proxy, how)
    assert snapshots(store).load(KEY) is None


def test_a_deletion_whose_reply_was_lost_is_done_though_somebody_made_the_run_again(place: Place, proxy: Proxy) -> None:
    store, other = place.open(server=proxy.url), place.open()
    lease = store.claim(KEY)
    store.append([item(lease, 0)])
    proxy.spoil("reply", "delete")
    load = store._clock.sleep

    def meanwhile(seconds: float) -> None:
        other.append([item(other.claim(KEY), 0)])
        load(seconds)

    store._clock = store._link._clock = type("Slow", (Clock,), {"sleep": lambda self, seconds: meanwhile(seconds)})()
    store.delete(lease)
    assert [found.key for found in store.runs()] == [KEY]


# -- a server that fails ---------------------------------------------------------------------------------------------


def test_a_server_killed_between_verbs_keeps_all_and_the_handle_goes_on(start: Callable[..., Valkey]) -> None:  # rel:R1
    server = start()
    store, key = RedisStore(server.url), RunKey("other")
    lease = store.claim(KEY)
    assert store.append([item(lease, 0, blob=b"large")]) == [None]
    verbs: list[Callable[[], object]] = [
        lambda: store.append([item(lease, 1)]),
        lambda: store.post(KEY, 1, posts(KEY, 1)[0]),
        lambda: store.claim(key),
        lambda: store.runs(Which(due=9.0)),
        lambda: store.read(KEY),
        lambda: store.release(lease),
    ]
    for verb in verbs:
        server.kill()
        starting = threading.Timer(0.1, server.start)
        starting.start()
        verb()
        starting.join()
    assert store.read(KEY) == list(records(KEY, 0, 2)) and len(store.posts({KEY: 0})[KEY]) == 1
    assert [found.holder for found in store.runs()] == [None]
    server.kill()
    server.start()
    store.delete(store.claim(KEY))
    assert store.runs() == []
    store.close()


def test_a_server_killed_inside_of_verbs_loses_and_repeats_nothing(start: Callable[..., Valkey]) -> None:  # rel:D1
    server = start()
    store = RedisStore(server.url)
    lease, over = store.claim(KEY), threading.Event()

    def kill() -> None:
        for _ in range(4):
            over.wait(0.15)
            server.kill()
            server.start()
        over.set()

    killer = threading.Thread(target=kill)
    killer.start()
    seq = post = 0
    while not over.is_set() or seq <= 20:
        assert store.append([one(lease, seq, wake=float(seq % 3))]) == [None]
        seq += 1
        if seq % 10 == 0:
            assert store.post(KEY, post + 1, posts(KEY, post + 1)[-1])
            post += 1
    killer.join()
    assert store.read(KEY) == list(records(KEY, 0, seq))
    assert store.posts({KEY: 0}) == {KEY: list(posts(KEY, post))}
    store.close()


def test_when_the_patience_is_used_up_the_store_has_failed(start: Callable[..., Valkey]) -> None:  # rel:C7, rel:D4
    server = start()
    store = RedisStore(server.url, patience=0.3)
    lease = store.claim(KEY)
    server.kill()
    began = time.monotonic()
    with pytest.raises(
        StoreError, match=r"Cannot append to redis://.*Connection refused\. Nothing that was acknowledged is lost"
    ):
        store.append([item(lease, 0)])
    assert time.monotonic() - began < 5
    server.start()
    for verb in (store.runs, store.heartbeat, lambda: store.append([item(lease, 0)])):
        with pytest.raises(StoreError, match="closed after it failed"):
            verb()
    store.close()
    again = RedisStore(server.url)
    assert again.append([item(again.claim(KEY), 0)]) == [None], "closing made the lease free"
    again.close()


def test_closing_is_quiet_when_the_server_is_gone(start: Callable[..., Valkey]) -> None:
    server = start()
    store = RedisStore(server.url)
    store.claim(KEY)
    server.kill()
    began = time.monotonic()
    store.close()
    store.close()
    assert time.monotonic() - began < 5


def test_full_memory_is_told(start: Callable[..., Valkey]) -> None:  # rel:D10
    server = start()
    store = RedisStore(server.url)
    lease = store.claim(KEY)
    assert store.append([item(lease, 0)]) == [None]
    with redis.Redis.from_url(server.url) as raw:
        raw.config_set("maxmemory", "1mb")
        with pytest.raises(StoreError, match=r"memory is full.*maxmemory"):
            store.append([item(lease, 1, blob=b"large")])
        with pytest.raises(StoreError, match="closed after"):
            store.read(KEY)
        raw.config_set("maxmemory", "0")
    store.close()
    store = RedisStore(server.url)
    assert store.append([item(store.claim(KEY), 1)]) == [None] and store.read(KEY) == list(records(KEY, 0, 2))
    store.close()


def test_a_disk_that_the_server_cannot_write_to_is_told(start: Callable[..., Valkey]) -> None:  # rel:D10
    server = start()
    store = RedisStore(server.url)
    lease = store.claim(KEY)
    with redis.Redis.from_url(server.url) as raw:
        raw.config_set("save", "3600 1")
        os.chmod(server.folder, 0o500)
        raw.bgsave()
        end = time.monotonic() + PATIENCE
        while raw.info("persistence")["rdb_last_bgsave_status"] != "err":
            assert time.monotonic() < end
    with pytest.raises(StoreError, match="cannot write to its disk"):
        store.append([item(lease, 0)])
    os.chmod(server.folder, 0o700)
    store.close()


# -- durability ------------------------------------------------------------------------------------------------------


def test_what_the_server_does_not_promise_is_told(start: Callable[..., Valkey]) -> None:  # rel:D6
    server = start()
    with redis.Redis.from_url(server.url) as raw:
        for settings, durable, told in (
            ({}, True, []),
            ({"appendfsync": "everysec"}, False, ["appendfsync everysec"]),
            ({"appendfsync": "no"}, False, ["appendfsync no"]),
            ({"appendfsync": "always", "maxmemory-policy": "allkeys-lru"}, True, ["may drop runs"]),
            ({"maxmemory-policy": "volatile-ttl"}, True, ["may end leases"]),
            ({"maxmemory-policy": "noeviction", "appendonly": "no"}, False, ["no append-only file"]),
        ):
            for name, value in settings.items():
                raw.config_set(name, value)
            store = RedisStore(server.url)
            assert store.capabilities.durable == durable and store.capabilities.shared
            found = store.warnings()
            assert len(found) == len(told) and all(part in text for part, text in zip(told, found, strict=True))
            assert store.warnings() == []
            store.close()


def test_a_server_that_does_not_tell_is_not_taken_for_durable(start: Callable[..., Valkey]) -> None:  # rel:D6
    server = start()
    with redis.Redis.from_url(server.url) as raw:
        raw.execute_command("ACL", "SETUSER", "default", "-config")
    store = RedisStore(server.url)
    assert not store.capabilities.durable and "does not tell" in store.warnings()[0]
    store.close()
    store = RedisStore(f"{server.url}?waitaof=yes")
    assert store.capabilities.durable and store.warnings() == []
    store.close()


def test_a_write_can_wait_for_the_append_only_file(start: Callable[..., Valkey]) -> None:  # rel:D6
    server = start(appendfsync="everysec")
    store = RedisStore(f"{server.url}?waitaof=yes")
    assert store.capabilities.durable and store.warnings() == []
    with redis.Redis.from_url(server.url) as raw:
        before = raw.info("commandstats")["cmdstat_waitaof"]["calls"]
        lease = store.claim(KEY)
        assert store.append([item(lease, 0)]) == [None] and store.post(KEY, 1, posts(KEY, 1)[0])
        assert raw.info("commandstats")["cmdstat_waitaof"]["calls"] == before + 2
    store.close()


def test_what_was_written_before_a_lost_reply_is_waited_for_too(start: Callable[..., Valkey]) -> None:  # rel:D12
    server = start(appendfsync="everysec")
    proxy = Proxy(server.url)
    store = RedisStore(f"{proxy.url}?waitaof=yes")
    lease = store.claim(KEY)
    proxy.spoil("reply", "append")
    assert store.append([item(lease, 0)]) == [None] and proxy.spoilt == 1
    assert store._link.ask([("HGET", store._keys.run(KEY), "again")]) == [b"1"], (
        "it wrote, so that there is what to await"
    )
    store.close()
    proxy.close()


def test_waiting_is_refused_where_it_cannot_be(start: Callable[..., Valkey]) -> None:  # rel:D6
    server = start(appendonly="no")
    with pytest.raises(ConfigError, match=r"waitaof=yes.*cannot"):
        RedisStore(f"{server.url}?waitaof=yes")


def test_a_replica_is_no_place_for_a_store(start: Callable[..., Valkey]) -> None:  # rel:C9
    server = start()
    with redis.Redis.from_url(server.url) as raw:
        raw.replicaof("127.0.0.1", 1)
    with pytest.raises(ConfigError, match="replica"):
        RedisStore(server.url, patience=0.2)


# -- news ------------------------------------------------------------------------------------------------------------


def test_news_of_others_is_heard(place: Place) -> None:
    store, other, told = place.open(), place.open(), queue.SimpleQueue[bool]()
    assert store.capabilities.listen is not None
    stop = store.capabilities.listen(told.put)
    eventually(told)  # the subscription itself
    lease = other.claim(KEY)
    assert other.append([item(lease, 0)]) == [None]
    eventually(told, posted=False)
    assert other.append([item(lease, 1)]) == [None]
    assert other.post(KEY, 1, posts(KEY, 1)[0])
    eventually(told)
    other.release(lease)
    eventually(told, posted=False)
    other.release(other.claim(RunKey("empty")))
    other.claim(KEY)
    other.close()
    eventually(told, posted=False)
    assert told.empty()
    began = time.monotonic()
    stop()
    assert time.monotonic() - began < 1 and not store._listeners[0]._thread.is_alive()
    stop()


def test_news_is_heard_again_after_the_server_was_away(start: Callable[..., Valkey]) -> None:
    server, told = start(), queue.SimpleQueue[bool]()
    store = RedisStore(server.url)
    stop = store._listen(told.put)
    eventually(told)
    store.append([item(store.claim(KEY), 0)])
    eventually(told, posted=False)
    server.kill()
    server.start()
    eventually(told)  # something may have been missed
    store.post(KEY, 1, posts(KEY, 1)[0])
    eventually(told)
    server.kill()
    began = time.monotonic()
    stop()
    assert time.monotonic() - began < 3 and not store._listeners[0]._thread.is_alive()
    store.close()


def test_a_server_that_has_gone_silent_is_left(place: Place, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_news, "_QUIET", 0.1)
    monkeypatch.setattr(redis_news, "_PAUSE", 0.1)
    told = queue.SimpleQueue[bool]()
    store = place.open("&socket_timeout=0.3", server=proxy.url)
    stop = store._listen(told.put)
    eventually(told)
    proxy.silent = True
    time.sleep(0.5)  # nothing can be waited for: it is about what does not arrive
    proxy.silent = False
    eventually(told)
    stop()


# -- the index -------------------------------------------------------------------------------------------------------


def test_a_stale_holder_cannot_hide_a_run(place: Place) -> None:  # rel:C2
    stale, store = place.open(), place.open()
    lease = stale.claim(KEY)
    assert stale.append([one(lease, 0, wake=9.0)]) == [None]
    ask = stale._link.ask

    def late(commands: Any, **options: Any) -> Any:
        """The append is through, and the process sleeps before it narrows the index. The run goes on elsewhere."""
        if any(b"settle" in command or "settle" in command for command in commands):
            place.expire(stale)
            taken = store.claim(KEY)
            assert store.append([one(taken, 2, wake=3.0)]) == [None]
            store.release(taken)
        return ask(commands, **options)

    stale._link.ask = late
    assert stale.append([one(lease, 1, wake=0.0)]) == [None]
    assert [found.wake for found in store.runs(Which(due=3.0))] == [3.0]
    assert isinstance(stale.append([one(lease, 2, wake=0.0)])[0], LeaseLost)
    assert [found.wake for found in store.runs(Which(due=3.0))] == [3.0]


def test_what_a_stale_holder_left_in_doubt_is_settled_by_the_next_one(place: Place) -> None:  # rel:C2
    stale, store = place.open(), place.open()
    lease = stale.claim(KEY)
    place.expire(stale)
    taken = store.claim(KEY)
    assert store.append([one(taken, 0, wake=3.0)]) == [None]
    assert isinstance(stale.append([one(lease, 0, wake=7.0)])[0], LeaseLost)
    assert place.raw.smembers(store._keys.unsure) == {b"paper\x000000000000"}
    store.release(taken)
    assert [found.wake for found in store.runs(Which(due=3.0, limit=1))] == [3.0]
    assert store.runs(Which(later=3.0)) == []
    assert store.append([one(store.claim(KEY), 1, wake=3.0)]) == [None]
    assert not place.raw.exists(store._keys.unsure)


def test_posts_are_found_though_the_poster_died_on_the_way(place: Place) -> None:  # rel:H1
    store, poster = place.open(), place.open()
    lease = store.claim(KEY)
    store.append([item(lease, 0)])
    store.release(lease)
    ask = poster._link.ask

    def die(commands: Any, **options: Any) -> Any:
        replies = ask(commands, **options)
        if options.get("synced"):
            raise KeyboardInterrupt
        return replies

    poster._link.ask = die
    with pytest.raises(KeyboardInterrupt):
        poster.post(KEY, 1, posts(KEY, 1)[0])
    assert [(found.key, found.unread) for found in store.runs(Which(due=1.0))] == [(KEY, 1)]
    lease = store.claim(KEY)
    assert store.append([one(lease, 1, read=1)]) == [None]
    store.release(lease)
    assert store.runs(Which(due=1.0)) == [] and place.raw.zcard(store._keys.posted) == 0


def test_a_post_that_cannot_be_taken_leaves_nothing_to_look_at(place: Place) -> None:
    store = place.open()
    store.append([item(store.claim(KEY), 0)])
    assert not store.post(KEY, 1_000_000, posts(KEY, 1)[0])
    with pytest.raises(RunNotFound):
        store.post(RunKey("nothing"), 1, posts(KEY, 1)[0])
    assert place.raw.zcard(store._keys.posted) == 0


def calls(place: Place) -> dict[str, int]:
    found = place.raw.info("commandstats")
    return {name.removeprefix("cmdstat_"): stats["calls"] for name, stats in found.items()}


def test_what_is_due_or_active_is_found_without_looking_at_all_others(place: Place) -> None:  # R9
    store = place.open()
    leases = [store.claim(RunKey("run", n)) for n in range(1000)]
    due, active = {3, 500}, {7, 999}
    batch = [
        one(lease, 0, wake=5.0 if n in due else 1e12 if n % 2 else 0.0, begun=50.0 if n in active else 1.0)
        for n, lease in enumerate(leases)
    ]
    assert store.append(batch) == [None] * 1000
    for lease in leases:
        store.release(lease)
    for which, expected in (
        (Which(due=9.0), due),
        (Which(active=9.0), active),
        (Which(goal="run", limit=1), {0}),
        (Which(limit=400), set(range(400))),
    ):
        before = calls(place)
        assert {found.episode for found in store.runs(which)} == expected
        assert calls(place).get("hmget", 0) - before.get("hmget", 0) <= (500 if which.limit else 2)


def rows_asked(place: Place, look: Callable[[], list[RunMeta]]) -> tuple[list[RunMeta], int]:
    """What a listing shows, and how many rows it looked at."""
    before = calls(place).get("hmget", 0)
    found = look()
    return found, calls(place).get("hmget", 0) - before


def told(lease: Lease, seq: int, **what: Any) -> Append:
    """An append after which the run's row says this."""
    return msgspec.structs.replace(item(lease, seq), meta=msgspec.structs.replace(meta(lease.key, seq + 1), **what))


def test_the_first_of_many_are_found_without_looking_at_the_others(place: Place) -> None:  # R9
    store, chance = place.open("&lease=3600"), random.Random(1)  # nobody sends heartbeats here
    priorities, now = (0, 1, -1, 2**31 - 1, 1 - 2**31), store.heartbeat()
    leases = [store.claim(RunKey("run", n)) for n in range(1000)]
    batch = [
        told(
            lease,
            0,
            status="queued",
            queue=chance.choice(("mail", "night")),
            flow=chance.choice(("send", "call")),
            priority=chance.choice(priorities),
            wake=now + chance.choice((-1000, -1, -1e-6, 0, 1e-6, 1, 1000)) * chance.choice((1, chance.random())),
        )
        for lease in leases
    ]
    assert store.append(batch) == [None] * len(batch)
    executed = leases[:40]
    for lease in leases[len(executed) :]:
        store.release(lease)
    assert store.append([told(lease, 1, wake=now, begun=now) for lease in executed[:20]]) == [None] * 20
    every = store.runs()
    for queues in ((), ("mail",), ("night", "none"), ("none",)):
        for flows in ((), ("send",), ("send", "call")):
            for which in (
                Which(due=now),
                Which(later=now),
                Which(due=now - 500),
                Which(due=now + 2000),
                Which(later=1),
            ):
                for limit, most in ((1, 80), (20, 120), (0, 2050)):
                    which = msgspec.structs.replace(which, queues=queues, flows=flows, limit=limit)
                    found, asked = rows_asked(place, lambda which=which: store.runs(which))
                    assert found == which.cut(every), which
                    assert asked <= most, which
    assert len(store.runs(Which(due=now, queues=("mail",), limit=20))) == 20
    assert rows_asked(place, lambda: store.runs(Which(active=inf, limit=1)))[1] <= 20


def test_many_of_one_moment_are_gone_through(place: Place) -> None:
    """Others' entries, and entries of one time, are no end."""
    store = place.open()
    leases = [store.claim(RunKey("run", n)) for n in range(1400)]
    batch = [
        told(lease, 0, status="queued", queue="" if n < 1350 else "mail", wake=5.0) for n, lease in enumerate(leases)
    ]
    assert store.append(batch) == [None] * len(batch)
    for lease in leases[200:]:  # the first ones are being taken up by others
        store.release(lease)
    for which in (Which(due=5.0), Which(later=4.0)):
        for queues, first in (((), 200), (("",), 200), (("mail",), 1350)):
            mine = msgspec.structs.replace(which, queues=queues, limit=30)
            found, asked = rows_asked(place, lambda mine=mine: store.runs(mine))
            assert [row.episode for row in found] == list(range(first, first + 30))
            assert asked < (100 if queues == ("mail",) else 700)
    assert store.runs(Which(due=4.9, limit=1)) == store.runs(Which(later=5.0, limit=1)) == []


def test_a_run_that_is_over_leaves_nothing_to_look_at(place: Place) -> None:
    store, worker, now = place.open(), place.open(), 100.0
    for wake in (now, now + 50):
        lease = store.claim(KEY)
        seq = len(store.read(KEY))
        assert store.append([told(lease, seq, status="queued", wake=wake)]) == [None]
        store.release(lease)
        taken = worker.claim(KEY)
        for number, (status, wake_) in enumerate((("running", now), ("running", now), ("completed", 0.0)), seq + 1):
            assert worker.append([told(taken, number, status=status, wake=wake_)]) == [None]
            assert not place.raw.scard(store._keys.unsure)
        worker.release(taken)
    assert [name for name in sorted(place.names()) if "{index}" in name] == [
        ":{index}:begun",
        ":{index}:epochs",
        ":{index}:runs",
    ]


def test_the_steady_state_is_one_round_trip(place: Place) -> None:
    store, trips = place.open(), 0
    leases = [store.claim(RunKey("run", n)) for n in range(5)]
    ask = store._link.ask

    def counted(commands: Any, **options: Any) -> Any:
        nonlocal trips
        trips += 1
        return ask(commands, **options)

    store._link.ask = counted
    for seq, expected in enumerate((1, 1, 1)):
        trips = 0
        assert store.append([one(lease, seq) for lease in leases]) == [None] * 5
        assert trips == expected
    trips = 0
    store.append([item(leases[0], 3, blob=b"large")])
    assert trips == 3, "whether the lease is good, the blob, the record"
    for seq, (wake, expected, scripts) in enumerate(((5.0, 1, 2), (5.0, 1, 1), (6.0, 2, 3), (6.0, 1, 1), (0.0, 2, 3))):
        trips, before = 0, calls(place)["evalsha"]
        assert store.append([one(leases[1], 3 + seq, wake=wake)]) == [None]
        assert (trips, calls(place)["evalsha"] - before) == (expected, scripts)


class Killed(BaseException):
    pass


class Worker(threading.Thread):
    """A handle that does something at random, one command at a time, each when the test says so."""

    def __init__(self, place: Place, chance: random.Random, ready: threading.Semaphore) -> None:
        super().__init__(daemon=True)
        self.store, self.chance, self.ready = place.open(), chance, ready
        self.go, self.killed, self.problem = threading.Semaphore(0), False, None
        self.ask = self.store._link.ask
        self.store._link.ask = self.slowly
        self.start()

    def slowly(self, commands: Any, atomic: bool = False, **options: Any) -> list[Any]:
        if threading.current_thread() is not self:  # the end of it
            return self.ask(commands, atomic=atomic, **options)
        replies = []
        for command in commands:
            self.turn()
            replies += self.ask([command]) if not atomic else self.ask(commands, atomic=True)
            if atomic:
                break
        return replies

    def turn(self) -> None:
        self.ready.release()
        self.go.acquire()
        if self.killed:
            raise Killed

    def run(self) -> None:
        try:
            while True:
                self.live()
        except Killed:
            pass
        except BaseException as error:
            self.problem = error
        self.ready.release()

    def live(self) -> None:
        key, chance, store = RunKey("run", self.chance.randrange(3)), self.chance, self.store
        if chance.random() < 0.3:
            try:
                number = len(store.posts({key: 0}).get(key, [])) + 1
                store.post(key, number, posts(key, 1, f"{chance.random()}")[0])
            except RunNotFound:
                pass
            return
        try:
            lease = store.claim(key)
        except LeaseHeld:
            return
        seq = len(store.read(key))
        row = store._fetch("read", [key])[0]
        read = msgspec.json.decode(row.meta, type=RunMeta).posts if row.seq else 0
        for _ in range(chance.randrange(4)):
            if chance.random() < 0.5:
                read = len(store.posts({key: 0}).get(key, []))
            batch = [self.anything(lease, seq, read)]
            if chance.random() < 0.3:
                batch.append(self.anything(lease, seq + 1, read))
            if isinstance(store.append(batch)[0], LeaseLost):
                return
            seq += len(batch)
        if chance.random() < 0.2:
            try:
                store.delete(lease)
            except LeaseLost:
                pass
        elif chance.random() < 0.9:
            store.release(lease)

    def anything(self, lease: Lease, seq: int, read: int) -> Append:
        chance = self.chance
        return told(
            lease,
            seq,
            status=chance.choice(("running", "queued", "waiting")),
            queue=chance.choice(("", "mail")),
            flow=chance.choice(("send", "call")),
            priority=chance.choice((0, 0, 1, -(2**31) + 1)),
            wake=float(chance.randrange(5)),
            begun=float(chance.randrange(5)),
            posts=read,
        )


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 4))])
def test_at_every_moment_the_index_finds_what_a_look_at_all_runs_finds(
    place: Place, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:  # rel:X1
    monkeypatch.setattr(redis_look, "_MORE", 0)
    chance, ready, seen = random.Random(seed), threading.Semaphore(0), place.open()
    workers = [Worker(place, random.Random(f"{seed} {n}"), ready) for n in range(3)]
    for _ in workers:
        ready.acquire()
    shown = {"due": 0, "later": 0, "active": 0}
    for step in range(700):
        turn = chance.randrange(len(workers))
        worker, fate = workers[turn], chance.random()
        if fate < 0.02 and worker.store._owner is not None:  # it is late, and does not know
            place.raw.delete(worker.store._keys.owner(worker.store._owner))
        worker.killed = 0.02 < fate < 0.04
        worker.go.release()
        ready.acquire()
        assert worker.problem is None, f"seed {seed}, step {step}: {worker.problem!r}"
        if worker.killed:
            worker.store.abandon()
            workers[turn] = Worker(place, random.Random(f"{seed} {step}"), ready)
            ready.acquire()
        rows = seen.runs()
        at = float(chance.randrange(5))
        mine = Which(
            limit=chance.randrange(3), queues=chance.choice(((), ("mail",))), flows=chance.choice(((), ("send",)))
        )
        for name in shown:
            which = msgspec.structs.replace(mine, **{name: at})
            found = seen.runs(which)
            assert found == which.cut(rows), f"seed {seed}, step {step}, {which}"
            shown[name] += len(found)
    assert min(shown.values()) > 100, "a test that sees nothing finds nothing"
    for worker in workers:
        worker.killed = True
        worker.go.release()
        worker.join()
