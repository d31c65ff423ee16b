"""The generated stubs are those of the .proto files."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_checked_in_stubs_are_those_that_protoc_generates(tmp_path):
    subprocess.run([sys.executable, ROOT / "tools" / "generate_stubs.py", tmp_path], check=True, timeout=60)
    generated = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.py*"))
    assert len(generated) >= 4
    for path in generated:
        fresh, checked_in = (tmp_path / path).read_text(), (ROOT / "protos" / path).read_text()
        assert fresh == checked_in, f"protos/{path} has drifted from its source: run `make protos`"


def test_every_field_and_value_of_the_protocol_is_documented():
    undocumented = []
    for proto in (ROOT / "protos").rglob("*.proto"):
        lines = proto.read_text().splitlines()
        for number, line in enumerate(lines):
            declares = " = " in line and line.startswith("  ") and line.rstrip().split("//")[0].rstrip().endswith(";")
            if declares and "//" not in line:
                undocumented.append(f"{proto.name}:{number + 1}: {line.strip()}")
    assert undocumented == []
