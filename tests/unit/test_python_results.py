"""What a Python function may return: what has one obvious JSON form, and for the rest a message that says where it is,
of which type, and what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

_RUNTIME = Path(__file__).parents[2] / "runtimes" / "python"
_PROGRAM = """
import collections, dataclasses, datetime, decimal, enum, json, pathlib, sys, types, uuid
sys.path[:0] = [{runtime!r}, {runtime!r} + "/sdk"]
from containerpub import Response
from containerpub_runtime.result import NoJson, encode
import pydantic

class Colour(enum.Enum):
    RED = "red"

class Level(enum.IntEnum):
    HIGH = 3

@dataclasses.dataclass
class Item:
    name: str
    price: decimal.Decimal

@dataclasses.dataclass
class Slotted:
    __slots__ = ("number",)
    number: int

class Model(pydantic.BaseModel):
    at: datetime.date
    items: list[Item]

class ndarray(list):
    pass

class Scalar:
    def item(self):
        return 1

class Array:
    def tolist(self):
        return [1]

deep = []
for _ in range(100_000):
    deep = [deep]
circle = {{}}
circle["a"] = [circle]
UTC = datetime.timezone.utc
try:
    print(json.dumps(encode({expression})[0].decode()))
except NoJson as error:
    print(json.dumps({{"refused": str(error)}}))
"""


def given(expression: str) -> object:
    program = _PROGRAM.format(runtime=str(_RUNTIME), expression=expression)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ('decimal.Decimal("1.10")', '"1.10"'),
        ("datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)", '"2026-01-02T03:04:05+00:00"'),
        ("[datetime.date(2026, 1, 2), datetime.time(3, 4)]", '["2026-01-02","03:04:00"]'),
        ('uuid.UUID("12345678123456781234567812345678")', '"12345678-1234-5678-1234-567812345678"'),
        ('{"c": Colour.RED, "l": Level.HIGH}', '{"c":"red","l":3}'),
        ('Item("a", decimal.Decimal(2))', '{"name":"a","price":"2"}'),
        ("Slotted(1)", '{"number":1}'),
        (
            'Model(at=datetime.date(2026, 1, 2), items=[Item("a", decimal.Decimal("1.5"))])',
            '{"at":"2026-01-02","items":[{"name":"a","price":"1.5"}]}',
        ),
        ('types.MappingProxyType({"a": 1})', '{"a":1}'),
        ('collections.OrderedDict(a=collections.namedtuple("P", "x y")(1, 2))', '{"a":[1,2]}'),
        ('pathlib.PurePosixPath("/a/b")', '"/a/b"'),
        ('{1: "a", 2: "b", None: 1, True: 2}', '{"1":2,"2":"b","null":1}'),
        (
            'Response(200, {}, Item("a", decimal.Decimal(2)))',
            '{"status":200,"headers":{},"body":{"name":"a","price":"2"}}',
        ),
        ("[Level.HIGH] * 2 + [1.0, 12345678901234567890]", "[3,3,1.0,12345678901234567890]"),
    ],
)
def test_values_with_one_obvious_form_take_it(expression: str, text: str) -> None:
    assert given(expression) == text


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ('{"rows": [{"tags": {1, 2}}]}', ["result.rows[0].tags ", "type set", "sorted(value)"]),
        ("{1}", ["result is of type set"]),
        ('{"a b": [1, float("nan")]}', ['result["a b"][1] is nan', "None"]),
        ('Item("a", float("-inf"))', ["result.price is -inf"]),
        ('{"a": b"x"}', ["result.a ", "type bytes", "base64", "Response"]),
        ('{"d": datetime.timedelta(1)}', ["result.d ", "datetime.timedelta", "total_seconds()"]),
        ("{uuid.UUID(int=1): 1}", ["result has the key UUID(", "uuid.UUID", "str(key)"]),
        ("{(1, 2): 1}", ["result has the key (1, 2), of type tuple"]),
        ("[(i for i in [])]", ["result[0] is of type generator", "list(value)"]),
        ("[print]", ["result[0] is of type builtin_function_or_method"]),
        ("[object()]", ["result[0] is of type object", "objects, lists, texts"]),
        ("[Scalar()]", ["result[0] is of type Scalar", "value.item()"]),
        ("[Array()]", ["result[0] is of type Array", "value.tolist()"]),
        ('["\\ud800"]', ["result[0] is a text with half a character"]),
        ("circle", ["result.a[0] contains itself"]),
        ("deep", ["nested more than"]),
        ('{"n": 10**5000}', ["result.n is a number of too many digits"]),
        ('Response(200, {}, {"a": {1}})', ["result.body.a is of type set"]),
    ],
)
def test_what_json_has_no_form_for_is_named_with_its_place_and_what_to_do(expression: str, told: list[str]) -> None:
    answer = given(expression)
    assert isinstance(answer, dict), answer
    for part in told:
        assert part in answer["refused"]


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ('{1: "a", "1": "b"}', "result has the keys 1 and '1'"),
        ('{"a": [{None: 1, "null": 2}]}', "result.a[0] has the keys None and 'null'"),
        ('{True: 1, "true": 2}', "the keys True and 'true'"),
        ('{1.5: 1, "1.5": 2}', "the keys 1.5 and '1.5'"),
        ('{"m": types.MappingProxyType({1: 1, "1": 2})}', "result.m has the keys 1 and '1'"),
        ('collections.defaultdict(int, {1: 1, "1": 2})', "the keys 1 and '1'"),
    ],
)
def test_two_keys_that_are_one_name_are_refused(expression: str, told: str) -> None:
    answer = given(expression)
    assert isinstance(answer, dict), answer
    assert told in answer["refused"]
