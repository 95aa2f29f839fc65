"""Makes data sets of the official distributions or of one's own images, and looks them over: `python -m repro.data prepare|own|check`. See --help."""

import argparse
import os
import sys
from pathlib import Path

from repro.data.lists import is_list
from repro.data.prepare import coco, person_part, voc
from repro.data.prepare.check import check_dataset
from repro.data.prepare.coco import prepare_coco
from repro.data.prepare.convert import IMAGES
from repro.data.prepare.own import parse_classes, prepare_own
from repro.data.prepare.person_part import parse_class_order, prepare_person_part
from repro.data.prepare.voc import prepare_voc
from repro.shell import exit_code

DATASETS = {"voc": voc, "person-part": person_part, "coco": coco}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 1 where `check` finds something wrong, 2 on wrong input, 130 on Ctrl-C."""
    options = _parser().parse_args(arguments)

    def run() -> int:
        if options.workers < 1:
            raise ValueError(f"--workers: must be at least 1; got {options.workers}; give a number of processes")
        return options.run(options)

    return exit_code(run, options.traceback, "the same command goes on where it stopped")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m repro.data", description=__doc__)
    common = argparse.ArgumentParser(add_help=False)
    cores = os.cpu_count() or 1
    common.add_argument("--workers", type=int, default=cores, metavar="N", help=f"work in parallel (default {cores})")
    common.add_argument("--traceback", action="store_true", help="show where an error comes from")
    out = argparse.ArgumentParser(add_help=False)
    out.add_argument(
        "--out", type=Path, required=True, metavar="ROOT", help="the folder to make; finished files are kept"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "convert a distribution into images, index PNGs and lists"
    prepare = commands.add_parser("prepare", help=text, description=text).add_subparsers(
        required=True, metavar="DATASET"
    )

    def dataset(name: str, run, text: str) -> argparse.ArgumentParser:
        sub = prepare.add_parser(name, parents=[out, common], help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    sub = dataset("voc", _prepare_voc, "PASCAL VOC 2012 and SBD: SegmentationClassAug and DeepLab's five lists")
    sub.add_argument("--voc", type=Path, required=True, metavar="DIR", help="VOC 2012 (VOCdevkit/VOC2012)")
    sub.add_argument("--sbd", type=Path, required=True, metavar="DIR", help="SBD (benchmark_RELEASE)")

    sub = dataset("person-part", _prepare_person_part, "PASCAL-Person-Part: six parts and background")
    sub.add_argument("--voc2010", type=Path, required=True, metavar="DIR", help="VOC 2010 (VOCdevkit/VOC2010)")
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("--parts", type=Path, metavar="DIR", help="PASCAL-Part's Annotations_Part")
    source.add_argument("--index-pngs", type=Path, metavar="DIR", help="ready-made labels; needs --class-order")
    order = "the ready-made labels' classes 1 .. 6, such as head,torso,lower_arms,upper_arms,lower_legs,upper_legs"
    sub.add_argument("--class-order", metavar="NAMES", help=order)
    for name in ("train", "val"):
        text = f"ids of {name} (default: VOC 2010's ImageSets/Main/{name}.txt, as far as persons' parts are annotated)"
        sub.add_argument(f"--{name}-list", type=Path, metavar="FILE", help=text)

    sub = dataset(
        "coco", _prepare_coco, "MS-COCO 2014: label maps of 80 classes and background, once for train, once for val"
    )
    sub.add_argument(
        "--annotations", type=Path, required=True, metavar="JSON", help="instances_train2014.json or ..val.."
    )
    sub.add_argument("--images", type=Path, required=True, metavar="DIR", help="the folder of its images")
    text = "the list to write (default: train or val, by the JSON's name); train2014: all of it, for pre-training"
    sub.add_argument("--list", choices=("train", "val", "train2014"), help=text)
    sub.add_argument("--count", type=int, metavar="N", help="draw this many images: 10000 for train, 1500 for val")
    sub.add_argument("--seed", type=int, default=1, metavar="S", help="seed of the draw (default 1)")

    text = "lay out a folder of images and a folder of labels as a data set, and write a protocol to edit"
    sub = commands.add_parser("own", parents=[out, common], help=text, description=text)
    sub.set_defaults(run=_own)
    sub.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="the images, any of Pillow's usual formats"
    )
    sub.add_argument("--labels", type=Path, required=True, metavar="DIR", help="their labels: PNGs of the same names")
    text = "the classes' names in the order of the label values, background first: a,b,c or a file with one a line"
    sub.add_argument("--classes", required=True, metavar="NAMES|FILE", help=text)
    for name in ("train", "val"):
        sub.add_argument(f"--{name}-list", type=Path, metavar="FILE", help=f"ids of {name} (default: drawn)")
    sub.add_argument("--val-share", type=float, default=0.2, metavar="S", help="share to validate on (default 0.2)")
    sub.add_argument("--seed", type=int, default=1, metavar="S", help="seed of the draw (default 1)")

    text = "counts, missing and unreadable files, sizes, class ids, their histogram, a contact sheet; exit code 1 if anything is wrong"
    sub = commands.add_parser("check", parents=[common], help=text, description=text)
    sub.set_defaults(run=_check)
    what = f"{', '.join(DATASETS)} with --data-root; or a folder with --list and --classes"
    sub.add_argument("what", metavar="DATASET|ROOT", help=what)
    sub.add_argument("--data-root", type=Path, metavar="ROOT", help="the folder of DATASET")
    sub.add_argument("--images", metavar="NAME", help="folder of the images, under the root (default JPEGImages)")
    sub.add_argument("--labels", metavar="NAME", help="folder of the labels, under the root (default: the data set's)")
    sub.add_argument(
        "--list", action="append", metavar="NAME", help="a list (may be repeated; default: all of the data set)"
    )
    sub.add_argument("--classes", type=int, metavar="N", help="class ids are 0 .. N-1 (default: the data set's)")
    sub.add_argument("--ignore-label", type=int, default=255, metavar="L", help="the one further label (default 255)")
    sub.add_argument(
        "--subset", action="store_true", help="declare that the lists hold a subset: lengths are only reported"
    )
    sub.add_argument("--sheet", type=Path, metavar="PNG", help="the contact sheet (default contact_sheet.png)")
    return parser


def _report(lines: list[str]) -> int:
    print("\n".join(lines))
    return 0


def _prepare_voc(options: argparse.Namespace) -> int:
    return _report(prepare_voc(options.voc, options.sbd, options.out, options.workers))


def _prepare_person_part(options: argparse.Namespace) -> int:
    if (options.class_order is None) != (options.index_pngs is None):
        got = "--index-pngs alone" if options.index_pngs else "--parts with it"
        raise ValueError(
            f"--class-order: must come with --index-pngs, and only there; got {got}; say the labels' class order"
        )
    order = parse_class_order(options.class_order) if options.class_order is not None else None
    lists = {"train": options.train_list, "val": options.val_list}
    sources = options.index_pngs or options.parts
    return _report(prepare_person_part(options.voc2010, sources, options.out, order, lists, options.workers))


def _prepare_coco(options: argparse.Namespace) -> int:
    found = [name for name in ("train", "val") if name in options.annotations.stem]
    if options.list is None and len(found) != 1:
        raise ValueError(
            f"--list: must be given where the file's name does not tell; got {options.annotations.name}; add it"
        )
    place = (options.annotations, options.images, options.out, options.list or found[0])
    return _report(prepare_coco(*place, options.count, options.seed, options.workers))


def _own(options: argparse.Namespace) -> int:
    lists = {"train": options.train_list, "val": options.val_list}
    names = parse_classes(options.classes)
    drawn = (lists, options.val_share, options.seed)
    report, problems = prepare_own(options.images, options.labels, names, options.out, *drawn, options.workers)
    print("\n".join(report))
    return _verdict(problems)


def _verdict(problems: list[str]) -> int:
    if problems:
        print(f"{len(problems)} things are wrong:", *problems, sep="\n  ")
        return 1
    print("nothing is wrong")
    return 0


def _check(options: argparse.Namespace) -> int:
    if options.data_root is not None:
        if options.what not in DATASETS:
            raise ValueError(
                f"check: data set must be one of {', '.join(DATASETS)}; got {options.what!r}; correct the name"
            )
        dataset, root = DATASETS[options.what], options.data_root
        labels, names, expected = dataset.LABELS, list(dataset.CLASS_NAMES), dataset.EXPECTED
    else:
        needed = {"--labels": options.labels, "--list": options.list, "--classes": options.classes}
        missing = [option for option, value in needed.items() if value is None]
        if missing:
            raise ValueError(
                f"check: a folder needs --labels, --list and --classes; got no {', '.join(missing)}; add them"
            )
        root, labels, names, expected = Path(options.what), options.labels, [], {}
    if options.classes is not None and not 1 <= options.classes <= 256:
        raise ValueError(f"--classes: must be 1 .. 256; got {options.classes}; give the number of classes")
    if not 0 <= options.ignore_label <= 255:
        raise ValueError(f"--ignore-label: must be 0 .. 255; got {options.ignore_label}; give an 8-bit label")
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: data folder must exist; got no such folder; give the prepared folder")
    if options.classes not in (None, len(names)):
        names = [str(index) for index in range(options.classes)]
    lists = {name: expected.get(name) for name in options.list or expected}
    if options.subset and not options.list:
        lists = {name: count for name, count in lists.items() if is_list(root, name)} or lists
    folders = (options.images or IMAGES, options.labels or labels)
    sheet = options.sheet or Path("contact_sheet.png")
    findings = check_dataset(root, *folders, lists, names, options.ignore_label, options.workers, sheet, options.subset)
    print("\n".join(findings.report))
    return _verdict(findings.problems)


if __name__ == "__main__":
    sys.exit(main())
