"""Decoding JSON, YAML and safetensors headers that somebody else wrote."""

import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_caption.core import untrusted
from vlm_caption.core.errors import ConfigError, DataError
from vlm_caption.core.untrusted import iterate_json, load_json, load_yaml, read_safetensors_header

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 100_000, "it is nested too deeply"),
        ("9" * 5000, "this is not JSON"),
        (b"\xff", "this is not JSON"),
        ("[1,", "this is not JSON"),
    ],
)
def test_what_is_no_json_gets_one_sentence(content, words):
    with pytest.raises(DataError, match=f"^a.json: .*{words}") as caught:
        load_json(content, "a.json")
    assert "\n" not in str(caught.value)


def test_json_may_begin_with_a_byte_order_mark():
    assert load_json(b'\xef\xbb\xbf{"a": 1}', "a.json") == {"a": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 5000, "nested too deeply"),
        ("a: &a [*a]", "more than 100,000 values"),
        ("date: 2001-99-99", "not valid YAML"),
        ("a: [", "not valid YAML"),
    ],
)
def test_what_is_no_yaml_gets_one_sentence(text, words):
    with pytest.raises(ConfigError, match=words):
        load_yaml(text, "a.yaml", ConfigError)


def test_yaml_that_stands_for_billions_of_values_is_refused():
    text = "a0: &a0 [1,1,1,1,1,1,1,1,1]\n"
    text += "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    with pytest.raises(ConfigError, match="more than 100,000 values"):
        load_yaml(text, "a.yaml", ConfigError)


def write(path, header: bytes, size: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(header) if size is None else size) + header + bytes(8))


def test_a_safetensors_header_is_read(tmp_path):
    header = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"format": "pt"}}
    write(tmp_path / "a", json.dumps(header).encode())
    assert read_safetensors_header(tmp_path / "a") == (header, 8 + len(json.dumps(header)))


@pytest.mark.parametrize(
    ("header", "size"),
    [
        (b"[" * 5000, None),
        (b"{}", 2**63),
        (b"[]", None),
        (b'{"a": 1}', None),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 9]}}', None),
        (b'{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}', None),
        (b'{"a": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}', None),
    ],
)
def test_a_damaged_safetensors_header_gets_one_sentence(tmp_path, header, size):
    write(tmp_path / "a", header, size)
    with pytest.raises(DataError, match=r"/a(: this is not| ends before its tensor 'a' does)"):
        read_safetensors_header(tmp_path / "a")


@given(st.lists(values, max_size=4), st.dictionaries(st.text(max_size=4), values, max_size=4))
@settings(deadline=None)
def test_entries_come_one_by_one_as_json_has_them(tmp_path_factory, entries, named):
    path = tmp_path_factory.getbasetemp() / "entries.json"
    expected = [(name, entry) for name, value in named.items() if isinstance(value, list) for entry in value]
    for ascii_only in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(untrusted, "_CHUNK_BYTES", 3)
            path.write_text(json.dumps(entries, ensure_ascii=ascii_only, indent=1), "utf-8", "surrogatepass")
            assert list(iterate_json(path)) == [(None, entry) for entry in entries]
            path.write_text(json.dumps(named, ensure_ascii=ascii_only), "utf-8", "surrogatepass")
            assert list(iterate_json(path)) == expected


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "[" + "9" * 5000 + "]",
        "[1] 2",
        "[1",
        "[1 2]",
        '{"a": [1], 7: 2}',
        '{"a" [1]}',
        "{",
        "",
        " ",
        "x",
        " 5 6",
    ],
)
def test_a_file_that_is_no_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.json: this is not JSON in UTF-8"):
        list(iterate_json(tmp_path / "a.json"))


@pytest.mark.parametrize("content", ["5", " 5", "{}", " {} ", "[]", '{"a": 1}'])
def test_a_file_without_lists_has_no_entries(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    assert list(iterate_json(tmp_path / "a.json")) == []


def test_an_entry_that_never_ends_is_given_up_on(tmp_path, monkeypatch):
    monkeypatch.setattr(untrusted, "_MAX_ENTRY", 1 << 17)
    (tmp_path / "a.json").write_text('["' + "x" * (1 << 20))
    with pytest.raises(DataError, match="no entry ends within"):
        list(iterate_json(tmp_path / "a.json"))
