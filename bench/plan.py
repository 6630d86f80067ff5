"""The programme: who takes part in which workload, in which sizes, and in which order."""

from __future__ import annotations

from collections.abc import Sequence

from bench import workloads as w
from bench.cast import GROUPS, ROWS, STORES, VARIANTS, Peer, ours, perdure, raw
from bench.peers_cast import PEERS
from bench.workload import Entry, Workload

SERVERS = ("postgresql", "valkey")


def programme(quick: bool, with_peers: bool) -> list[Workload]:
    """Every workload in the sizes that are measured, or in tiny ones that show that it works."""
    peers = PEERS if with_peers else ()
    return [
        w.Import([Entry(perdure("(none)"), 1)]),
        w.OneRun(_one_run(peers, 5 if quick else 1000)),
        w.Growing(_growing(peers, quick)),
        w.ManyRuns(_many_runs(peers, quick)),
        w.Resume(_resumed(peers, quick)),
        w.Floor([Entry(perdure("(none)", colour=colour), 100 if quick else 20_000) for colour in ("sync", "async")]),
        w.Crowd(_crowds(quick)),
        w.Streaming(_streams(quick)),
        w.Workers(_workers(quick)),
    ]


def _parts(peers: Sequence[Peer], workload: str, sizes: Sequence[int], **job: object) -> list[Entry]:
    """The entries of those peers that can do a workload, in those sizes that they can do."""
    shape = f", {job['shape']}" if "shape" in job else ""
    return [
        Entry(peer.contender._replace(name=peer.contender.name + shape), size, peer.does[workload].rounds, job)
        for peer in peers
        if workload in peer.does
        for size in sizes
        if size <= peer.does[workload].largest
    ]


def _one_run(peers: Sequence[Peer], size: int) -> list[Entry]:
    """Store by store, so that those that are compared are neighbours in time; the raw limit before and after."""
    entries: list[Entry] = []
    for store in STORES:
        cast = [raw(store), *(ours(store, *variant) for variant in VARIANTS), raw(store)]
        entries += [Entry(contender, size) for contender in cast]
        entries += _parts([peer for peer in peers if peer.contender.store == store], "W1", (size,))
    return entries


def _growing(peers: Sequence[Peer], quick: bool) -> list[Entry]:
    sizes = (4, 8, 16) if quick else (500, 1000, 2000)
    stores = STORES[:1] if quick else STORES[:3]
    entries = [Entry(perdure(store), size) for store in stores for size in sizes]
    return entries + _parts(peers, "W2", sizes)


def _many_runs(peers: Sequence[Peer], quick: bool) -> list[Entry]:
    """The raw limit that commits one after the other does as many commits as there are steps."""
    runs, steps = (3, 2) if quick else (100, 20)
    entries: list[Entry] = []
    for store in STORES[:2] if quick and not peers else STORES:
        entries += [Entry(raw(store), steps, job={"workload": "W1", "size": runs * steps})]
        entries += [Entry(raw(store, GROUPS), steps, job={"runs": runs})]
        entries += [Entry(perdure(store), steps, job={"runs": runs})]
        entries += _parts([peer for peer in peers if peer.contender.store == store], "W3", (steps,), runs=runs)
    return entries


def _resumed(peers: Sequence[Peer], quick: bool) -> list[Entry]:
    sizes: Sequence[int] = (4,) if quick else (1000, 10_000, 100_000)
    entries: list[Entry] = []
    for shape in ("flow", "agent"):
        for store in ("sqlite",) if quick else ("sqlite", "file", "postgresql"):
            largest = sizes[-1] if store == "sqlite" else sizes[1]
            entries += [Entry(perdure(store, shape=shape), size) for size in sizes if size <= largest]
        entries += _parts(peers, f"W4 {shape}", sizes[:2], shape=shape)
    entries += [Entry(perdure("sqlite", shape="summarising agent"), size) for size in sizes]
    return entries + [Entry(raw("sqlite", ROWS), size, job={"shape": "flow"}) for size in sizes]


def _crowds(quick: bool) -> list[Entry]:
    sizes = (150, 300) if quick else (1000, 10_000, 100_000)
    stores = ("sqlite",) if quick else ("sqlite", "postgresql")
    return [Entry(perdure(store), size) for store in stores for size in sizes]


def _streams(quick: bool) -> list[Entry]:
    size, stores = (50, STORES[:1]) if quick else (10_000, STORES)
    return [Entry(perdure(store, colour=colour), size) for store in stores for colour in ("sync", "async")]


def _workers(quick: bool) -> list[Entry]:
    entries = [Entry(perdure("sqlite", what="suspended"), 8 if quick else 1000)]
    for store in ("sqlite",) if quick else ("sqlite", *SERVERS):
        kinds = ("claims",) if quick else ("claims", "runs")
        entries += [Entry(perdure(store, what=what), 8 if quick else 1000) for what in kinds]
    return entries
