"""Build backend (PEP 517, PEP 660): setuptools' own, which here also finds the torch of the target environment.

An isolated build hides the environment that the package is installed into. Listing torch as a build requirement
would fetch gigabytes, and of another version than the one in use. So the installed torch is looked up where the target
environment keeps its packages and put at the end of sys.path: at the end, so that setuptools and the other build
requirements still come from the isolated environment. uv hides even these folders; setup.py
then compiles without torch.
"""

from __future__ import annotations

import importlib.util
import os
import site
import sys
import sysconfig
from collections.abc import Iterable

from setuptools import build_meta

build_sdist = build_meta.build_sdist
get_requires_for_build_sdist = build_meta.get_requires_for_build_sdist
get_requires_for_build_wheel = build_meta.get_requires_for_build_wheel
get_requires_for_build_editable = build_meta.get_requires_for_build_editable
prepare_metadata_for_build_wheel = build_meta.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_editable


def target_directories() -> list[str]:
    """Where the target environment keeps its packages. pip leaves sys.prefix as it is, so these are its folders."""
    paths = sysconfig.get_paths()
    return list(
        dict.fromkeys([paths["platlib"], paths["purelib"], *site.getsitepackages(), site.getusersitepackages()])
    )


def find_torch(directories: Iterable[str]) -> str | None:
    """The first directory that holds an installed torch."""
    for directory in directories:
        if os.path.isfile(os.path.join(directory, "torch", "version.py")):
            return directory
    return None


def expose_torch() -> None:
    """Makes the target environment's torch importable, if there is one to be found."""
    if importlib.util.find_spec("torch") is None:
        directory = find_torch(target_directories())
        if directory is not None:
            sys.path.append(directory)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    expose_torch()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    expose_torch()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
