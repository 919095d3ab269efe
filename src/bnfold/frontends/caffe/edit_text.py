"""The edits of the prototxt: layers go, blobs get other names, layers get a bias.

A layer goes with the line that it stood on. A comment that is its own goes too: the one behind it
on that line, unless it goes on below, and a single line right above that says its name and no more.
Any other comment stays: notices and headings are about more than one layer. Where that would leave
two blank lines together, one of them goes.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from bnfold.frontends.caffe.net import Layer, Net
from bnfold.frontends.caffe.rewire import Wiring
from bnfold.frontends.caffe.text_tree import Edits, Field, Message, Scalar, quoted

REST_OF_LINE = re.compile(r"[ \t]*[,;]?[ \t]*(?:#[^\n]*)?(?:\r?\n|\r?\Z)")
SEPARATOR = re.compile(r"[ \t]*[,;]?[ \t]*")
_BLANK_LINE = re.compile(r"[ \t]*\r?\n")


def edit_text(
    net: Net, removed: Collection[Layer], wiring: Wiring, biased: dict[int, tuple[Layer, str]]
) -> str:
    """The new text. `biased` are the layers that get a bias, with the message that says so."""
    text = net.document.text
    edits = Edits()
    gone = set(map(id, removed))
    for layer in net.layers:
        if id(layer) in gone:
            edits.replace(*layer_span(text, layer), "")
            continue
        for scalar, number in (
            *zip(layer.bottoms, layer.inputs, strict=True),
            *zip(layer.tops, layer.outputs, strict=True),
        ):
            name = wiring.name(number)
            if name != scalar.string:
                edits.replace(scalar.start, scalar.end, quoted(name, scalar))
    for layer, part in biased.values():
        switch_bias_on(text, edits, layer, part)
        add_param(text, edits, layer)
    return edits.apply(text)


def layer_span(text: str, layer: Layer) -> tuple[int, int]:
    """What goes with a layer."""
    start, end = layer.place.start, layer.place.end
    line = text.rfind("\n", 0, start) + 1
    behind = REST_OF_LINE.match(text, end)
    if text[line:start].strip() or behind is None:  # something else stands on its line
        separator = SEPARATOR.match(text, end)
        assert separator is not None
        return start, separator.end()
    if _goes_on(text, end, behind.end()):
        return start, text.index("#", end)
    start, end = _own_comment(text, line, layer), behind.end()
    blank_above = start == 0 or re.search(r"\n[ \t\r]*\n\Z", text[max(0, start - 200) : start])
    blank_below = _BLANK_LINE.match(text, end)
    if blank_above and blank_below:
        end = blank_below.end()
    return start, end


def _own_comment(text: str, start: int, layer: Layer) -> int:
    """Where the comment right above begins, if it is a single line that only names the layer."""
    above = text.rfind("\n", 0, max(0, start - 1)) + 1
    line = text[above:start]
    before = text[text.rfind("\n", 0, max(0, above - 1)) + 1 : above]
    if not line.lstrip().startswith("#") or before.lstrip().startswith("#"):
        return start
    return above if _only_names(line, layer) else start


def _only_names(line: str, layer: Layer) -> bool:
    """Whether a comment says the layer's name, and nothing else but its type and `layer`."""
    name = rf"(?<![\w/.-]){re.escape(layer.name)}(?![\w/.-])"
    rest, count = re.subn(name, " ", line)
    rest = re.sub(rf"\b(?:layer|{re.escape(layer.type)})\b", " ", rest, flags=re.IGNORECASE)
    return bool(layer.name and count) and re.search(r"\w", rest) is None


def _goes_on(text: str, end: int, behind: int) -> bool:
    """Whether the comment behind a layer goes on in the next line, in the same column."""
    mark, line = text.find("#", end, behind), text.rfind("\n", 0, end) + 1
    column = mark - line
    below = text[behind : behind + column + 1]
    return mark >= 0 and below[-1:] == "#" and not below[:-1].strip() and "\n" not in below


def switch_bias_on(text: str, edits: Edits, layer: Layer, part: str) -> None:
    """bias_term: true, in the last message that can say so."""
    messages = layer.message.messages(part)
    given = [scalar for message in messages for scalar in message.scalars("bias_term")]
    if given:
        edits.replace(given[-1].start, given[-1].end, "true")
    elif messages:
        _insert_field(text, edits, messages[-1], "bias_term: true")
    else:
        _insert_field(text, edits, layer.message, f"{part} {{ bias_term: true }}", behind=True)


def add_param(text: str, edits: Edits, layer: Layer) -> None:
    """Where a layer lists a `param` for each of its arrays, one for the bias."""
    fields = [field for field in layer.message.named("param") if not field.is_list]
    params = [value for field in fields for value in field.values]
    if len(params) != len(layer.blobs) or any(isinstance(value, Scalar) for value in params):
        return
    first = params[0]
    assert isinstance(first, Message)
    rate = first.scalar("lr_mult")
    entry = f"param {{ lr_mult: {rate.text if rate else 1} decay_mult: 0 }}"
    _insert_behind(text, edits, fields[-1], entry)


def _insert_field(
    text: str, edits: Edits, message: Message, entry: str, *, behind: bool = False
) -> None:
    """A field in front of the first one of a message, or behind the last, laid out like it."""
    if not message.fields:
        edits.insert(message.start, f" {entry} ")
    elif behind:
        _insert_behind(text, edits, message.fields[-1], entry)
    else:
        first = message.fields[0]
        edits.insert(first.start, entry + (line_break(text, first) or " "))


def _insert_behind(text: str, edits: Edits, field: Field, entry: str) -> None:
    edits.insert(field.end, (line_break(text, field) or " ") + entry)


def line_break(text: str, field: Field) -> str:
    """A new line with the indentation of a field; nothing if it does not begin a line."""
    line = text.rfind("\n", 0, field.start) + 1
    indentation = text[line : field.start]
    if indentation.strip():
        return ""
    return ("\r\n" if text[max(0, line - 2) : line] == "\r\n" else "\n") + indentation
