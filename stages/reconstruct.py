"""Measure what autoencoders make of real images: the score that no model of their latents can pass."""

from pipeline.common.files import read_json, write_json
from pipeline.data.dataset import load_heldout, load_prepared
from pipeline.diffusion.autoencoder import load_autoencoder
from pipeline.evaluation.reconstruction import measure_reconstructions
from pipeline.metrics.extractors.registry import load_extractor
from pipeline.metrics.reference import load_reference
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths, folder, found = arguments.paths, arguments.paths.build / "autoencoders", {}
    if names := read_json(folder / "rows.json"):
        extractor = load_extractor(paths.features)
        reference = load_reference(paths.reference, extractor.hash)
        autoencoders = {name: load_autoencoder(folder / f"{name}.safetensors") for name in names}
        heldout = load_heldout(paths.data)
        sets = load_prepared(paths.data).images, heldout.images if heldout else None
        found = measure_reconstructions(
            autoencoders, *sets, extractor, reference, read_json(paths.rows / "samples.json")
        )
    write_json(paths.metrics("reconstruct", "autoencoders"), found)
    print(f"reconstructions of {len(found)} autoencoders")


if __name__ == "__main__":
    run_stage(main, __doc__)
