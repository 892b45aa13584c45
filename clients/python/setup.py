"""Adds the generated code to what is built: pyproject.toml has the rest."""

import pathlib
import re
import shutil
import sys
import tempfile

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import stubs


def gencode_version() -> str:
    """The version of protobuf that the generated code needs at least."""
    with tempfile.TemporaryDirectory() as folder:
        stubs.generate(folder)
        code = pathlib.Path(folder, "trunkline/v1/event_pb2.py").read_text()
    found = re.search(r"^# Protobuf Python Version: ([0-9.]+)$", code, re.MULTILINE)
    return found[1] if found else "4.25"


class BuildWithStubs(build_py):
    def run(self) -> None:
        super().run()
        stubs.generate(self.build_lib)


class SourceWithProto(sdist):
    def make_release_tree(self, base_dir: str, files: list) -> None:
        super().make_release_tree(base_dir, files)
        shutil.copytree(stubs.PROTO, pathlib.Path(base_dir, "proto"), dirs_exist_ok=True)
        shutil.copy(stubs.HERE / "stubs.py", base_dir)


setup(
    cmdclass={"build_py": BuildWithStubs, "sdist": SourceWithProto},
    install_requires=[
        "grpcio>=1.60",
        f"protobuf>={gencode_version()}",
        "googleapis-common-protos>=1.60",
    ],
)
