"""`import`: a released network as a file of our own."""

from pathlib import Path

from pipeline.common.errors import StudyError
from pipeline.diffusion.denoiser import save_denoiser
from pipeline.diffusion.imports.read import check_sha256, read_network, sha256_of
from pipeline.diffusion.networks.registry import cost

SUFFIX = ".safetensors"


def import_network(source: str, out: str, sha256: str) -> str:
    """Convert a released network to a file that `load_denoiser` reads, and describe it in one line.

    sha256: of the file of weights; "": any. Raises StudyError, one line that names the file, before anything is
    written.
    """
    path, target = Path(source).expanduser(), Path(out).expanduser()
    if target.suffix != SUFFIX:
        raise StudyError(f"--out: {out}: the result is a file of weights; write a name that ends in {SUFFIX}")
    found = sha256_of(path)
    if sha256:
        check_sha256(path, sha256, found)
    denoiser = read_network(path)
    save_denoiser(denoiser, target)
    spec = denoiser.spec
    shape = " x ".join(map(str, spec.shape)) + (f", {len(spec.classes)} classes" if spec.classes else "")
    return (
        f"{target}: {spec.network}, parametrization {spec.parametrization}, {shape}, "
        f"{cost(spec).parameters:,} parameters, from sha256 {found}"
    )
