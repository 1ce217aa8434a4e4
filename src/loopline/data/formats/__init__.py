"""One reader per dataset format; `read` picks the reader for a folder."""

from loopline.data.formats.recognise import read

__all__ = ["read"]
