"""The Python code of Trunkline's API, generated from the .proto files of this repository.

The repository contains no generated code: this module generates it into a temporary folder when
it is first imported. In your own project, generate it once and keep it:

    python -m grpc_tools.protoc -I proto --python_out=. --grpc_python_out=. trunkline/v1/*.proto
"""

import pathlib
import sys
import tempfile

import grpc_tools
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
FILES = ["trunkline/v1/event.proto", "trunkline/v1/coordination_service.proto"]


def _generate(folder: str) -> None:
    # The folder of timestamp.proto and others.
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    status = protoc.main(
        [
            "protoc",
            f"-I{PROTO}",
            f"-I{well_known}",
            f"--python_out={folder}",
            f"--grpc_python_out={folder}",
            *FILES,
        ]
    )
    if status != 0:
        raise ImportError(f"the .proto files in {PROTO} do not compile")


with tempfile.TemporaryDirectory(prefix="trunkline-stubs-") as _folder:
    _generate(_folder)
    sys.path.insert(0, _folder)
    try:
        from trunkline.v1 import coordination_service_pb2 as service
        from trunkline.v1 import coordination_service_pb2_grpc as service_grpc
        from trunkline.v1 import event_pb2 as event
    finally:
        sys.path.remove(_folder)

__all__ = ["event", "service", "service_grpc"]
