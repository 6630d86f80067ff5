"""What helps to test programs that use Perdure, and stores for it."""

from __future__ import annotations

from perdure.testing.crashtest import crashtest
from perdure.testing.replaying import replay

__all__ = ["crashtest", "replay"]
