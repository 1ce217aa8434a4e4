"""Parse XML of labelling tools in any declared encoding, without document types or entities."""

from __future__ import annotations

import codecs
import re
from xml.etree import ElementTree

_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?\bencoding\s*=\s*["']([A-Za-z][\w.:-]*)["']""")
BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_WIDER = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949"}  # as browsers read them


class UnusableXml(ValueError):
    """The XML cannot be used. args: the reason, which is counted, and perhaps a detail of this file."""


def parse(data: bytes) -> ElementTree.Element:
    """Return the root element. Raises UnusableXml."""
    content = _decode(data)
    if "<!DOCTYPE" in content or "<!ENTITY" in content:
        raise UnusableXml("broken XML", "document types are not supported")
    try:
        # The parser refuses encodings with several bytes per character, so it always gets UTF-8.
        return ElementTree.fromstring(content.encode(), parser=ElementTree.XMLParser(encoding="utf-8"))  # noqa: S314 - no DTD
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise UnusableXml("broken XML", str(error)) from error


def root_tag(data: bytes) -> str | None:
    """Return the name of the root element from the first bytes of a file, None if there is none."""
    name = re.match(r"(?:\s|<\?.*?\?>|<!--.*?-->|<!DOCTYPE[^>\[]*(?:\[.*?\]\s*)?>)*<([\w:.-]+)", text(data), re.DOTALL)
    return name[1] if name else None


def text(data: bytes) -> str:
    """Return the text of a file or of its first bytes, which may end within a character; "" for an unsupported encoding."""
    try:
        return _decode(data, errors="replace")
    except UnusableXml:
        return ""


def _decode(data: bytes, errors: str = "strict") -> str:
    if data[:2] in BOMS:
        encoding = "utf-16"
    else:
        declared = _DECLARED.match(data.removeprefix(codecs.BOM_UTF8))
        encoding = declared[1].decode().lower() if declared and not data.startswith(codecs.BOM_UTF8) else "utf-8-sig"
    try:
        codec = codecs.lookup(encoding).name
        if codec.startswith(("utf-16", "utf-32")) and data[:2] not in BOMS:
            codec = "utf-8"  # the declaration was readable byte by byte, so it is wrong: .NET writes such files
        return data.decode(_WIDER.get(codec, codec), errors)
    except LookupError as error:
        raise UnusableXml(f"XML in the unsupported encoding {encoding}") from error
    except ValueError as error:
        raise UnusableXml(f"XML that is not valid {encoding.removesuffix('-sig')}") from error
