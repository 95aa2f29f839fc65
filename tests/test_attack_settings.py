"""Hostile values for every key and option: refused in one line, or planned; never a traceback, a hang, or a file elsewhere."""

import random
import tomllib

import pytest
import tiny
from attack import attack

pytestmark = pytest.mark.slow

TABLES = tomllib.loads(tiny.PROTOCOL)
KEYS = [
    *(f"{table}.{key}" for table, keys in TABLES["common"].items() for key in keys),
    *(f"model.{key}" for key in ("scales", "merge", "extra_supervision")),
    "test.width", "crf.max_iter", "nothing", "model", "model.width.more", "", ".", "__class__.x",
]  # fmt: skip
VALUES = {
    "integer of 400 digits": "9" * 400,
    "minus": "-1",
    "zero": "0",
    "2^31": "2147483648",
    "1e9": "1000000000",
    "1e308": "1e308",
    "tiny": "1e-320",
    "nan": "nan",
    "inf": "inf",
    "true": "true",
    "empty": "",
    "text": '"../../../etc/passwd"',
    "NUL": '"a\\u0000b"',
    "list": "[1, 1e400, -3]",
    "deep list": "[" * 60 + "]" * 60,
    "table": "{a = 1}",
    "date": "1979-05-27",
    "surrogate": "\udcff",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set and a protocol that all cases read."""
    root = tmp_path_factory.mktemp("data")
    tiny.write_data(root / "data")
    tiny.write_protocol(root)
    return root


def dry_run(data, folder, *more, table=None):
    command = [table or str(data / "tiny.toml"), "--data-root", str(data / "data"), "--weights", "none", "--device"]
    return attack(folder, "run", [*command, "cpu", "--out", str(folder / "out"), "--dry-run", *more], inputs=data)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("key", KEYS)
def test_set(data, tmp_path, key, value):
    assert dry_run(data, tmp_path, "--set", f"{key}={VALUES[value]}").code in (0, 2)


OPTIONS = ["--row", "--data-root", "--weights", "--device", "--precision", "--workers", "--seed", "--seeds", "--shard"]
HOSTILE = ["", "-1", "9" * 400, "1/0", "0/0", "2/1", "1/999999999999", "../..", "/dev/zero", "/proc/self/mem", "nan", "\udcff", "x" * 5000]  # fmt: skip


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: ascii(value[:20]))
@pytest.mark.parametrize("option", OPTIONS)
def test_options(data, tmp_path, option, value):
    assert dry_run(data, tmp_path, f"{option}={value}").code in (0, 2)


TEXTS = {
    "names outside": [('train_list = "train"', 'train_list = "../../x"')],
    "an absolute list": [('val_list = "val"', 'val_list = "/etc/passwd"')],
    "images outside": [('images = "JPEGImages"', 'images = "../.."')],
    "labels outside": [('labels = "Labels"', 'labels = "/"')],
    "weights outside": [('file = "tiny.caffemodel"', 'file = "../../tiny.caffemodel"')],
    "no row": [("[[row]]", "[[other]]")],
    "a row without a name": [('id = "baseline"', "")],
    "a name outside": [('id = "baseline"', 'id = "../../baseline"')],
    "a name with a NUL": [('id = "baseline"', 'id = "a\\u0000"')],
    "a name of 5000 bytes": [('id = "baseline"', f'id = "{"x" * 5000}"')],
    "twice the same name": [('id = "max2"', 'id = "baseline"')],
    "a class twice": [('"background", "box"', '"box", "box"')],
    "10000 classes": [('"ball"]', ", ".join(f'"c{n}"' for n in range(10000)) + "]")],
    "no classes": [('["background", "box", "ball"]', "[]")],
    "a cycle": [('title = "Tiny"', 'title = "Tiny"\nextends = "tiny"')],
    "extends outside": [('title = "Tiny"', 'title = "Tiny"\nextends = "../../etc/passwd"')],
    "no TOML": [("[common.data]", "[common.data")],
    "bytes": [('title = "Tiny"', 'title = "\x00"')],
    "deep": [('title = "Tiny"', "title = " + "[" * 5000)],
    "metric": [('metric = "mean_iou"', 'metric = "os.system"')],
    "paper nan": [("paper = 51.91", "paper = nan")],
    "paper text": [("paper = 51.91", 'paper = "x"')],
}


@pytest.mark.parametrize("name", TEXTS)
def test_protocols(data, tmp_path, name):
    path = tiny.write_protocol(tmp_path, *TEXTS[name])
    assert dry_run(data, tmp_path, table=path).code in (0, 2)


@pytest.mark.parametrize("seed", range(100))
def test_mutated_protocols(data, tmp_path, seed):
    dice = random.Random(seed)
    text = list(tiny.PROTOCOL)
    for _ in range(dice.randint(1, 8)):
        place = dice.randrange(len(text))
        text[place : place + dice.randint(0, 3)] = dice.choices('=[]{}"\n.0-19e\\#ab\0', k=dice.randint(0, 3))
    path = tmp_path / "tiny.toml"
    path.write_text("".join(text))
    assert dry_run(data, tmp_path, table=str(path)).code in (0, 2)
