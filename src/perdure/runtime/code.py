"""What the code of a step is: a digest that tells whether it has changed, and the text that shows how (X1).

To the code of a step belong its function, and of the same project whatever that uses, and those use: functions, steps
and flows, classes, constants of modules, and what a function that was made inside another has from there, if that was
given it once and it cannot change.

- *Functions and classes* count by their syntax: comments, formatting, docstrings, annotations and the options of
  ``@step`` and ``@flow`` are no part of it; decorators of others are, and with them the docstring, which they may use.
- *Constants* of plain types count by their value, so that a prompt that is read from a file counts as that; so do
  plain attributes of classes. By the statements that make them count: lists and dicts that are made empty, or that
  functions of their module change; what comes from a clock, the environment, chance or the machine; what has the name
  of a secret; and everything else (a client, a lock). Of a value that is not written in the source nothing is kept but
  a digest.
- *The same project* is every module that is not installed (in ``site-packages``) or part of Python, and whatever is in
  the same package as the step. Of the rest not even the version counts.
- *Defaults* of a step's own parameters work through its inputs, and do not count twice.

The digest has no names of modules, files or versions of Python in it: the same code has the same one as a script, as a
module and on another machine. It is one walk from the step to everything it reaches, so that cycles do no harm, and in
no order that depends on what was executed before.

Not seen: what comes by way of arguments (methods of objects), ``getattr``, ``globals()`` and files that a body reads. A
module that is imported inside of a function counts as a whole, but not what that imports. A file is read once, when a
run or a worker begins: what it says later is not what runs. If it was changed since the process began and before that,
what is loaded counts: functions by their bytecode, constants and attributes by their values.

Rejected: bytecode for all (it is another in every version of Python, and no text to show); the values of all constants
(caches and counters change while the program runs).
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import os
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from hashlib import sha256
from typing import Any, Final, NamedTuple, TypeAlias

from perdure.record import CODE_FORM
from perdure.redaction import sounds_secret
from perdure.runtime.syntax import (
    Shown,
    absolute,
    bytecode,
    code_file,
    file_of,
    globals_of,
    home_of,
    is_literal,
    is_loaded,
    node_of,
    uses,
)
from perdure.secret import MASK

_SCALARS: Final = frozenset({str, bytes, int, float, complex, bool, type(None)})
_STDLIB: Final = os.path.dirname(os.__file__) + os.sep
_INSTALLED: Final = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_MANY: Final = 1000
"""things in a constant among which functions are looked for"""
Text: TypeAlias = tuple[str, str]
"""a name, and what it stands for"""


class Code(NamedTuple):
    """The code of a step."""

    digest: str
    """"" where there is none to be seen"""
    parts: Mapping[str, str] = {}
    """name -> text, as people wrote it: to show what has changed"""
    met: tuple[tuple[Mapping[str, Any], str, object], ...] = ()
    """names of modules that it uses, and what they were"""

    def holds(self) -> bool:
        """Whether these names are still the same things. In a notebook, cells are executed again."""
        for scope, name, held in self.met:
            if scope.get(name) is not held:
                return False
        return True


class Coded:
    """What knows of what its code is made."""

    def sources(self) -> Iterable[Source]:
        raise NotImplementedError


Source: TypeAlias = Callable[..., Any] | Coded | Text
"""something that belongs to the code of a step"""


def code_of(sources: Iterable[Source], *, defaults: bool) -> Code:
    """The code that is made of these. ``defaults``: those of the functions' own parameters count."""
    walk = _Walk()
    for source in sources:
        walk.add(source, None, defaults)
    return walk.code()


class _Walk:
    """Collects everything that a step's code is made of. What refers to something is told with it ("write>PROMPT"), so
    that two things that change places are noticed."""

    def __init__(self) -> None:
        self._seen: set[object] = set()
        self._todo: deque[Callable[[], None]] = deque()
        self._said: list[str] = []
        self._parts: dict[str, str] = {}
        self._home = ""
        """the module of the first function: names of it are shown without their module"""
        self._met: list[tuple[Mapping[str, Any], str, object]] = []
        self._kept: list[object] = []
        """so that no id is given twice"""

    def code(self) -> Code:
        while self._todo:
            self._todo.popleft()()
        if not self._said:
            return Code("")
        digest = sha256("\0".join(sorted(self._said)).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return Code(CODE_FORM + digest, self._parts, tuple(self._met))

    def add(self, source: object, ref: str | None, defaults: bool = True) -> None:
        """Something that is used, by way of ``ref`` (None: it is the step itself)."""
        if isinstance(source, tuple):
            self._say(f"{ref or ''}{source[0]}={source[1]}", source[0], source[1])
        elif isinstance(source, Coded):
            if self._first(id(source), source):
                for part in source.sources():
                    self.add(part, ref, defaults)
        elif isinstance(source, functools.partial):
            self.add(source.func, ref, defaults)
            for name, held in (*enumerate(source.args), *sorted(source.keywords.items())):
                self._given(f"{ref}({name})", str(name), held)
        elif isinstance(source, types.MethodType):
            self.add(source.__func__, ref, defaults)
            self._instance(source.__self__, ref)
        elif isinstance(source, types.FunctionType):
            self._todo.append(functools.partial(self._function, source, ref, defaults))
        elif isinstance(source, type):
            self._todo.append(functools.partial(self._class, source))
        elif callable(getattr(source, "__wrapped__", None)):  # functools.cache and its kin
            self.add(source.__wrapped__, ref, defaults)  # type: ignore[attr-defined]
        elif callable(source):
            self._instance(source, ref)

    def _instance(self, held: object, ref: str | None) -> None:
        """An object that is called. Of one that was given to the step, such as a model, its plain attributes count."""
        self._todo.append(functools.partial(self._class, type(held)))
        for name, value in sorted(vars(held).items()) if ref is None and hasattr(held, "__dict__") else ():
            told = _fixed(value) if not sounds_secret(name) else None
            if told is not None:
                self._say(f".{name}={told}")

    def _given(self, ref: str, name: str, held: object) -> None:
        """A value that a function was made with."""
        value = None if sounds_secret(name) else _fixed(held)
        if value is not None:
            self._say(f"{ref}={value}", name if name.isidentifier() else "", f"{name} = {value}")
        elif _has_code(held):
            self.add(held, ref)

    def _first(self, key: object, kept: object = None) -> bool:
        new = key not in self._seen
        self._seen.add(key)
        self._kept.append(kept)
        return new

    def _say(self, canonical: str, label: str = "", text: str = "") -> None:
        self._said.append(canonical)
        if text and label:
            self._parts.setdefault(label, text)

    def _label(self, module: str, name: str) -> str:
        return name if module == self._home else f"{module}.{name}"

    # -- functions and classes --------------------------------------------------------------------------------

    def _function(self, fn: types.FunctionType, ref: str | None, defaults: bool) -> None:
        inner: Any = inspect.unwrap(fn)
        if isinstance(inner, types.FunctionType):
            fn = inner
        module = fn.__module__ or ""
        ours = ref is None or self._ours(module, fn.__code__.co_filename)
        if not ours or not self._first(id(fn), fn):
            return
        named = fn.__qualname__.rpartition("<locals>.")[2]
        by = "" if ref is None else named
        self._home = self._home or module
        label = self._label(module, f"{named}()")
        found = node_of(fn)
        cells = dict(zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True))
        if found is None:
            self._say(f"{ref or ''}:{bytecode(fn.__code__)}")
            for used in sorted(globals_of(fn.__code__)):
                self._global(used, (), fn.__globals__, by)
        else:
            node, source = found
            shown = source.shown(node, fn.__globals__, defaults)
            self._say(f"{ref or ''}:{shown.text}", label, source.text(node))
            cells = {used: cell for used, cell in cells.items() if not source.may_change(node, used)}
            wanted = globals_of(fn.__code__) | shown.outside
            for used, attributes in shown.uses:
                if used in wanted:
                    self._global(used, attributes, fn.__globals__, by)
            for place in shown.imports:
                self._whole(place, fn.__globals__)
        for used, cell in sorted(cells.items()):
            try:
                self._given(f"{ref or ''}.{used}", used, cell.cell_contents)
            except ValueError:  # not there yet
                continue

    def _class(self, cls: type) -> None:
        module = sys.modules.get(cls.__module__)
        path = getattr(module, "__file__", None) or ""
        if module is None or not self._ours(cls.__module__, path) or not self._first(cls):
            return
        source = code_file(path)
        loaded = is_loaded(path, vars(module))
        if source is None or cls.__name__ not in source.filled:
            self._as_loaded(cls, methods=not loaded)
        for node in source.classes.get(cls.__qualname__, []) if source is not None and loaded else ():
            assert source is not None
            label = self._label(cls.__module__, f"class {cls.__qualname__}")
            self._say(f"{cls.__qualname__}:{Shown(vars(module), True).of(node)}", label, source.text(node))
            for used, attributes in sorted(uses(node)):
                self._global(used, attributes, vars(module), cls.__qualname__)

    def _as_loaded(self, cls: type, methods: bool) -> None:
        """The plain attributes of a class; and its methods, if its file says something else by now."""
        for name, held in sorted(vars(cls).items()):
            told = None if sounds_secret(name) or name.startswith("__") else _fixed(held)
            if methods and isinstance(held, types.FunctionType):
                told = bytecode(held.__code__)
            if told is not None:
                self._say(f"{cls.__qualname__}.{name}={told}")

    # -- names of modules --------------------------------------------------------------------------------

    def _global(self, name: str, attributes: tuple[str, ...], scope: Mapping[str, Any], by: str) -> None:
        """A name that code of a module uses; ``by``: which."""
        if name not in scope or (name.startswith("__") and name.endswith("__")):
            return
        held, ref = scope[name], f"{by}>{name}"
        while isinstance(held, types.ModuleType):
            if not self._ours(held.__name__, getattr(held, "__file__", None) or ""):
                return
            if not attributes or attributes[0] not in vars(held):
                self._text_of(getattr(held, "__file__", None) or "", held.__name__)
                return
            name, attributes, scope = attributes[0], attributes[1:], vars(held)
            held, ref = scope[name], f"{ref}.{name}"
        source = code_file(str(scope.get("__file__") or ""))
        if source is None or name not in source.rebound | source.filled:
            self._met.append((scope, name, held))
        if _has_code(held):
            self.add(held, ref)
        if not _says_all(held):
            self._todo.append(functools.partial(self._constant, name, held, scope, ref))

    def _constant(self, name: str, held: object, scope: Mapping[str, Any], ref: str) -> None:
        scope, name = home_of(name, scope, self._ours)
        module, path = str(scope.get("__name__", "")), str(scope.get("__file__") or "")
        if (path and not self._ours(module, path)) or not self._first((id(scope), name, ref), scope):
            return
        source = code_file(path) if is_loaded(path, scope) else None
        made = source.bindings.get(name, []) if source is not None else []
        if isinstance(held, Coded):  # its function is seen already
            made = [node for node in made if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        label = self._label(module, name)
        text = "\n".join(source.text(node) for node in made) if source is not None else ""
        if source is not None and source.names_secret(made):
            text = f"{name} = {MASK}"
        if not _has_code(held):
            value = None
            if not sounds_secret(name) and (source is None or not source.is_volatile(name, type(held) in _SCALARS)):
                value = _value(held)
            if value is not None and (made or type(held) in _SCALARS or source is None):
                literal = len(made) == 1 and is_literal(made[0])
                mark = sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[:8]
                self._say(f"{ref}={value}", label, text if literal else f"{text}\n# its value: {mark}".lstrip())
                return
            if isinstance(held, dict | list | tuple | set) and len(held) <= _MANY:
                for place, part in enumerate(held.values() if isinstance(held, dict) else held):
                    if _has_code(part):
                        self.add(part, f"{ref}[{place}]")
            self._todo.append(functools.partial(self._class, type(held)))
        if made and not (sounds_secret(name) and all(map(is_literal, made))):
            self._say(f"{ref}:{Shown(scope, True).of(made)}", label, text)
        for other, attributes in sorted({use for node in made for use in uses(node)}):
            if other != name:
                self._global(other, attributes, scope, name)

    # -- modules as a whole --------------------------------------------------------------------------------

    def _whole(self, place: tuple[int, str, tuple[str, ...]], scope: Mapping[str, Any]) -> None:
        """A module that is imported inside of a function: perhaps it is not loaded yet."""
        level, module, names = place
        module = absolute(level, module, scope)
        for found in dict.fromkeys((module, *(f"{module}.{name}" for name in names))):
            path = file_of(found)
            if path and self._ours(found, path):
                self._text_of(path, found)

    def _text_of(self, path: str, module: str) -> None:
        source = code_file(path)
        if source is not None and self._first(path):
            self._say(Shown({}, True).of(source.tree.body), self._label(module, "(all)"), source.whole)

    def _ours(self, module: str, path: str) -> bool:
        """Whether a module is of the same project as the step."""
        top = module.partition(".")[0]
        if top == "perdure":
            return module.startswith("perdure.demo")
        if top and top == self._home.partition(".")[0] and top != "__main__":
            return True
        return bool(path) and not path.startswith((_STDLIB, "<frozen")) and not any(p in path for p in _INSTALLED)


# -- what a value is --------------------------------------------------------------------------------------------------


def _has_code(held: object) -> bool:
    if isinstance(held, types.FunctionType | types.MethodType | functools.partial | type | Coded):
        return True
    return callable(getattr(held, "__wrapped__", None))


def _says_all(held: object) -> bool:
    """Whether something says itself what its code is, and how it was made does not count: a step with a version."""
    return isinstance(held, Coded) and all(isinstance(part, tuple) for part in held.sources())


def _value(held: object) -> str | None:
    """A value that is told apart by its text; None for any other."""
    if type(held) in _SCALARS:
        return repr(held)
    inside: list[str | None] = []
    if type(held) is dict:
        inside = [part for pair in held.items() for part in map(_value, pair)]
    elif type(held) in (tuple, list, frozenset, set):
        inside = [_value(part) for part in held]  # type: ignore[attr-defined]
        inside = sorted(inside, key=str) if type(held) in (frozenset, set) else inside
    else:
        return None
    parts = [part for part in inside if part is not None]
    return f"{type(held).__name__}({', '.join(parts)})" if len(parts) == len(inside) else None


def _fixed(held: object) -> str | None:
    """The same of what nothing can change: it may be asked for at any time."""
    if isinstance(held, Enum):
        return f"{type(held).__qualname__}.{held.name}"
    if type(held) in (tuple, frozenset):
        parts = [_fixed(part) for part in held]  # type: ignore[attr-defined]
        told = sorted(map(str, parts)) if type(held) is frozenset else map(str, parts)
        return None if None in parts else f"{type(held).__name__}({', '.join(told)})"
    frozen = getattr(getattr(held, "__dataclass_params__", None), "frozen", False)
    if frozen and not isinstance(held, type):
        fields = {field.name: _fixed(getattr(held, field.name)) for field in dataclasses.fields(held)}  # type: ignore[arg-type]
        return None if None in fields.values() else f"{type(held).__qualname__}({fields})"
    return repr(held) if type(held) in _SCALARS else None
