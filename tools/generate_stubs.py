"""Generate the Python stubs of every .proto file next to its source, or into another root given as first argument."""

import os
import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent.parent / "protos"


def generate(out: Path) -> None:
    """Write messages, services and their typed ``.pyi`` files of all protos into ``out``.

    Raises:
        RuntimeError: when protoc refuses a source; its own message is on stderr.
    """
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    sources = sorted(str(path) for path in PROTOS.rglob("*.proto"))
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # protoc-gen-mypy
    arguments = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    if protoc.main(["protoc", f"-I{PROTOS}", f"-I{well_known}", *arguments, *sources]) != 0:
        raise RuntimeError(f"protoc refused one of {sources}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTOS)
