"""`--sagemaker` follows the conventions of SageMaker's container where no flag says otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedserve.errors import ConfigError
from embedserve.server.flags import parse
from embedserve.server.sagemaker import with_conventions


def saved(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "saved_model.pb").touch()
    return path.parent


def flags(root: Path, *arguments: str, **environment: str) -> dict[str, object]:
    found = with_conventions(parse(["--sagemaker", *arguments]), {"SM_MODEL_DIR": str(root), **environment})
    return {**found.given, "directory": found.directory}


def test_a_single_model_is_found_where_training_jobs_leave_it(tmp_path: Path) -> None:
    base = saved(tmp_path / "export" / "Servo" / "1700000000")
    found = flags(tmp_path)
    assert (found["model_name"], found["model_base_path"]) == ("Servo", str(base))
    assert found["rest_api_port"] == 8080


def test_several_models_are_served_from_their_directory(tmp_path: Path) -> None:
    for name in ("a", "b"):
        saved(tmp_path / name / "1")
    (tmp_path / "code").mkdir()
    assert flags(tmp_path)["directory"] == str(tmp_path)


def test_variables_are_followed_and_flags_win(tmp_path: Path) -> None:
    saved(tmp_path / "a" / "1")
    environment = {
        "SAGEMAKER_BIND_TO_PORT": "8123",
        "SAGEMAKER_TFS_DEFAULT_MODEL_NAME": "a",
        "SAGEMAKER_TFS_INTRA_OP_PARALLELISM": "2",
        "SAGEMAKER_TFS_INTER_OP_PARALLELISM": "",
    }
    found = flags(tmp_path, **environment)
    assert (found["rest_api_port"], found["sagemaker_default_model"]) == (8123, "a")
    assert found["tensorflow_intra_op_parallelism"] == 2
    assert "tensorflow_inter_op_parallelism" not in found
    assert flags(tmp_path, "--rest_api_port=1", **environment)["rest_api_port"] == 1
    assert flags(tmp_path, "elsewhere", **environment)["directory"] == "elsewhere"
    assert "sagemaker_default_model" not in flags(tmp_path, SAGEMAKER_TFS_DEFAULT_MODEL_NAME="None")


def test_what_cannot_be_served_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        flags(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"no NAME/VERSION/saved_model\.pb below it"):
        flags(tmp_path)
    saved(tmp_path / "a" / "1")
    saved(tmp_path / "more" / "b" / "1")
    with pytest.raises(ConfigError, match="not in one directory"):
        flags(tmp_path)
    with pytest.raises(ConfigError, match="SAGEMAKER_BIND_TO_PORT must be a number"):
        flags(tmp_path / "a", SAGEMAKER_BIND_TO_PORT="x")
