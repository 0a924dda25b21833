"""Range and conditional requests, against an oracle that is written the other way round."""

import random
from email import message_from_bytes
from email.policy import HTTP

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import range_oracle
from ipfs_stream_nb.content.ranges import (
    MAX_RANGES,
    MAX_UNORDERED_RANGES,
    ByteRange,
    matches_strongly,
    matches_weakly,
    multipart,
    parse_range,
    range_applies,
    unsatisfied,
)

NINES = "9" * 5000

numbers = st.one_of(
    st.integers(0, 24).map(str),
    st.integers(0, 10**30).map(str),
    st.tuples(st.integers(0, 30), st.integers(0, 24)).map(lambda t: "0" * t[0] + str(t[1])),
    st.sampled_from(["", "", NINES, "0" * 5000, "0" * 5000 + "3", "-1", "+1", "1.0", "٣", "x", " 1", "1_0"]),
)
specs = st.one_of(
    st.tuples(numbers, numbers).map("-".join),
    st.sampled_from(["", " ", "\t", "-", "0", "--1", "5-2", "0 -1", "0- 1", "\x0b0-1", "bytes=0-1"]),
)
blanks = st.sampled_from(["", "", "", " ", "\t", "  ", "\x0b", "\xa0"])
units = st.sampled_from(
    ["bytes=", "bytes=", "bytes=", "Bytes=", "BYTES=", "bytes =", "bytes:", "items=", "=", ""]
)
headers = st.one_of(
    st.none(),
    st.text(max_size=20),
    st.tuples(units, st.lists(st.tuples(blanks, specs, blanks).map("".join), max_size=12).map(",".join)).map(
        "".join
    ),
)


def ours(header, size):
    """The implementation's answer in the oracle's shape."""
    found = parse_range(header, size)
    return None if found is None else [(part.start, part.last) for part in found]


@settings(max_examples=3000, deadline=None)
@given(headers, st.integers(0, 20))
@example("bytes=-0", 10)
@example("bytes=-5", 0)
@example("bytes= 0-1", 10)
@example("bytes= ,0-1", 10)
@example(f"bytes={NINES}-{NINES[:-1]}", 10)
def test_any_header_agrees_with_the_oracle(header, size):
    """Headers of any kind: the same ranges, in the same order, as the RFC's grammar and set arithmetic give."""
    assert ours(header, size) == range_oracle.expected(header, size)


def test_twenty_thousand_plausible_headers_agree_with_the_oracle():
    """A seeded generator of mostly valid headers, up to 80 ranges each: none differs from the oracle."""
    rng = random.Random(9110)
    seen = {"whole": 0, "416": 0, "one": 0, "several": 0}
    for _ in range(20_000):
        size = rng.choice([0, 1, 2, 7, 40, 90])
        count = rng.choice([1, 1, 1, 2, 3, 5, 9, 12, 64, 65, 80])
        texts = []
        for index in range(count):
            first = rng.randint(0, 8) + index if rng.random() < 0.8 else rng.randint(0, 100)
            last = first + rng.randint(-1 if rng.random() < 0.05 else 0, rng.choice([0, 0, 1, 5, 100]))
            texts.append(
                rng.choice([f"{first}-{last}"] * 8 + [f"{first}-", f"-{first}", "", f" {first}-{last} "])
            )
        header = rng.choice(["bytes=", "bytes=", "BYTES="]) + rng.choice([",", ", ", " ,\t"]).join(texts)
        result = ours(header, size)
        assert result == range_oracle.expected(header, size), (header, size)
        kind = (
            "whole" if result is None else "416" if not result else "one" if len(result) == 1 else "several"
        )
        seen[kind] += 1
    assert min(seen.values()) > 500, seen


@pytest.mark.parametrize(
    ("header", "size", "result"),
    [
        (None, 10, None),
        ("bytes=0-4", 10, [(0, 4)]),
        ("bytes=5-", 10, [(5, 9)]),
        ("bytes=-3", 10, [(7, 9)]),
        ("bytes=-30", 10, [(0, 9)]),
        ("bytes=0-99", 10, [(0, 9)]),
        ("bytes=9-9,0-0", 10, [(9, 9), (0, 0)]),
        ("bytes=,,0-0, ,\t5-5,", 10, [(0, 0), (5, 5)]),
        ("BYTES=1-1", 10, [(1, 1)]),
        ("bytes=10-", 10, []),
        ("bytes=-0", 10, []),
        ("bytes=0-", 0, []),
        ("bytes=-1", 0, None),
        ("bytes=0-0,50-60", 10, [(0, 0)]),
        (f"bytes=0-{NINES}", 10, [(0, 9)]),
        (f"bytes={NINES}-", 10, []),
        (f"bytes=-{NINES}", 10, [(0, 9)]),
        ("bytes=4-3", 10, None),
        ("bytes=0-1,4-3", 10, None),
        ("seconds=0-1", 10, None),
        ("bytes=", 10, None),
        ("bytes=,", 10, None),
        ("bytes=a-b", 10, None),
        ("bytes=0-1;q=1", 10, None),
        ("bytes=0-5,1-6,2-7", 10, None),
        ("bytes=0-5,1-6,7-7", 10, [(0, 5), (1, 6), (7, 7)]),
    ],
)
def test_the_known_cases(header, size, result):
    """The cases of RFC 9110 written out, for the implementation and for the oracle itself."""
    assert ours(header, size) == result
    assert range_oracle.expected(header, size) == result


def test_limits_against_abuse():
    """One range over a limit, and the header is ignored; at the limit it is served."""
    many = [f"{n * 2}-{n * 2}" for n in range(MAX_RANGES + 1)]
    assert len(parse_range("bytes=" + ",".join(many[:-1]), 1000)) == MAX_RANGES
    assert parse_range("bytes=" + ",".join(many), 1000) is None
    shuffled = many[MAX_UNORDERED_RANGES::-1]
    assert len(parse_range("bytes=" + ",".join(shuffled[1:]), 1000)) == MAX_UNORDERED_RANGES
    assert parse_range("bytes=" + ",".join(shuffled), 1000) is None


@given(st.binary(min_size=1, max_size=300), st.data())
def test_multipart_is_what_a_mime_parser_reads(content, data):
    """The framed body has exactly the stated length, and Python's own MIME parser finds each part in it."""
    size = len(content)
    starts = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8))
    ranges = [ByteRange(start, data.draw(st.integers(1, size - start))) for start in starts]
    framed = multipart(ranges, size, "video/mp4")
    body = b"".join(head + content[part.start : part.start + part.length] for head, part in framed.parts)
    body += framed.tail
    assert len(body) == framed.length
    boundary = framed.content_type.partition("boundary=")[2]
    sections = body.split(f"--{boundary}".encode())
    assert sections[0] == b""
    assert sections[-1] == b"--\r\n"
    for section, part in zip(sections[1:-1], ranges, strict=True):
        head, _, payload = section.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        fields = message_from_bytes(head + b"\r\n\r\n", policy=HTTP)
        assert fields["Content-Type"] == "video/mp4"
        assert fields["Content-Range"] == f"bytes {part.start}-{part.last}/{size}"
        assert payload == content[part.start : part.last + 1] + b"\r\n"


def test_boundaries_are_not_predictable():
    """Two answers to the same request have different boundaries."""
    one, two = (multipart([ByteRange(0, 1)], 1, "text/plain") for _ in range(2))
    assert one.content_type != two.content_type
    assert one.length == two.length
    assert unsatisfied(7) == "bytes */7"


@pytest.mark.parametrize(
    ("header", "matches"),
    [
        (None, False),
        ("*", True),
        ('"cid"', True),
        ('W/"cid"', True),
        ('"a", "cid"', True),
        ('"a",W/"cid" , "b"', True),
        (', ,"cid",', True),
        ('"a,b", "cid"', True),
        ('"other"', False),
        ("cid", False),
        ('"cid', False),
        ('w/"cid"', False),
        ('"a" garbage "cid"', False),
        ('"a""cid"', False),
        ("", False),
    ],
)
def test_if_none_match(header, matches):
    """If-None-Match: lists, weak tags and `*` match weakly; what is not a list of entity tags names none."""
    assert matches_weakly(header, '"cid"') is matches


def test_if_match_compares_strongly():
    """If-Match: a weak tag on either side is no match (RFC 9110, section 8.8.3.2)."""
    assert matches_strongly('"x", "cid"', '"cid"')
    assert matches_strongly("*", 'W/"cid"')
    assert not matches_strongly('W/"cid"', '"cid"')
    assert not matches_strongly('W/"cid"', 'W/"cid"')
    assert not matches_strongly("nonsense", '"cid"')


@pytest.mark.parametrize(
    ("header", "applies"),
    [
        (None, True),
        ('"cid"', True),
        (' "cid" ', True),
        ('W/"cid"', False),
        ('"old"', False),
        ('"cid", "x"', False),
        ("*", False),
        ("", False),
        ("Wed, 21 Oct 2015 07:28:00 GMT", False),
    ],
)
def test_if_range(header, applies):
    """If-Range: only the very same strong tag; a date, a weak tag or a list makes the Range ignored."""
    assert range_applies(header, '"cid"') is applies
    assert not range_applies('W/"cid"', 'W/"cid"')


@given(st.text(max_size=200))
def test_no_conditional_header_raises(header):
    """Any text as a conditional header gives a plain yes or no."""
    for call in (matches_weakly, matches_strongly, range_applies):
        assert call(header, '"cid"') in {True, False}
