"""The gallery of a folder of pictures: one index.html beside them, without scripts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import jinja2

from caffe_weights.files.atomic import replacing
from repro.visualize.photos import Drawn

TEMPLATE = "gallery.html.j2"


def write_gallery(out: Path, pictures: Sequence[Drawn], title: str, notes: Sequence[str]) -> Path:
    """Writes OUT/index.html.

    Args:
        out: The folder of the pictures.
        pictures: In their order.
        title: The page's.
        notes: Lines under the title.

    Returns:
        The file.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    entries = [
        {
            "src": quote(os.fsencode(one.path.name)),
            "name": one.name,
            "alt": one.alt,
            "height": one.size[0],
            "width": one.size[1],
        }
        for one in pictures
    ]
    page = environment.get_template(TEMPLATE).render(title=title, notes=notes, pictures=entries)
    path = out / "index.html"
    with replacing(path) as part:
        part.write_text(page, encoding="utf-8")
    return path
