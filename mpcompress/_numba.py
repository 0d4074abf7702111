"""How this library compiles its kernels: numba with explicit signatures, without the GIL, cached wherever possible.

A kernel with signatures is compiled, or loaded from the cache, when its module is imported, so that no request ever
waits for a compiler; one that few programs call, when it is first called or by `warm_up`. Machine code is looked for,
and after a compilation kept, in

    $MPCOMPRESS_CACHE_DIR                 when set; nowhere else then
    __pycache__ next to the source        otherwise, when it can be written
    the user's cache directory            otherwise

A directory that cannot be written is still read, so a cache prebuilt into a read-only image (`warm_up` with the
variable set) works; when nothing can be written, nothing is cached, silently. numba's own locators raise in that case,
and before 0.68 they compared modification times, which image layers truncate. Here a file's name is the hash of all
that the machine code depends on: the sources of the kernel and of those it calls, its constants, signature, options,
CPU, Python and numba. A cache for machines with different CPUs needs NUMBA_CPU_NAME=generic when it is made and used.
The files are pickles: whoever can write the directory can run code, as with `__pycache__`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import inspect
import os
import pickle
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numba
from numba.core import typeinfer
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps
from numba.extending import is_jitted

from mpcompress._numba_memory import remembering
from mpcompress._numba_pipeline import HelperDispatcher, KernelCompiler

__all__ = ["CACHE_DIR_VARIABLE", "KERNEL_MODULES", "njit", "types", "warm_up"]

CACHE_DIR_VARIABLE = "MPCOMPRESS_CACHE_DIR"
"""Environment variable that names the cache directory."""

KERNEL_MODULES = (
    "mpcompress.entropy.rans",
    "mpcompress.entropy.compressai_format",
    "mpcompress.exact.kernels",
    "mpcompress.latent_codecs._kernels",
    "mpcompress.transforms.half",
    "mpcompress.transforms.klt_filter",
    "mpcompress.transforms.klt_fit_weights",
    "mpcompress.transforms.klt_haar",
    "mpcompress.transforms.klt_inverse",
    "mpcompress.transforms.klt_kernels",
    "mpcompress.transforms.klt_lookahead",
    "mpcompress.transforms.klt_products",
)
"""Every module with kernels of its own; `warm_up` imports them all."""

# ZeroDivisionError would need the GIL. Nobody calls a kernel from C, or a helper but from kernels: an eighth of the
# time to compile them went into wrappers, and a sixth into counting references to arrays, which Python holds anyway.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True, "_nrt": False}
_HELPER_OPTIONS: dict[str, Any] = {"no_cpython_wrapper": True}

# numba's own annotations come and go between versions.
_rebuild: Any = CompileResult._rebuild
_dumps: Any = dumps
_is_jitted: Any = is_jitted
_config: Any = vars(numba)["config"]

types: Any = vars(numba)["types"]
"""`numba.types`, to write signatures with."""

F = TypeVar("F", bound=Callable[..., Any])


def njit(*signatures: Any, lazy: bool = False, allocates: bool = False, **options: Any) -> Callable[[F], F]:
    """Compile a function in nopython mode without the GIL.

    With signatures: now, or when it is first called if `lazy`, from the cache when possible; other argument types are
    then a TypeError. Without: a helper that becomes part of the kernels that call it, and of their cached code, and
    that Python cannot call. One that makes arrays must say that it `allocates`.
    """
    options = _OPTIONS | ({} if signatures else _HELPER_OPTIONS) | ({"_nrt": True} if allocates else {}) | options

    def decorate(function: F) -> Any:
        dispatcher: Any = numba.njit(pipeline_class=KernelCompiler, **options)(function)
        if not _is_jitted(dispatcher):  # plain Python under NUMBA_DISABLE_JIT
            return dispatcher
        if not signatures:
            dispatcher.__class__ = HelperDispatcher
            return dispatcher

        def compiled() -> Any:
            dispatcher._cache = _KernelCache(function, options)
            with typeinfer.register_dispatcher(dispatcher), remembering():
                for signature in signatures:
                    dispatcher.compile(signature)
                dispatcher.disable_compile()
            return dispatcher

        return _Lazy(compiled) if lazy else compiled()

    return decorate


def warm_up() -> None:
    """Compile, or load from the cache, every kernel of the library: before serving, or while an image is built."""
    for name in KERNEL_MODULES:
        importlib.import_module(name)
    for kernel in _Lazy.all:
        kernel.compiled()


class _Lazy:
    """A kernel that is compiled when it is first called."""

    all: ClassVar[list[_Lazy]] = []

    def __init__(self, compile_now: Callable[[], Any]) -> None:
        self._compile_now, self._lock = compile_now, threading.Lock()
        self._kernel: Any = None
        self.all.append(self)

    def compiled(self) -> Any:
        """The dispatcher."""
        with self._lock:
            if self._kernel is None:
                self._kernel = self._compile_now()
        return self._kernel

    def __call__(self, *args: Any) -> Any:
        return (self._kernel or self.compiled())(*args)


class _KernelCache(NullCache):
    """The compiled forms of one function, one file each; missing, damaged and unwritable files count as absent."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        source = Path(inspect.getfile(function))
        self._allocates = options["_nrt"]
        self._stem = f"{source.stem}.{function.__qualname__}"
        self._directories = list(_directories(source))
        self._stamp = _stamp(function, options)

    @property
    def cache_path(self) -> str:
        return str(self._directories[0])

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        if self._allocates:  # else a third of a second: numba imports what it needs only to compile, scipy too
            target_context.refresh()
        name = self._name(sig, target_context.codegen())
        for directory in self._directories:
            # A truncated or foreign file can fail in any way; compiling again is always right.
            with contextlib.suppress(Exception):
                payload = pickle.loads((directory / name).read_bytes())  # noqa: S301 (our own machine code)
                return _rebuild(target_context, *payload)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        name = self._name(sig, data.codegen)
        payload = _dumps(data._reduce())
        for directory in self._directories:
            temporary = directory / f"{name}.{uuid.uuid4().hex}.tmp"  # replaced in one step: readers see all or nothing
            try:
                directory.mkdir(parents=True, exist_ok=True)
                temporary.write_bytes(payload)
                temporary.replace(directory / name)
            except OSError:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
            else:
                return

    def _name(self, sig: Any, codegen: Any) -> str:
        machine = repr((sig, codegen.magic_tuple()))
        return f"{self._stem}-{hashlib.sha256((self._stamp + machine).encode()).hexdigest()[:24]}.nbc"


def _directories(source: Path) -> Iterator[Path]:
    chosen = os.environ.get(CACHE_DIR_VARIABLE)
    if chosen:
        yield Path(chosen)
        return
    yield source.parent / "__pycache__"
    import platformdirs  # 10 ms that a chosen directory saves

    yield platformdirs.user_cache_path("mpcompress") / "kernels"


def _stamp(function: Callable[..., Any], options: dict[str, Any]) -> str:
    """Hash what the machine code of a function depends on, apart from its signature and the machine."""
    digest = hashlib.sha256()
    # A set has another order in every process.
    chosen = sorted((name, sorted(value) if isinstance(value, set) else value) for name, value in options.items())
    digest.update(repr((sys.version_info[:2], numba.__version__, chosen)).encode())
    digest.update(repr((_config.BOUNDSCHECK, _config.OPT)).encode())
    seen: set[str] = set()
    pending = [function]
    while pending:
        current = pending.pop()
        name = f"{current.__module__}.{current.__qualname__}"
        if name in seen:
            continue
        seen.add(name)
        digest.update(name.encode() + _source(inspect.getfile(current)))
        for word in sorted(current.__code__.co_names):
            value: Any = current.__globals__.get(word)
            if _is_jitted(value):
                pending.append(value.py_func)
            elif isinstance(value, (bool, int, float, str)):
                digest.update(f"{word}={value!r}".encode())
    return digest.hexdigest()


@functools.cache
def _source(path: str) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()
