"""Compiled loops, optional: without a C compiler cgnn installs too, and runs on torch and numpy alone."""

import os
import platform

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
FLAGS = [
    "-O3",
    "-std=gnu11",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    *(["-mprefer-vector-width=512"] if IS_X86 else []),
]
# No -ffast-math: it would let the linker switch denormals off for the whole process, and NaN must stay NaN.


class BuildKernels(build_ext):
    """Compile with OpenMP where the compiler has it."""

    def build_extension(self, extension: Extension) -> None:
        """Compile one library, a second time without threads if need be."""
        plain = list(extension.extra_compile_args)
        try:
            extension.extra_compile_args = [*plain, "-fopenmp"]
            extension.extra_link_args = ["-fopenmp"]
            super().build_extension(extension)
        except Exception:
            extension.extra_compile_args, extension.extra_link_args = plain, []
            super().build_extension(extension)


setup(
    cmdclass={"build_ext": BuildKernels},
    ext_modules=[
        Extension(
            f"cgnn.kernels._{name}",
            [f"cgnn/kernels/{name}.c"],
            depends=["cgnn/kernels/edges.h"] if name in ("gate", "edgewise") else [],
            libraries=["m"] if os.name == "posix" else [],
            extra_compile_args=FLAGS,
            optional=True,
        )
        for name in ("gate", "edgewise", "neighbors", "trees")
    ],
)
