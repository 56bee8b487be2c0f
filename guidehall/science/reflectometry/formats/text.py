"""Curves in text files of columns: q, R and, where known, dR and dq.

Lines before the first number are headers: comments, a line of column names, or what an instrument writes
above its table. From the names come the order of the columns, the unit of q, and whether dq is a standard
deviation or a full width at half maximum; from lines such as "Instrument: D17" what the curve is of.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from guidehall.science.pipeline import UserError
from guidehall.science.reflectometry.curves import Metadata
from guidehall.science.reflectometry.formats.common import Columns, Given, is_percent, per_angstrom, to_sigma
from guidehall.science.reflectometry.params import MAX_POINTS

_SEPARATOR = re.compile(r"\s*[,;]\s*|\s+")
# Of percent signs only those that begin a comment: not "(%)", "R/%" or a unit at the end of a line of names.
# Each begins with its own sign, so that a search passes over blanks at once.
_COMMENT = re.compile(r"#|!|//|%(?<!\S%)(?!\s*$)")
_FORTRAN = re.compile(r"[-+]?[\d.]+[dD][-+]?\d+")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+(?:[dDeE][-+]?\d+)?")
_MAX_LINES, _MAX_LINE_LENGTH = 200_000, 10_000
_MAX_HEADERS, _MAX_HEADER_LENGTH = 1000, 2000
# Among the last of these stands the line of names, and no longer than this.
_NAME_LINES, _NAMES_LENGTH = 100, 500
_MAX_COLUMNS = 64

_OUTSIDE = r"(?![(\[])(?![^(\[]*[)\]])"
# How the names of a heading may be parted; the first that gives as many as there are columns counts.
_NAME_SEPARATORS = tuple(
    re.compile(pattern + _OUTSIDE) for pattern in (r"\s*[,;\t]+\s*", r"\s*[,;\t]\s*|\s{2,}", r"[\s,;]+")
)
_ERROR = r"(?:d|s|delta_?|sigma_?|std_?|err(?:or)?_?)"
_KINDS = {
    kind: re.compile(pattern)
    for kind, pattern in (
        ("q", r"qz?|q_z|momentum_?transfer"),
        ("r", r"r|rqz?|ref|refl|reflectivity|i|intensity"),
        ("dq", rf"{_ERROR}qz?(?:[^a-z].*|oqz?|fwhm)?|qz?_?(?:res|err|std|sigma|fwhm).*|res(?:olution)?"),
        (
            "dr",
            rf"(?:{_ERROR}|e)(?:r|ref|refl|reflectivity|rqz?|i)(?:[^a-z].*)?|r_?(?:err|std|sigma).*|err(?:or)?s?|unc.*",
        ),
    )
}
# "dR*Q^4" is no error of R.
_TIMES_Q4 = re.compile(r"q[z_]*[*^]*4")
_PERCENT = re.compile(r"[/_]?(?:%|percent|pct)$")
# What stands where q or R is expected, and is neither.
_OTHER = re.compile(
    r"(?:2|two_?)?theta.*|angle.*|lambda|wavelength.*|q\^?2|q\^?4|r\*?q\^?4|rq4.*|log.*|ln.*|tof|time", re.I
)
_UNITS_LINE = re.compile(r"(?:q[ _-]?)?units?(?:\s+of\s+qz?)?\s*(?:[:=]|\bis\b)\s*(.+)", re.IGNORECASE)
# "q in 1/nm" and, where a line is none of names for all columns, "Q (1/nm), R, dR" and "Q/nm^-1 R dR".
_Q_LINE = re.compile(r"qz?(?:(?:\s+is)?\s+in\s+([^,;]+)|\s*[(\[](.*?)[)\]]|\s*/\s*([^,;\s]+))", re.IGNORECASE)
# What can only be meant for an inverse length.
_LIKE_INVERSE = re.compile(r"1?\s*/|inv|per\b|[^,;]*[-\u2010-\u2013\u2212\u207b]\{?[1¹]\b", re.IGNORECASE)
_WIDTH = re.compile(r"fwhm|full.?width", re.IGNORECASE)
_DEVIATION = re.compile(r"\bsd\b|std|sigma|σ|rms|standard.?dev|1.?sigma", re.IGNORECASE)
_HALF_WIDTH = re.compile(r"hwhm|half.?width", re.IGNORECASE)
_RELATIVE_R = re.compile(r"(?:d|s|delta_?|δ|σ)r\s*(?:/|o)\s*r", re.IGNORECASE)
_RELATIVE = re.compile(r"(?:d|s|delta_?|δ|σ)qz?\s*(?:/|o)\s*qz?", re.IGNORECASE)
_OF_DQ = re.compile(r"(?:\b(?:d|s|delta_?|sigma_?)qz?|[δσ]qz?|resolution)(.*)", re.IGNORECASE)
_OF_DR = re.compile(rf"\b{_ERROR}r(?![a-z])|[δσ]r\b", re.IGNORECASE)
_SPEAKS_OF_R = re.compile(r"\b(?:r|refl\w*|intensity)\b", re.IGNORECASE)
_BRACKETED = re.compile(r"[(\[]([^)\]]*)[)\]]")
# The exponent of "A^(-1)", as a bracket in a bracket.
_NESTED = re.compile(r"\(([-\u2010-\u2013\u2212]1)\)")
_FACT = re.compile(
    r"(title|sample|instrument|facility|proposal|experiment|run(?:.?number)?|date|owner)(?:\s*[:=]\s*|\s+)(\S.*)(?<!:)$",
    re.IGNORECASE,
)
# An index of the points stands before no fewer, nor before larger q (in 1/nm).
_LEAST_INDEXED, _LARGEST_INDEXED_Q = 5, 50.0
_FACTS = {"experiment": "proposal", "date": "start"}


@dataclass(frozen=True)
class _Name:
    """What the heading of a column says; `kind` is empty for a name that is not known."""

    kind: str
    text: str


def read(data: bytes, given: Given) -> list[Columns]:
    """The curve of a text file.

    Raises:
        UserError: names the line.
    """
    headers: list[str] = []
    rows: list[list[float]] = []
    above = 0
    for number, content, comment in _lines(data, given.field):
        if comment:
            _keep(headers, comment, bool(rows))
        if not content:
            continue
        place = f"{given.field} line {number}"
        words = _SEPARATOR.split(content)
        if not rows and _number(words[0]) is None:
            above += 1
            if above > _MAX_HEADERS:
                got = f"more than {_MAX_HEADERS} lines that begin with a word"
                raise UserError(given.field, got, f"at most {_MAX_HEADERS} are allowed above the numbers")
            _keep(headers, content, False)
            continue
        _refuse_decimal_commas(content, place)
        rows.append(_row(words, rows, place))
        if len(rows) > MAX_POINTS:
            raise UserError(
                given.field, f"more than {MAX_POINTS} points", f"at most {MAX_POINTS} are allowed"
            )
    if not rows:
        raise UserError(given.field, "no numbers", "must hold 2 to 4 columns: q, R, dR, dq")
    return [_columns(np.array(rows), headers, given)]


def _keep(headers: list[str], line: str, below: bool) -> None:
    """Keeps a header; of too many above the numbers the last ones, for there stand the names."""
    if len(headers) == _MAX_HEADERS and not below:
        del headers[0]
    if len(headers) < _MAX_HEADERS:
        headers.append(line[:_MAX_HEADER_LENGTH])


def _lines(data: bytes, field: str) -> Iterator[tuple[int, str, str]]:
    """Number, content and comment of each line."""
    if b"\0" in data:
        raise UserError(field, "bytes that are not UTF-8 text", "must be text, .npy or HDF5")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        # Older programs write the sign of the angstrom in one byte.
        text = data.decode("latin-1")
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if number > _MAX_LINES:
            raise UserError(field, f"more than {_MAX_LINES} lines", "must be a table of a curve")
        if len(line) > _MAX_LINE_LENGTH:
            got = f"{len(line)} characters"
            raise UserError(f"{field} line {number}", got, f"at most {_MAX_LINE_LENGTH} are allowed")
        mark = _COMMENT.search(line)
        content, comment = (line[: mark.start()], line[mark.end() :]) if mark else (line, "")
        # A separator at the end of the line makes no column.
        yield number, content.strip().rstrip(",; \t"), comment.strip()


def _refuse_decimal_commas(content: str, place: str) -> None:
    parts = re.split(r"[;\s]+", content)
    comma = next(filter(_DECIMAL_COMMA.fullmatch, parts), None)
    # Unless commas are what separates, and some have a blank beside them.
    if len(parts) > 1 and comma and not any(part.startswith(",") or part.endswith(",") for part in parts):
        raise UserError(place, comma, "must be written with a decimal point: a comma separates columns")


def _row(words: list[str], rows: list[list[float]], place: str) -> list[float]:
    expected = len(rows[0]) if rows else None
    # Python would also read 1_0 and the digits of other scripts.
    values = [_number(word) if word.isascii() and "_" not in word else None for word in words]
    for word, value in zip(words, values, strict=True):
        if value is None:
            raise UserError(place, word or "nothing between two separators", "must be a number")
    if expected is None and not 2 <= len(values) <= _MAX_COLUMNS:
        raise UserError(place, f"{len(values)} columns", "2 to 4 are allowed: q, R, dR, dq")
    if expected is not None and len(values) != expected:
        raise UserError(place, f"{len(values)} columns", f"the lines before have {expected}")
    return [value for value in values if value is not None]


def _number(word: str) -> float | None:
    try:
        return float(re.sub("[dD]", "e", word) if _FORTRAN.fullmatch(word) else word)
    except ValueError:
        return None


def _columns(table: np.ndarray, headers: list[str], given: Given) -> Columns:
    notes: list[str] = []
    names, line = _names(headers, table.shape[1])
    if not names and _is_indexed(table):
        notes.append("the first column counts the points; it was left out")
        table = table[:, 1:]
        names, line = _names(headers, table.shape[1])
    if names:
        place = _places(names, given)
        others = [name.text or "one without a name" for name in names if not name.kind]
        if others:
            notes.append(f"left out, for nothing says that they are q, R, dR or dq: {', '.join(others)}")
    elif table.shape[1] > 4:
        allowed = "2 to 4 are allowed, q, R, dR, dq, unless a line of names says which is which"
        raise UserError(given.field, f"{table.shape[1]} columns", allowed)
    else:
        place = dict(zip(("q", "r", "dr", "dq"), range(table.shape[1]), strict=False))
        notes += _unknown_names(headers, table.shape[1], given)

    def column(kind: str) -> np.ndarray | None:
        return table[:, place[kind]] if kind in place else None

    said = {kind: names[place[kind]].text if names and kind in place else "" for kind in _KINDS}
    # Of the line that names the columns, only what it says of dq counts.
    more = [header for number, header in enumerate(headers) if number != line]
    return Columns(
        q=table[:, place["q"]],
        r=table[:, place["r"]],
        dr=column("dr"),
        dq=column("dq"),
        place=given.field,
        q_unit=_unit_of_q(said["q"], headers, given),
        dq_unit=_unit(said["dq"])[0],
        dq_sigma=_meaning(said["dq"], more),
        dq_is_relative=bool(_RELATIVE.match(said["dq"])),
        dr_is_relative=bool(_RELATIVE_R.match(said["dr"])),
        percent=tuple(kind for kind in ("r", "dr", "dq") if _in_percent(said[kind])),
        metadata=replace(_facts(headers), notes=tuple(notes)),
    )


def _is_indexed(table: np.ndarray) -> bool:
    """Whether the first of three columns or more only counts, from 0 or 1, and q stands in the second."""
    points, width = table.shape
    if width < 3 or points < _LEAST_INDEXED or table[0, 0] not in (0.0, 1.0):
        return False
    q = table[:, 1]
    counts = bool((np.diff(table[:, 0]) == 1.0).all())
    return counts and bool((np.diff(q) > 0).all()) and q[0] > 0 and q[-1] <= _LARGEST_INDEXED_Q


def _places(names: list[_Name], given: Given) -> dict[str, int]:
    """Where each kind of column stands.

    Raises:
        UserError: a kind is named twice.
    """
    for kind in _KINDS:
        same = [name.text for name in names if name.kind == kind]
        if len(same) > 1:
            allowed = f"only one column may be {kind}: name the others differently"
            raise UserError(f"{given.field}, columns", ", ".join(same), allowed)
    return {name.kind: place for place, name in enumerate(names) if name.kind}


def _names(headers: list[str], count: int) -> tuple[list[_Name], int | None]:
    """What the columns are called: the last header line that names as many, q and R among them; and which."""
    for number in range(len(headers) - 1, max(-1, len(headers) - 1 - _NAME_LINES), -1):
        line = headers[number][:_NAMES_LENGTH].replace('"', "")
        line = re.sub(r"^(columns|names)?\s*[:=]?\s*", "", line, flags=re.IGNORECASE)
        for separator in _NAME_SEPARATORS:
            texts = separator.split(line.strip())
            if len(texts) == count:
                names = [_Name(_kind(text), text) for text in texts]
                if {"q", "r"} <= {name.kind for name in names}:
                    return names, number
    return [], None


def _kind(text: str) -> str:
    words = _BRACKETED.sub(" ", text).lower().replace("δ", "d").replace("σ", "sigma_").split()
    plain = _PERCENT.sub("", _without_unit(words[0])[0]) if words else ""
    if _TIMES_Q4.search(plain):
        return ""
    return next((kind for kind, pattern in _KINDS.items() if pattern.fullmatch(plain)), "")


def _in_percent(text: str) -> bool:
    """Whether a name is of a column in percent, as in "dQ/Q (%)" and "R_percent"."""
    bracketed = [piece for found in _BRACKETED.findall(text) for piece in re.split(r"[,;]", found)]
    words = _BRACKETED.sub(" ", text).split()
    return any(map(is_percent, [*bracketed, *words[1:]])) or bool(words and _PERCENT.search(words[0].lower()))


def _unit_of_q(name: str, headers: list[str], given: Given) -> float | None:
    """The unit of q by the name of its column, or else by other lines; None where nothing says it.

    Raises:
        UserError: there is one, which is not known, and the caller says none.
    """
    told = {f"column {name[:40]}": _unit(name), "units": _unit_of_lines(headers)}
    for place, (factor, strange) in told.items():
        if factor is not None:
            return factor
        if strange and given.q_unit is None:
            allowed = "must be 1/angstrom or 1/nm, or say which of the two it is (q_unit, --q-unit)"
            raise UserError(f"{given.field}, {place}", strange, allowed)
    return None


def _unit(text: str) -> tuple[float | None, str]:
    """The unit in the name of a column, such as "Q (1/nm)"; and, for None, what stands in its place."""
    text = _NESTED.sub(r"\1", text)
    bracketed = [piece.strip() for found in _BRACKETED.findall(text) for piece in re.split(r"[,;]", found)]
    name, *words = _BRACKETED.sub(" ", text).split() or [""]
    # As in "Q in inverse nanometers" and "Q / nm^-1".
    behind = re.sub(r"^(?:in\s|/)\s*", "", " ".join(words))
    units = map(per_angstrom, [*bracketed, _without_unit(name)[1], *words, behind])
    strange = [piece for piece in bracketed if not _width(piece)]
    strange += [behind] if _LIKE_INVERSE.match(behind) else []
    return next((unit for unit in units if unit is not None), None), next(filter(None, strange), "")


def _without_unit(word: str) -> tuple[str, str]:
    """A name and the unit that is written to it, "" for none, as in "Q/nm^-1", "q_nm-1" and "Qz_invnm"."""
    name, *rest = re.split("[/_]", word, maxsplit=1)
    for meant in (f"{before}{unit}" for unit in rest for before in ("", "1/")):
        # "q_nm" can only mean 1/nm.
        if per_angstrom(meant) is not None:
            return name, meant
    return word, ""


def _unit_of_lines(headers: list[str]) -> tuple[float | None, str]:
    """The unit of q in a line such as "units: 1/nm"; and, for None, what stands in its place."""
    strange = ""
    for line in headers:
        plain, of_q = _UNITS_LINE.match(line), _Q_LINE.match(line[:_NAMES_LENGTH])
        text = plain[1] if plain else of_q[of_q.lastindex or 0] if of_q else ""
        # Those of further columns may follow.
        units = map(per_angstrom, [text[:_NAMES_LENGTH], *re.split(r"[,;\s]", text, maxsplit=1)[:1]])
        factor = next((unit for unit in units if unit is not None), None)
        if factor is not None:
            return factor, ""
        if plain or _LIKE_INVERSE.match(text):
            strange = strange or text
    return None, strange


def _unknown_names(headers: list[str], count: int, given: Given) -> list[str]:
    """A note where the line above the numbers may name the columns, but not as anything that is known.

    Raises:
        UserError: it names what is neither q nor R.
    """
    line = headers[-1][:_NAMES_LENGTH].strip() if headers else ""
    for separator in _NAME_SEPARATORS:
        texts = [text for text in separator.split(line) if text]
        if len(texts) != count:
            continue
        for kind, text in zip(("q", "R"), texts, strict=False):
            if _OTHER.fullmatch(text):
                raise UserError(f"{given.field}, column {text}", text, f"must be {kind}: convert it first")
        return [f"the names of the columns ({', '.join(texts)}) are not known: taken as q, R, dR, dq"]
    return []


def _meaning(name: str, headers: list[str]) -> float | None:
    """Factor from dq to one standard deviation; None where nothing says it."""
    told = [name, *(clause for line in headers for clause in _clauses_of_dq(line))]
    return to_sigma(next(filter(None, map(_width, told)), ""))


def _width(text: str) -> str:
    """What kind of width a text speaks of; empty for none."""
    # "Half width at half maximum" speaks of half a width, "full width at half maximum" of none.
    kinds = ((_HALF_WIDTH, "hwhm"), (_WIDTH, "fwhm"), (_DEVIATION, "sigma"))
    return next((kind for words, kind in kinds if words.search(text)), "")


def _clauses_of_dq(line: str) -> list[str]:
    """What a line says of dq: what follows the word for it, and does not speak of R."""
    found = _OF_DQ.search(line)
    if found is None:
        return []
    clauses = re.split("[,;]", _OF_DR.split(found[1][:_NAMES_LENGTH], maxsplit=1)[0])
    return [clause for clause in clauses if not _SPEAKS_OF_R.search(clause)]


def _facts(headers: list[str]) -> Metadata:
    facts: dict[str, Any] = {}
    for line in headers:
        found = _FACT.match(line)
        if found:
            key = found[1].lower()
            key = "run" if key.startswith("run") else _FACTS.get(key, key)
            facts.setdefault(key, found[2].strip().strip("\"'"))
    return replace(Metadata(header={"lines": headers} if headers else {}), **facts)
