"""The model that the demo's experts ask, if there is one: a ChatModel as the environment says."""

from __future__ import annotations

import os

from perdure.runners.endpoint import ChatModel


def configured() -> bool:
    """Whether a model is to be asked at all."""
    return bool(os.environ.get("PERDURE_MODEL_URL", "").strip())


def the_model() -> ChatModel:
    """The model. Raises ConfigError for settings with which no request can be made."""
    return ChatModel.from_environment()
