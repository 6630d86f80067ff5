"""What to run: ``package.module:flow``, ``path/to/file.py:flow`` or ``file.toml``, and its inputs from words.

This is the one place that imports by name, and the name is always one that the user typed.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from perdure.errors import ConfigError
from perdure.limits import MAX_VALUE, decoded, read_all
from perdure.redaction import Redaction, discreet_part, sounds_secret
from perdure.runners.toml import load_pipeline
from perdure.runtime.steps import Flow, Function, Step
from perdure.secret import Resolver, Secret

_FORMS = "Give module:flow, file.py:flow or file.toml."


def load_target(text: str) -> Function[..., Any]:
    """The flow that ``text`` names. Raises ConfigError that says what is missing."""
    if text.endswith(".toml"):
        return load_pipeline(Path(text), load_function)
    found = load_function(text, Path.cwd())
    if isinstance(found, Function):
        return found
    if not callable(found):
        raise ConfigError(f"{text} is a {type(found).__name__}, not a flow.", hint="Name a function or a flow.")
    return Flow(found, text.rpartition(":")[2], None, ())


def load_app(text: str) -> list[Function[..., Any]]:
    """The flows of a module or file, or the one that ``text`` names. Raises ConfigError if there are none."""
    if text.endswith(".toml") or ":" in text:
        return [load_target(text)]
    module = _module(text, Path.cwd())
    found = [value for value in vars(module).values() if isinstance(value, Function) and not isinstance(value, Step)]
    if not found:
        raise ConfigError(f"{text} has no flows.", hint="Decorate one with @perdure.flow, or name a function of it.")
    return list({id(flow): flow for flow in found}.values())


def load_function(text: str, folder: Path) -> Any:
    """The object that ``module:name`` or ``file.py:name`` means, seen from ``folder``."""
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        raise ConfigError(f"{text!r} does not name a function.", hint=_FORMS)
    module = _module(place, folder)
    value: Any = module
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            near = ", ".join(n for n, v in vars(module).items() if callable(v) and not n.startswith("_")) or "nothing"
            raise ConfigError(f"{place} has no {name!r}.", hint=f"It has: {near}.") from None
    return value


def _module(place: str, folder: Path) -> types.ModuleType:
    folder = folder.resolve()
    try:
        if place.endswith(".py"):
            return _from_file(folder / place)
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(error.name + ".")):
            hint = f"Looked in {folder} and the installed packages. {_FORMS}"
            raise ConfigError(f"There is no module {place!r}.", hint=hint) from None
        raise _failed(place, error) from error
    except ConfigError:
        raise
    except Exception as error:
        raise _failed(place, error) from error


def _from_file(path: Path) -> types.ModuleType:
    if not path.is_file():
        raise ConfigError(f"There is no file {path}.", hint=_FORMS)
    loaded = sys.modules.get(path.stem)
    if loaded is not None and Path(getattr(loaded, "__file__", None) or "").resolve() == path.resolve():
        return loaded
    if loaded is not None or path.stem in sys.stdlib_module_names:
        raise ConfigError(f"{path.name} has the name of a module that is loaded already.", hint="Rename the file.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


def _failed(place: str, error: Exception) -> ConfigError:
    said = "".join(traceback.format_exception_only(error)).strip()
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return ConfigError(f"{place} cannot be imported: {said}{where}.", hint="Nothing was executed.")


# -- inputs ------------------------------------------------------------------------------------------------------------


def parse_inputs(
    flow: Function[..., Any], words: Sequence[str], secrets: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Inputs of ``flow`` from ``name=value`` words, converted to what it declares; ``name=@file`` reads a text file.
    Those of the ``secrets`` that it takes are given to it as such.

    Raises ConfigError that lists what the flow takes.
    """
    parameters = flow.signature.parameters
    hints = _hints(flow)
    values = parse_words(flow, words)
    for name, secret in (secrets or {}).items():
        if name in parameters and name not in values:
            values[name] = _as_secret(flow, name, secret, hints.get(name))
    missing = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in values
    ]
    if missing:
        raise ConfigError(f"{flow.name} needs {', '.join(missing)}.", hint=takes(flow))
    if any(p.kind is p.POSITIONAL_ONLY for p in parameters.values()):
        raise ConfigError(f"{flow.name} has positional-only parameters, which the command line cannot give.")
    return values


def parse_words(flow: Function[..., Any], words: Sequence[str], option: str = "--input") -> dict[str, Any]:
    """Some inputs of ``flow``, likewise."""
    parameters = flow.signature.parameters
    hints = _hints(flow)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(
                f"{option} {discreet_part(word, 60)!r} has no '='.", hint=f"Write {option} name=value or name=@file."
            )
        if name not in parameters and not takes_any:
            raise ConfigError(f"{flow.name} takes no input {name!r}.", hint=takes(flow))
        if name in values:
            raise ConfigError(f"The input {name!r} is given twice.")
        values[name] = _convert(name, read_word("The input", name, text), hints.get(name))
    return values


def takes(flow: Function[..., Any]) -> str:
    """What the flow takes, for people."""
    hints = _hints(flow)
    told = []
    for p in flow.signature.parameters.values():
        default = "" if p.default is p.empty or sounds_secret(p.name) else f" (default {p.default!r})"
        told.append(f"--input {p.name}={_named(hints.get(p.name))}{default}")
    return f"It takes: {', '.join(told)}." if told else "It takes no inputs."


def _hints(flow: Function[..., Any]) -> Mapping[str, Any]:
    declared = {p.name: p.annotation for p in flow.signature.parameters.values() if not isinstance(p.annotation, str)}
    try:
        return declared | typing.get_type_hints(flow.fn)
    except Exception:  # an annotation that is known to type checkers only
        return declared


def _named(hint: Any) -> str:
    return "TEXT" if hint in (None, str, Any, inspect.Parameter.empty) else str(getattr(hint, "__name__", hint)).upper()


def read_word(what: str, name: str, text: str) -> str:
    """What stands behind the "=" of a word: text, or the text of a file. Raises ConfigError, saying ``what`` it is."""
    if not text.startswith("@"):
        return text
    try:
        with open(text[1:], "rb") as file:  # it may be a pipe, or /dev/zero
            return read_all(file, MAX_VALUE).decode("utf-8").replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        hint = f"For a text that begins with '@' use a file, or pass the path as {name}=PATH if the flow reads it."
        raise ConfigError(f"{what} {name} cannot be read from {text[1:]!r}: {error}.", hint=hint) from None


def named_after(flow: Function[..., Any], words: Sequence[str]) -> list[str]:
    """Those of the ``name=value`` words that may be a part of the run's name: it is shown everywhere."""
    hints = _hints(flow)
    names = [word.partition("=")[0] for word in words]
    return [w for n, w in zip(names, words, strict=True) if not (_is_secret(hints.get(n)) or sounds_secret(n))]


def resolver(words: Sequence[str]) -> Resolver | None:
    """Who knows the secrets of the --secret words; None if there are none. Raises ConfigError."""
    return read_secrets(words).get if words else None


def read_secrets(words: Sequence[str]) -> dict[str, str]:
    """Values of the ``NAME=VARIABLE`` words of --secret, from the environment. Raises ConfigError."""
    found = {}
    for word in words:
        name, _, variable = word.partition("=")
        value = os.environ.get(variable or name)
        if not name or not value:
            raise ConfigError(
                f"--secret {name}: the environment has no variable {variable or name!r}, or it is empty.",
                hint="Write --secret NAME or --secret NAME=VARIABLE: the name of a secret, and where its value is.",
            )
        found[name] = value
    return found


def load_rules(text: str | None) -> Redaction | None:
    """What --redact names: "default", or a Redaction in the user's program. Raises ConfigError."""
    if text is None:
        return None
    if text != "default" and ":" not in text:
        raise ConfigError(f"--redact {text!r} names no rules.", hint="Write default, or file.py:NAME of a Redaction.")
    found = Redaction() if text == "default" else load_function(text, Path.cwd())
    if not isinstance(found, Redaction):
        raise ConfigError(f"{text} is a {type(found).__name__}, not a Redaction.", hint="Name one, or say default.")
    return found


def _is_secret(hint: Any) -> bool:
    return hint is Secret or Secret in typing.get_args(hint)


def _as_secret(flow: Function[..., Any], name: str, value: str, hint: Any) -> Secret:
    if not (_is_secret(hint) or hint in (None, Any, inspect.Parameter.empty)):
        raise ConfigError(
            f"{flow.name} takes {name} as {_named(hint)}, and --secret gives a Secret.",
            hint=f"Declare it so, {name}: perdure.Secret, and call its reveal() where the value is needed.",
        )
    return Secret(value, name)


def _convert(name: str, text: str, hint: Any) -> Any:
    """``text`` as the declared type: text where that is possible, else JSON."""
    if _is_secret(hint):
        return Secret(text.rstrip("\r\n"), name)
    if hint in (None, str, Any, inspect.Parameter.empty):
        return text
    if hint is Path:
        return Path(text)
    candidates: list[Any] = [text]
    with suppress(ValueError):
        candidates.append(decoded(text, msgspec.json.decode))
    for candidate in candidates:
        try:
            return msgspec.convert(candidate, hint, strict=not isinstance(candidate, str))
        except msgspec.ValidationError as problem:
            said = str(problem)
        except TypeError:  # a type that msgspec does not know: Pydantic models and the like
            validate = getattr(hint, "model_validate", None)
            if validate is not None and not isinstance(candidate, str):
                return validate(candidate)
            said = "give it from Python"
    if sounds_secret(name):
        raise ConfigError(f"The input {name} is no {_named(hint)}.")
    raise ConfigError(f"The input {name}={discreet_part(text, 60)!r} is no {_named(hint)}: {said}.")
