"""Process-wide settings of TensorFlow for the standalone server, made before the first use.

An embedded registry never changes the settings: the process belongs to the host.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from embedserve.concurrency.container import present_cpus, usable_cpus
from embedserve.errors import ConfigError
from embedserve.tfs.config import set_mixed_precision
from embedserve.tfs.protos import read_text_proto

if TYPE_CHECKING:
    from embedserve.server.flags import ParsedFlags

__all__ = ["apply", "install_stub", "session_config_from_flags"]


_SESSION_FLAGS = (
    "tensorflow_session_config_file",
    "tensorflow_session_parallelism",
    "tensorflow_intra_op_parallelism",
    "tensorflow_inter_op_parallelism",
    "per_process_gpu_memory_fraction",
    "mixed_precision",
    "xla_cpu_compilation_enabled",
    "xla_gpu_compilation_enabled",
)


def session_config_from_flags(flags: ParsedFlags) -> bytes:
    """The serialized `tensorflow.ConfigProto` for the session flags; empty without session flags.

    Only a given flag overrides the file's field.

    Raises:
        ConfigError: The file does not parse, or all three parallelism flags are given.
    """
    both = flags.number("tensorflow_session_parallelism")
    intra, inter = flags.number("tensorflow_intra_op_parallelism"), flags.number("tensorflow_inter_op_parallelism")
    if both > 0 and intra > 0 and inter > 0:
        raise ConfigError(
            "Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, server_options.tensorflow_inter_op_parallelism) "
            "separately. You cannot configure all."
        )
    if not any(name in flags for name in _SESSION_FLAGS):
        return b""
    from tensorflow.core.protobuf.config_pb2 import ConfigProto, OptimizerOptions

    config = ConfigProto()
    if file := flags.text("tensorflow_session_config_file"):
        read_text_proto(file, config)
    if intra > 0 or inter > 0:
        config.intra_op_parallelism_threads, config.inter_op_parallelism_threads = intra, inter
    elif both > 0:
        config.intra_op_parallelism_threads = config.inter_op_parallelism_threads = both
    if (fraction := flags.real("per_process_gpu_memory_fraction")) > 0:
        config.gpu_options.per_process_gpu_memory_fraction = fraction
    if kind := flags.text("mixed_precision"):
        set_mixed_precision(config, kind)
    cpu, gpu = flags.on("xla_cpu_compilation_enabled"), flags.on("xla_gpu_compilation_enabled")
    if cpu or gpu:
        config.graph_options.optimizer_options.global_jit_level = OptimizerOptions.ON_1
    if cpu:
        # The only switch: TensorFlow reads the variable when the first graph is compiled.
        _append_environment("TF_XLA_FLAGS", "--tf_xla_cpu_global_jit")
    serialized: bytes = config.SerializeToString()
    return serialized


def _append_environment(name: str, value: str) -> None:
    os.environ[name] = f"{os.environ.get(name, '')} {value}".strip()


def apply(session_config: bytes) -> None:
    """Import TensorFlow, which takes seconds, and pass the `ConfigProto` to its runtime; must precede any use.

    A control group's quota may allow fewer CPUs than the process can run on. TensorFlow's pools then get the quota's
    size, unless the configuration sets a size. TensorFlow alone would make a thread for each visible CPU.
    """
    import tensorflow as tf

    config = tf.compat.v1.ConfigProto.FromString(session_config)
    cpus = usable_cpus()
    if cpus < present_cpus():
        config.intra_op_parallelism_threads = config.intra_op_parallelism_threads or cpus
        config.inter_op_parallelism_threads = config.inter_op_parallelism_threads or cpus
    if config.ByteSize():
        # Enabling takes a configuration, but has no effect on enabled eager execution, the default in TensorFlow 2. So
        # eager execution is disabled first.
        tf.compat.v1.disable_eager_execution()
        tf.compat.v1.enable_eager_execution(config=config)


class _TensorFlowStub(ModuleType):
    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"tensorflow.{name}: this process supervises workers and must not run TensorFlow itself")


def install_stub() -> None:
    """Make TensorFlow's messages, `tensorflow.core...`, importable without importing TensorFlow.

    `import tensorflow` takes seconds and hundreds of megabytes, and precedes every import of a message module. Message
    modules need no other part of TensorFlow, so an empty package with TensorFlow's path replaces TensorFlow. The call
    does nothing when TensorFlow is imported already or not installed.
    """
    if "tensorflow" in sys.modules:
        return
    found = importlib.util.find_spec("tensorflow")
    if found is None or found.submodule_search_locations is None:
        return
    stub = _TensorFlowStub("tensorflow")
    stub.__path__ = list(found.submodule_search_locations)
    stub.__spec__ = found
    sys.modules["tensorflow"] = stub
