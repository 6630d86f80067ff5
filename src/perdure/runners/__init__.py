"""Shapes made of steps: pipelines and crews, graphs, agents, attempts at one goal."""

from perdure.runners.executor import GraphExecutor, GraphResult, Runner
from perdure.runners.flexible import FlexibleGraph, FlexibleGraphExecutor, PlanStep, Verdict
from perdure.runners.graph import Edge, Graph, Node
from perdure.runners.messages import Message, Reply, ToolCall
from perdure.runners.pipeline import Crew, Pipeline, quorum
from perdure.runners.task import Task

__all__ = [
    "Crew",
    "Edge",
    "FlexibleGraph",
    "FlexibleGraphExecutor",
    "Graph",
    "GraphExecutor",
    "GraphResult",
    "Message",
    "Node",
    "Pipeline",
    "PlanStep",
    "Reply",
    "Runner",
    "Task",
    "ToolCall",
    "Verdict",
    "quorum",
]
