"""The text format: what is no prototxt is refused with its place; what is one survives whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnfold.errors import ModelUnreadableError
from bnfold.frontends.caffe.prototxt import read_text
from bnfold.frontends.caffe.text_tree import Edits, Message, Scalar, encode, quoted
from tests.frontends.caffe.shared import MODELS, PROTOTXTS, needs_shared


def parse(text: str) -> Message:
    return read_text(text.encode(), "net.prototxt").root


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("layer {", "line 1, column 8"),
        ("layer {\n  name: 'a'\n", "line 3, column 1"),
        ("}", "line 1, column 1"),
        ("layer { name: 'a' >", "line 1, column 19"),
        ("layer < name: 'a' }", "line 1, column 19"),
        ("name 'a'", "line 1, column 6"),
        ("name:", "line 1, column 6"),
        ("name: : 'a'", "line 1, column 7"),
        ("\nname: 'a", "line 2, column 7"),
        ('name: "a\nb"', "line 1, column 7"),
        ("a: 1.2.3", "line 1, column 4"),
        ("a: 12abc", "line 1, column 4"),
        ("a: 0x", "line 1, column 4"),
        ("a: [1 2]", "line 1, column 7"),
        ("a: [1,", "line 1, column 7"),
        ("a: [,]", "line 1, column 5"),
        ("a [1]: 2", "line 1, column 6"),
        ("a: -", "line 1, column 5"),
        ("a: - 'x'", "line 1, column 6"),
        ("5: 1", "line 1, column 1"),
        ("a: 1 , , b: 2", "line 1, column 8"),
        ("[a.b", "line 1, column 5"),
        ("a: @", "line 1, column 4"),
        ("a: \x00", "line 1, column 4"),
        ("\x89PNG", "line 1, column 1"),
        ("a: 1\r\nb: ?\r\n", "line 2, column 4"),
    ],
)
def test_what_is_no_prototxt_is_refused_with_its_place(text: str, place: str) -> None:
    with pytest.raises(ModelUnreadableError, match=f"net.prototxt: {place}: ") as caught:
        parse(text)
    assert caught.value.exit_code == 3


def test_an_open_brace_is_named_by_its_line() -> None:
    with pytest.raises(ModelUnreadableError, match="brace of line 2"):
        parse("a: 1\nlayer {\n\n")


def test_a_file_that_is_too_long_is_refused_before_it_is_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bnfold.frontends.caffe.prototxt.MAX_BYTES", 10)
    with pytest.raises(ModelUnreadableError, match="too many"):
        parse("name: 'a network'")


def test_nesting_costs_no_stack() -> None:
    depth = 100_000
    root = parse("a {" * depth + "}" * depth)
    for _ in range(depth):
        (root,) = root.messages("a")
    assert root.fields == []


def test_a_long_list_costs_no_stack() -> None:
    assert len(parse(f"a: [{'1,' * 50_000}1]").scalars("a")) == 50_001


def test_lists_of_messages() -> None:
    root = parse("a [ {b: 1}, <b: 2> ] a { b: 3 }, c: []")
    assert [one.scalars("b")[0].text for one in root.messages("a")] == ["1", "2", "3"]
    assert root.scalars("c") == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'Single'", "Single"),
        ('"a" \'b\'  # it\'s "c"\n "d"', "abd"),
        (r"'\x41\101\n\t\\\'\"'", "AA\n\t\\'\""),
        ("'ResNet-é'", "ResNet-é"),
        (r"'\303\251'", "é"),
        ("'#{}'", "#{}"),
    ],
)
def test_strings(text: str, value: str) -> None:
    assert parse(f"name: {text}").scalars("name")[0].string == value


def test_an_escape_does_not_span_two_strings() -> None:
    assert parse(r"name: '\10' '1'").scalars("name")[0].string == "\b1"


@pytest.mark.parametrize(
    "text", ["1", "-1", "1e-5", ".5", "5.", "0x1F", "017", "1.5f", "-inf", "nan", "1E+3", "true"]
)
def test_numbers_and_words_are_kept_as_they_are_written(text: str) -> None:
    (scalar,) = parse(f"a: {text}").scalars("a")
    assert (scalar.text, scalar.is_string) == (text, False)


def test_a_sign_may_stand_apart() -> None:
    (scalar,) = parse("a: - # minus\n 1").scalars("a")
    assert scalar.text == "-1"


def test_the_last_of_several_counts() -> None:
    scalar = parse("a: 1 a: 2; a: [3, 4]").scalar("a")
    assert scalar is not None
    assert scalar.text == "4"


def test_names_of_extensions() -> None:
    assert [one.name for one in parse("[my.ext]: 1 [type.googleapis.com/a-b.C] {}").fields] == [
        "[my.ext]",
        "[type.googleapis.com/a-b.C]",
    ]


HOSTILE = [
    b"",
    b"\n\n#only a comment",
    b"\xef\xbb\xbfname: 'with a byte order mark'\n",
    b"name: 'a'\r\nlayer{name:'b'}layer:{name:'c'};layer<name:'d'>\r\n",
    b"name: '\xff\xfe not UTF-8'  # \xe9\n",
    b"a:[{b:[1,2]},{}] ,c : -1;",
    b"# \x00 a NUL in a comment\n",
]


@pytest.mark.parametrize("content", HOSTILE)
def test_an_empty_edit_changes_no_byte(content: bytes) -> None:
    document = read_text(content, "net.prototxt")
    assert encode(Edits().apply(document.text)) == content


@needs_shared
@pytest.mark.parametrize("path", PROTOTXTS + MODELS, ids=lambda path: path.stem[-40:])
def test_real_files_survive_an_empty_edit(path: Path) -> None:
    content = path.read_bytes()
    document = read_text(content, path.name)
    assert encode(Edits().apply(document.text)) == content
    assert document.root.messages("layer") or document.root.messages("layers")


@needs_shared
def test_all_of_the_real_files_are_there() -> None:
    assert len(PROTOTXTS) == 69


def test_nodes_know_where_they_stand() -> None:
    text = "a: 1  # one\nlayer {\n  name: 'b' 'c'\n}\n"
    document = read_text(text.encode(), "x")
    layer = next(document.root.named("layer"))
    assert text[layer.start : layer.end] == "layer {\n  name: 'b' 'c'\n}"
    (message,) = document.root.messages("layer")
    assert text[message.start : message.end] == "\n  name: 'b' 'c'\n"
    (name,) = message.scalars("name")
    assert text[name.start : name.end] == "'b' 'c'"


def test_edits_touch_nothing_else() -> None:
    edits = Edits()
    edits.replace(6, 9, "X")
    edits.insert(3, "1")
    edits.insert(3, "2")
    edits.replace(3, 4, "")
    assert edits.apply("abc def ghi") == "abc12deXhi"


@pytest.mark.parametrize("value", ["a", "a\"b'c", "back\\slash", "line\nend"])
@pytest.mark.parametrize("like", ["'x'", '"x"', "x"])
def test_quoted_strings_read_back(value: str, like: str) -> None:
    text = quoted(value, Scalar(like, 0, 0))
    assert parse(f"a: {text}").scalars("a")[0].string == value
