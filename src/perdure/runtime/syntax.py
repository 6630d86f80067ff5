"""Source files as syntax: where functions, classes and constants stand, what they use, and what of them matters."""

from __future__ import annotations

import ast
import dis
import functools
import importlib.machinery
import linecache
import os
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Any, Final, NamedTuple

from perdure.clock import SYSTEM
from perdure.redaction import sounds_secret

_BEGAN: Final = SYSTEM.now()
_MADE_EMPTY: Final = frozenset({"dict", "list", "set", "defaultdict", "OrderedDict", "deque", "Counter"})
"""what is made by calling these is there to be filled"""
_FILLING: Final = frozenset(
    (
        *("append", "extend", "insert", "add", "update", "setdefault"),
        *("pop", "popitem", "remove", "discard", "clear", "sort"),
    )
)
_VOLATILE: Final = frozenset(
    (
        *("environ", "environb", "getenv", "argv", "input", "stdin", "Secret", "secrets", "keyring", "getpass"),
        *("time", "time_ns", "monotonic", "perf_counter", "process_time", "now", "utcnow", "today"),
        *("localtime", "gmtime", "random", "randint", "choice", "uuid", "uuid1", "uuid4", "uuid7", "urandom"),
        *("token_hex", "token_urlsafe", "getpid", "gethostname", "hostname", "node", "uname", "platform"),
        *("cpu_count", "getuser", "getlogin", "mkdtemp", "mkstemp", "version", "version_info", "metadata"),
    )
)
"""what comes from the clock, chance, the machine, its environment, or somebody's hands"""
_PLACES: Final = frozenset(
    (
        *("__file__", "__path__", "__name__", "cwd", "getcwd", "home", "expanduser", "abspath", "resolve"),
        *("gettempdir", "executable"),
    )
)
"""where something is on this machine"""
_READS: Final = frozenset(("read_text", "read_bytes", "read", "readlines", "open", "load", "loads", "glob", "iterdir"))
_DEEP: Final = 20
_FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_UNSEEN: Final = frozenset({"ctx", "kind", "type_comment", "type_params", "simple"})
"""fields of syntax trees that say nothing, or that not every version of Python has"""


# -- code objects -----------------------------------------------------------------------------------------------------


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code object, and those inside it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _codes(const)


def globals_of(code: types.CodeType) -> set[str]:
    """Names that the code takes from its module."""
    wanted = ("LOAD_GLOBAL", "LOAD_NAME")
    return {str(op.argval) for part in _codes(code) for op in dis.get_instructions(part) if op.opname in wanted}


def bytecode(code: types.CodeType) -> str:
    digest = sha256()
    for part in _codes(code):
        consts = [c for c in part.co_consts if not isinstance(c, types.CodeType)]
        told = [str(sorted(map(repr, c))) if isinstance(c, frozenset) else repr(c) for c in consts]
        digest.update(repr((part.co_code, part.co_names, told)).encode("utf-8", "surrogatepass"))
    return "bytecode " + digest.hexdigest()


def is_literal(node: ast.stmt) -> bool:
    value = getattr(node, "value", None)
    try:
        ast.literal_eval(value)  # type: ignore[arg-type]
    except (ValueError, TypeError, SyntaxError, RecursionError):
        return False
    return True


# -- sources ----------------------------------------------------------------------------------------------------------


class Meaning(NamedTuple):
    """What matters of a function."""

    text: str
    outside: set[str]
    """names that the code around it uses: its decorators and defaults"""
    uses: list[tuple[str, tuple[str, ...]]]
    imports: list[tuple[int, str, tuple[str, ...]]]


class CodeFile:
    """A file of code, and what is where in it."""

    def __init__(self, path: str, lines: list[str]) -> None:
        self.path = path
        self.whole = "".join(lines)
        self._lines = lines
        self.tree = _parsed(self.whole)
        self.functions: dict[int, list[ast.AST]] = {}
        """by the line with which they begin, decorators included"""
        self.classes: dict[str, list[ast.ClassDef]] = {}
        """every definition: perhaps it depends on something which of them counts"""
        self.bindings: dict[str, list[ast.stmt]] = {}
        """name -> the statements of the module that give it its value, or change that"""
        self.rebound: set[str] = set()
        """names of the module that functions give another value"""
        self.filled: set[str] = set()
        """names whose values functions may change"""
        self.imported: dict[str, tuple[int, str, str]] = {}
        """name -> where the module has it from: dots, module, its name there"""
        self._shown: dict[tuple[ast.AST, bool], Meaning] = {}
        self._around: dict[ast.AST, ast.AST] = {}
        """function -> the function inside which it is made"""
        self._look(self.tree, "", None)
        self._statements(self.tree.body)

    def _look(self, parent: ast.AST, place: str, around: ast.AST | None) -> None:
        for node in ast.iter_child_nodes(parent):
            inner, within = place, around
            if isinstance(node, _FUNCTIONS):
                self.functions.setdefault(_begin(node), []).append(node)
                inner, within = f"{place}{getattr(node, 'name', '<lambda>')}.<locals>.", node
                if around is not None:
                    self._around[node] = around
            elif isinstance(node, ast.ClassDef):
                self.classes.setdefault(place + node.name, []).append(node)
                inner = f"{place}{node.name}."
            elif isinstance(node, ast.Global):
                self.rebound.update(node.names)
            elif isinstance(node, ast.ImportFrom) and around is None:
                for alias in node.names:
                    self.imported[alias.asname or alias.name] = node.level, node.module or "", alias.name
            elif around is not None:
                self.filled.update(_filled(node))
            self._look(node, inner, within)

    def _statements(self, body: Iterable[ast.stmt]) -> None:
        for node in body:
            for name in _bound(node):
                self.bindings.setdefault(name, []).append(node)
            for field in ("body", "orelse", "finalbody", "handlers"):
                if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    self._statements(getattr(node, field, ()))

    def may_change(self, node: ast.AST, name: str) -> bool:
        """Whether a name that a function has from those around it is given a value more than once."""
        outer = self._around.get(node)
        while outer is not None:
            times = _times_bound(outer, name)
            if times:
                return times > 1
            outer = self._around.get(outer)
        return False

    def names_secret(self, made: Iterable[ast.stmt]) -> bool:
        """Whether one of the names that these statements bind says that it is a secret."""
        return any(sounds_secret(name) for node in made for name in _bound(node))

    def is_volatile(self, name: str, scalar: bool, depth: int = 0, place: bool = True) -> bool:
        """Whether the value of a name of the module says nothing of the code: because it may be another in each
        process, or at another time. ``place``: so says where something is; what stands there is another matter."""
        if name in self.rebound or (not scalar and name in self.filled) or depth > _DEEP:
            return True
        made = self.bindings.get(name, [])
        if not scalar and any(map(_made_empty, made)):
            return True
        parts = [part for node in made for part in ast.walk(node) if isinstance(part, ast.Name | ast.Attribute)]
        read = {part.id if isinstance(part, ast.Name) else part.attr for part in parts}
        place = place and read.isdisjoint(_READS)
        if not read.isdisjoint(_VOLATILE) or (place and not read.isdisjoint(_PLACES)):
            return True
        others = (other for other in read if other in self.bindings and other != name)
        return any(self.is_volatile(other, True, depth + 1, place) for other in others)

    def text(self, node: ast.AST) -> str:
        """The lines of a node."""
        end = getattr(node, "end_lineno", None) or _begin(node)
        return textwrap.dedent("".join(self._lines[_begin(node) - 1 : end])).rstrip()

    def shown(self, node: ast.AST, scope: Mapping[str, Any], defaults: bool) -> Meaning:
        """What matters of a function."""
        known = self._shown.get((node, defaults))
        if known is None:
            shown = Shown(scope, defaults)
            known = Meaning(shown.of(node), shown.outside(node), sorted(uses(node)), list(imports_of(node)))
            self._shown[node, defaults] = known
        return known

    @functools.cached_property
    def codes(self) -> set[types.CodeType]:
        """What the file is now, compiled."""
        return set(_codes(compile(self.whole, self.path, "exec", dont_inherit=True)))


def _made_empty(node: ast.stmt) -> bool:
    """Whether a statement makes something that is there to be filled."""
    value = getattr(node, "value", None)
    if isinstance(value, ast.Call):
        return getattr(value.func, "id", getattr(value.func, "attr", "")) in _MADE_EMPTY
    return isinstance(value, ast.Dict | ast.List) and not (value.keys if isinstance(value, ast.Dict) else value.elts)


def _filled(node: ast.AST) -> Iterator[str]:
    """The name of what a piece of a function changes, if it does."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _FILLING:
        held: ast.AST = node.func.value
    elif isinstance(node, ast.Subscript | ast.Attribute) and not isinstance(node.ctx, ast.Load):
        held = node.value
    else:
        return
    if isinstance(held, ast.Name):
        yield held.id


def _times_bound(function: ast.AST, name: str) -> int:
    """How often a function gives a name of its own a value; more than once also if functions inside it do."""
    times = sum(part.arg == name for part in ast.walk(function.args) if isinstance(part, ast.arg))  # type: ignore[attr-defined]
    body = function.body  # type: ignore[attr-defined]
    left: list[ast.AST] = [*body] if isinstance(body, list) else [body]
    while left:
        part = left.pop()
        if isinstance(part, _FUNCTIONS):
            times += getattr(part, "name", "") == name
            times += 2 * any(name in inner.names for inner in ast.walk(part) if isinstance(inner, ast.Nonlocal))
            continue
        times += isinstance(part, ast.Name) and part.id == name and isinstance(part.ctx, ast.Store)
        left += ast.iter_child_nodes(part)
    return times


def _begin(node: ast.AST) -> int:
    return min(part.lineno for part in (node, *getattr(node, "decorator_list", ())))  # type: ignore[no-any-return]


def _bound(node: ast.AST) -> Iterator[str]:
    """The names of a module that a statement gives a value, or whose value it changes."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        if node.decorator_list:
            yield node.name
        return
    targets: list[ast.AST] = list(getattr(node, "targets", ()))
    targets += [node.target] if isinstance(node, ast.AnnAssign | ast.AugAssign) else []
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
        targets.append(node.value.func)
    while targets:
        target = targets.pop()
        if isinstance(target, ast.Name):
            yield target.id
        elif isinstance(target, ast.Tuple | ast.List):
            targets += target.elts
        elif isinstance(target, ast.Attribute | ast.Subscript | ast.Starred):
            targets.append(target.value)


_FILES: Final[dict[str, CodeFile | None]] = {}
"""what was read"""


def code_file(path: str) -> CodeFile | None:
    """What stands in a file of code, or in a cell of a notebook, as it was when this was first asked; None if there is
    none."""
    if not path or path.endswith((".so", ".pyd")):
        return None
    if path not in _FILES:
        _FILES[path] = _read(path)
    return _FILES[path]


def _read(path: str) -> CodeFile | None:
    linecache.checkcache(path)
    lines = linecache.getlines(path)
    try:
        return CodeFile(path, lines) if lines else None
    except (SyntaxError, ValueError, RecursionError):
        return None


def _is_newer(path: str) -> bool:
    """Whether a file was changed, or put there, since this process began."""
    try:
        said = os.stat(path)
    except OSError:  # a cell of a notebook, say
        return False
    return max(said.st_mtime, said.st_ctime) > _BEGAN


def is_loaded(path: str, scope: Mapping[str, Any]) -> bool:
    """Whether a file says what a module was made of, as far as its functions tell."""
    source = code_file(path)
    if source is None or not _is_newer(path):
        return True
    made = (held.__code__ for held in scope.values() if isinstance(held, types.FunctionType))
    return all(code in source.codes for code in made if code.co_filename == path)


def _parsed(source: str) -> ast.Module:
    """The syntax tree. CPython 3.11 gives up with SystemError if a garbage collection in the middle runs code."""
    try:
        return ast.parse(source)
    except SystemError:
        return ast.parse(source)


def node_of(fn: types.FunctionType) -> tuple[ast.AST, CodeFile] | None:
    """The syntax of a function, and its file; None if it is not to be found, or is not what is executed."""
    path = fn.__code__.co_filename
    linecache.lazycache(path, fn.__globals__)
    source = code_file(path)
    if source is None:
        return None
    if _is_newer(path) and fn.__code__ not in source.codes:  # it was loaded anew, perhaps
        again = _read(path)
        if again is None or fn.__code__ not in again.codes:
            return None
        source = _FILES[path] = again
    found = source.functions.get(fn.__code__.co_firstlineno, [])
    named = [node for node in found if getattr(node, "name", "<lambda>") == fn.__code__.co_name]
    return (named[0], source) if len(named) == 1 else None


def home_of(name: str, scope: Mapping[str, Any], ours: Callable[[str, str], bool]) -> tuple[Mapping[str, Any], str]:
    """The module that a name was imported from, and its name there. ``ours``: whether a module, with its file, is one
    to look into."""
    while ours(str(scope.get("__name__", "")), path := str(scope.get("__file__") or "")):
        source = code_file(path)
        if source is None or name in source.bindings or name not in source.imported:
            break
        level, module, there = source.imported[name]
        other = sys.modules.get(absolute(level, module, scope))
        if other is None or there not in vars(other):
            break
        scope, name = vars(other), there
    return scope, name


def absolute(level: int, module: str, scope: Mapping[str, Any]) -> str:
    """The whole name of a module that is imported in a module, with so many dots in front."""
    package = str(scope.get("__package__") or "")
    above = package.rsplit(".", level - 1)[0] if level > 1 else package
    return f"{above}.{module}".strip(".") if level else module


def file_of(module: str) -> str:
    """The file of a module, without importing anything; "" if there is none."""
    path: Any = None
    found = None
    name = ""
    for part in module.split("."):
        name = f"{name}.{part}".strip(".")
        found = importlib.machinery.PathFinder.find_spec(name, path)
        if found is None:
            return ""
        path = found.submodule_search_locations
    return (found.origin or "") if found is not None and found.has_location else ""


# -- syntax -----------------------------------------------------------------------------------------------------------


def uses(node: ast.AST) -> set[tuple[str, tuple[str, ...]]]:
    """Names that a piece of code reads, each with the attributes that it asks them for."""
    found: set[tuple[str, tuple[str, ...]]] = set()
    left: list[ast.AST] = [node]
    while left:
        part = left.pop()
        attributes: list[str] = []
        base = part
        while isinstance(base, ast.Attribute):
            attributes.insert(0, base.attr)
            base = base.value
        if isinstance(base, ast.Name):
            found.add((base.id, tuple(attributes)))
        else:
            left += ast.iter_child_nodes(base)
    return found


def imports_of(node: ast.AST) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Modules that a function imports: (level, module, names of it)."""
    for part in ast.walk(node):
        if isinstance(part, ast.ImportFrom):
            yield part.level, part.module or "", tuple(alias.name for alias in part.names)
        elif isinstance(part, ast.Import):
            yield from ((0, alias.name, ()) for alias in part.names)


class Shown:
    """A piece of code as a text in which only what matters stands."""

    def __init__(self, scope: Mapping[str, Any], defaults: bool) -> None:
        self._scope, self._defaults = scope, defaults

    def of(self, node: object) -> str:
        return self._of(node, top=True)

    def outside(self, node: ast.AST) -> set[str]:
        """Names that the module's code around a function uses: its decorators and defaults."""
        parts = self._foreign(node)
        arguments = getattr(node, "args", None)
        if self._defaults and isinstance(arguments, ast.arguments):
            parts += [*arguments.defaults, *(default for default in arguments.kw_defaults if default is not None)]
        return {name for part in parts for name, _ in uses(part)}

    def _foreign(self, node: ast.AST) -> list[ast.expr]:
        """Decorators that are not Perdure's."""
        return [d for d in getattr(node, "decorator_list", ()) if not self._is_perdure(d)]

    def _is_perdure(self, decorator: ast.expr) -> bool:
        named: ast.expr = decorator.func if isinstance(decorator, ast.Call) else decorator
        while isinstance(named, ast.Attribute | ast.Call):
            named = named.value if isinstance(named, ast.Attribute) else named.func
        held = self._scope.get(named.id) if isinstance(named, ast.Name) else None
        told = held.__name__ if isinstance(held, types.ModuleType) else getattr(held, "__module__", None)
        return f"{told}.".startswith("perdure.")

    def _of(self, node: object, top: bool = False, inside: bool = False) -> str:
        if isinstance(node, list):
            kept = [part for part in node if not (inside and isinstance(part, ast.AnnAssign) and part.value is None)]
            return "[" + ",".join(self._of(part, top, inside) for part in kept) + "]"
        if not isinstance(node, ast.AST):
            return repr(node)
        if inside and isinstance(node, ast.AnnAssign):
            return self._of(ast.Assign([node.target], node.value or ast.Constant(None)))
        fields = dict(ast.iter_fields(node))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            fields["decorator_list"] = self._foreign(node)
            if not fields["decorator_list"] and ast.get_docstring(node, clean=False) is not None:
                fields["body"] = node.body[1:]
            inside = not isinstance(node, ast.ClassDef)
        if isinstance(node, _FUNCTIONS):
            fields.pop("returns", None)
            fields.pop("name" if top else "", None)
            fields["args"] = _plain(node.args, self._defaults or not top)
        if isinstance(node, ast.arg):
            fields.pop("annotation", None)
        told = [
            f"{name}={self._of(value, inside=inside)}"
            for name, value in fields.items()
            if name not in _UNSEEN and value is not None and value != []
        ]
        return f"{type(node).__name__}({','.join(told)})"


def _plain(arguments: ast.arguments, defaults: bool) -> ast.arguments:
    if defaults:
        return arguments
    kept = {name: value for name, value in ast.iter_fields(arguments) if name not in ("defaults", "kw_defaults")}
    return ast.arguments(**kept, defaults=[], kw_defaults=[])
