"""Fails when the code of the crew leaves what was recorded. No step is executed, and no model asked."""

from pathlib import Path

from crew import review

from perdure.testing import replay

RECORDED = Path(__file__).parent / "recorded.perdure"


def test_recorded_runs_can_still_be_followed() -> None:
    for told in replay(review, archive=RECORDED):
        assert told.ok, str(told)
