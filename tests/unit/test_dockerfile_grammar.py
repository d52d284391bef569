"""Tenants' Dockerfiles: what is accepted, what is refused with its line, and that the builder reads what we read."""

from __future__ import annotations

import json
import time
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.build.dockerfile import CONTEXT, Copy, Dockerfile, Run, Variables, Workdir, parse, render, resolve
from worker.build.dockerfile.lines import MAX_BYTES
from worker.build.dockerfile.resolve import MAX_VALUES_CHARS
from worker.build.plan import BuildRejected

PYTHON = "python:3.11-slim"
NODE = "node:18-slim"
IMAGES = (PYTHON, NODE)
ENVIRONMENTS = {PYTHON: {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}, NODE: {"PATH": "/bin"}}
HEAD = f"FROM {PYTHON}\n"


def read(text: str | bytes) -> Dockerfile:
    return parse(text.encode() if isinstance(text, str) else text, IMAGES)


def resolved(text: str) -> Dockerfile:
    return resolve(read(text), ENVIRONMENTS)


def refusal(raw: bytes) -> BuildRejected | None:
    """How ``raw`` is refused, if it is; whatever else is raised is an error of ours."""
    try:
        resolve(parse(raw, IMAGES), ENVIRONMENTS)
    except BuildRejected as rejected:
        return rejected
    return None


def refused(text: str | bytes) -> str:
    found = refusal(text.encode() if isinstance(text, str) else text)
    assert found is not None
    assert found.reason == "analysis_rejected"
    return found.message


def test_a_usual_file_is_understood() -> None:
    said = resolved(
        "# two stages\n"
        f"from {PYTHON} as Build\n"
        "ARG WHERE=/made\n"
        "ENV GREETING='Hello, $you' PATH=$WHERE/bin:${PATH}\n"
        "WORKDIR $WHERE\n"
        "COPY requirements.txt *.py ./\n"
        'RUN echo "$GREETING" && \\\n    true\n'
        "\n"
        f"FROM {PYTHON}\r\n"
        "LABEL containerpub.version=mine\n"
        "EXPOSE 80\n"
        'COPY --from=build --chown=nobody:nogroup ["/made", "/a b"]\n'
        'RUN ["/bin/ls", "-l"]\n'
        'ENTRYPOINT ["python3"]\n'
        'CMD ["main.py", "a b"]\n'
    )
    build, final = said.stages
    path = "/made/bin:/usr/bin:/bin"
    assert build.steps == (
        Variables(line=3, kept=False, values=(("WHERE", ("/made",)),)),
        Variables(line=4, kept=True, values=(("GREETING", ("Hello, $you",)), ("PATH", (path,)))),
        Workdir(line=5, path=("/made",)),
        Copy(line=6, sources=(("requirements.txt",), ("*.py",)), target=("./",), stage=None, owner=None),
        Run(line=7, command=("/bin/sh", "-c", 'echo "$GREETING" &&     true')),
    )
    assert final.steps == (
        Copy(line=13, sources=(("made",),), target=("/a b",), stage=0, owner="nobody:nogroup"),
        Run(line=14, command=("/bin/ls", "-l")),
    )
    assert [step.line for step in (*build.steps, *final.steps)] == [3, 4, 5, 6, 7, 13, 14]
    assert said.ignored == ("Dockerfile:11: LABEL has no effect here", "Dockerfile:12: EXPOSE has no effect here")
    assert said.start("") == ("python3", "main.py", "a b")
    assert said.start("other.py 'c d'") == ("python3", "other.py", "c d")


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("CMD echo $HOME", ("/bin/sh", "-c", "echo $HOME")),
        ('CMD ["a"]\nCMD ["b"]', ("b",)),
        ("ENTRYPOINT run it", ("/bin/sh", "-c", "run it")),
        ('ENTRYPOINT ["a"]', ("a",)),
        ("CMD [ -f x ] && y", ("/bin/sh", "-c", "[ -f x ] && y")),
        (f'CMD ["a"]\nFROM {PYTHON}\nCMD ["b"]', ("b",)),
    ],
)
def test_what_runs_is_what_the_file_says(text: str, start: tuple[str, ...]) -> None:
    assert read(HEAD + text).start("") == start


def test_a_stage_upon_a_stage_inherits_what_runs_and_its_variables() -> None:
    said = resolved(f'FROM {PYTHON} AS one\nENV A=1\nCMD ["a"]\nFROM one\nENV B=$A$PATH\n')
    assert said.stages[1].stage == 0
    assert said.stages[1].steps == (Variables(line=5, kept=True, values=(("B", ("1/usr/bin:/bin",)),)),)
    assert said.start("") == ("a",)


@pytest.mark.parametrize("handler", ["", "  "])
def test_a_file_that_says_not_what_to_run_is_refused(handler: str) -> None:
    with pytest.raises(BuildRejected, match="add a CMD"):
        read(HEAD).start(handler)
    assert read(HEAD).start("run it") == ("run", "it")
    with pytest.raises(BuildRejected, match="not closed"):
        read(HEAD).start("run 'it")


REFUSED = [
    (2, "ADD http://127.0.0.1/ /x", "ADD is not allowed"),
    (2, "ADD . /x", "ADD is not allowed"),
    (2, "aDd https://x /x", "ADD is not allowed"),
    (2, "COPY http://127.0.0.1/x /x", "no addresses"),
    (2, 'COPY ["http://127.0.0.1/x", "/x"]', "no addresses"),
    (2, "FROM ubuntu", "'ubuntu' is not allowed; there are: node:18-slim, python:3.11-slim"),
    (2, "FROM sha256:" + "0" * 64, "is not allowed"),
    (2, "FROM 0123456789ab", "is not allowed"),
    (2, "FROM containerpub/function:x", "is not allowed"),
    (2, f"FROM evil.example/{PYTHON}", "is not allowed"),
    (2, f"FROM {PYTHON}@sha256:" + "0" * 64, "is not allowed"),
    (2, "FROM python:3.11-SLIM", "is not allowed"),
    (2, "FROM scratch", "is not allowed"),
    (2, "FROM $IMAGE", "is not allowed"),
    (2, "FROM ${IMAGE:-python:3.11-slim}", "is not allowed"),
    (2, 'FROM "python:3.11-slim"', "is not allowed"),
    (2, f"FROM {PYTHON} AS x y", "FROM is written"),
    (2, "FROM", "FROM says nothing"),
    (2, f"FROM {PYTHON} AS $x", "cannot be the name of a stage"),
    (3, f"FROM {PYTHON} AS x\nFROM {PYTHON} AS X", "there is a stage x already"),
    (2, "COPY --from=containerpub/function:x /function /x", "names no earlier stage"),
    (2, f"COPY --from={PYTHON} /etc/passwd /x", "names no earlier stage"),
    (2, "COPY --from=0 /etc /x", "names no earlier stage"),
    (3, f"FROM {PYTHON} AS own\nCOPY --from=own /etc /x", "names no earlier stage"),
    (2, "COPY --from=$x /etc /x", "names no earlier stage"),
    (2, f"FROM --platform=linux/arm64 {PYTHON}", "FROM cannot have the option"),
    (2, "RUN --mount=type=bind,target=/x ls", "RUN cannot have the option --mount"),
    (2, "RUN --network=host ls", "RUN cannot have the option --network"),
    (2, "RUN --security=insecure ls", "RUN cannot have the option --security"),
    (2, "run \\\n  --mount=type=secret,id=x ls", "RUN cannot have the option --mount"),
    (2, "COPY --link a /b", "COPY cannot have the option --link"),
    (2, "COPY --chmod=4755 a /b", "COPY cannot have the option --chmod=4755; set modes with RUN chmod"),
    (2, "COPY --parents a /b", "COPY cannot have the option"),
    (2, "COPY --chown=$(id) a /b", "COPY cannot have the option"),
    (2, "# syntax=evil.example/frontend", "the directive"),
    (2, "#  SynTax = evil.example/frontend", "the directive"),
    (2, "# escape=`", "the directive"),
    (2, "# check=skip=all", "the directive"),
    (2, "RUN cat <<EOF\nFROM ubuntu\nEOF", "a heredoc"),
    (2, 'RUN cat <<-"EOF"\nx\nEOF', "a heredoc"),
    (2, "CMD sh <<EOF", "a heredoc"),
    (2, "ONBUILD RUN x", "ONBUILD is not allowed"),
    (2, "oNbUiLd ADD http://x /", "ONBUILD is not allowed"),
    (2, "VOLUME /data", "VOLUME is not allowed"),
    (2, "VOL\\\nUME /data", "VOLUME is not allowed"),
    (2, "HEALTHCHECK CMD x", "HEALTHCHECK is not allowed"),
    (2, "STOPSIGNAL SIGTERM", "STOPSIGNAL is not allowed"),
    (2, "USER root", "USER is not allowed"),
    (2, "USER 1000", "USER is not allowed"),
    (2, 'SHELL ["/bin/bash"]', "SHELL is not allowed"),
    (2, "INCLUDE x", "there is no instruction INCLUDE"),
    (2, "ENV LD_PRELOAD=/evil.so", "LD_PRELOAD is not allowed"),
    (2, "ENV A=1 ld_audit=/evil.so", "ld_audit is not allowed"),
    (2, "ENV 'LD_PRELOAD'=/evil.so", "LD_PRELOAD is not allowed"),
    (2, "ENV L\\\nD_PRELOAD=/evil.so", "LD_PRELOAD is not allowed"),
    (2, "ARG LD_PRELOAD=/evil.so", "LD_PRELOAD is not allowed"),
    (2, "ENV A b", "ENV is written ENV NAME=value"),
    (2, "ENV $A=b", "ENV is written"),
    (2, "ENV A-B=b", "cannot be the name of a variable"),
    (2, "ENV A=${B:-c}", "only $NAME and ${NAME}"),
    (2, "ENV A=$(id)", "only $NAME and ${NAME}"),
    (2, "ENV A='b", "is not closed"),
    (2, "ARG A=1 B=2", "ARG takes one variable"),
    (2, "ARG $A", "ARG is written"),
    (2, "COPY a", "COPY is written"),
    (2, "COPY", "COPY says nothing"),
    (2, "COPY ../x /x", "leads out of"),
    (2, "COPY a/../../x /x", "leads out of"),
    (2, "COPY a /x/../../y", "leads out of"),
    (2, 'COPY ["$A", "/x"]', "cannot have a quote"),
    (2, 'COPY ["a\\nb", "/x"]', "cannot be used as a path"),
    (2, "COPY '$a' /x", "cannot be used as a path"),
    (2, 'COPY ["\\ud800", "/x"]', "cannot"),
    (2, "WORKDIR a b", "WORKDIR is written"),
    (2, "WORKDIR $NO", "cannot be used as a path"),
    (2, "WORKDIR ../..", "leads out of"),
    (2, "RUN", "RUN says nothing"),
    (2, "RUN []", "RUN says nothing to run"),
    (2, 'RUN ["a\\u0000b"]', "no argument can have"),
    (2, 'CMD ["\\ud800"]', "no argument can have"),
    (2, "RUN a \\ \nb", "white space follows the backslash"),
    (2, "RUN a \\\\\nb", "two backslashes"),
    (3, "RUN a \\\n\nb", "an empty line follows"),
    (3, "RUN a \\\n# FROM ubuntu\nb", "a comment inside an instruction"),
    (3, "RUN a \\\n  # escape=`\nb", "a comment inside an instruction"),
    (2, "RUN a \\", "the file ends after a backslash"),
    (2, "RUN\u00a0a", "does not begin with an instruction"),
    (2, "\u0280UN a", "does not begin with an instruction"),
    (2, "// syntax=x", "does not begin with an instruction"),
    (2, "RUN a\u200b", "the invisible character U+200B"),
    (2, "RUN a \u202e x", "the invisible character U+202E"),
    (2, "\ufeffRUN a", "the invisible character U+FEFF"),
    (2, "RUN a\u2028USER root", "the invisible character U+2028"),
    (2, "RUN a\u0085USER root", "the invisible character U+0085"),
    (2, "RUN a\x00", "the control character U+0000"),
    (2, "RUN a\rUSER root", "the control character U+000D"),
    (2, "RUN a\x0bUSER root", "the control character U+000B"),
    (2, "RUN \x1b[31m", "the control character U+001B"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "text", "why"), REFUSED)
def test_b5_b6_b7_b8_r20_what_is_not_allowed_is_refused_with_its_line(line: int, text: str, why: str) -> None:
    message = refused(HEAD + text)
    assert message.startswith(f"Dockerfile:{line}: "), message
    assert why in message


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "Dockerfile:1: there is no FROM"),
        (b"# only a comment\n", "Dockerfile:1: there is no FROM"),
        (b"ARG IMAGE=python:3.11-slim\nFROM $IMAGE\n", "Dockerfile:1: ARG stands before the first FROM"),
        (b"RUN x\n", "Dockerfile:1: RUN stands before the first FROM"),
        (HEAD.encode() + b"RUN \xff\n", "Dockerfile:2: the file is not UTF-8"),
        (HEAD.encode() + b"RUN \xed\xa0\x80\n", "Dockerfile:2: the file is not UTF-8"),
        (b"\xff\xfeF\x00R\x00", "Dockerfile:1: the file is not UTF-8"),
        (b"#" * (MAX_BYTES + 1), "Dockerfile:1: the file has more than"),
        (HEAD.encode() + b"RUN x\n" * 100, "Dockerfile:101: there are more than 100 instructions"),
    ],
)
def test_what_is_no_dockerfile_is_refused(raw: bytes, why: str) -> None:
    assert refused(raw).startswith(why)


def test_values_that_double_with_every_line_are_refused_before_they_fill_a_memory() -> None:
    lines = [f"ENV V0={'x' * 100}", *(f"ENV V{n + 1}={f'$V{n}' * 10}" for n in range(12))]
    started = time.process_time()
    message = refused(HEAD + "\n".join(lines) + "\nCMD x\n")
    assert f"more than {MAX_VALUES_CHARS} characters" in message
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "line",
    [
        "ENV B={many}",
        "ARG B={many}",
        "ENV {variables}",
        "WORKDIR /{many}",
        "COPY {many} .",
        "COPY {words} .",
        "COPY . /{many}",
    ],
)
def test_variables_are_bounded_while_they_expand(line: str) -> None:
    long, count = "x" * (900 if "words" in line else 20_000), 7_000
    many, words = "$A" * count, "$A " * count
    variables = " ".join(f"B{number}=$A" for number in range(count // 2))
    said = line.format(many=many, words=words, variables=variables)
    raw = f"{HEAD}ENV A={long}\n{said}\nCMD x\n".encode()
    assert len(raw) < MAX_BYTES
    dockerfile = parse(raw, IMAGES)
    tracemalloc.start()
    try:
        with pytest.raises(BuildRejected, match=f"more than {MAX_VALUES_CHARS} characters"):
            resolve(dockerfile, ENVIRONMENTS)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_a_long_word_is_read_in_time_that_grows_with_it() -> None:
    started = time.process_time()
    said = resolved(f"{HEAD}ENV A={'x' * 59_000}\nCMD x\n")
    assert time.process_time() - started < 0.5
    assert isinstance(said.stages[0].steps[0], Variables)


def test_the_builder_gets_ids_numbers_and_plain_words_and_none_of_the_tenants_metadata() -> None:
    said = resolved(
        f"FROM {PYTHON} AS build\n"
        "ARG V='a $B \"q\" \\'\n"
        'ENV A="<<EOF" B=$V\n'
        "COPY . .\n"
        "COPY 'a b' /c/\n"
        "WORKDIR '/a b'\n"
        "RUN echo '<1>' \\\\ # not a comment\n"
        f"FROM {NODE}\n"
        "COPY --from=BUILD . /all/\n"
        "LABEL containerpub.installation=theirs\n"
        "CMD x\n"
    )
    text = render(said, {PYTHON: "sha256:1", NODE: "sha256:2"}, [{"who": "we"}, {}])
    assert text.text.splitlines() == [
        "FROM sha256:1 AS s0",
        'LABEL "who"="we"',
        'ARG V="a \\$B \\"q\\" \\\\"',
        'ENV A="<<EOF" B="a \\$B \\"q\\" \\\\"',
        'COPY ["context", "."]',
        'COPY ["context/a b", "/c/"]',
        'WORKDIR "/a b"',
        'RUN ["/bin/sh", "-c", "echo \'\\u003c1>\' \\\\\\\\ # not a comment"]',
        "FROM sha256:2 AS s1",
        'COPY --from=s0 ["/", "/all/"]',
    ]
    assert text.lines == (1, 0, 2, 3, 4, 5, 6, 7, 8, 9)


_WORDS = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"]) | st.sampled_from(" $\\\"'<{}#=\t"), max_size=20
)
_NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True)
_LINES = st.one_of(
    _WORDS.map(lambda text: f"RUN {text}"),
    st.lists(_WORDS, min_size=1, max_size=3).map(lambda words: f"RUN {json.dumps(words)}"),
    st.tuples(_NAMES, _WORDS).map(lambda pair: f"ENV {pair[0]}={pair[1]}"),
    st.tuples(_NAMES, _WORDS).map(lambda pair: f'ENV {pair[0]}="{pair[1]}"'),
    st.tuples(_NAMES, _NAMES).map(lambda pair: f"ENV {pair[0]}=${pair[1]}-${{PATH}}"),
    st.tuples(_NAMES, _WORDS).map(lambda pair: f"ARG {pair[0]}='{pair[1]}'"),
    _WORDS.map(lambda text: f"WORKDIR {text}"),
    _WORDS.map(lambda text: f'WORKDIR "{text}"'),
    st.tuples(_WORDS, _WORDS).map(lambda pair: f"COPY '{pair[0]}' \"{pair[1]}\""),
    st.tuples(_WORDS, _WORDS).map(lambda pair: f"COPY {pair[0]} {pair[1]}"),
    st.lists(_WORDS, min_size=2, max_size=3).map(lambda words: f"COPY {json.dumps(words)}"),
    _WORDS.map(lambda text: f"COPY --from=a {text} /x"),
    st.sampled_from([f"FROM {PYTHON} AS b", f"FROM {NODE}", "FROM a", "CMD x", "LABEL a=b", "# c", "", "RUN \\"]),
    _WORDS,
)


def _inside(said: Dockerfile) -> Dockerfile:
    """``said`` as it is after the artifact was put into the context's folder and stages were given their roots."""
    stages = []
    for stage in said.stages:
        steps = []
        for step in stage.steps:
            if isinstance(step, Copy) and step.stage is None:
                moved = (f"{CONTEXT}/{word[0]}" if word != (".",) else CONTEXT for word in step.sources)
                step = replace(step, sources=tuple((path,) for path in moved))
            steps.append(step)
        stages.append(replace(stage, steps=tuple(steps)))
    return replace(said, stages=tuple(stages), entrypoint=None, command=None)


@settings(max_examples=150, deadline=None)
@given(st.lists(_LINES, max_size=12), st.booleans())
def test_whatever_is_accepted_reads_as_itself_when_written_anew(lines: list[str], mended: bool) -> None:
    first = f"FROM {PYTHON} AS a"
    if mended:  # so that more than a few are accepted
        lines = [line for line in lines if refusal(f"{first}\n{line}".encode()) is None]
    text = "\n".join([first, *lines])
    found = refusal(text.encode())
    if found is not None:
        assert found.reason == "analysis_rejected"
        assert found.message.startswith("Dockerfile:")
        return
    said = resolved(text)
    again = render(said, {image: image for image in IMAGES}, [{}] * len(said.stages)).text
    assert all(line.split(" ")[0] in ("FROM", "RUN", "COPY", "ENV", "ARG", "WORKDIR") for line in again.splitlines())
    assert resolve(parse(again.encode(), IMAGES), ENVIRONMENTS) == _inside(said)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: (HEAD + text).encode("utf-8", "surrogatepass")))
def test_no_bytes_raise_anything_but_a_refusal(raw: bytes) -> None:
    found = refusal(raw)
    assert found is None or found.message.startswith("Dockerfile:")
