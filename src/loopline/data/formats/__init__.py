"""One reader per dataset format; `read` finds the right one for a folder."""

from loopline.data.formats.recognise import read

__all__ = ["read"]
