"""Shapes made of steps: pipelines and crews, graphs, agents, attempts at one goal."""

from typing import TYPE_CHECKING

from perdure.model import File, Usage
from perdure.runners.agent import Agent, Phase
from perdure.runners.approval import Approval
from perdure.runners.attempts import Best, BestOf, Score, best_of
from perdure.runners.executor import GraphExecutor, GraphResult, Runner
from perdure.runners.flexible import FlexibleGraph, FlexibleGraphExecutor, PlanStep, Verdict
from perdure.runners.graph import Edge, Graph, Node
from perdure.runners.messages import Message, Reply, ToolCall
from perdure.runners.pipeline import Crew, Pipeline, quorum
from perdure.runners.task import Task
from perdure.runners.tool import Tool, tool
from perdure.runners.transcript import transcript
from perdure.runtime.children import Failed

if TYPE_CHECKING:
    from perdure.runners.endpoint import ChatModel, ModelError

__all__ = [
    "Agent",
    "Approval",
    "Best",
    "BestOf",
    "ChatModel",
    "Crew",
    "Edge",
    "Failed",
    "File",
    "FlexibleGraph",
    "FlexibleGraphExecutor",
    "Graph",
    "GraphExecutor",
    "GraphResult",
    "Message",
    "ModelError",
    "Node",
    "Phase",
    "Pipeline",
    "PlanStep",
    "Reply",
    "Runner",
    "Score",
    "Task",
    "Tool",
    "ToolCall",
    "Usage",
    "Verdict",
    "best_of",
    "quorum",
    "tool",
    "transcript",
]


def __getattr__(name: str) -> object:
    """What needs an HTTP client is imported when it is asked for: that takes longer than all the rest."""
    if name not in ("ChatModel", "ModelError"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from perdure.runners import endpoint

    return getattr(endpoint, name)
