"""A table of one's own, from two folders of pictures to the report: nothing speaks of printed numbers that do not exist, and no reader takes it for foreign."""

import contextlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_cases import write
from tiny import main as run
from tiny import write_data, write_protocol

from repro.data.__main__ import main as prepare
from repro.protocol import PROTOCOLS, as_toml, load_protocol
from repro.protocol import reading as protocol_module
from repro.records.own import keep_protocol, known_protocols
from repro.report.__main__ import main as report
from repro.report.collect import collect
from repro.report.data import build
from repro.report.words import against
from repro.visualize.__main__ import main as visualize

SMALL = """\
[common.model]
width = 0.03125
[common.transform]
crop_size = 33
[common.test]
crop_size = 41
batch_size = 2

"""


class Tables(HTMLParser):
    """The header cells of every table of a page, by the id of the article or section around it."""

    def __init__(self, text):
        super().__init__()
        self.heads, self.place, self.inside = {}, "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.place = dict(attrs).get("id", self.place) if tag in ("article", "details", "h2") else self.place
        self.inside = tag == "th"

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.heads.setdefault(self.place, []).append(data)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A user's folder: pictures and labels, the prepared data, an edited protocol, and its run."""
    folder = tmp_path_factory.mktemp("user")
    given = write_data(folder / "given", train=6, val=4)
    command = ["own", "--images", str(given / "JPEGImages"), "--labels", str(given / "Labels"), "--workers", "1"]
    assert prepare([*command, "--classes", "ground,box,ball", "--out", str(folder / "data")]) == 0
    text = (folder / "data" / "own.toml").read_text()
    for old, new in (
        ('title = "Own data"', 'title = "Boxes and balls"'),
        ("max_iter = 6000", "max_iter = 2"),
        ("stepsize = 2000", "stepsize = 1"),
        ("batch_size = 30", "batch_size = 2"),
        ("[common.solver]", f"{SMALL}[common.solver]"),
    ):
        text = re.sub(f"^{re.escape(old)}", new, text, count=1, flags=re.MULTILINE)
    (folder / "my.toml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def printed(ran):
    """What the run printed; afterwards the user's protocol is gone, as it is on another machine."""
    arguments = [str(ran / "my.toml"), "--data-root", str(ran / "data"), "--weights", "none", "--device", "cpu"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert run([*arguments, "--workers", "0", "--out", str(ran / "runs")]) == 0
    (ran / "my.toml").rename(ran / "gone.toml")
    return out.getvalue()


def test_the_table_has_no_columns_for_what_is_not_printed(ran, printed):
    text_file = (ran / "runs" / "my" / "table.md").read_text()
    assert printed.splitlines()[0] == "Boxes and balls (mean IoU, percent)"
    head = next(line for line in printed.splitlines() if line.startswith("row "))
    assert head.split() == ["row", "scales", "merge", "extra", "measured", "seconds"]
    assert "| row | scales | merge | extra | measured | seconds |\n" in text_file
    for text in (printed, text_file):
        assert "several scales are better than one: " in text
        assert "1 pair: 1 " in text
        assert not re.search(r"printed|difference|paper:", text)


def test_the_report_knows_the_table(ran, printed, capsys):
    assert visualize(["--run", str(ran / "runs"), "--data-root", str(ran / "data"), "--device", "cpu"]) == 0
    assert report(["--runs", str(ran / "runs"), "--out", str(ran / "report")]) == 0
    assert "2 records\n" in capsys.readouterr().out  # none is left out
    data = json.loads((ran / "report" / "report.json").read_text())
    assert data["not_used"] == []
    (mine,) = [table for table in data["tables"] if table["own"]]
    assert (mine["name"], mine["columns"], mine["counts"]["measured"]) == ("my", ["measured"], 2)
    assert mine["figures"]["figures"]
    assert {claim["kind"] for claim in mine["claims"]} == {"own"}
    assert {claim["verdict"] for claim in data["claims"]} == {"not measured"}  # on the paper's data
    page, text = ((ran / "report" / f"report.{kind}").read_text() for kind in ("html", "md"))
    heads = Tables(page).heads["my"]
    assert heads.count("measured") == 2
    assert not {"printed", "difference"} & set(heads)
    assert "| merging | measured, w/o | measured, w/ |" in text
    for found in (page, text):
        assert "unknown table" not in found
        assert "foreign" not in found
        assert not re.search(r"printed: \d+ of \d+", found)
        assert "not compared with the paper" not in found
        assert "hours of fine-tuning" not in found
    evidence = page.partition('id="claims"')[2].partition("</section>")[0]
    assert "in my, own protocol" in evidence
    assert ">printed<" not in evidence
    command = mine["cells"][0]["command"][0]
    assert command == f"python -m repro.run {ran}/runs/my/my.toml --row baseline --data-root DIR --weights none"
    best = max(mine["cells"], key=lambda cell: cell["mean"])["row"]
    assert mine["classes"]["series"][-1]["row"] == mine["confusion"]["row"] == best


def test_the_kept_protocol_runs_as_the_users_own(ran, printed, capsys):
    kept = ran / "runs" / "my" / "my.toml"
    before = kept.read_bytes()
    arguments = [str(kept), "--data-root", str(ran / "data"), "--weights", "none", "--device", "cpu", "--workers", "0"]
    assert run([*arguments, "--out", str(ran / "runs")]) == 0
    out, err = capsys.readouterr()
    assert out == printed
    assert err.count("recorded, ") == 2
    assert kept.read_bytes() == before


def test_every_reader_of_records_says_what_the_table_is(ran, printed, capsys):
    assert run(["check", "--runs", str(ran / "runs")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"  my, in {ran}/runs (2 records): not one of the paper's tables" in lines
    assert run(["--list", "--out", str(ran / "runs")]) == 0
    lines = capsys.readouterr().out.splitlines()
    place = lines.index("my: Boxes and balls (2 rows run)")
    assert re.fullmatch(r"  baseline +run; recorded \(seed 1: [\d.]+, deviates\)", lines[place + 1])
    readme = ran / "README.md"
    readme.write_text("<!-- tables: written by repro.report, do not edit -->\n<!-- end of tables -->\n")
    assert report(["--runs", str(ran / "runs"), "--write", str(readme)]) == 0
    assert "**Boxes and balls** (mean IoU, percent)\n" in readme.read_text()


def test_labels_of_ones_own_pictures(ran, printed):
    labels = ran / "labels"
    images = ["--images", str(ran / "given" / "JPEGImages"), "--row", "attention3-extra", "--device", "cpu"]
    assert visualize(["--run", str(ran / "runs"), *images, "--labels-out", str(labels)]) == 0
    for photo in (ran / "given" / "JPEGImages").iterdir():
        with Image.open(photo) as image, Image.open(labels / f"{photo.stem}.png") as label:
            assert (label.mode, label.size) == ("P", image.size)
            assert np.asarray(label).max() < 3


@pytest.mark.parametrize("name", sorted(path.stem for path in PROTOCOLS.glob("*.toml")))
def test_a_resolved_protocol_reads_the_same(name, tmp_path):
    """Settings to the last digit, for their fingerprint is compared; and without the files that it extended."""
    protocol = load_protocol(name)
    path = tmp_path / "mine.toml"
    path.write_text(as_toml(protocol), encoding="utf-8")
    found = load_protocol(str(path))
    assert replace(found, name=name, sha256="") == replace(protocol, sha256="")
    assert json.dumps([row.settings for row in found.rows]) == json.dumps([row.settings for row in protocol.rows])
    assert "\nextends" not in path.read_text()


def test_texts_with_odd_letters_stay_as_they_are(tmp_path):
    odd = 'a "quoted" \\ back\\slash, tab\\t, é \U0001f600 \\u007f end'
    path = Path(write_protocol(tmp_path, ('title = "Tiny"', f"title = '''{odd}\t'''")))
    protocol = replace(load_protocol(str(path)), note="rubbed out: \x7f")
    path.write_text(as_toml(protocol), encoding="utf-8")
    found = load_protocol(str(path))
    assert (found.title, found.note) == (f"{odd}\t", "rubbed out: \x7f")


def test_a_protocol_is_kept_where_no_other_file_is(tmp_path):
    first = load_protocol(write_protocol(tmp_path))
    second = load_protocol(write_protocol(tmp_path, ("gamma = 0.1", "gamma = 0.5")))
    path = tmp_path / "out" / "tiny" / "tiny.toml"
    for protocol in (first, second):  # an edited protocol replaces what was kept of it
        keep_protocol(tmp_path / "out", protocol)
        assert load_protocol(str(path)).rows == protocol.rows
    own = Path(write_protocol(path.parent, ("gamma = 0.1", "gamma = 0.5"))).read_bytes()
    keep_protocol(tmp_path / "out", second)  # the file that is run lies there itself
    assert path.read_bytes() == own
    message = f"{path}: must be free for the protocol that is run, which is kept there; got another file; choose another --out"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        keep_protocol(tmp_path / "out", first)
    assert path.read_bytes() == own


def test_a_name_that_this_package_has_is_refused(tmp_path):
    path = write_protocol(tmp_path, name="table1")
    message = f"{path}: a protocol of one's own must have a name of its own; got 'table1', which this package has; rename the file"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_protocol(path)
    assert load_protocol(str(PROTOCOLS / "table1.toml")).name == "table1"


def test_kept_protocols_that_cannot_be_used_are_left_out(tmp_path):
    for name, text in (("broken", "title = "), ("deep", f"a = {'[' * 100_000}"), ("table1", "title = ")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.toml").write_text(text)
    for folder, gamma in (("one", "0.1"), ("two", "0.5"), ("three", "0.1")):
        (tmp_path / folder / "tiny").mkdir(parents=True)
        write_protocol(tmp_path / folder / "tiny", ("gamma = 0.1", f"gamma = {gamma}"))
    folders = [tmp_path, *(tmp_path / name for name in ("one", "two", "three"))]
    known = known_protocols(folders)
    assert known.own == {"tiny": tmp_path / "one" / "tiny" / "tiny.toml"}
    reasons = {path.relative_to(tmp_path).parts[0]: reason for path, reason in known.not_used}
    assert reasons.keys() == {"broken", "deep", "two"}
    assert reasons["broken"].startswith(f"{tmp_path}/broken/broken.toml: must be TOML; got ")
    assert reasons["two"] == f"differs from {tmp_path}/one/tiny/tiny.toml, which stands for its table"
    assert [Path(one["file"]).name for one in build(collect(folders), tmp_path)["not_used"]] == [
        "broken.toml",
        "deep.toml",
        "tiny.toml",
    ]


def test_readmes_tables_need_a_protocol_that_can_be_read(tmp_path, capsys):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "mine.toml").write_text("title = ")
    (tmp_path / "README.md").write_text(
        "<!-- tables: written by repro.report, do not edit -->\n<!-- end of tables -->\n"
    )
    assert report(["--runs", str(tmp_path / "runs"), "--write", str(tmp_path / "README.md")]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/runs/mine/mine.toml: must be a protocol that a table can show; got " in error
    assert error.endswith("; remove it\n")
    assert error.count("\n") == 1


def test_numbers_that_ones_own_protocol_states_stand_beside(tmp_path, monkeypatch):
    """`paper` may state any number to compare with; without a tolerance there is a difference and no verdict on it."""
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    path = write_protocol(tmp_path / "runs" / "tiny")
    with monkeypatch.context() as patch:
        patch.setattr(protocol_module, "PROTOCOLS", Path(path).parent)  # for the record's maker
        write(tmp_path / "runs", "tiny", "baseline", 52.0)
    data = build(collect([tmp_path / "runs"]), tmp_path)
    (table,) = [table for table in data["tables"] if table["own"]]
    cell = table["cells"][0]
    assert table["columns"] == ["printed", "measured", "difference"]
    assert (cell["printed"], cell["mark"], table["counts"]["comparable"]) == ("51.91", "", 0)
    assert cell["difference"] == pytest.approx(0.09)
    assert against(table) == "not comparable: protocol overridden, or no tolerance stated"
