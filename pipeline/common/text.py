"""Text that a user wrote: which characters may hide in it, and how one line of a terminal shows it."""

import re
import unicodedata

LONGEST_LINE = 290  # characters, so that a line has at most 300 with its "error: "
BEGINNING = 190  # characters of a longer line that come before its gap
LONGEST_QUOTE = 80  # characters of a value or a name in a line
INVISIBLE = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}  # control, format (bidirectional), private use, surrogate, line breaks
ADDRESS = re.compile(r" ?<[^<>]* at 0x[0-9a-fA-F]+>")  # Python's name of an object without one: different in each run
USED = "\n\t\u200c\u200d"  # invisible, but part of text: line breaks, and the joiners of Persian and of emoji


def hidden(text: str) -> str | None:
    """The first character of a text that could act on a terminal or on the report without being seen; None if none."""
    if text.isascii() and text.isprintable():
        return None
    return next((each for each in text if unicodedata.category(each) in INVISIBLE and each not in USED), None)


def is_utf8(name: str) -> bool:
    """Whether UTF-8 can hold a name. It cannot if the name on the disk or the command line is in another encoding."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def code_point(character: str) -> str:
    return f"U+{ord(character):04X}"


def one_line(text: str) -> str:
    """A text as one line of printable characters: others are escaped, and a long text loses its middle."""
    text = " ".join(ADDRESS.sub("", text).split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(line) <= LONGEST_LINE:
        return line
    return f"{line[:BEGINNING]} ... {line[BEGINNING + 5 - LONGEST_LINE :]}"


def shortened(text: str) -> str:
    """The beginning of a text that a line quotes."""
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}..."
