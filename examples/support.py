"""A support agent with three tools, killed in the middle of its work. Run it twice:

    python examples/support.py        # dies right after the refund was made, before anybody was told
    python examples/support.py        # goes on: the refund is not made again, no question is asked again
    perdure transcript "ticket 17"    # what was said, message by message

``PERDURE_MODEL_URL`` (an OpenAI-compatible endpoint) has it asked for real; else a script stands in for the model.
"""

import json
import os
import signal
from pathlib import Path

import perdure
from perdure.runners import Agent, ChatModel, File, Reply, ToolCall, tool

ORDERS = {"A17": {"item": "lamp", "price": 30, "state": "lost on the way"}}
CRASHED = Path(".perdure/support-crashed")


def crash_once() -> None:
    """SIGKILL, the first time."""
    if not CRASHED.exists():
        CRASHED.parent.mkdir(exist_ok=True)
        CRASHED.touch()
        os.kill(os.getpid(), signal.SIGKILL)


@tool(cache=True, ttl=600)
def find_order(number: str) -> dict[str, object]:
    """Look up an order by its number."""
    print(f"did find_order {number}", flush=True)
    return ORDERS.get(number, {})


@tool(side_effect=True)
def refund(number: str, amount: int, idempotency_key: str) -> str:
    """Give the customer's money back."""
    print(f"did refund {number} {amount}", flush=True)  # a payment service would be given the idempotency key
    return f"{amount} refunded, reference {number}-{amount}"


@tool
def letter(name: str, text: str) -> File:
    """Write a letter to the customer."""
    print(f"did letter {name}", flush=True)
    return File(f"{name}.txt", f"Dear {name},\n\n{text}\n".encode(), "text/plain")


def script(messages: list, tools: object) -> Reply | str:
    """What a model could say."""
    asked = sum(message["role"] == "assistant" for message in messages)
    print(f"did ask {asked}", flush=True)
    if asked == 0:
        return Reply("", (ToolCall("find_order", {"number": "A17"}),))
    if asked == 1:
        order = json.loads(messages[-1]["content"])
        return Reply(f"It was {order['state']}.", (ToolCall("refund", {"number": "A17", "amount": order["price"]}),))
    crash_once()
    if asked == 2:
        return Reply("", (ToolCall("letter", {"name": "Ann", "text": f"{messages[-1]['content']}. Sorry!"}),))
    return "Ann was refunded and has a letter."


support = Agent(
    ChatModel.from_environment() if os.environ.get("PERDURE_MODEL_URL") else script,
    [find_order, refund, letter],
    instructions="You are the support desk of a shop. Look up the order first. Lost parcels are refunded.",
    name="support",
)

if __name__ == "__main__":
    print(perdure.run(support, "My lamp, order A17, never came. Ann", goal="ticket 17"))
