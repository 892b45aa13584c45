"""Generates the Python code of Trunkline's messages from the .proto files of this repository.

    python stubs.py FOLDER      writes FOLDER/trunkline/v1/*_pb2.py, and their types

The repository contains no generated code. A wheel does: setup.py calls this. In a checkout,
`trunkline.v1` calls it when it is first imported.
"""

import pathlib
import sys

import grpc_tools
from grpc_tools import protoc

HERE = pathlib.Path(__file__).resolve().parent
# A source distribution has a copy of the .proto files beside this file.
PROTO = next(at / "proto" for at in (HERE, HERE.parents[1]) if (at / "proto").is_dir())
FILES = ["trunkline/v1/event.proto", "trunkline/v1/coordination_service.proto"]


def generate(folder: str) -> None:
    """Writes the code into a folder, which exists."""
    # The folder of timestamp.proto and others.
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    includes = [f"-I{PROTO}", f"-I{well_known}"]
    outputs = [f"--python_out={folder}", f"--pyi_out={folder}"]
    if protoc.main(["protoc", *includes, *outputs, *FILES]) != 0:
        raise ImportError(f"the .proto files in {PROTO} do not compile")


if __name__ == "__main__":
    generate(sys.argv[1])
