"""Shapes made of steps: pipelines and crews."""

from perdure.runners.pipeline import Crew, Pipeline, Task, quorum

__all__ = ["Crew", "Pipeline", "Task", "quorum"]
