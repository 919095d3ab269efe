"""The edits of the prototxt where layers are merged: other fields, fewer bottoms, other names."""

from __future__ import annotations

from collections.abc import Sequence

from bnfold.frontends.caffe.edit_text import REST_OF_LINE, SEPARATOR, line_break
from bnfold.frontends.caffe.text_tree import Edits, Field, Message, Scalar, quoted


def rename(text: str, edits: Edits, fields: Sequence[Field], names: Sequence[str | None]) -> None:
    """Give the strings of a repeated field other values, in order; None takes one out."""
    scalars = [scalar for field in fields for scalar in field.values if isinstance(scalar, Scalar)]
    new = [
        None if name is None else scalar.text if name == scalar.string else quoted(name, scalar)
        for scalar, name in zip(scalars, names, strict=True)
    ]
    set_values(text, edits, fields, new)


def set_values(text: str, edits: Edits, fields: Sequence[Field], new: Sequence[str | None]) -> None:
    """Give the scalars of a repeated field other texts, in order; None takes one out."""
    done = 0
    for field in fields:
        old = [value for value in field.values if isinstance(value, Scalar)]
        own = new[done : done + len(old)]
        done += len(old)
        left = [entry for entry in own if entry is not None]
        if [value.text for value in old] == left:
            continue
        if not left:
            remove_field(text, edits, field)
        else:
            edits.replace(old[0].start, old[-1].end, ", ".join(left))


def remove_field(text: str, edits: Edits, field: Field) -> None:
    """A field, with its line if it has one of its own."""
    line = text.rfind("\n", 0, field.start) + 1
    behind = REST_OF_LINE.match(text, field.end)
    if not text[line : field.start].strip() and behind is not None:
        edits.replace(line, behind.end(), "")
        return
    separator = SEPARATOR.match(text, field.end)
    assert separator is not None
    edits.replace(field.start, separator.end(), "")


def set_fields(
    text: str, edits: Edits, messages: Sequence[Message], name: str, sizes: Sequence[int | str]
) -> None:
    """Give sizes along the axes of a window, or one for all of them, to a layer's messages.

    `name` is that of the field: with _h and _w in the place of _size it may be there, too.
    """
    stem = name.removesuffix("_size")
    entries = [f"{name}: {size}" for size in (sizes[:1] if len(set(sizes)) == 1 else sizes)]
    if stem != "dilation" and len(entries) == 2:
        entries = [f"{stem}_h: {sizes[0]}", f"{stem}_w: {sizes[1]}"]
    names = (name, f"{stem}_h", f"{stem}_w")
    old = [field for message in messages for field in message.fields if field.name in names]
    for place, field in enumerate(old):
        if place >= len(entries):
            remove_field(text, edits, field)
        elif place == len(old) - 1:
            edits.replace(field.start, field.end, _joined(text, field, entries[place:]))
        else:
            edits.replace(field.start, field.end, entries[place])
    if not old:
        _insert_first(text, edits, messages[0], entries)


def _joined(text: str, field: Field, entries: Sequence[str]) -> str:
    return (line_break(text, field) or " ").join(entries)


def _insert_first(text: str, edits: Edits, message: Message, entries: Sequence[str]) -> None:
    """Fields behind the opening brace, laid out like the first one."""
    between = (line_break(text, message.fields[0]) if message.fields else "") or " "
    edits.insert(message.start, "".join(between + entry for entry in entries))
