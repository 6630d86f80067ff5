"""Which store a job means."""

from __future__ import annotations

from bench.talk import Job


def url(job: Job) -> str:
    """The URL of the job's store: a fresh one below the job's folder, or in the database that was made for the job."""
    urls: dict[str, str] = {
        "sqlite": f"sqlite:{job['folder']}/runs.db",
        "file": f"file:{job['folder']}/runs",
        "postgresql": job["server"],
        "valkey": job["server"],
    }
    return urls[job["store"]]
