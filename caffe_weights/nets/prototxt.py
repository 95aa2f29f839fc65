"""Prototxt text: nets and solvers of any Caffe fork, read without a schema, so that no layer type is unknown."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from caffe_weights.files.kinds import HEAD, not_prototxt

MAX_BYTES = 16 * 2**20
MAX_DEPTH = 64
MAX_VALUES = 262144
MAX_STRING = 65536

_TOKEN = re.compile(
    r"""(?P<space>[\s,;]+|\#[^\n]*)
      | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      | (?P<open>[{<]) | (?P<close>[}>]) | (?P<colon>:) | (?P<list>\[) | (?P<end>\])
      | (?P<bare>(?:\$\{\w+\}|[\w.+\-/])+)""",
    re.VERBOSE,
)
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{1,2}|[0-7]{1,3}|.)")
_ESCAPES = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}


class Word(str):
    """A bare word: an enum value such as MAX or CONVOLUTION, as against a quoted string."""


class Message(dict):
    """The fields of a message: name to list of values (int, float, bool, str, Word, Message), in file order.

    Attributes:
        file, line: where it begins; lines count from 1.
        lines: of each field, the line of each of its values, as far as it was read from a file.
    """

    def __init__(self, fields=(), line: int = 1, file: str = "prototxt"):
        super().__init__(fields)
        self.file, self.line = file, line
        self.lines: dict[str, list[int]] = {}

    def one(self, name: str, default=None):
        """Returns the last value of a field, as protobuf does for an optional field, or the default."""
        return self[name][-1] if name in self else default


def read_prototxt(path: str | os.PathLike, defines: Mapping[str, str] | None = None) -> Message:
    """Reads a net or solver prototxt.

    Args:
        path: the file.
        defines: values for the ${VARS} that DeepLab's scripts fill in.

    Returns:
        The whole file as a message.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: no prototxt, or a variable without a value; the message names file and line. Comments and strings may be in any
            encoding that keeps ASCII's octets (UTF-8, Latin-1, GBK), and the whole in UTF-16 with its mark.

    Caffe: src/caffe/util/io.cpp, ReadProtoFromTextFile.
    Deviates: field names and types are not checked against caffe.proto.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: must be a file; got nothing there; check the path")
    if not path.is_file():
        raise ValueError(f"{path}: must be a prototxt file; got a directory or device; name the file itself")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(
            f"{path}: a prototxt must have at most {MAX_BYTES} bytes; got {path.stat().st_size}; is it a caffemodel?"
        )
    octets = path.read_bytes()
    if what := not_prototxt(octets[:HEAD]):
        raise ValueError(f"{path}: must be prototxt text; got {what}; name the text")
    if octets[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = octets.decode("utf-16", "replace")
    else:  # what is no UTF-8 passes through comments and strings as it is
        text = octets.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    return parse_prototxt(text, str(path), defines)


def parse_prototxt(text: str, where: str, defines: Mapping[str, str] | None = None) -> Message:
    """Parses protobuf text format; arguments, result and errors as for read_prototxt."""
    return _Parser(text, where, dict(defines or {})).parse()


class _Parser:
    def __init__(self, text: str, where: str, defines: dict[str, str]):
        self.text, self.where, self.defines = text, where, defines
        self.values = 0
        self.line = 1  # of the token being read

    def fail(self, position: int, problem: str) -> ValueError:
        line = self.text.count("\n", 0, position) + 1
        return ValueError(f"{self.where}: line {line}: {problem}; correct the prototxt")

    def parse(self) -> Message:
        root = Message(file=self.where)
        stack = [root]  # of open messages; a list instead of recursion, so that depth costs nothing
        name, colon, in_list = "", False, False
        joins = ""  # the field whose string a string that follows at once continues
        for kind, token, at in self.tokens():
            if kind == "bare" and not name:
                name = token
            elif kind == "colon" and name and not colon:
                colon = True
            elif kind == "open" and name:
                if len(stack) > MAX_DEPTH:
                    raise self.fail(at, f"messages must nest at most {MAX_DEPTH} deep; got more")
                if in_list:
                    raise self.fail(at, "a list must hold plain values; got a message")
                stack.append(self.add(stack[-1], name, Message(line=self.line, file=self.where), at))
                name, colon = "", False
            elif kind == "close" and not name and len(stack) > 1:
                stack.pop()
            elif kind == "list" and colon and not in_list:
                in_list = True
            elif kind == "end" and in_list:
                name, colon, in_list = "", False, False
            elif kind == "string" and joins and not name:
                stack[-1].lines[joins].pop()
                self.add(stack[-1], joins, stack[-1][joins].pop() + self.string(token, at), at)
                continue
            elif kind in ("string", "bare") and colon:
                self.add(stack[-1], name, self.string(token, at) if kind == "string" else self.scalar(token, at), at)
                joins = name if kind == "string" and not in_list else ""
                if not in_list:
                    name, colon = "", False
                continue
            else:
                raise self.fail(at, f"a field must read `name: value` or `name {{ ... }}`; got {token[:40]!r}")
            joins = ""
        if name or len(stack) > 1:
            raise self.fail(len(self.text), "every field and brace must be closed; got the end of the file")
        return root

    def tokens(self):
        position = 0
        while position < len(self.text):
            match = _TOKEN.match(self.text, position)
            if not match:
                if "\udc80" <= self.text[position] <= "\udcff":
                    raise self.fail(position, "what is no string must be UTF-8; got another encoding")
                raise self.fail(position, f"must be protobuf text; got {self.text[position : position + 20]!r}")
            if match.lastgroup != "space":
                yield match.lastgroup, match.group(), position
            else:
                self.line += match.group().count("\n")
            position = match.end()

    def add(self, message: Message, name: str, value, at: int):
        self.values += 1
        if self.values > MAX_VALUES:
            raise self.fail(at, f"a prototxt must have at most {MAX_VALUES} values; got more")
        if isinstance(value, str) and len(value) > MAX_STRING:
            raise self.fail(at, f"a string must have at most {MAX_STRING} characters; got {len(value)}")
        message.setdefault(name, []).append(value)
        message.lines.setdefault(name, []).append(self.line)
        return value

    def substituted(self, token: str, at: int) -> str:
        def value(match: re.Match) -> str:
            if match[1] not in self.defines:
                raise self.fail(at, f"{match[0]} must have a value; got none (give --define {match[1]}=VALUE)")
            return self.defines[match[1]]

        return _VARIABLE.sub(value, token)

    def string(self, token: str, at: int) -> str:
        """Returns a quoted string's text: it stands for octets, and those that are no UTF-8 come out as \\xNN, as in a .caffemodel."""

        def unescaped(match: re.Match) -> bytes:
            code = match[1]
            if code[:1] == b"x" and len(code) > 1:
                return bytes([int(code[1:], 16)])
            return bytes([int(code, 8) & 255]) if code[0] in b"01234567" else _ESCAPES.get(code, code)

        octets = self.substituted(token[1:-1], at).encode("utf-8", "surrogateescape")
        return _ESCAPE.sub(unescaped, octets).decode("utf-8", "backslashreplace")

    def scalar(self, token: str, at: int) -> int | float | bool | Word:
        text = self.substituted(token, at)
        if text in ("true", "false"):
            return text == "true"
        if re.fullmatch(r"[A-Za-z_]\w*", text) and text.lower() not in ("inf", "infinity", "nan"):
            return Word(text)
        # Caffe: protobuf's tokenizer reads 0x10 as 16 and 010 as 8; 08 is an error.
        octal = bool(re.fullmatch(r"[-+]?0[0-9]+", text))
        if len(text) <= 64 and not (octal and re.search("[89]", text)):
            try:
                return int(text, 8 if octal else 16 if re.fullmatch(r"[-+]?0[xX][0-9a-fA-F]+", text) else 10)
            except ValueError:
                pass
            try:
                return float(re.sub(r"(?<=[\d.])[fF]$", "", text))
            except ValueError:
                pass
        raise self.fail(at, f"a value must be a number, true, false, a word or a quoted string; got {text[:40]!r}")
