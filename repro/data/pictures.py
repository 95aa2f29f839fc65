"""Opening pictures: the one place where Pillow meets a file."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

from PIL import Image

from repro.files import regular_file

# The formats that may be opened, with their files' suffixes; an id's file is looked for in this order. What else Pillow can read is not tried: a
# PostScript file would start Ghostscript, whatever its name says.
FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
MAX_PIXELS = 89_478_485  # Pillow's own bound, from which on it warns: a quarter of a GiB as RGB.
_ORIENTATION = 0x0112  # EXIF

# In every thread, for as long as the process lives: a picture that Pillow would only warn of is refused below.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def open_picture(path: Path, what: str = "image") -> Image.Image:
    """Opens a picture of one of FORMATS; its pixels are decoded when they are first asked for.

    Args:
        path: A regular file.
        what: What it is, for the message.

    Returns:
        Pillow's image, to be closed by the caller.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no regular file, of another format, broken, or would have more than MAX_PIXELS pixels.
    """
    regular_file(path, what, "complete the data folder")
    too_large = f"{path}: {what} must have at most {MAX_PIXELS} pixels; got {{}}; shrink it"
    try:
        image = Image.open(path, formats=list(FORMATS))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(too_large.format(_one_line(error))) from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and more, depending on what is broken.
        raise _undecodable(path, what, error) from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ValueError(too_large.format(f"{image.width} x {image.height}"))
    return image


def decode_png(data: bytes) -> Image.Image:
    """Decodes a PNG that was read already, whatever its size.

    Args:
        data: The file.

    Returns:
        Pillow's image, in RGB.

    Raises:
        ValueError: It is no whole PNG; the reason alone.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            return picture.convert("RGB")
    except Exception as error:  # As above.
        raise ValueError(f"no whole PNG: {_one_line(error)[:100]}") from error


def load_picture(path: Path, what: str = "image") -> Image.Image:
    """Opens and decodes a picture completely.

    Args:
        path: As for `open_picture`.
        what: As for `open_picture`.

    Returns:
        Pillow's image, its file closed.

    Raises:
        FileNotFoundError, ValueError: As for `open_picture`; also ValueError if the pixels do not decode.
    """
    with open_picture(path, what) as image:
        decode(path, what, image)
        return image


def decode(path: Path, what: str, image: Image.Image) -> None:
    """Decodes the pixels of an opened picture.

    Raises:
        ValueError: They do not decode; the message names `path` and `what`.
    """
    try:
        image.load()
    except Exception as error:  # As above.
        raise _undecodable(path, what, error) from error


def _undecodable(path: Path, what: str, error: Exception) -> ValueError:
    """Makes the error of a picture that Pillow cannot decode: one line that names it."""
    if isinstance(error, Image.UnidentifiedImageError):
        return ValueError(f"{path}: {what} must decode; got none of {', '.join(FORMATS)}; replace the file")
    return ValueError(f"{path}: {what} must decode; got {_one_line(error)}; replace the file")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:300]


def find_picture(folder: Path, stem: str) -> Path | None:
    """Finds a picture by its name without suffix.

    Args:
        folder: Where to look.
        stem: The name; the suffix is one of SUFFIXES, in small or capital letters.

    Returns:
        The first that is there in the order of SUFFIXES, or None.
    """
    for suffix in SUFFIXES:
        for path in (folder / f"{stem}{suffix}", folder / f"{stem}{suffix.upper()}"):
            if os.path.isfile(path):  # Also where the name is too long to be looked up: then it is not there.
                return path
    return None


def stem_of(name: str) -> str:
    """Returns a picture's name without its suffixes, such as "a.jpg.jpg" may have."""
    while name.lower().endswith(SUFFIXES):
        name = name[: name.rindex(".")]
    return name


def size_error(image: Path, label: str, image_size: tuple[int, int], label_size: tuple[int, int]) -> ValueError:
    """Makes the error of a label that does not fit its image; where EXIF data turn the image, which Caffe ignores, it says so.

    Args:
        image: The image's file.
        label: How the message names the label.
        image_size: (height, width) of the pixels as they are stored.
        label_size: (height, width).
    """
    advice = "pair the right files"
    if label_size == image_size[::-1]:
        with open_picture(image) as picture:
            if picture.getexif().get(_ORIENTATION) in (5, 6, 7, 8):
                advice = f"{image} has an EXIF orientation, which is ignored as in Caffe: turn its pixels (such as by ImageMagick's -auto-orient), or the label back"
    return ValueError(
        f"{label}: label must have its image's (height, width) {tuple(image_size)}; got {tuple(label_size)}; {advice}"
    )
