"""The types that a program lets into its journals: the registry, and how annotations teach it.

Stored data never names code. It carries a *stable name*, ``module:qualname``, that is only looked up among the classes
this program registered itself: with ``register``, or by writing them into the annotations of a step or flow
(``learn``). A class of a known kind (codec_kinds.KINDS) needs no more; for any other ``register`` takes two functions.

A result is also loaded by programs that never call the step that made it (the run is finished, the flow was edited). So
``declare`` notes every step and flow, and a stored name that is not known makes us learn from all of them.

In stable names ``__main__`` is replaced by the name that ``python -m`` was given or the script's file name, so that a
class of a script keeps its name when a worker imports that script. A stored name that is not registered is accepted
if exactly one registered class has the same qualified name, so that moving a class to another module strands no run.
"""

from __future__ import annotations

import enum
import functools
import inspect
import sys
import typing
import weakref
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar, overload

from perdure import errors
from perdure.codec_kinds import BUILTIN_ERRORS, KINDS, PLAIN, Kind, Refused, module_of, type_name
from perdure.codec_tags import WRITE
from perdure.errors import ConfigError

_T = TypeVar("_T")
_OURS = "perdure:"
"""names of this library's own classes begin so; a class of the user's is never taken for one of them"""


class Known(NamedTuple):
    """A registered class: the name it is stored under, and how its objects are taken apart."""

    cls: type
    name: str
    tag: str
    """a key of KINDS, or "custom" for a class with adapters"""
    kind: Kind


_by_type: dict[type, Known] = {}
_by_name: dict[str, Known] = {}


def known(cls: type) -> Known | None:
    """The registered class ``cls``, or None. Subclasses of a registered class are classes of their own."""
    return _by_type.get(cls)


def find(name: str) -> Known:
    """The registered class stored as ``name``. Raises Refused."""
    exact = _by_name.get(name)
    if exact is None:
        for fn in tuple(_declared):  # the run may be finished, and the step that knows the class is not called any more
            with suppress(ConfigError):  # two classes of one name: for whoever calls that step
                learn(fn)
        exact = _by_name.get(name)
    if exact is not None:
        return exact
    module, _, qualname = name.partition(":")
    foreign = [entry for entry in tuple(_by_name.values()) if not entry.name.startswith(_OURS)]
    moved = {entry.cls: entry for entry in foreign if entry.cls.__qualname__ == qualname}
    if len(moved) > 1:  # script and package.script are one module
        near = [cls for cls in moved if module_of(cls).rpartition(".")[2] == module.rpartition(".")[2]]
        moved = {cls: moved[cls] for cls in near} or moved
    if len(moved) == 1:
        return next(iter(moved.values()))
    several = f" (there are {len(moved)} registered classes called {qualname!r})" if moved else ""
    raise Refused(
        f" was stored as {name[:200]!r}, which this program has not registered{several}.",
        "Annotate the step's return type with that class, or call perdure.register on it before the run goes on.",
    )


@overload
def register(
    cls: type[_T],
    *,
    name: str | None = None,
    encode: Callable[[_T], object] | None = None,
    decode: Callable[[Any], _T] | None = None,
) -> type[_T]: ...
@overload
def register(
    cls: None = None,
    *,
    name: str | None = None,
    encode: Callable[[Any], object] | None = None,
    decode: Callable[[Any], object] | None = None,
) -> Callable[[type[_T]], type[_T]]: ...
def register(
    cls: Any = None,
    *,
    name: str | None = None,
    encode: Callable[[Any], object] | None = None,
    decode: Callable[[Any], object] | None = None,
) -> Any:
    """Let values of ``cls`` into journals; usable as a function and as a decorator. Returns ``cls``.

    Dataclasses, enums, NamedTuples, exceptions, msgspec.Structs and Pydantic v2 models need no more. For any other
    class give ``encode`` (object -> a value that can be stored) and ``decode`` (that value -> object). ``name`` is the
    stored name, when it should not be ``module:qualname``; a class registered under several names is stored under the
    last and read under all of them. Raises ConfigError for a class that needs adapters, or a ``name`` that is taken.
    """
    if cls is None:
        return lambda target: register(target, name=name, encode=encode, decode=decode)
    if not isinstance(cls, type):
        raise ConfigError(f"register takes a class, not {type(cls).__name__}.", hint="Pass the class itself.")
    if (encode is None) != (decode is None):
        raise ConfigError(f"register({type_name(cls)}) needs both encode and decode, or neither.")
    if cls in WRITE or cls in PLAIN:
        raise ConfigError(f"register({type_name(cls)}): values of this type are stored as they are.")
    if encode is not None and decode is not None:
        tag, kind = "custom", _adapted(encode, decode)
    elif found := _tag_of(cls):
        tag, kind = found, KINDS[found]
    else:
        raise ConfigError(
            f"{type_name(cls)} is not a dataclass, enum, NamedTuple, exception, msgspec.Struct or Pydantic v2 model.",
            hint=f"Use perdure.register({cls.__qualname__}, encode=..., decode=...).",
        )
    _add(Known(cls, name or f"{module_of(cls)}:{cls.__qualname__}", tag, kind))
    return cls


def _adapted(encode: Callable[[Any], object], decode: Callable[[Any], object]) -> Kind:
    return Kind(
        fits=lambda cls: False,
        sections={"v": "value"},
        take=lambda value: {"v": encode(value)},
        make=lambda cls, parts: decode(parts["v"]),
    )


def _add(entry: Known) -> None:
    taken = _by_name.get(entry.name)
    if taken is not None and type_name(taken.cls) != type_name(entry.cls):
        raise ConfigError(f"register: the name {entry.name!r} already belongs to {type_name(taken.cls)}.")
    # A class of the same module and name replaces the old one: a notebook's cell or a module that was run again.
    _by_name[entry.name] = entry
    _by_type[entry.cls] = entry


def learnable(cls: type) -> bool:
    """Whether ``cls`` may be registered without being asked for: of a known kind, and not registered yet."""
    return cls not in _by_type and _tag_of(cls) is not None


def _tag_of(cls: type) -> str | None:
    return next((tag for tag, kind in KINDS.items() if kind.fits(cls)), None)


# ---- learning from annotations

_TRIES = 3
"""What cannot be resolved when a step is decorated often can at its first call; under TYPE_CHECKING it never can."""

_tried: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
_declared: weakref.WeakSet[Callable[..., object]] = weakref.WeakSet()


def declare(fn: Callable[..., object]) -> None:
    """Note that ``fn`` is a step or flow: ``learn`` it when it is called, or when stored data has a type that is not
    known yet. Costs next to nothing, and never raises: what cannot be remembered is learned when it is called."""
    with suppress(TypeError):
        _declared.add(fn)


def learn(fn: Callable[..., object]) -> None:
    """Register every dataclass, enum, NamedTuple, exception, msgspec.Struct and Pydantic model that the annotations of
    ``fn`` reach: through containers, unions, Annotated, type variables, TypedDicts and the fields of classes found so.

    Names that cannot be resolved are passed over, and tried again at the next two calls. Otherwise a second call for
    the same function costs a look-up. Raises ConfigError if a class found so has the name of another one.
    """
    target = _function(fn)
    tried = 0
    with suppress(TypeError):  # not hashable, or no weak references: looked at each time
        tried = _tried.get(target, 0)
    if tried >= _TRIES:
        return
    complete = _visit(target)
    with suppress(TypeError):
        _tried[target] = _TRIES if complete else tried + 1


def _function(fn: Any) -> Any:
    while isinstance(fn, functools.partial):
        fn = fn.func
    if isinstance(fn, type) or inspect.isroutine(fn):
        return getattr(fn, "__func__", fn)
    return type(fn).__call__  # an object that can be called


def _visit(target: Any) -> bool:
    """Walk everything reachable from ``target``; False if some annotation could not be resolved."""
    annotations, complete = _hints(target)
    todo = [*annotations, target] if isinstance(target, type) else annotations
    seen: set[int] = set()
    keep = []  # ids of annotations stay taken while they are alive
    while todo:
        annotation = todo.pop()
        if id(annotation) in seen:
            continue
        seen.add(id(annotation))
        keep.append(annotation)
        todo += _parts(annotation)
        if _wanted(annotation):
            nested, resolved = _hints(annotation)
            todo += nested
            complete = complete and resolved
    return complete


def _wanted(annotation: Any) -> bool:
    """Register ``annotation`` if it is a class worth it; True if the annotations of its fields count too."""
    if not isinstance(annotation, type) or typing.get_origin(annotation) is not None:
        return False
    if learnable(annotation):
        register(annotation)
    entry = known(annotation)
    if entry is not None:
        return entry.tag in ("data", "named", "struct", "model")
    return typing.is_typeddict(annotation)


def _parts(annotation: Any) -> list[Any]:
    """What one annotation is made of."""
    if isinstance(annotation, list | tuple):  # the arguments of a Callable
        return list(annotation)
    if isinstance(annotation, enum.Enum):  # Literal[Colour.RED]
        return [type(annotation)]
    if isinstance(annotation, typing.TypeVar):
        return [annotation.__bound__, *annotation.__constraints__]
    if isinstance(annotation, typing.NewType):
        return [annotation.__supertype__]
    if type(annotation).__name__ == "TypeAliasType":  # Python 3.12's "type" statement
        with suppress(Exception):  # its value is foreign code, run when first asked for
            return [annotation.__value__]
        return []
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return [annotation.__origin__]
    return [] if origin is None else [origin, *typing.get_args(annotation)]


def _hints(owner: Any) -> tuple[list[Any], bool]:
    """Annotations of a function or class, resolved; and whether all of them could be."""
    found = [info.annotation for info in _model_fields(owner)]
    try:
        return found + list(typing.get_type_hints(owner, include_extras=True).values()), True
    except Exception:  # annotations are foreign code and may raise anything
        return found + _one_by_one(owner), False


def _model_fields(owner: Any) -> list[Any]:
    entry = known(owner) if isinstance(owner, type) else None
    return list(owner.model_fields.values()) if entry is not None and entry.tag == "model" else []


def _one_by_one(owner: Any) -> list[Any]:
    found: list[Any] = []
    for part in owner.__mro__ if isinstance(owner, type) else (inspect.unwrap(owner) if callable(owner) else owner,):
        names = getattr(part, "__globals__", None) or vars(sys.modules.get(getattr(part, "__module__", ""), typing))
        annotations: dict[str, Any] = {}
        with suppress(Exception):  # from Python 3.14 on, asking for annotations resolves them
            annotations = inspect.get_annotations(part)
        for annotation in annotations.values():
            alone = SimpleNamespace(__annotations__={"it": annotation})
            with suppress(Exception):
                found += typing.get_type_hints(alone, names, include_extras=True).values()
    return found


for _name, _cls in BUILTIN_ERRORS.items():
    _add(Known(_cls, _name, "error", KINDS["error"]))
for _cls in vars(errors).values():
    if isinstance(_cls, type) and issubclass(_cls, errors.PerdureError):
        register(_cls)
