"""Train the autoencoders, and write the space in which each model's data live."""

from pipeline.common.files import read_json, whole_folder, write_json
from pipeline.common.progress import bar
from pipeline.data.dataset import load_prepared, load_summary
from pipeline.diffusion.autoencoder import save_autoencoder
from pipeline.diffusion.space import save_space
from pipeline.training.autoencoder_row import AutoencoderRow
from pipeline.training.spaces import space_of, summary, train_autoencoders
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths = arguments.paths
    rows = {name: AutoencoderRow(**row) for name, row in read_json(paths.rows / "autoencoders.json").items()}
    spaces = read_json(paths.rows / "spaces.json")
    images, sigma_data = load_prepared(paths.data).images, load_summary(paths.data)["sigma_data"]
    with bar("autoencode", sum(row.seen_images for row in rows.values()), "image") as progress:
        trained = train_autoencoders(rows, images, progress.update)
    with whole_folder(paths.build / "autoencoders") as folder:
        write_json(folder / "rows.json", list(rows))  # DVC warns of empty folders
        for name, found in trained.items():
            save_autoencoder(found.autoencoder, folder / f"{name}.safetensors")
    with whole_folder(paths.build / "spaces") as folder:
        for name, (autoencoder, resolution) in spaces.items():
            of_latents = trained[autoencoder].autoencoder if autoencoder else None
            save_space(space_of(images, sigma_data, resolution, of_latents), folder / name)
    write_json(paths.metrics("autoencode", "autoencoders"), {name: summary(each) for name, each in trained.items()})
    print(f"{len(rows)} autoencoders, the spaces of {len(spaces)} models")


if __name__ == "__main__":
    run_stage(main, __doc__)
