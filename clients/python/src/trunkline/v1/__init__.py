"""The messages of Trunkline's wire API, as `proto/trunkline/v1` defines them."""

import pathlib as _pathlib
import runpy as _runpy
import tempfile as _tempfile

_here = _pathlib.Path(__file__).resolve().parent
if (_here / "event_pb2.py").exists():
    from .coordination_service_pb2 import *
    from .event_pb2 import *
else:
    # A checkout of the repository, which contains no generated code.
    with _tempfile.TemporaryDirectory(prefix="trunkline-stubs-") as _folder:
        _runpy.run_path(str(_here.parents[2] / "stubs.py"))["generate"](_folder)
        __path__.append(str(_pathlib.Path(_folder, "trunkline", "v1")))
        from .coordination_service_pb2 import *
        from .event_pb2 import *
