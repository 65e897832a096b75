"""Measure the real images: the reference for measurements, and the scores of real images against real images."""

from typing import Any

from pipeline.common.devices import default_device, exact_device
from pipeline.common.files import whole_folder, write_json
from pipeline.common.threads import side_by_side
from pipeline.data.dataset import load_heldout, load_prepared
from pipeline.data.heldout import equal_sets
from pipeline.metrics.extractors.registry import load_extractor
from pipeline.metrics.names import headline
from pipeline.metrics.reference import make_reference, save_reference
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths, exact = arguments.paths, exact_device(default_device())
    extractor, dataset = load_extractor(paths.features).on(default_device()), load_prepared(paths.data)
    images, matched = equal_sets(dataset, load_heldout(paths.data))

    def measure_real() -> tuple[bytes, dict[str, Any]]:
        heldout = None if images is None else extractor(images).on(exact)
        return make_reference(extractor(dataset.images).on(exact), extractor.hash, heldout=heldout, matched=matched)

    [(content, summary)] = side_by_side([measure_real])
    with whole_folder(paths.reference) as folder:
        save_reference(content, folder)
    write_json(paths.metrics("reference", "floor"), summary)
    floor, data = summary["floor"][headline(extractor.name)], "points" if extractor.of_points else "images"
    if images is not None:
        score = summary["heldout"]["scores"][headline(extractor.name)]
        unseen = f"{summary['heldout']['images']} held-out {data} against those to train on"
        print(f"{unseen}: {score['value']:.3f} +- {score['se']:.3f}")
    print(f"real-real floor at {summary['floor_images']} {data}: {floor['mean']:.3f} +- {floor['sd']:.3f}")


if __name__ == "__main__":
    run_stage(main, __doc__)
