r"""What reaches a terminal: text, and nothing in it that could steer the terminal.

Names, ids and reasons come from files, perhaps of strangers. A control character in them could move
the cursor, hide what was printed before, or set the title of the window; a sign that turns the
direction of writing could make a name look like another. Such signs are printed as JSON writes
them, ``\u001b``, so that JSON stays JSON.
"""

import typer

_KEPT = "\n\t"


def make_printable(text: str) -> str:
    r"""Return a text whose signs are all printable, but for tabs and ends of lines.

    >>> make_printable("B2\x1b[31m\nred")
    'B2\\u001b[31m\nred'
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in _KEPT else _escape(each) for each in text)


def count_things(count: int, thing: str) -> str:
    """A number of things in words.

    >>> count_things(1, "row"), count_things(2000, "row")
    ('1 row', '2,000 rows')
    """
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def echo(text: object, *, err: bool = False) -> None:
    """Print a text and the end of the line, to stdout or stderr."""
    typer.echo(make_printable(str(text)), err=err)


def _escape(sign: str) -> str:
    units = sign.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
