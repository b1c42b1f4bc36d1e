"""The Document: the one value that flows everywhere, and how it is stored.

document.py      turns of text and pictures; immutable, checked when made
picture_file.py  bytes of an image file <-> pixels; whether a file is whole
reading.py       a folder, a document.json or a .zip -> Document, read strictly
store.py         Document -> a folder or a .zip, whole or not at all
"""

from duogen_core.document.document import (
    MAX_DEPTH,
    ROLES,
    Document,
    Part,
    Picture,
    PictureHeader,
    Role,
    Text,
    Turn,
    is_text,
    plain_json,
    valid_unicode,
)

__all__ = [
    "MAX_DEPTH", "ROLES", "Document", "Part", "Picture", "PictureHeader", "Role", "Text", "Turn", "is_text",
    "plain_json", "valid_unicode",
]  # fmt: skip
