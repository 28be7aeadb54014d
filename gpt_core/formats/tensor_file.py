"""Write tensors as a safetensors file."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gpt_core.common.files import fsync_path


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write `tensors` to the safetensors file `path`: atomically, with the permissions that the umask allows.

    Raises:
        OSError: naming the file, if it cannot be written, e.g. because the disk is full.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from error
        temporary.chmod(mode)  # safetensors creates files that only their owner can read
        fsync_path(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
