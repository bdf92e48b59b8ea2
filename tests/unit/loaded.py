"""Salt's files as modules without Salt's loader; they reach each other through ``__salt__``."""

import importlib.util
import inspect
import pathlib

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

REPO = pathlib.Path(__file__).resolve().parents[2]


def load(path, **dunders):
    """Return a file of the repository as a module of its own, ``salt`` as its ``__salt__``."""
    name = path.replace("/", "_").rpartition(".")[0]
    spec = importlib.util.spec_from_file_location(f"loaded{name}", REPO / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for key, value in {"salt": {}, **dunders}.items():
        setattr(module, f"__{key}__", value)
    return module


def public(module):
    """Return what Salt offers of a module: its own functions by name."""
    own = inspect.getmembers(module, lambda f: getattr(f, "__module__", "") == module.__name__)
    return {n: f for n, f in own if inspect.isfunction(f) and not n.startswith("_")}


def modules(*names, opts=None, **functions):
    """Return the ``__salt__`` of minion hv1: execution modules by name, and ``functions``."""
    salt, opts = dict(functions), opts or {"id": "hv1"}
    for name in names:
        module = load(f"_modules/{name}.py", salt=salt, opts=opts)
        prefix = getattr(module, "__virtualname__", name)
        salt.update({f"{prefix}.{n}": f for n, f in public(module).items()})
    return salt


def fails(words):
    """Expect that the world is wrong, in these words."""
    return pytest.raises(CommandExecutionError, match=words)


def refuses(words):
    """Expect that the caller is wrong, in these words."""
    return pytest.raises(SaltInvocationError, match=words)
