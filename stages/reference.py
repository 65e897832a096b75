"""Measure the real images: the reference for measurements, and the scores of real images against real images."""

from pipeline.common.devices import default_device, exact_device
from pipeline.common.files import whole_folder, write_json
from pipeline.common.threads import side_by_side
from pipeline.data.dataset import load_prepared
from pipeline.metrics.extractors.registry import load_extractor
from pipeline.metrics.names import headline
from pipeline.metrics.reference import make_reference, save_reference
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths, exact = arguments.paths, exact_device(default_device())
    extractor, dataset = load_extractor(paths.features).on(default_device()), load_prepared(paths.data)
    [(content, summary)] = side_by_side([lambda: make_reference(extractor(dataset.images).on(exact), extractor.hash)])
    with whole_folder(paths.reference) as folder:
        save_reference(content, folder)
    write_json(paths.metrics("reference", "floor"), summary)
    floor, data = summary["floor"][headline(extractor.name)], "points" if extractor.of_points else "images"
    print(f"real-real floor at {summary['floor_images']} {data}: {floor['mean']:.3f} +- {floor['sd']:.3f}")


if __name__ == "__main__":
    run_stage(main, __doc__)
