"""`hash_function`: what a function of the user's does, as a hash. A name says nothing: it may have been edited."""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

_PLAIN = (str, bytes, bool, int, float, complex, type(None), type(...))


def hash_function(function: Any) -> str:
    """sha256 over bytecode, constants, defaults, what it closes over, and what it uses of its own module.

    The same in another process on the same Python. Tensors, modules, dataclasses and objects that can be called count
    by content, other objects by class, functions of other modules by name.

    >>> hash_function(lambda x: x + 1) == hash_function(lambda x: x + 1) != hash_function(lambda x: x + 2)
    True
    """
    digest = hashlib.sha256()
    for part in _parts(function, getattr(function, "__module__", None), set()):
        digest.update(f"{len(part)} {part}".encode(errors="surrogatepass"))
    return digest.hexdigest()


def _parts(value: Any, module: str | None, seen: set[int]) -> Iterator[str]:
    if isinstance(value, _PLAIN):
        yield f"{type(value).__name__} {value!r}"
        return
    if id(value) in seen:
        yield "again"
        return
    seen.add(id(value))
    yield type(value).__qualname__
    for inner in _inside(value, module):
        yield from _parts(inner, module, seen)


def _inside(value: Any, module: str | None) -> list[Any]:
    """What decides what `value` does, each in turn looked into."""
    if isinstance(value, CodeType):
        return [value.co_code, value.co_names, *value.co_consts]
    if isinstance(value, FunctionType):
        return _of_function(value, module)
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, list | tuple):
        return [len(value), *value]
    if isinstance(value, set | frozenset):
        return sorted(repr(item) for item in value)
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    if isinstance(value, type | ModuleType):
        return [value.__name__]
    return _of_object(value)


def _of_object(value: Any) -> list[Any]:
    kind = type(value)
    if hasattr(value, "state_dict"):  # a module, such as a probe
        return [value.state_dict(), getattr(kind, "forward", None)]
    if hasattr(value, "detach"):
        value = value.detach().cpu().double().numpy()
    if hasattr(value, "tobytes"):
        return [str(value.dtype), value.shape, value.tobytes()]
    attributes = getattr(value, "__dict__", {})
    if callable(value) and isinstance(kind.__call__, FunctionType):
        return [kind.__call__, attributes]
    return [attributes] if is_dataclass(value) else []  # others change while they live; their class has to do


def _of_function(function: FunctionType, module: str | None) -> list[Any]:
    if function.__module__ != module:
        return [function.__module__, function.__qualname__]
    code, names = function.__code__, set[str]()
    for inner in _nested(code):
        names |= set(inner.co_names)
    globe = function.__globals__
    used = [(name, globe[name]) for name in sorted(names) if name in globe]
    cells = [_content(cell) for cell in function.__closure__ or ()]
    return [code, function.__defaults__, function.__kwdefaults__, cells, used]


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
