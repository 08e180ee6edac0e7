import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.error import ErrorCode, SetupError
from schemas.score import Roles, resolve, validate

TEXT, IDS = pa.string(), pa.list_(pa.int32())


def resolved(columns=None, **kinds):
    return resolve(pa.schema(list(kinds.items())), columns or {}, "the input")


def refused(columns=None, **kinds) -> str:
    with pytest.raises(SetupError) as caught:
        resolved(columns, **kinds)
    return str(caught.value)


def test_columns_play_the_roles_of_their_names():
    roles = resolved(context=TEXT, continuation=TEXT, custom_id=pa.int64(), topic=TEXT)
    assert roles == Roles(context="context", continuation="continuation", custom_id="custom_id")
    assert roles.texts == ["context", "continuation"]
    assert roles.token_ids == roles.consumed == []
    roles = resolved({"document": "body"}, body=TEXT)
    assert roles == Roles(document="body")
    roles = resolved(context_token_ids=IDS, continuations=pa.list_(IDS))
    assert roles.listed_ids
    assert roles.token_ids == ["context_token_ids", "continuations"]


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ({"context": TEXT}, ["no column 'continuation'", "'context'"]),
        ({"continuation": TEXT, "document": TEXT}, ["'document'", "--columns document="]),
        ({"context": TEXT, "document": TEXT}, ["a document has no context", "context="]),
        ({"continuation": TEXT, "continuations": pa.list_(TEXT)}, ["both", "continuation="]),
        ({"continuation": pa.int8()}, ["int8", "takes strings"]),
        ({"continuation_token_ids": pa.list_(TEXT)}, ["lists of integers"]),
        ({"continuations": TEXT}, ["lists of strings, or of lists of integers"]),
    ],
)
def test_what_does_not_go_together_is_refused(kinds, words):
    sentence = refused(**kinds)
    assert all(word in sentence for word in words), sentence


def test_a_role_that_is_none_and_a_column_that_is_not_there():
    assert "'prompt' is no role; a role is context" in refused({"prompt": "x"}, x=TEXT)
    assert "no column 'x'" in refused({"continuation": "x"}, y=TEXT)
    assert resolved({"document": ""}, continuation=TEXT, document=TEXT).document is None


def rows_of(roles, **columns):
    return validate(pa.table(columns), roles)


def test_continuations_are_one_row_or_an_error():
    roles = Roles(context="context", continuations="continuations")
    good, errors = rows_of(
        roles,
        context=["a", None, "c", "d", "e"],
        continuations=pa.array([["x", "y"], [b"z".decode()], [], None, ["u", None]]),
    )
    assert [(r.index, r.context, r.continuations) for r in good] == [
        (0, "a", ("x", "y")),
        (1, None, ("z",)),
    ]
    assert {i: e.code for i, e in errors.items()} == {
        2: ErrorCode.CONTINUATION_EMPTY,
        3: ErrorCode.PROMPT_MISSING,
        4: ErrorCode.PROMPT_TYPE,
    }


def test_text_and_token_ids():
    roles = resolved(
        context=TEXT, context_token_ids=IDS, continuation=TEXT, continuation_token_ids=IDS
    )
    good, errors = rows_of(
        roles,
        context=["a", None, "a", "a", None],
        context_token_ids=pa.array([None, [1], [1], None, [1, None]], IDS),
        continuation=["b", None, "b", None, None],
        continuation_token_ids=pa.array([None, [2], None, [2], [2]], IDS),
    )
    assert [(r.context, r.continuations) for r in good] == [("a", ("b",)), ([1], ([2],))]
    assert [e.code for e in errors.values()] == [
        ErrorCode.PROMPT_AMBIGUOUS,
        ErrorCode.PROMPT_TYPE,
        ErrorCode.PROMPT_TYPE,
    ]


def test_what_is_no_utf8_is_its_own_error():
    broken = pa.array([b"a\xff", b"ok"])
    good, errors = rows_of(Roles(document="document"), document=broken)
    assert [r.continuations for r in good] == [("ok",)]
    assert "0xff" in errors[0].message
    nested = pa.array([[b"a\xff"], [b"ok"]])
    good, errors = rows_of(Roles(continuations="continuations"), continuations=nested)
    assert [r.continuations for r in good] == [("ok",)]
    assert errors[0].code is ErrorCode.PROMPT_TYPE


OPTIONAL = st.none() | st.text(max_size=3)


@given(st.lists(st.tuples(OPTIONAL, st.none() | st.lists(OPTIONAL, max_size=3)), max_size=6))
def test_every_row_is_good_or_an_error(rows):
    table = pa.table(
        {
            "context": pa.array([c for c, _ in rows], TEXT),
            "continuations": pa.array([k for _, k in rows], pa.list_(TEXT)),
        }
    )
    good, errors = validate(table, resolve(table.schema, {}, "it"))
    assert sorted([r.index for r in good] + list(errors)) == list(range(len(rows)))
    for row in good:
        assert row.context == rows[row.index][0]
        assert list(row.continuations) == rows[row.index][1]
