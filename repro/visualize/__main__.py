"""Figures that need the network: `python -m repro.visualize --run DIR` draws a run's figures, which repro.report picks up; with `--images FOLDER` it
labels any photos or video frames with a recorded row's network, or with that of a .caffemodel: pictures of them, `--labels-out` label maps."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

from tqdm import tqdm

import caffe_weights
from repro.device import choose_device
from repro.protocol import load_protocol
from repro.records.store import walk
from repro.shell import exit_code, log
from repro.solver.snapshot import trained_network
from repro.visualize.figures import figures_of_run
from repro.visualize.gallery import write_gallery
from repro.visualize.network import caffe_network
from repro.visualize.photos import Drawer, Drawn, Photo, find_photos, require_apart
from repro.visualize.runs import read_records, tables_of

UNSEEN = "This network was trained on synthetic pictures, not on photographs."


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m repro.visualize", description=__doc__)
    add = parser.add_argument
    add("--run", type=Path, metavar="DIR", help="the --out folder of repro.run, or one table's folder in it")
    add("--table", metavar="TABLE", help="only this table; with --weights, the protocol of the network")
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the figures go (default DIR/TABLE/figures; with --images the pictures, if they are wanted)",
    )
    add("--data-root", type=Path, metavar="DIR", help="the run's images, labels and lists; not for synthetic data")
    add("--flat", action="store_true", help="weight maps on one scale from 0 to 1, not each on its own")
    add("--device", default="auto", help="auto (the default), cpu, cuda or cuda:N")
    photos = parser.add_argument_group("photos and video frames")
    add = photos.add_argument
    add("--images", type=Path, metavar="FOLDER", help="label the images in this folder")
    add(
        "--labels-out",
        type=Path,
        metavar="DIR",
        help="write index PNGs there: class ids with VOC's palette, of the photo's own size (turned as its EXIF data say; each pixel the nearest one's where "
        "the photo was shrunk), named as the photo",
    )
    add("--row", metavar="ID", help="with the network of this row")
    add("--seed", type=int, metavar="N", help="of this seed (default: the lowest recorded)")
    add("--weights", type=Path, metavar="FILE", help="a trained .caffemodel, instead of --run")
    add("--max-side", type=int, metavar="N", help="shrink larger photos to N pixels (default: the row's test crop)")
    add("--gallery", action="store_true", help="write an index.html of all pictures too")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    return parser.parse_args(arguments)


def make_drawer(options: argparse.Namespace) -> Drawer:
    """Loads the network that the command line names.

    Raises:
        ValueError, FileNotFoundError: An option is missing or wrong, or the network cannot be had.
    """
    nowhere = options.out is None and options.labels_out is None
    if options.row is None or nowhere or (options.run is None) == (options.weights is None):
        raise ValueError(
            "--images: needs --row, --out or --labels-out, and either --run or --weights; got others; for example "
            "--run runs --row attention3-extra --images FOLDER --out OUT"
        )
    device = choose_device(options.device, "fp32")
    if options.weights is not None:
        if options.table is None:
            raise ValueError("--weights: needs --table, the protocol of its row; got none; for example --table table3")
        row = load_protocol(options.table).row(options.row)
        network, settings = caffe_network(row, options.weights), row.settings
        source = caffe_weights.sha256(options.weights)
    else:
        out, tables = tables_of(options.run)
        found = [
            one
            for table in tables
            if options.table in (None, table)
            for one in read_records(out, table, log)
            if one.record["row"] == options.row and options.seed in (None, one.record["seed"])
        ]
        if not found or len({one.path.parents[1] for one in found}) > 1:
            raise ValueError(
                f"--row: one table of {options.run} must have a record of {options.row!r}{'' if options.seed is None else f', seed {options.seed}'}; "
                f"got {len({one.path.parents[1] for one in found})}; choose with --table, --row and --seed among "
                f"{', '.join(str(stored.path.parent.relative_to(out)) for stored in walk([out]))[:300]}"
            )
        one = min(found, key=lambda one: one.record["seed"])
        network, settings = trained_network(one.record, one.snapshot), one.record["settings"]
        source = hashlib.sha256(one.snapshot.read_bytes()).hexdigest()
    max_side = settings["test"]["crop_size"] if options.max_side is None else options.max_side
    if max_side < 1:
        raise ValueError(f"--max-side: must be at least 1 pixel; got {max_side}; leave it out for the row's test crop")
    identity = json.dumps(
        [source, settings["model"], settings["transform"]["mean_bgr"], settings["test"], settings.get("crf")]
    )
    note = UNSEEN if "synthetic" in settings else ""
    return Drawer(network.to(device), settings, device, identity, max_side, note, options.flat)


def draw_photos(options: argparse.Namespace) -> int:
    """Draws every photo of a folder; returns 1 where some were unusable, each of which is named, else 0.

    Raises:
        ValueError, FileNotFoundError: There is no network or no photo.
    """
    photos, others = find_photos(options.images)
    if options.labels_out is not None:
        require_apart(photos)
    if options.gallery and options.out is None:
        raise ValueError("--gallery: needs --out, the folder of its pictures; got none; add it")
    drawer = make_drawer(options)
    taken = {options.images.resolve(): "the folder of the images"}
    for option, folder in (("--out", options.out), ("--labels-out", options.labels_out)):
        if folder is None:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        if folder.resolve() in taken:
            raise ValueError(f"{option}: must not be {taken[folder.resolve()]}; got {folder} for both; name another")
        taken[folder.resolve()] = f"the folder of {option}"
    pictures: list[Drawn] = []
    made = labelled = failed = 0
    with tqdm(photos, desc="drawing", unit="image", disable=not sys.stderr.isatty(), leave=False) as bar:
        for number, path in enumerate(bar, start=1):
            try:
                photo = Photo(drawer, path)
                if options.labels_out is not None:
                    labelled += photo.label(options.labels_out)
                if options.out is not None:
                    picture, new = photo.draw(options.out)
                    pictures.append(picture)
                    made += new
            except (ValueError, FileNotFoundError) as error:
                failed += 1
                log(f"error: {error}")
            if bar.disable and number % 50 == 0:
                log(f"{number} of {len(photos)} images")
    if options.gallery:
        merge = drawer.network.merge
        notes = [
            f"Row {options.row}: "
            + {
                "attention": "labels, and the attention weight of every scale, "
                + (
                    "from 0 (dark) to 1 (bright)."
                    if drawer.flat
                    else "each map from its lowest (dark) to its highest (bright), which stand below it."
                ),
                "max": "labels, and for every scale, bright, where its score wins in the class that is seen.",
            }.get(merge, "labels."),
            *([drawer.note] if drawer.note else []),
        ]
        print(write_gallery(options.out, pictures, f"{options.images.resolve().name}: {len(pictures)} images", notes))
    for folder, new, done in ((options.labels_out, labelled, "labelled"), (options.out, made, "drawn")):
        if folder is not None:
            print(
                f"{folder}: {new} {done}, {len(photos) - failed - new} there already, {failed} unusable"
                + (f", {others} other files passed over" if others else "")
            )
    return 1 if failed else 0


def draw_run(options: argparse.Namespace) -> None:
    """Draws the figures of every table of a run, or of one.

    Raises:
        ValueError, FileNotFoundError: There is no record, or the validation images or snapshots are not the record's.
    """
    photo_options = [
        name
        for name in ("row", "seed", "weights", "max_side", "gallery", "labels_out")
        if getattr(options, name) not in (None, False)
    ]
    if photo_options or options.run is None:
        raise ValueError(
            f"--run: must be given, and {', '.join('--' + name.replace('_', '-') for name in photo_options) or 'a row'} goes with --images alone; "
            "got no --images; for example --run runs"
        )
    out, tables = tables_of(options.run)
    if options.table is not None and options.table not in tables:
        raise ValueError(f"--table: must be one of {', '.join(tables)}; got {options.table!r}; correct it")
    device = choose_device(options.device, "fp32")
    for table in tables if options.table is None else [options.table]:
        folder = None if options.out is None else options.out / table if len(tables) > 1 else options.out
        index = figures_of_run(
            out, table, data_root=options.data_root, device=device, folder=folder, flat=options.flat, log=log
        )
        if index is not None:
            print(index)


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit code: 0, 1 where photos were unusable, 2 for an error, 130 where it was interrupted."""
    options = parse_arguments(arguments)
    draw = draw_run if options.images is None else draw_photos
    return exit_code(lambda: draw(options), options.traceback, "the same command goes on where it stopped")


if __name__ == "__main__":
    sys.exit(main())
