"""Which functions compute what a function or a class of the user's computes: what they wrap, bind and lead to."""

from __future__ import annotations

import functools
import inspect
import linecache
import os
import re
import sys
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import nn

from archgrad.code_changes import LIBRARIES, changes, names
from archgrad.digests import digest
from archgrad.plain_values import is_path

_INSTALLED = re.compile(r"[\\/](?:site|dist)-packages[\\/]")
_MOST = 100  # decorators of one function
# Variables of the environment that say where a process runs, how it talks, or what lets it in: not what it computes.
_OF_PYTHON = (
    "UNBUFFERED|PATH|HOME|STARTUP|DONTWRITEBYTECODE|WARNINGS|IOENCODING|UTF8|FAULTHANDLER|OPTIMIZE|DEBUG|VERBOSE"
    "|NOUSERSITE|PYCACHEPREFIX|INSPECT|EXECUTABLE|USERBASE|PLATLIBDIR|SAFEPATH|CASEOK|TRACEMALLOC|PROFILEIMPORTTIME"
    "|ASYNCIODEBUG|MALLOC|MALLOCSTATS|COERCECLOCALE|DEVMODE|WARNDEFAULTENCODING|NODEBUGRANGES|PERFSUPPORT|BREAKPOINT"
    "|INTMAXSTRDIGITS|DUMPREFS|_(COLORS|GIL|JIT|CPU_COUNT|FROZEN_MODULES|BASIC_REPL|HISTORY|PERF_JIT_SUPPORT)"
)
_WHERE = re.compile(
    r"((LOCAL_|GROUP_|NODE_|ROLE_)?RANK|(LOCAL_)?WORLD_SIZE|MASTER_(ADDR|PORT)|(.*_)?VISIBLE_DEVICES|.*_NUM_THREADS"
    r"|(SLURM|PBS|LSB|OMPI|PMI|PMIX|NCCL|GLOO|TORCHELASTIC|WANDB|LC|XDG|SSH|GITHUB)_.*|JOB_ID|HOST|HOSTNAME|HOME"
    r"|USER|USERNAME|LOGNAME|PWD|OLDPWD|SHELL|TMP|TEMP|LANG|LANGUAGE|TZ|TERM|COLUMNS|LINES|(NO|FORCE)_COLOR|CI"
    rf"|DEBUG|VERBOSE|QUIET|LOG_?LEVEL|TOKENIZERS_PARALLELISM|DISPLAY|EDITOR|PAGER|PYTHON({_OF_PYTHON})"
    r"|(.*_)?(ROOT|DIR|DIRECTORY|FOLDER|(?<!drop_)PATH|FILE|HOME|TMPDIR|TEMPDIR|URL|URI|DSN))",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[-+.\deE]{1,24}")
_SECRET = re.compile(
    r"SECRET|PASSWORD|PASSPHRASE|CREDENTIAL|(API|ACCESS|AUTH)_?(KEY|TOKEN)S?(_ID)?$"
    r"|(^|_)(?<!(?:max|num|pad|eos|bos|cls|sep|unk)_)(?<!mask_)(TOKEN|KEY|PASS|PASSWD|PAT|AUTH)$",
    re.IGNORECASE,
)


def is_own(thing: Any) -> bool:
    """Whether a function or class is code of the user's."""
    return is_own_name(str(getattr(thing, "__module__", None) or ""))


def is_own_name(module: str) -> bool:
    """Whether a module of that name is the user's, or of a package that is not looked into as a library."""
    return module.partition(".")[0] not in LIBRARIES


def written_here(kind: type) -> bool:
    """Whether a class is of the user's own project, and of no package that is installed."""
    place = str(getattr(sys.modules.get(kind.__module__), "__file__", None) or "")
    return is_own(kind) and not _INSTALLED.search(place)


def layers_of(function: Any) -> list[FunctionType]:
    """A function and what it wraps, the user's of its decorators first, the function itself last."""
    layers, inner = list[FunctionType](), function
    while isinstance(further := _wrapped(inner), FunctionType) and len(layers) < _MOST:
        if isinstance(inner, FunctionType) and is_own_name(str(inner.__globals__.get("__name__", ""))):
            layers.append(inner)
        inner = further
    return [*layers, inner] if isinstance(inner, FunctionType) else layers


def bound_by(function: FunctionType) -> dict[str, Any]:
    """What a function has bound: the variables of the functions around it, and of a user's its defaults."""
    values: dict[str, Any] = {}
    stored = changes(function.__code__).stored
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            values[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    if is_own(function):
        given = function.__defaults__ or ()
        first = function.__code__.co_argcount - len(given)
        values |= dict(zip(function.__code__.co_varnames[first:], given, strict=False))
        values |= function.__kwdefaults__ or {}
    return {name: value for name, value in values.items() if name not in stored}


def environment_read() -> dict[str, str]:
    """Variables of the environment that the user's modules name, where they read any: numbers, and digests of texts.

    Left out is what says where a process runs, how it talks or where things lie, and what may be secret.
    """
    named = set[str]()
    for module in list(sys.modules.values()):
        values = vars(module) if isinstance(module, ModuleType) else {}
        if is_own_name(str(values.get("__name__"))) and not _INSTALLED.search(str(values.get("__file__"))):
            codes = [each.__code__ for entry in list(values.values()) for each in _functions(entry, values)]
            codes += _own_code(values)
            if any({"environ", "getenv", "environb"} & {*names(code)} for code in codes):
                named |= {text for code in codes for text in _texts(code)}
    held = {name: os.environ[name] for name in sorted(named) if name.isidentifier() and name in os.environ}
    kept = {name: value for name, value in held.items() if not (_WHERE.fullmatch(name) or _SECRET.search(name))}
    return {n: v if _NUMBER.fullmatch(v) else f"#{digest(v)}" for n, v in kept.items() if not is_path(v)}


def _own_code(values: dict[str, Any]) -> list[CodeType]:
    """What a module runs when it is imported, from its source where that reads the environment: Python forgets it."""
    text = "".join(linecache.getlines(str(values.get("__file__")), values))
    return _compiled_module(text) if "environ" in text or "getenv" in text else []


@functools.lru_cache(maxsize=64)
def _compiled_module(text: str) -> list[CodeType]:
    try:
        return [compile(text, "module", "exec", dont_inherit=True)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _functions(entry: Any, values: dict[str, Any]) -> list[FunctionType]:
    """The functions of a module, which holds these values, in an entry of it."""
    try:
        found = [each for _, each in functions_in(entry)] if isinstance(entry, type) else layers_of(entry)
    except Exception:  # noqa: BLE001 - an object of the user's may raise anything
        return []
    return [each for each in found if each.__globals__ is values]


def _texts(constant: object) -> set[str]:
    """The texts in a constant of code, such as the code of a function, or a tuple."""
    inside = constant.co_consts if isinstance(constant, CodeType) else constant
    if not isinstance(inside, tuple | frozenset):
        return {inside} if isinstance(inside, str) else set()
    return set[str]().union(*map(_texts, inside))


def functions_in(kind: type) -> list[tuple[str, FunctionType]]:
    """The functions in a class of the user's and in those of their project that it inherits from, by name."""
    found = dict[str, FunctionType]()
    for base in own_bases(kind):
        for name, entry in vars(base).items():
            inside = [getattr(entry, part, None) for part in ("__func__", "fget", "fset", "func", "__wrapped__")]
            parts = [f for f in (entry, *inside) if isinstance(f, FunctionType)]
            found |= {f"{name} {number}": part for number, part in enumerate(parts)}
    return sorted(found.items())


def own_bases(kind: type) -> list[type]:
    """A class of the user's and those of their project that it inherits from, the class last."""
    return [base for base in reversed(kind.__mro__) if is_own(base) and (base is kind or written_here(base))]


def reached_by(kind: type, *start: str) -> list[tuple[str, FunctionType]]:
    """Methods and properties of a class and those that they name, and so on, by name."""
    pending, reached = [*start], dict[str, FunctionType]()
    while pending:
        name = pending.pop()
        if name in reached:
            continue
        entry = inspect.getattr_static(kind, name, None)
        # Such as `x.float()`, which names a method of every module.
        if entry is None or vars(nn.Module).get(name) is entry or vars(object).get(name) is entry:
            continue
        parts = [entry, *(getattr(entry, part, None) for part in ("__func__", "fget", "func"))]
        for number, method in enumerate(layer for part in parts for layer in layers_of(part)):
            reached[f"{name} {number}" if number else name] = method
            pending += names(method.__code__)
    return sorted(reached.items())


def _wrapped(thing: Any) -> Any:
    try:
        return getattr(thing, "__wrapped__", None)
    except Exception:  # noqa: BLE001 - an object of the user's may raise anything
        return None
