"""How numba compiles a kernel here: the passes and the optimisation that kernels need, and no others.

Left out are passes for closures, `with` blocks and array expressions, and of LLVM's the rounds that serve reference
counts. A helper is never compiled on its own: its code is linked into the kernels that call it as numba has made it,
and optimised there. Together a fifth of the time to compile.
"""

from __future__ import annotations

from typing import Any, NoReturn

from numba.core.cgutils import alloca_once
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager, register_pass
from numba.core.lowering import Lower
from numba.core.registry import CPUDispatcher
from numba.core.typed_passes import (
    IRLegalization,
    NativeLowering,
    NoPythonBackend,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.untyped_passes import (
    DeadBranchPrune,
    FixupArgs,
    GenericRewrites,
    IRProcessing,
    ReconstructSSA,
    RewriteSemanticConstants,
    TranslateByteCode,
)

__all__ = ["HelperDispatcher", "KernelCompiler"]

# numba's own annotations come and go between versions.
_alloca: Any = alloca_once
_Compiler: Any = CompilerBase
_Dispatcher: Any = CPUDispatcher
_Library: Any = JITCodeLibrary
_Lower: Any = Lower
_Lowering: Any = NativeLowering
_Passes: Any = PassManager
_register: Any = register_pass


class _KernelLibrary(_Library):  # type: ignore[misc]
    """The code of a kernel: optimised once, when all its helpers are in."""

    def _optimize_functions(self, module: Any) -> None:
        module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        manager, builder = self._codegen._module_pass_manager()
        manager.run(self._final_module, builder)


class _HelperLibrary(_KernelLibrary):
    """The code of a helper, for others to link."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True


class _KernelLower(_Lower):  # type: ignore[misc]
    def alloca_lltype(self, name: str, lltype: Any, datamodel: Any = None) -> Any:
        """A variable. Numba asks LLVM how large each one is, for debuggers."""
        return _alloca(self.builder, lltype, name=name, zfill=False)


@_register(mutates_CFG=True, analysis_only=False)
class _KernelLowering(_Lowering):  # type: ignore[misc]
    """`NativeLowering` into libraries of the above kinds; what no Python may call is a helper."""

    _name = "kernel_lowering"

    @property
    def lowering_class(self) -> Any:
        return _KernelLower

    def run_pass(self, state: Any) -> bool:
        helper = state.flags.no_cpython_wrapper
        library = (_HelperLibrary if helper else _KernelLibrary)(state.targetctx.codegen(), state.func_id.func_qualname)
        library.enable_object_caching()
        state.library, state.flags.no_compile = library, helper
        state.type_annotation = ""  # every variable's type, for who asks: nobody does, and the cache would keep it
        super().run_pass(state)
        if helper:
            state.cr = state.cr._replace(cfunc=library)  # what callers know the helper by
            state.targetctx.insert_user_function(library, state.cr.fndesc, [library])
        return True


_PASSES: tuple[tuple[Any, str], ...] = (
    (TranslateByteCode, "translate bytecode"),
    (FixupArgs, "number the arguments"),
    (IRProcessing, "find definitions"),
    (RewriteSemanticConstants, "recognise arguments that are None"),
    (DeadBranchPrune, "drop what is for others"),
    (GenericRewrites, "recognise constant indices of tuples"),
    (ReconstructSSA, "assign everything once"),
    (NopythonTypeInference, "infer types"),
    (PreLowerStripPhis, "replace phi nodes"),
    (IRLegalization, "insert deletions"),
    (_KernelLowering, "make machine code"),
    (NoPythonBackend, "make a compile result"),
)


class KernelCompiler(_Compiler):  # type: ignore[misc]
    """The `pipeline_class` of kernels and helpers."""

    def define_pipelines(self) -> list[Any]:
        manager = _Passes("kernel")
        for one, what in _PASSES:
            manager.add_pass(one, what)
        manager.finalize()
        return [manager]


class HelperDispatcher(_Dispatcher):  # type: ignore[misc]
    """A helper, which has no machine code of its own that Python could call."""

    def add_overload(self, cres: Any) -> None:
        self.overloads[tuple(cres.signature.args)] = cres

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(f"{self.py_func.__qualname__} is for compiled code only")
