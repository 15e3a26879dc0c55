"""`python -m embedserve install-command`: the command that TensorFlow Serving's users know, where it is asked for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from embedserve.__main__ import main


def test_the_command_starts_this_server_and_keeps_its_arguments_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["install-command", str(tmp_path)]) == 0
    command = tmp_path / "tensorflow_model_server"
    assert capsys.readouterr().out == f"{command}\n"
    said = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60)
    assert (said.returncode, said.stdout.startswith("TensorFlow ModelServer: ")) == (0, True)
    refused = subprocess.run([command, "a b", "c"], capture_output=True, text=True, timeout=60)
    assert refused.returncode == 255
    assert "unknown argument: c; one directory of models is enough, and 'a b' is given already" in refused.stderr
    assert main(["install-command", str(tmp_path)]) == 0, "once more is no error"


def test_no_other_file_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "tensorflow_model_server"
    other.write_bytes(b"\x7fELF\xff")
    assert main(["install-command", str(tmp_path)]) == 1
    assert "is not embedserve's" in capsys.readouterr().out
    assert other.read_bytes() == b"\x7fELF\xff"
    other.unlink()
    other.symlink_to(tmp_path / "elsewhere")
    assert main(["install-command", str(tmp_path)]) == 1
    assert not (tmp_path / "elsewhere").exists()


def test_what_cannot_be_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["install-command", str(tmp_path / "none")]) == 1
    assert "No such file or directory" in capsys.readouterr().out
    assert main(["install-command", "a", "b"]) == 255
    assert main(["install-command", "--help"]) == 0
    assert capsys.readouterr().out.count("install-command [DIRECTORY]") == 2
