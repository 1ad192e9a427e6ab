"""Puts the compiled cutter into a wheel, which then is for one kind of machine. Without a compiler, the wheel is for all and has no cutter.

https://hatch.pypa.io/latest/plugins/build-hook/custom/
"""

import importlib.util
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CutterHook(BuildHookInterface[Any]):
    """Compiles the cutter when a wheel is built. An editable installation compiles it in place: ``deploy/setup.sh``."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the library to the files of the wheel, and the machine to its name."""
        if version == "editable":
            return
        spec = importlib.util.spec_from_file_location("compile", Path(self.root, "activities", "render", "compile.py"))
        assert spec is not None and spec.loader is not None  # noqa: S101, PT018 - the file is part of this project
        compiling = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(compiling)
        library = compiling.library_path(Path(tempfile.mkdtemp()))
        try:
            compiling.compile_cutter(library)
        except compiling.NoCompiler as error:
            self.app.display_warning(f"the wheel has no cutter, so tiles are cut by libvips: {error}")
            return
        build_data["force_include"][str(library)] = f"activities/render/{library.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
